"""More files at once than the kernel's queue of events holds: real inotify, real ledger, nothing is missed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pmwatch.ledger import Ledger
from pmwatch.model import State
from support.burst_writer import STAGING, content_of, name_of
from support.daemon import wait_for
from support.intake_process import Counted, IntakeProcess

MANY = 20_000 * int(os.environ.get("PMWATCH_TEST_SCALE", "1"))  # more than the kernel's queue of events holds
WRITERS = ("a", "b", "c", "d")
TESTS = Path(__file__).parents[1]
MOST_BYTES_A_FILE = 4096  # what is kept of a file that is not in the ledger yet: path, look, clocks
SLACK_BYTES = 64 * 1024 * 1024  # the interpreter's, and SQLite's caches


def start_writers(drop: Path, files: int) -> list["subprocess.Popen[bytes]"]:
    each = files // len(WRITERS)
    return [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "support.burst_writer", str(drop), prefix, str(each)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        for prefix in WRITERS
    ]


def finish(writers: list["subprocess.Popen[bytes]"]) -> None:
    assert [writer.wait() for writer in writers] == [0] * len(writers)


def expected(files: int) -> dict[bytes, int]:
    each = files // len(WRITERS)
    names = [name_of(prefix, number) for prefix in WRITERS for number in range(each)]
    return {name.encode(): len(content_of(name)) for name in names}


def wait_until_entered(state: Path, files: int) -> dict[bytes, int]:
    """Wait until the ledger has as many files as were written; return the size of each, as the ledger knows it."""
    ledger = Ledger.open(str(state), read_only=True)
    try:
        wait_for(f"{files} files queued", lambda: ledger.total(State.QUEUED) >= files, seconds=60 + files / 200)
        paths = list(ledger.paths("orders"))
        return {path: known.fingerprint.size for path, known in ledger.known("orders", paths).items()}
    finally:
        ledger.close()


def queue_length() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def report(
    capsys: pytest.CaptureFixture[str], title: str, counted: Counted, files: int, *, before: int, peak: int
) -> None:
    with capsys.disabled():
        print(
            f"\n{title}: {files:,} files by {len(WRITERS)} writers, queue of {queue_length():,} events: "
            f"{counted.entered:,} entered, {counted.missed:,} found only by a scan, {counted.scans} scans "
            f"({counted.rescans} asked for, {counted.overflows} overflows), at most {counted.most_hints:,} hints; "
            f"peak RSS {before / 1e6:.0f} to {peak / 1e6:.0f} MB, {(peak - before) / files:,.0f} bytes a file"
        )


@pytest.fixture
def state(tmp_path: Path, drop: Path) -> Path:
    (drop / STAGING).mkdir()
    path = tmp_path / "state"
    path.mkdir()
    return path


def test_a_burst_of_four_writers_reaches_the_ledger_whole(
    drop: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IntakeProcess(drop, state) as intake:
        before = intake.memory()
        finish(start_writers(drop, MANY))
        entered = wait_until_entered(state, MANY)
        peak = intake.memory("VmHWM")
        counted = intake.finish()
    report(capsys, "burst", counted, MANY, before=before, peak=peak)
    assert entered == expected(MANY)
    assert counted.entered == MANY
    assert peak - before < SLACK_BYTES + MANY * MOST_BYTES_A_FILE


def test_a_burst_while_the_process_is_stopped_overflows_the_queue_and_loses_nothing(
    drop: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IntakeProcess(drop, state) as intake:
        before = intake.memory()
        intake.signal(signal.SIGSTOP)
        finish(start_writers(drop, MANY))
        intake.signal(signal.SIGCONT)
        entered = wait_until_entered(state, MANY)
        peak = intake.memory("VmHWM")
        counted = intake.finish()
    report(capsys, "burst while stopped", counted, MANY, before=before, peak=peak)
    assert entered == expected(MANY)
    assert counted.entered == MANY
    assert peak - before < SLACK_BYTES + MANY * MOST_BYTES_A_FILE
    if queue_length() < MANY:
        assert counted.overflows
        assert counted.missed
