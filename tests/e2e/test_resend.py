"""`pmwatch resend` and `pmwatch history`, against a running daemon and with none."""

import json
import subprocess
from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, table_id, wait_for

NAMES = ("b.csv", "a.csv", "c.csv")


def made(tmp_path: Path, sandbox: SandboxServer, drop: Path, **options: str) -> Daemon:
    """Return a daemon that has uploaded three files in an order that is not that of their names."""
    folder = folder_toml("orders", drop, datatable=table_id(sandbox), **options)
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder).start()
    for name in NAMES:
        (drop / name).write_text(f"case,activity\n1,{name}\n")
        daemon.wait_done(NAMES.index(name) + 1)
    return daemon


def resend(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    return daemon.command("resend", "--folder", "orders", "--since", "1h", "--yes", *words)


@pytest.mark.parametrize("after_upload", ["keep", "archive"])
def test_what_was_uploaded_goes_again_in_its_order_past_dedup_and_stays_where_it_lies(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, after_upload: str
) -> None:
    archived = after_upload == "archive"
    with made(tmp_path, sandbox, drop, after_upload=f'"{after_upload}"') as daemon:
        before = sorted(path.relative_to(drop) for path in drop.rglob("*.csv"))
        if archived:
            refused = resend(daemon)
            assert refused.returncode == 1
            assert refused.stdout.count("add --from-archive") == 3
        done = resend(daemon, "--why", "the table was emptied", *(["--from-archive"] if archived else []))
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "3 of 3 queued again"), done.stderr
        again = [one for one in daemon.wait_done(6) if one.resent]
        assert sorted(path.relative_to(drop) for path in drop.rglob("*.csv")) == before
        assert [record.filename for record in sandbox.objects()] == [*NAMES, *NAMES]
        assert {one.outcome for one in again} == {"uploaded"}
        [action] = json.loads(daemon.command("history", "--json").stdout)["actions"]
        assert (action["command"], action["why"], action["deliveries"]) == ("resend", "the table was emptied", "4-6")
        assert action["who"]
        assert daemon.stop() == 0
        assert "the table was emptied" in daemon.command("history", "--actions").stdout, "from the ledger as well"
        for path in drop.rglob("a.csv"):
            path.unlink()
        audit = daemon.command("audit", "--json")
        assert (audit.returncode, json.loads(audit.stdout)[0]["unaccounted"]) == (0, 0), "people may remove them"


def test_a_file_that_was_changed_in_the_archive_is_not_sent_as_if_it_were_the_old_one(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    import os

    with made(tmp_path, sandbox, drop, after_upload='"archive"') as daemon:
        [archived] = list(drop.rglob("a.csv"))
        st = archived.stat()
        archived.write_text("case,activity\n1,A.csv\n")
        os.utime(archived, ns=(st.st_atime_ns, st.st_mtime_ns))
        assert resend(daemon, "--from-archive").returncode == 0
        wait_for(
            "the changed one failed", lambda: [one for one in daemon.deliveries() if one.reason == "content_changed"]
        )
        daemon.wait_done(5)
        assert [record.filename for record in sandbox.objects()] == [*NAMES, "b.csv", "c.csv"]


def test_what_is_gone_or_replaced_is_named_and_nothing_goes_twice_for_asking_twice(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    with made(tmp_path, sandbox, drop) as daemon:
        daemon.stop()
        (drop / "a.csv").unlink()
        (drop / "b.csv").write_text("case,activity\n1,new\n")
        first = resend(daemon)
        assert first.returncode == 1
        assert "1 of 3 queued again" in first.stdout
        assert "a.csv: its source is not there any more" in first.stdout
        assert "b.csv: a newer version stands in its place" in first.stdout
        assert "1 wait for an earlier resend already" in resend(daemon).stdout
        daemon.start()
        daemon.wait_done(5)
        assert sorted(record.filename for record in sandbox.objects()) == ["a.csv", "b.csv", "b.csv", "c.csv", "c.csv"]


def test_a_dry_run_and_a_refused_question_send_nothing(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> None:
    with made(tmp_path, sandbox, drop) as daemon:
        shown = resend(daemon, "--dry-run")
        assert shown.returncode == 0
        assert shown.stdout.count("yes") == 3
        asked = daemon.command("resend", "--folder", "orders", "--since", "1h")
        assert asked.returncode == 1
        assert "go a second time to" in asked.stdout
        nothing = daemon.command(
            "resend", "--folder", "orders", "--since", "2020-01-01", "--until", "2020-02-01", "--yes"
        )
        assert "nothing was uploaded in that time" in nothing.stdout
        assert daemon.command("resend", "--folder", "orders", "--since", "yesterday").returncode == 2
        assert daemon.command("resend").returncode == 2
        unknown = daemon.command("resend", "2", "999")
        assert unknown.returncode == 2
        assert "999: no such upload" in unknown.stderr
        assert len(daemon.deliveries()) == 3
        by_id = daemon.command("resend", "3", "1", "--json")
        assert json.loads(by_id.stdout)["queued"] == [4, 5]
        daemon.wait_done(5)
        assert [record.filename for record in sandbox.objects()] == [*NAMES, "b.csv", "c.csv"]


def test_history_tells_by_folder_state_outcome_and_age_from_daemon_and_ledger(
    tmp_path: Path, sandbox: SandboxServer, drop: Path
) -> None:
    with made(tmp_path, sandbox, drop) as daemon:
        (drop / "same.csv").write_bytes((drop / "a.csv").read_bytes())
        daemon.wait_done(4)
        for running in (True, False):
            if not running:
                daemon.stop()
            found = json.loads(daemon.command("history", "--outcome", "duplicate", "--json").stdout)["deliveries"]
            assert [(one["path"], one["duplicate_of"]) for one in found] == [("same.csv", 2)]
            assert len(json.loads(daemon.command("history", "--json", "--limit", "2").stdout)["deliveries"]) == 2
            assert "same as 2" in daemon.command("history", "--folder", "orders", "--since", "1h").stdout
            assert daemon.command("history", "--state", "held").stdout == "nothing\n"
            wrong = daemon.command("history", "--state", "gone")
            assert wrong.returncode == 2
            assert "none of queued" in wrong.stderr
