"""The daemon as a service: notify, reload, drain, once, health, pages, and errors a person can use."""

import json
import os
import re
import signal
import sqlite3
import urllib.error
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from pmwatch.metrics import METRIC_NAMES
from pmwatch.model import State
from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, stored, table_id, wait_for


@pytest.fixture
def daemon(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Iterator[Daemon]:
    folder = folder_toml("orders", drop, datatable=table_id(sandbox))
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        yield daemon


def test_ready_comes_with_the_watch_armed_and_health_and_metrics_answer(daemon: Daemon, drop: Path) -> None:
    daemon.start()
    assert any("STATUS=watching 1 folder;" in text for text in daemon.notifications)
    assert daemon.get("/healthz") == "ok\n"
    assert daemon.get("/readyz", headers={"Host": "anything.example"}) == "ok\n"
    assert daemon.metric("pmwatch_watch_up", folder="orders") == 1
    shown = {line.split(" ")[2] for line in daemon.get("/metrics").splitlines() if line.startswith("# TYPE")}
    assert {name.removesuffix("_created") for name in shown if not name.endswith("_created")} >= METRIC_NAMES


def test_the_status_page_refuses_strange_hosts(daemon: Daemon) -> None:
    daemon.start()
    with pytest.raises(urllib.error.HTTPError) as refused:
        daemon.get("/", headers={"Host": "evil.example"})
    assert refused.value.code == 421
    refused.value.close()


def test_the_systemd_watchdog_is_fed(daemon: Daemon) -> None:
    daemon.start(env={"WATCHDOG_USEC": "2000000"})
    assert daemon.get("/healthz") == "ok\n"
    assert daemon.stop() == 0


def test_reload_takes_over_a_new_folder_and_keeps_the_others(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    daemon.start()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "b.csv").write_bytes(b"a,b\n2,2\n")
    daemon.folders += folder_toml("second", tmp_path / "second", datatable=table_id(sandbox, "Invoices"))
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    assert daemon.wait_event("reloaded")[0]["restarted"] == []
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_done(2)
    assert set(stored(sandbox)) == {"a.csv", "b.csv"}


def test_files_of_a_removed_folder_are_told_of_until_it_is_back_or_they_are_given_up(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    second = folder_toml("second", tmp_path / "second", datatable=table_id(sandbox, "Invoices"))
    kept, daemon.folders = (
        daemon.folders,
        daemon.folders + folder_toml("old", drop.parent / "old", datatable="No/Table"),
    )
    (drop.parent / "old").mkdir()
    daemon.start()
    (drop.parent / "old" / "a.csv").write_bytes(b"a,b\n1,1\n")
    wait_for("it is queued", daemon.deliveries)
    daemon.folders = kept + second
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    [told] = daemon.wait_event("reloaded")
    assert (told["added"], told["removed"], told["restarted"]) == (["second"], ["old"], [])
    [held] = daemon.wait_event("files of a removed folder are held")
    assert (held["folder"], held["files"]) == ("old", 1)
    assert held["hint"].endswith("pmwatch discard --folder old")
    assert daemon.metric("pmwatch_deliveries", folder="old", state="held") == 1
    assert daemon.metric("pmwatch_deliveries", folder="second", state="held") == 0
    assert "not in the configuration" in daemon.get("/")
    for running in (True, False):
        [row] = [line for line in daemon.command("status").stdout.splitlines() if "not in the configuration" in line]
        assert "old" in row
        assert "a.csv" in daemon.command("history", "--folder", "old").stdout
        if running:
            assert daemon.stop() == 0
    daemon.start()
    daemon.wait_event("files of a removed folder are held", count=2)
    assert daemon.command("discard", "--folder", "odl").returncode == 2
    assert daemon.command("discard", "--folder", "old").stdout == "1 of 1 discarded\n"
    assert daemon.metric("pmwatch_deliveries", folder="old", state="held") is None
    assert "not in the configuration" not in daemon.command("status").stdout


def test_a_bad_configuration_is_refused_on_reload_and_the_old_one_stays(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    daemon.start()
    daemon.config.write_text(daemon.config.read_text() + '\nsettel = "5s"\n')
    daemon.signal(signal.SIGHUP)
    refused = daemon.wait_event("reload refused")[0]
    assert any('did you mean "settle"' in problem for problem in refused["problems"])
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_done(1)
    for broken in (daemon.config.read_text(), daemon.config.read_text() + "\nthis is no TOML\n"):
        daemon.config.write_text(broken)
        for words in (["health"], ["status"], ["history", "--folder", "orders"], ["why", str(drop / "a.csv")]):
            told = daemon.command(*words)
            assert told.returncode == 0, told.stderr
            assert told.stderr.startswith("pmwatch: the configuration is wrong: ")
            assert told.stderr.endswith("; the daemon runs on with the old one\n")
            assert len(told.stderr.splitlines()) == 1
            assert "a.csv" in told.stdout or words == ["health"]
        assert daemon.command("retry", "--all").returncode == 78, "what changes something reads the whole configuration"
    daemon.config.write_text("[[folders]]\n")
    assert daemon.command("status").returncode == 78
    assert daemon.command("status", "--state-dir", str(daemon.state)).returncode == 0
    assert daemon.stop() == 0
    for name in ("health", "status", "history"):
        assert daemon.command(name, "--state-dir", str(daemon.state)).returncode == 78


def test_another_state_directory_waits_for_a_restart_and_the_log_says_where_commands_look(daemon: Daemon) -> None:
    daemon.start()
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace(f'"{daemon.state}"', f'"{daemon.state}2"'))
    for count in (1, 2):
        daemon.signal(signal.SIGHUP)
        told = daemon.wait_event("restart needed", count=count)[-1]
        assert told["sections"] == ["state.dir"]
        assert told["hint"].endswith(f"give them --state-dir {daemon.state}.")
    assert daemon.command("health").returncode == 1
    assert daemon.command("health", "--state-dir", str(daemon.state)).returncode == 0


def test_a_reload_that_the_ledger_cannot_take_is_refused_and_the_old_configuration_stays(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", status=503, times=1000, retry_after=5))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("gate closed")
    wait_for("it waits", lambda: [one.state for one in daemon.deliveries()] == [State.QUEUED])
    good = daemon.folders
    daemon.folders = folder_toml("other", drop, datatable=table_id(sandbox, "Invoices")) + good.replace(
        table_id(sandbox), table_id(sandbox, "Invoices")
    ).replace(str(drop), str(drop / "below"))
    daemon.write_config()
    with closing(sqlite3.connect(daemon.state / "ledger.db")) as ledger:
        ledger.execute("ALTER TABLE destinations RENAME TO away")
        daemon.signal(signal.SIGHUP)
        refused = daemon.wait_event("reload refused")[0]
        ledger.execute("ALTER TABLE away RENAME TO destinations")
    assert "destinations" in refused["error"]
    assert "The old configuration stays in force" in refused["hint"]
    sandbox.faults.clear()
    (drop / "b.csv").write_bytes(b"a,b\n2,2\n")
    assert {(one.folder, one.target.datatable) for one in daemon.wait_done(2)} == {("orders", table_id(sandbox))}
    daemon.folders = good
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("reloaded")
    assert daemon.stop() == 0


def test_a_corrected_datatable_takes_what_waits_along(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.folders = folder_toml("orders", drop, datatable="Order to cash/Ordres")
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    unknown = daemon.wait_event("destination unknown")[0]
    assert "Order to cash/Orders" in unknown["hint"]
    daemon.folders = folder_toml("orders", drop, datatable="Order to cash/Orders")
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    daemon.wait_done(1)
    assert sandbox.objects()[0].datatable_id == table_id(sandbox)


def test_drain_sends_everything_before_it_exits(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.start("--drain")
    for number in range(50):
        (drop / f"{number:02}.csv").write_bytes(f"a,b\n{number},1\n".encode())
    assert daemon.stop() == 0
    assert set(stored(sandbox)) == {f"{number:02}.csv" for number in range(50)}


def test_drain_that_cannot_finish_exits_1_and_lists_what_was_left(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    daemon.extra = 'drain_timeout = "1s"'
    sandbox.faults.add(Fault(method="PUT", status=500, times=1000))
    daemon.start("--drain")
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("gate closed")
    assert daemon.stop() == 1
    assert [event["path"] for event in daemon.events("left behind")] == ["a.csv"]
    sandbox.faults.clear()
    daemon.start()
    daemon.wait_done(1)
    assert set(stored(sandbox)) == {"a.csv"}


def signalled_while_it_starts(daemon: Daemon, new: Path, mode: str, *signals: signal.Signals) -> int:
    """Start the daemon on a new file, send it signals while it waits for its ledger, and return its exit code."""
    daemon.start()
    assert daemon.stop() == 0
    new.write_bytes(b"a,b\n1,1\n")
    with closing(sqlite3.connect(daemon.state / "ledger.db", isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        daemon.start(mode, wait=False)
        wait_for("its handlers", lambda: signals_caught(daemon.pid) >= set(signals))
        for number in signals:
            daemon.signal(number)
    return daemon.wait()


def signals_caught(pid: int) -> set[int]:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return {bit + 1 for bit in range(64) if int(line.split()[1], 16) >> bit & 1}


def test_drain_asked_for_before_ready_sends_everything(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    assert signalled_while_it_starts(daemon, drop / "a.csv", "--drain", signal.SIGTERM) == 0
    assert stored(sandbox) == {"a.csv": b"a,b\n1,1\n"}


@pytest.mark.parametrize(
    ("mode", "signals"), [("--once", [signal.SIGTERM]), ("--drain", [signal.SIGTERM, signal.SIGINT])]
)
def test_a_job_that_is_stopped_before_it_looked_exits_1_and_says_so(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, mode: str, signals: list[signal.Signals]
) -> None:
    daemon.folders = folder_toml("orders", drop, datatable=table_id(sandbox), settle='"5s"')
    assert signalled_while_it_starts(daemon, drop / "a.csv", mode, *signals) == 1
    assert stored(sandbox) == {}
    assert daemon.events("left behind") or daemon.events("folder was not looked through")


def test_once_sends_what_is_there_and_exits(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    for number in range(5):
        (drop / f"{number}.csv").write_bytes(f"a,b\n{number},1\n".encode())
    daemon.start("--once", wait=False)
    assert daemon.wait() == 0
    assert len(stored(sandbox)) == 5
    daemon.start("--once", wait=False)
    assert daemon.wait() == 0
    assert len(stored(sandbox)) == 5


def test_once_exits_1_where_a_folder_cannot_be_read(daemon: Daemon, drop: Path) -> None:
    drop.rmdir()
    daemon.start("--once", wait=False)
    assert daemon.wait() == 1


def test_once_exits_1_where_it_held_old_files_for_a_person(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.folders = folder_toml("orders", drop, datatable=table_id(sandbox), backlog='"ask"', max_backlog="1")
    for number in range(2):
        (drop / f"{number}.csv").write_bytes(f"a,b\n{number},1\n".encode())
        os.utime(drop / f"{number}.csv", (10**9, 10**9))
    daemon.start("--once", wait=False)
    assert daemon.wait() == 1
    assert daemon.events("backlog held")[0]["files"] == 2
    assert stored(sandbox) == {}


def test_a_rejected_file_goes_to_quarantine_and_retry_sends_it(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", status=400, code="InvalidArgument", times=1))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    failed = daemon.wait_event("upload failed")[0]
    assert failed["s3_code"] == "InvalidArgument"
    told = wait_for("the record", lambda: list((drop / ".pmwatch" / "quarantine").glob("*.error.json")))
    facts = json.loads(told[0].read_text())
    assert facts["file"] == "a.csv"
    assert "http" not in facts["message"]
    assert not (drop / "a.csv").exists()
    for name, states in (("retry", "failed"), ("discard", "held or failed")):
        chosen = daemon.command(name, "--reason", "rejectde")
        assert (chosen.returncode, chosen.stdout[:6]) == (0, "0 of 0")
        assert chosen.stderr == (
            f"pmwatch: no {states} file has the reason 'rejectde'; there are: {failed['reason']} (1)\n"
        )
    assert daemon.command("release", "--reason", "rejectde").stderr == "", "none is held"
    assert daemon.command("retry", str(daemon.deliveries()[0].id)).returncode == 0
    daemon.wait_done(1)
    assert stored(sandbox) == {"a.csv": b"a,b\n1,1\n"}


def test_status_why_audit_and_doctor_answer_while_it_runs_and_after(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_done(1)
    for running in (True, False):
        status = json.loads(daemon.command("status", "--json").stdout)
        assert status["folders"][0]["states"]["done"] == 1
        assert status["deliveries"][0]["path"] == "a.csv"
        why = json.loads(daemon.command("why", str(drop / "a.csv"), "--json").stdout)
        assert why["verdict"] == "done"
        assert any("not watched now" in sentence for sentence in why["sentences"]) is not running
        assert daemon.command("health").returncode == (0 if running else 1)
        assert daemon.command("audit").returncode == 0
        assert daemon.command("doctor").returncode == 0
        if running:
            assert daemon.stop() == 0
    (drop / "b.csv").write_bytes(b"a,b\n2,2\n")
    audit = daemon.command("audit", "--json")
    assert audit.returncode == 0
    assert json.loads(audit.stdout)[0]["verdicts"] == {"not taken up yet (pmwatch is not running)": 1}


def test_commands_tell_one_that_cannot_be_asked_from_none(daemon: Daemon, drop: Path) -> None:
    daemon.write_config()
    daemon.config.write_text(daemon.config.read_text().replace('listen = "127.0.0.1:0"', 'listen = "off"'))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_done(1)
    status = json.loads(daemon.command("status", "--json").stdout)
    assert status["summary"].startswith(f"pmwatch runs (PID {daemon.pid}), but cannot be asked: [http] listen")
    assert status["folders"][0]["up"] is None
    assert "unknown" in daemon.command("status").stdout
    why = daemon.command("why", str(drop / "a.csv")).stdout
    assert f"pmwatch runs (PID {daemon.pid}), but cannot be asked" in why
    assert "does not run" not in why
    assert daemon.stop() == 0
    status = json.loads(daemon.command("status", "--json").stdout)
    assert status["summary"].startswith("pmwatch does not run")
    assert status["folders"][0]["up"] is False


def test_the_audit_knows_from_the_daemon_what_settles(daemon: Daemon, drop: Path) -> None:
    daemon.defaults = 'settle = "1h"\nrescan_interval = "1h"\n'
    daemon.start()
    names = [b"open\xff 1.csv", b"a+b%20.csv"]
    for name in names:
        with open(os.path.join(os.fsencode(drop), name), "wb") as file:
            file.write(b"a,b\n1,1\n")
    wait_for("both settle", lambda: daemon.metric("pmwatch_settling_files", folder="orders") == 2)
    audit = daemon.command("audit", "--json")
    assert json.loads(audit.stdout)[0]["verdicts"] == {"settling": 2}
    assert audit.returncode == 0


def test_why_knows_a_file_of_a_folder_that_is_configured_through_a_symbolic_link(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(drop)
    daemon.folders = folder_toml("orders", link, datatable=table_id(sandbox), complete_when='"marker"')
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    wait_for("it is seen", lambda: said_of(daemon, drop / "a.csv", "settling"))
    assert said_of(daemon, link / "a.csv", "settling")
    assert daemon.stop() == 0
    for path in (link / "a.csv", drop / "a.csv"):
        assert said_of(daemon, path, "new")


def said_of(daemon: Daemon, path: Path, verdict: str) -> dict[str, Any] | None:
    """Return what `why` says of a file, if it is this verdict."""
    told: dict[str, Any] = json.loads(daemon.command("why", str(path), "--json").stdout)
    return told if told["verdict"] == verdict else None


def test_why_knows_a_file_whose_name_is_not_utf_8(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    name = os.fsencode(drop) + b"/bad\xff.csv"
    with open(name, "wb") as file:
        file.write(b"a,b\n1,1\n")
    daemon.start()
    daemon.wait_done(1)
    for running in (True, False):
        for asked in (os.fsdecode(name), f"{drop}/bad\\xff.csv"):
            told = json.loads(daemon.command("why", asked, "--json").stdout)
            assert (told["verdict"], unquote_to_bytes(told["path_encoded"])) == ("done", name)
        if running:
            assert daemon.stop() == 0


def test_why_says_when_a_closed_gate_is_tried_next(daemon: Daemon, drop: Path) -> None:
    daemon.write_config()
    (daemon.root / "key-demo").write_text("a-key-of-nobody")
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("gate closed")
    wait_for("it is queued", daemon.deliveries)
    told = json.loads(daemon.command("why", str(drop / "a.csv"), "--json").stdout)["sentences"]
    assert told[-1].startswith("Its tenant waits: ")
    assert re.search(r"\. (Next try in \d+\S*|It is being tried now)\.$", told[-1])
    assert ".." not in told[-1]


def test_why_names_the_storage_that_a_file_waits_for(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    sandbox.faults.add("PUT 503 x* code=SlowDown")
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("gate closed")
    told = wait_for("it is queued", lambda: said_of(daemon, drop / "a.csv", "queued"))["sentences"]
    host = sandbox.base_url.rpartition("/")[2]
    assert told[-1].startswith(f"Its storage ({host}) waits: the storage answered 503 SlowDown")


def test_status_and_page_name_the_file_that_others_wait_behind_and_what_frees_them(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    daemon.folders = folder_toml("orders", drop, datatable=table_id(sandbox), min_size='"1KiB"', on_failure='"block"')
    daemon.start()
    (drop / "first.csv").write_text("id\n1\n")
    wait_for("it is held", lambda: [str(one.state) for one in daemon.deliveries()] == ["held"])
    (drop / "second.csv").write_text("id\n" + "2\n" * 1000)
    wait_for("the second waits", lambda: len(daemon.deliveries()) == 2)
    page = daemon.get("/")
    assert '<td class="path">first.csv<td>orders<td class="n">1\n<td>held' in page
    assert "pmwatch discard 1 gives it up" in page
    assert (
        page.index("Needs a person")
        < page.index("too_small", page.index("Needs a person"))
        < page.index("Latest files")
    )
    for running in (True, False):
        told = daemon.command("status").stdout
        assert "1 wait behind first.csv of folder orders since" in told
        assert "pmwatch discard 1 gives it up" in told
        assert told.index("these need a person") < told.index(" too_small ") < told.index("the latest files")
        if running:
            assert daemon.stop() == 0


def test_a_wrong_configuration_exits_78_with_every_problem_and_no_traceback(daemon: Daemon, drop: Path) -> None:
    daemon.write_config()
    daemon.config.write_text(
        daemon.config.read_text().replace("settle =", "settel =").replace('tenant = "demo"', 'tenant = "dmeo"')
    )
    for name in ("run", "check", "doctor"):
        told = daemon.command(name)
        assert told.returncode == 78
        assert 'did you mean "settle"' in told.stderr
        assert 'did you mean "demo"' in told.stderr
        assert "Traceback" not in told.stderr


def test_a_taken_port_is_a_clear_error(daemon: Daemon, sandbox: SandboxServer) -> None:
    daemon.write_config()
    port = sandbox.base_url.rpartition(":")[2]
    told = daemon.command("run", "--listen", f"127.0.0.1:{port}")
    assert told.returncode == 1
    assert "listen" in told.stderr
    assert "Traceback" not in told.stderr


def test_once_asks_for_the_rows_before_it_exits(daemon: Daemon, drop: Path) -> None:
    (drop / "a.csv").write_text("id\n1\n2\n")
    daemon.start("--once", wait=False)
    assert daemon.wait(20) == 0, daemon.log_text()
    assert [one.row_count for one in daemon.deliveries()] == [2]
