"""The daemon through trouble: kill -9, expired URLs, revoked keys, absent directories, dead servers."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pmwatch.sandbox import Fault, SandboxServer, TenantSeed
from support.daemon import Daemon, folder_toml, stored, table_id, wait_for

BIG = 200 * 1024 * 1024


@pytest.fixture
def daemon(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Iterator[Daemon]:
    folder = folder_toml("orders", drop, datatable=table_id(sandbox))
    with Daemon.for_sandbox(tmp_path, sandbox, folder) as daemon:
        yield daemon


def big_file(path: Path) -> None:
    """Write 200 MB that no two blocks of are equal, under a temporary name."""
    part = path.with_name(f".{path.name}.part")
    block = os.urandom(1024 * 1024)
    with part.open("wb") as file:
        for number in range(BIG // len(block)):
            file.write(number.to_bytes(8, "big") + block[8:])
    part.rename(path)


def test_kill_9_in_the_middle_of_a_large_upload_loses_and_repeats_nothing(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    daemon.start()
    big_file(drop / "big.csv")
    wait_for("the upload runs", lambda: [d for d in daemon.deliveries() if d.presigned_url])
    daemon.kill()
    assert sandbox.objects() == []
    interrupted = daemon.deliveries()
    assert [delivery.state for delivery in interrupted] == ["uploading"]
    daemon.start()
    done = daemon.wait_done(1)
    assert [delivery.id for delivery in daemon.deliveries()] == [interrupted[0].id]
    assert done[0].recoveries == 1
    assert stored(sandbox)["big.csv"] == (drop / "big.csv").read_bytes()


def test_a_lost_answer_is_repeated_against_the_same_url_and_stored_once(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", when="after", close=True, times=1))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    done = daemon.wait_done(1)
    assert done[0].attempts == 2
    assert stored(sandbox) == {"a.csv": b"a,b\n1,1\n"}
    assert len([request for request in sandbox.requests() if "presignedurl" in request.path]) == 1


def test_an_expired_url_leads_to_a_new_one(tmp_path: Path, drop: Path) -> None:
    with SandboxServer(tmp_path / "sandbox", url_expires_seconds=3600) as server:
        server.faults.add(Fault(method="PUT", status=403, code="ExpiredToken", times=1))
        with Daemon.for_sandbox(tmp_path, server, folder_toml("orders", drop, datatable=table_id(server))) as daemon:
            daemon.start()
            (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
            assert daemon.wait_done(1)[0].attempts == 1
            assert set(stored(server)) == {"a.csv"}
            assert len([request for request in server.requests() if "presignedurl" in request.path]) == 2


def test_a_revoked_key_stops_only_its_tenant_until_its_file_is_replaced(tmp_path: Path) -> None:
    seeds = [TenantSeed("acme"), TenantSeed("other")]
    with SandboxServer(tmp_path / "sandbox", tenants=seeds) as server:
        folders = ""
        for number, name in enumerate(("acme", "other")):
            (tmp_path / name).mkdir()
            table = table_id(server, tenant=number)
            folders += folder_toml(name, tmp_path / name, tenant=name, datatable=table)
        with Daemon.for_sandbox(tmp_path, server, folders) as daemon:
            daemon.start()
            new_key = server.sandbox.rotate_key(server.tenants[0]["id"])
            (tmp_path / "acme" / "a.csv").write_bytes(b"a,b\n1,1\n")
            closed = daemon.wait_event("gate closed")
            assert closed[0]["gate"] == "acme"
            assert closed[0]["reason"] == "key_rejected"
            assert f"{tmp_path}/key-acme" in closed[0]["hint"]
            (tmp_path / "other" / "b.csv").write_bytes(b"a,b\n2,2\n")
            daemon.wait_done(1)
            assert daemon.metric("pmwatch_gate_open", gate="acme") == 0
            assert daemon.metric("pmwatch_gate_open", gate="other") == 1
            assert set(stored(server)) == {"b.csv"}
            (tmp_path / "key-acme.new").write_text(new_key)
            (tmp_path / "key-acme.new").rename(tmp_path / "key-acme")
            daemon.wait_done(2)
            assert daemon.metric("pmwatch_gate_open", gate="acme") == 1
            assert set(stored(server)) == {"a.csv", "b.csv"}
            for text in (daemon.log_text(), daemon.get("/"), daemon.get("/api/v1/status"), daemon.get("/metrics")):
                assert new_key not in text
                assert "X-Amz-Signature" not in text


def test_a_key_file_and_a_directory_that_come_later_are_picked_up(
    daemon: Daemon, sandbox: SandboxServer, drop: Path, tmp_path: Path
) -> None:
    key = (tmp_path / "key-demo").read_text()
    (tmp_path / "key-demo").unlink()
    drop.rmdir()
    daemon.start()
    assert daemon.metric("pmwatch_watch_up", folder="orders") == 0
    assert "Create it" in daemon.wait_event("folder down")[0]["hint"]
    drop.mkdir()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("folder up")
    assert "No such file" in daemon.wait_event("gate closed")[0]["error"]
    (tmp_path / "key-demo").write_text(key)
    daemon.wait_done(1)
    assert daemon.metric("pmwatch_watch_up", folder="orders") == 1


def test_a_deleted_and_recreated_root_is_watched_again(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.start()
    drop.rmdir()
    daemon.wait_event("folder down")
    drop.mkdir()
    daemon.wait_event("folder up")
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_done(1)
    assert set(stored(sandbox)) == {"a.csv"}


def test_a_dead_server_closes_the_gate_and_everything_flows_when_it_is_back(tmp_path: Path, drop: Path) -> None:
    server = SandboxServer(tmp_path / "sandbox")
    server.start()
    try:
        with Daemon.for_sandbox(tmp_path, server, folder_toml("orders", drop, datatable=table_id(server))) as daemon:
            daemon.start()
            server.stop()
            for number in range(5):
                (drop / f"{number}.csv").write_bytes(f"a,b\n{number},1\n".encode())
            closed = daemon.wait_event("gate closed")[0]
            assert "refused" in closed["error"]
            server.start()
            daemon.wait_done(5)
            assert [record.filename for record in server.objects()] == [f"{number}.csv" for number in range(5)]
    finally:
        server.stop()


def test_storage_that_answers_503_for_a_while_delays_and_loses_nothing(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", status=503, code="SlowDown", times=3))
    daemon.start()
    for number in range(4):
        (drop / f"{number}.csv").write_bytes(f"a,b\n{number},1\n".encode())
    daemon.wait_done(4)
    assert len(stored(sandbox)) == 4


def test_a_second_daemon_on_the_same_state_is_refused_with_the_pid_of_the_first(daemon: Daemon) -> None:
    daemon.start()
    second = subprocess.run(
        [sys.executable, "-m", "pmwatch", "run", "--config", daemon.config], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert f"PID {daemon.pid}" in second.stderr
    assert "Traceback" not in second.stderr


def test_sigterm_lets_a_running_upload_finish(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.start()
    big_file(drop / "big.csv")
    wait_for("the upload runs", lambda: [d for d in daemon.deliveries() if d.presigned_url])
    assert daemon.stop() == 0
    assert [delivery.state for delivery in daemon.deliveries()] == ["done"]
    assert stored(sandbox)["big.csv"] == (drop / "big.csv").read_bytes()


def test_a_second_sigterm_does_not_wait_and_gives_the_file_back(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", when="before", delay=30, status=500, times=1))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    wait_for("the upload runs", lambda: [d for d in daemon.deliveries() if d.presigned_url])
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("stopping")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait(15) == 0
    assert [delivery.state for delivery in daemon.deliveries()] == ["queued"]
    sandbox.faults.clear()
    daemon.start()
    daemon.wait_done(1)
    assert set(stored(sandbox)) == {"a.csv"}


def test_a_full_disk_under_the_log_ends_nothing(daemon: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    daemon.log = Path("/dev/full")
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    wait_for("a.csv is done", lambda: [one for one in daemon.deliveries() if one.state == "done"])
    assert daemon.stop() == 0
    assert stored(sandbox) == {"a.csv": b"a,b\n1,1\n"}


def test_what_waited_when_the_clock_was_set_back_by_a_day_goes_at_once(
    daemon: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", when="after", close=True, times=1000))
    daemon.start()
    (drop / "a.csv").write_bytes(b"a,b\n1,1\n")
    daemon.wait_event("upload will be tried again")
    assert daemon.stop() == 0
    sandbox.faults.clear()
    with closing(sqlite3.connect(daemon.state / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE deliveries SET not_before = not_before + 86400")
    daemon.start()
    daemon.wait_done(1)
    assert daemon.events("waits cut short")[0]["deliveries"] == 1


def test_the_gate_of_a_tenant_that_a_reload_removes_goes_with_it(tmp_path: Path) -> None:
    seeds = [TenantSeed("one", {"Sales": ("Orders",)}), TenantSeed("two", {"Sales": ("Orders",)})]
    drops = {name: tmp_path / f"drop-{name}" for name in ("one", "two")}
    with SandboxServer(tmp_path / "sandbox", tenants=seeds) as sandbox:
        folders = {}
        for name, path in drops.items():
            path.mkdir()
            folders[name] = folder_toml(name, path, tenant=name, datatable="Sales/Orders")
        with Daemon.for_sandbox(tmp_path, sandbox, "".join(folders.values())) as daemon:
            (tmp_path / "key-two").write_text("a-key-that-was-revoked")
            daemon.start()
            (drops["two"] / "a.csv").write_bytes(b"a,b\n1,1\n")
            daemon.wait_event("gate closed")
            assert daemon.metric("pmwatch_gate_open", gate="two") == 0
            del daemon.tenants["two"]
            daemon.folders = folders["one"]
            daemon.write_config()
            daemon.signal(signal.SIGHUP)
            daemon.wait_event("reloaded")
            assert daemon.metric("pmwatch_gate_open", gate="one") == 1
            assert daemon.metric("pmwatch_gate_open", gate="two") is None
