"""Does an upload cost the same whatever the ledger remembers? Small files over ledgers of 1,000 to 1,000,000 rows.

Each ledger is filled beforehand with uploads of other files to the same datatable, of the same size and of others, so
that dedup has the most to look through. All are measured in turns.

    PYTHONPATH=tests python -m benchmarks.flat_cost [--rows 1000 100000 1000000] [--files 1000] [--rounds 3]
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.bench import Cost, Daemon, Sink, machine, median, scratch, size_of
from benchmarks.idle import Case, fill
from benchmarks.sink import DATASET, DATATABLE, TENANT
from benchmarks.small_files import write_files
from support.folders import make_folder

_SAME_SIZE: Final = 2  # every so many-th remembered row has the size of the files that are sent


class FilledDaemon(Daemon):
    """A daemon whose ledger remembers uploads from before: a copy of `filled`."""

    filled = ""

    def _start(self) -> "subprocess.Popen[bytes]":
        shutil.copytree(self.filled, self._state, dirs_exist_ok=True)
        os.sync()  # or its syncs would wait for the copy's
        return super()._start()


def fill_for(directory: str, *, rows: int, size: int) -> str:
    """Return a directory with a ledger of so many uploads to the same datatable, every other one of this size."""
    state, empty = Path(directory, f"filled-{rows}"), Path(directory, f"empty-{rows}")
    for path in (state, empty):
        path.mkdir()
    fill(state, make_folder(empty), Case(files=1, directories=1, rows=rows))
    with sqlite3.connect(state / "ledger.db") as ledger:
        ledger.execute("PRAGMA synchronous = OFF")
        ledger.execute(
            "UPDATE deliveries SET tenant_id = ?, dataset_id = ?, datatable_id = ?, folder = 'drop',"
            " sha256 = printf('%064x', id), size = CASE id % ? WHEN 0 THEN ? ELSE size END",
            (TENANT, DATASET, DATATABLE, _SAME_SIZE, size),
        )
        ledger.execute("UPDATE counts SET folder = 'drop'")
    ledger.close()
    return str(state)


def cost_of(sink: Sink, directory: str, filled: str, *, rows: int, files: int, size: int) -> Cost:
    """Return what one file costs over a ledger of so many rows."""
    kind = type("_Daemon", (FilledDaemon,), {"filled": filled})
    with kind(sink, directory) as daemon:
        expected = write_files(daemon.staging, files, size)
        sink.expect(expected)
        sink.control(reset=True)
        cpu, started = daemon.cpu_seconds(), time.monotonic()
        daemon.rename_into_place(list(expected))
        daemon.wait_until_done(rows + files)
        seconds = time.monotonic() - started
        cpu = daemon.cpu_seconds() - cpu
        sink.require(puts=files, size=files * size)
    shutil.rmtree(directory)
    return Cost(seconds / files, cpu / files)


def report(costs: dict[int, Sequence[Cost]]) -> None:
    """Print the cost of a file for each number of rows, and how it grows."""
    first = next(iter(costs))
    for rows, found in costs.items():
        seconds, cpu = median([one.seconds for one in found]), median([one.cpu_seconds for one in found])
        ratios = [one.seconds / base.seconds for one, base in zip(found, costs[first], strict=True)]
        print(f"  {rows:>9,} rows  {1000 * seconds:6.2f} ms/file  {1000 * cpu:6.2f} CPU ms/file", end="")
        print(f"  {median(ratios):.2f} times that of {first:,} rows ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--size", type=size_of, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="", help="where to work; by default the system's temporary directory")
    options = parser.parse_args()
    print(f"{machine()}; {options.files:,} files of {options.size:,} bytes, in order")
    costs: dict[int, list[Cost]] = {rows: [] for rows in options.rows}
    with scratch(options.directory) as directory, Sink(tls=True, directory=directory) as sink:
        filled = {rows: fill_for(directory, rows=rows, size=options.size) for rows in options.rows}
        for number in range(options.rounds):
            for rows in options.rows:
                own = os.path.join(directory, f"{rows}-{number}")
                costs[rows].append(cost_of(sink, own, filled[rows], rows=rows, files=options.files, size=options.size))
    report(dict(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
