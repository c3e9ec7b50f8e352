"""The sidecar of an export job, as real processes with a shared volume: it drains what the job wrote last."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, stored, wait_for
from support.services import free_port

JOB = """
import pathlib, sys, time
drop = pathlib.Path(sys.argv[1])
for number in range(49):
    part = drop / f"{number:02}.csv.part"
    part.write_text(f"id\\n{number}\\n")
    part.rename(drop / f"{number:02}.csv")
last = drop / "49.csv"
last.write_text("id\\n49\\n")
time.sleep(0.01)
"""
NAMES = {f"{number:02}.csv" for number in range(50)}


@pytest.fixture
def sidecar(tmp_path: Path, sandbox: SandboxServer, drop: Path) -> Daemon:
    table = sandbox.tenants[0]["datasets"][0]["datatables"][0]["id"]
    return Daemon.for_sandbox(tmp_path, sandbox, folder_toml("orders", drop, datatable=table, after_upload='"delete"'))


def export(drop: Path) -> None:
    """Run the job to its end."""
    subprocess.run([sys.executable, "-c", JOB, str(drop)], check=True)


def test_all_that_a_job_wrote_arrives_also_the_last_file(sidecar: Daemon, sandbox: SandboxServer, drop: Path) -> None:
    sidecar.start("--drain")
    export(drop)
    assert sidecar.stop() == 0
    assert stored(sandbox).keys() == NAMES
    assert [path.name for path in drop.iterdir() if path.name != ".pmwatch"] == []


def test_what_a_job_left_while_the_storage_was_down_is_listed_and_goes_with_the_next_one(
    sidecar: Daemon, sandbox: SandboxServer, drop: Path
) -> None:
    sandbox.faults.add(Fault(method="PUT", status=503, times=None))
    sidecar.extra = 'drain_timeout = "3s"\nshutdown_grace = "1s"'
    sidecar.start("--drain")
    export(drop)
    before = time.monotonic()
    assert sidecar.stop() == 1
    assert time.monotonic() - before < 13, "drain_timeout and the 10 s that the grace period has to spare"
    assert {event["path"] for event in sidecar.events("left behind")} == NAMES
    assert {path.name for path in drop.iterdir()} >= NAMES
    sandbox.faults.clear()
    sidecar.start("--once", wait=False)
    assert sidecar.wait() == 0
    assert stored(sandbox).keys() == NAMES
    assert len(sandbox.objects()) == 50


class KillableSandbox:
    """A sandbox in a process of its own, with a port and a state that outlive it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready = directory / "ready.json"
        self._listen = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Start it, and return what it tells: its address, tenants and keys."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pmwatch", "sandbox", "--listen", self._listen]
        command += ["--state", str(self._directory / "state"), "--ready-file", str(self._ready)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("the sandbox", self._ready.exists)
        told: dict[str, Any] = json.loads(self._ready.read_text())
        return told

    def kill(self) -> None:
        """Take it away without a word."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def names(self) -> list[str]:
        """Return the name of every object that arrived, in order of names."""
        with urllib.request.urlopen(f"http://{self._listen}/sandbox/objects", timeout=10) as answer:
            return sorted(one["filename"] for one in json.load(answer)["objects"])


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[KillableSandbox]:
    directory = tmp_path / "killable"
    directory.mkdir()
    sandbox = KillableSandbox(directory)
    yield sandbox
    sandbox.kill()


def test_what_a_job_left_when_the_storage_died_goes_with_the_next_sidecar_exactly_once(
    killable: KillableSandbox, tmp_path: Path, drop: Path
) -> None:
    told = killable.start()
    [tenant] = told["tenants"]
    table = tenant["datasets"][0]["datatables"][0]["id"]
    folder = folder_toml("orders", drop, datatable=table, after_upload='"delete"')
    known = {tenant["name"]: (tenant["id"], tenant["api_key"])}
    with Daemon(tmp_path, base_url=told["base_url"], tenants=known, folders=folder) as sidecar:
        sidecar.extra = 'drain_timeout = "2s"\nshutdown_grace = "1s"'
        sidecar.start("--drain")
        (drop / "early.csv").write_text("id\nearly\n")
        sidecar.wait_done(1)
        killable.kill()
        export(drop)
        before = time.monotonic()
        assert sidecar.stop() == 1
        assert time.monotonic() - before < 12, "drain_timeout and the 10 s that the grace period has to spare"
        assert {event["path"] for event in sidecar.events("left behind")} == NAMES
        assert {path.name for path in drop.iterdir()} >= NAMES
        killable.start()
        sidecar.extra = ""
        sidecar.write_config()
        sidecar.start("--drain")
        assert sidecar.stop() == 0
    assert killable.names() == sorted({*NAMES, "early.csv"})
    assert [path.name for path in drop.iterdir() if path.name != ".pmwatch"] == []
