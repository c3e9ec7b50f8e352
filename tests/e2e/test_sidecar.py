"""The sidecar of an export job, as real processes with a shared volume: it drains what the job wrote last."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmwatch.sandbox import Fault, SandboxServer
from support.daemon import Daemon, folder_toml, stored

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
