"""An upgrade and a downgrade as people meet them: what commands say about an older ledger, and about a newer one."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pmwatch.cli import main
from pmwatch.ledger import VERSION
from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, stored, table_id
from support.versions import OLDER, content, lay

READERS = [["status"], ["why", "FILE"], ["history"], ["audit"]]
WRITERS = [["retry", "6"], ["release", "5"], ["discard", "5"], ["backfill"], ["mark-seen"], ["resend", "1", "--yes"]]
CARERS = [["ledger", "check"], ["ledger", "backup", "COPY"]]


@pytest.fixture
def daemon(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Daemon:
    """A daemon that was not started, with a folder "orders"."""
    folder = folder_toml("orders", drop, datatable=table_id(sandbox))
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder)
    daemon.write_config()
    return daemon


def told(daemon: Daemon, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Give a command; return its exit code and what it said."""
    places = {"FILE": str(daemon.root / "drop" / "kept.csv"), "COPY": str(daemon.root / "copy.db")}
    line = ["pmwatch", *(places.get(word, word) for word in words), "--config", str(daemon.config)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    return f"{ended.value.code} {out.out}{out.err}"


def give(daemon: Daemon, *words: str) -> None:
    """Give a command as a process, which must succeed."""
    line = [sys.executable, "-m", "pmwatch", *words, "--config", str(daemon.config)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_older_ledger_is_upgraded_at_start_and_everything_goes_on(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    file = lay(daemon.state, 1)
    with closing(sqlite3.connect(file)) as old:  # else its files would lie on something that is not mounted now
        old.execute("UPDATE deliveries SET device = ?", (drop.stat().st_dev,))
        old.commit()
    for name in ("first.csv", "second.csv"):
        (drop / name).write_text(f"case,activity\n1,{name}\n")
    with daemon:
        daemon.start()
        [said] = daemon.wait_event("ledger upgraded")
        assert (said["from_version"], said["to_version"]) == (1, VERSION)
        daemon.wait_event("uploaded", count=2)
        assert stored(sandbox).keys() == {"first.csv", "second.csv"}
        by_path = {one.path: one for one in daemon.deliveries()}
        assert len(by_path) == 13
        assert by_path[b"kept.csv"].sha256 == "b" * 64
        assert by_path[b"failed.csv"].state == "failed"
        give(daemon, "history", "--actions")
        assert daemon.stop() == 0


@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("words", READERS + WRITERS, ids=" ".join)
def test_before_the_start_a_command_says_that_the_ledger_is_older_and_leaves_it(
    daemon: Daemon,
    words: list[str],
    version: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay(daemon.state, version)
    before = content(daemon.state)
    said = told(daemon, words, monkeypatch, capsys)
    assert said.startswith(f"1 pmwatch: the ledger has version {version}, and this pmwatch works on version {VERSION}")
    assert "upgraded when pmwatch run starts" in said
    assert content(daemon.state) == before


@pytest.mark.parametrize("words", CARERS, ids=" ".join)
def test_an_older_ledger_can_be_checked_and_backed_up(
    daemon: Daemon, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(daemon.state, 1)
    said = told(daemon, words, monkeypatch, capsys)
    assert said.startswith("0 "), said


@pytest.mark.parametrize("words", READERS + WRITERS + CARERS, ids=" ".join)
def test_every_command_refuses_a_newer_ledger_and_leaves_it(
    daemon: Daemon, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(daemon.state, VERSION + 1)
    before = content(daemon.state)
    said = told(daemon, words, monkeypatch, capsys)
    assert said.startswith(f"78 pmwatch: the ledger has version {VERSION + 1}, and this pmwatch knows versions up to")
    assert "hint: A newer pmwatch wrote it" in said
    assert content(daemon.state) == before
    assert not os.path.lexists(daemon.root / "copy.db")


def test_the_service_refuses_a_newer_ledger_for_good_and_leaves_it(daemon: Daemon) -> None:
    lay(daemon.state, VERSION + 1)
    before = content(daemon.state)
    with daemon:
        daemon.start(wait=False)
        assert daemon.wait() == 78, "systemd must not try again"
    assert f"the ledger has version {VERSION + 1}" in daemon.log_text()
    assert "Traceback" not in daemon.log_text()
    assert {name: held for name, held in content(daemon.state).items() if name in before} == before


def test_a_backup_of_before_the_upgrade_leads_back_with_what_went_since_held(
    daemon: Daemon, drop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(daemon.state, 1)
    said = told(daemon, ["ledger", "backup", "COPY"], monkeypatch, capsys)
    assert said.startswith("0 "), said
    (daemon.state / "ledger.db").unlink()
    lay(daemon.state, VERSION + 1)
    (drop / "since.csv").write_text("case,activity\n1,since\n")
    said = told(daemon, ["ledger", "rebuild", "--json", "--from", "COPY"], monkeypatch, capsys)
    assert said.startswith("0 "), said
    rows = {one.path: (str(one.state), one.reason) for one in daemon.deliveries()}
    assert rows[b"since.csv"] == ("held", "rebuilt")
    assert rows[b"first.csv"] == ("held", "restored")
    assert rows[b"under way.csv"] == ("held", "restored")
    assert rows[b"failed.csv"] == ("failed", "rejected")
    assert rows[b"kept.csv"] == ("done", "")
    assert [name for name in content(daemon.state) if name.startswith("ledger.db.damaged-")], "the newer one is kept"
