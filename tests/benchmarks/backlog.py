"""A folder that is full of new files when the daemon starts: how long until all are in the ledger, and in what memory.

Delivery is left out: one folder's intake in a process of its own, as in the burst tests. The files are small and lie in
`--directory`, which needs that many inodes.

    PYTHONPATH=tests python -m benchmarks.backlog [--files 1000000] [--directory /dev/shm]
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from pmwatch.ledger import Ledger
from pmwatch.model import State
from support.intake_process import SETTLE_SECONDS, IntakeProcess

_MB: Final = 1e6
_POLL_SECONDS: Final = 0.5


def write_files(drop: Path, files: int) -> None:
    """Write the files; one directory holds them all, as an export job leaves them."""
    for number in range(files):
        (drop / f"orders-{number:07d}.csv").write_bytes(b"case;activity\n%d;start\n" % number)


def measure(base: Path, files: int) -> None:
    """Take in `files` files and print what it took."""
    drop, state = base / "drop", base / "state"
    drop.mkdir()
    state.mkdir()
    Ledger.open(str(state)).close()
    write_files(drop, files)
    started = time.monotonic()
    with IntakeProcess(drop, state) as intake:
        before = intake.memory()
        ledger = Ledger.open(str(state), read_only=True)
        first = 0.0
        while (entered := ledger.total(State.QUEUED)) < files:
            first = first or (time.monotonic() - started if entered else 0.0)
            time.sleep(_POLL_SECONDS)
        took = time.monotonic() - started
        ledger.close()
        peak = intake.memory("VmHWM")
        counted = intake.finish()
    sys.stdout.write(
        f"{files:>9,} files: the first in the ledger after {first or took:.1f} s, all after {took:.1f} s "
        f"({files / took:,.0f} a second), {counted.scans} scans, settle {SETTLE_SECONDS:g} s, "
        f"RSS {before / _MB:.0f} MB at the end of the first scan, peak {peak / _MB:.0f} MB\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Measure a tenth of the files, and all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--directory", default=None, help="where the work files go (default: the temporary directory)")
    given = parser.parse_args()
    for files in (given.files // 10, given.files):
        base = Path(tempfile.mkdtemp(prefix="pmwatch-backlog-", dir=given.directory))
        try:
            measure(base, files)
        finally:
            shutil.rmtree(base)


if __name__ == "__main__":
    main()
