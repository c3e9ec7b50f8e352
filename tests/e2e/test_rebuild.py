"""A damaged or lost ledger: refused at start, rebuilt on a person's word, and nothing goes twice or gets lost."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import pmwatch.rebuild as rebuild_module
from pmwatch.errors import LedgerError
from pmwatch.ledger import Action, Ledger
from pmwatch.model import Fingerprint, Settled
from pmwatch.rebuild import rebuild
from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, table_id, wait_for
from support.folders import make_folder


def made(tmp_path: Path, sandbox: SandboxServer, drop: Path, **options: str) -> Daemon:
    return Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table_id(sandbox), **options))


def write(drop: Path, *names: str) -> None:
    for name in names:
        (drop / name).write_text(f"case,activity\n1,{name}\n")


def command(daemon: Daemon, *words: str, code: int = 0) -> str:
    done = daemon.command(*words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def torn(path: Path) -> None:
    """Overwrite the middle of the file, as a bad disk does."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 8192))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [garbage, torn])
def test_a_damaged_ledger_stops_the_start_and_says_what_to_do(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, harm: Callable[[Path], None]
) -> None:
    with made(tmp_path, sandbox, drop) as daemon:
        daemon.start()
        write(drop, *(f"{number}.csv" for number in range(40)))
        daemon.wait_done(40)
        daemon.stop()
        harm(daemon.state / "ledger.db")
        damaged = (daemon.state / "ledger.db").read_bytes()
        daemon.start(wait=False)
        assert daemon.wait() == 1
        assert "pmwatch ledger rebuild" in daemon.log_text()
        assert (daemon.state / "ledger.db").read_bytes() == damaged
        assert "pmwatch ledger rebuild" in command(daemon, "ledger", "check", code=1)
        assert len(sandbox.objects()) == 40


@pytest.mark.parametrize("harm", [garbage, torn, removed])
def test_a_rebuilt_ledger_knows_archive_and_quarantine_and_holds_what_lies_in_the_folder(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, harm: Callable[[Path], None]
) -> None:
    options = {"after_upload": '"archive"', "validate": '"structure"', "on_invalid": '"fail"', "recursive": "true"}
    with made(tmp_path, sandbox, drop, **options) as daemon:
        daemon.start()
        (drop / "sub").mkdir()
        write(drop, "a.csv", "sub/b.csv")
        (drop / "torn.xlsx").write_bytes(b"PK no zip")
        daemon.wait_done(2)
        wait_for(
            "torn.xlsx failed", lambda: [one for one in daemon.deliveries() if one.state == "failed" and one.location]
        )
        daemon.stop()
        write(drop, "c.csv")
        (drop / "same-as-a.csv").write_bytes(b"case,activity\n1,a.csv\n")
        harm(daemon.state / "ledger.db")

        asked = command(daemon, "ledger", "rebuild", code=1)
        assert "Aborted" in asked
        facts = json.loads(command(daemon, "ledger", "rebuild", "--json", "--why", "disk died"))
        assert {key: facts[key] for key in ("archived", "quarantined", "held", "restored")} == {
            "archived": 2,
            "quarantined": 1,
            "held": 2,
            "restored": 0,
        }
        assert bool(facts["set_aside"]) is (harm is not removed)
        assert min(path.name for path in daemon.state.iterdir() if "ledger" in path.name) == "ledger.db"
        assert not (daemon.state / "rebuild").exists()

        daemon.start()
        rows = {one.display_path: one for one in daemon.deliveries()}
        assert {name: (one.state, one.reason) for name, one in rows.items()} == {
            "a.csv": ("done", "rebuilt"),
            "sub/b.csv": ("done", "rebuilt"),
            "torn.xlsx": ("failed", "invalid"),
            "c.csv": ("held", "rebuilt"),
            "same-as-a.csv": ("held", "rebuilt"),
        }
        assert command(daemon, "audit").startswith("folder orders: 0 unaccounted")
        command(daemon, "backfill")
        daemon.wait_done(4)
        outcomes = {one.display_path: one.outcome for one in daemon.deliveries()}
        assert outcomes["c.csv"] == "uploaded"
        assert outcomes["same-as-a.csv"] == "duplicate", "the archive tells what the datatable has"
        assert sorted(record.filename for record in sandbox.objects()) == ["a.csv", "b.csv", "c.csv"]
        assert "disk died" in command(daemon, "history", "--actions")


def test_from_a_backup_what_waited_then_is_held_and_what_came_since_too(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    with made(tmp_path, sandbox, drop) as daemon:
        daemon.start()
        write(drop, "kept.csv")
        daemon.wait_done(1)
        sandbox.faults.add(Fault(method="PUT", status=503, times=1000))
        write(drop, "waits.csv")
        wait_for("waits.csv is queued", lambda: len(daemon.deliveries()) == 2)
        backup = tmp_path / "backup.db"
        assert "checked" in command(daemon, "ledger", "backup", str(backup))
        assert "is there already" in command(daemon, "ledger", "backup", str(backup), code=1)
        sandbox.faults.clear()
        write(drop, "since.csv")
        daemon.wait_done(3)
        assert "another pmwatch" in command(daemon, "ledger", "rebuild", "--yes", "--from", str(backup), code=1)
        daemon.stop()
        (daemon.state / "ledger.db").unlink()
        facts = json.loads(command(daemon, "ledger", "rebuild", "--json", "--from", str(backup)))
        assert (facts["held"], facts["restored"]) == (1, 1)
        daemon.start()
        rows = {one.display_path: (one.state, one.reason) for one in daemon.deliveries()}
        assert rows == {
            "kept.csv": ("done", ""),
            "waits.csv": ("held", "restored"),
            "since.csv": ("held", "rebuilt"),
        }
        command(daemon, "mark-seen", "--folder", "orders")
        daemon.wait_done(3)
        assert sorted(record.filename for record in sandbox.objects()) == ["kept.csv", "since.csv", "waits.csv"]


class Steps:
    """Lets the n-th step that changes what lies in the state directory fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for where, name in (
            (os, "link"),
            (os, "rename"),
            (os, "unlink"),
            (rebuild_module, "give_to_owner"),
            (rebuild_module, "sync_directory"),
        ):
            patch.setattr(where, name, self.counted(getattr(where, name)))

    def counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: Any, **named: Any) -> None:
            if not named:  # shutil, which clears up, names the directory
                self.left -= 1
                if self.left == 0:
                    raise OSError(errno.EIO, "Input/output error")
            real(*arguments, **named)

        return step


@pytest.mark.parametrize("stopped", ["well", "killed"])
def test_wherever_a_rebuild_ends_no_start_begins_with_an_empty_ledger(
    tmp_path: Path, drop: Path, stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(drop, "a.csv")
    folder, old = make_folder(drop), tmp_path / "old"
    old.mkdir()
    with Ledger.open(str(old)) as ledger:
        look = Fingerprint.of((drop / "a.csv").stat())
        ledger.enqueue([Settled(folder.name, b"a.csv", look, folder.target, folder.order, 1.0, 1.0)])
        if stopped == "killed":
            shutil.copytree(old, tmp_path / "killed")  # with the WAL, as it lies while a process has it open
    steps, found = Steps(monkeypatch), list[str]()
    for number in count(1):
        state = tmp_path / f"state-{number}"
        shutil.copytree(tmp_path / "killed" if stopped == "killed" else old, state)
        steps.left = number
        by = Action(1e9, "me", "rebuild")
        try:
            rebuild(str(state), [folder], backup=None, by=by)
        except LedgerError:
            found.append(what_starts(state))
        else:
            break
        steps.left = 0
        rebuild(str(state), [folder], backup=None, by=Action(2e9, "me", "rebuild"))
        assert what_starts(state) == "held"
        aside = min(path.name for path in state.glob("*.damaged-*Z"))
        assert what_starts(state, aside) == "queued", "the old one lies aside, whole"
    assert what_starts(state) == "held"
    assert list(dict.fromkeys(found)) == (["queued", "held"] if stopped == "well" else ["queued", "refused", "held"])


def what_starts(state: Path, name: str = "ledger.db") -> str:
    """Return the state of the one delivery that a start finds, or that it refuses to start."""
    looked_at = state.with_name("looked-at")
    shutil.rmtree(looked_at, ignore_errors=True)
    looked_at.mkdir()
    for path in state.glob(f"{name}*"):
        shutil.copy(path, looked_at / path.name.replace(name, "ledger.db"))
    try:
        with Ledger.open(str(looked_at)) as ledger:
            ledger.check()
            [one] = ledger.list()
            return str(one.state)
    except LedgerError as error:
        return "refused" if "pmwatch ledger rebuild" in error.hint else str(error)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work for another account")
def test_what_root_makes_belongs_to_the_account_of_the_service(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    daemon = made(tmp_path, sandbox, drop)
    daemon.write_config()
    daemon.state.mkdir()
    os.chown(daemon.state, 12345, 12346)
    command(daemon, "ledger", "rebuild", "--yes")
    command(daemon, "audit")
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in daemon.state.iterdir()}
    assert {"ledger.db", "pmwatch.lock"} <= owners.keys()
    assert set(owners.values()) == {(12345, 12346)}, owners
