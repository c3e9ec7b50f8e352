"""What the daemon costs while nothing happens: CPU, memory, time to start; and how these grow with the ledger.

The drop folder is recursive and keeps its sources; every file in it is in the ledger as done, and the ledger holds
more rows of files that were archived long ago. Rows are written straight into the ledger by SQL. Each case starts a
daemon whose `rescan_interval` is `--seconds`: from the end of its first scan to the end of the next one it is idle
once and scans once. CPU seconds are read from /proc/PID/stat; the idle part just before that scan begins. An hour at
the default `rescan_interval` (5 minutes) is then

    3600 x idle CPU a second + 12 x CPU of one scan + 4 x CPU of one audit

where the audit, which runs every 15 minutes, is measured in the process of this program, by the same function. The
scanner's speed is measured in this process too: `scan` alone, and a whole scan with its comparison with the ledger.

    PYTHONPATH=tests python -m benchmarks.idle [--files 100000] [--directories 10000] [--rows 1000000] [--seconds 60]
"""

import argparse
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.bench import MB, Sink, machine, median, scratch
from benchmarks.sink import API_KEY, DATATABLE, TENANT
from pmwatch.audit import audit
from pmwatch.errors import FolderDown
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.rules import Rules
from pmwatch.intake.scan import scan
from pmwatch.intake.settle import Candidate
from pmwatch.intake.watch import Watcher
from pmwatch.ledger import Ledger
from pmwatch.model import Folder
from support.daemon import Daemon, folder_toml, wait_for
from support.folders import make_folder

DEFAULT_RESCAN_SECONDS: Final = 300.0
AUDIT_SECONDS: Final = 900.0
HOUR: Final = 3600.0
FOLDER: Final = "orders"
_AFTER_START_SECONDS: Final = 2.0
_BEFORE_SCAN_SECONDS: Final = 1.0
_START_SECONDS: Final = 600.0
_OLD_NS: Final = 1_700_000_000 * 10**9
INSERT: Final = """
INSERT INTO deliveries (
    folder, path, current, tenant, dataset, datatable, tenant_id, dataset_id, datatable_id, lane, state, outcome,
    reason, detail, size, mtime_ns, ctime_ns, inode, device, sha256, inflight_sha256, etag, seq, attempts, recoveries,
    not_before, seen_at, settled_at, claimed_at, first_failed_at, uploaded_at, finished_at, presigned_url,
    duplicate_of, previous_id, kept, location)
VALUES (
    :folder, :path, 1, 'bench', '', :table, :tenant, '', :table, :lane, 'done', 'uploaded',
    '', '', :size, :mtime, :ctime, :inode, :device, :sha256, NULL, :etag, :seq, 1, 0,
    0, :at, :at, :at, 0, :at, :at, '',
    0, 0, :kept, :location)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """How much there is: files in directories, and rows in the ledger."""

    files: int
    directories: int
    rows: int

    def __str__(self) -> str:
        return f"{self.files:,} files in {self.directories:,} directories, {self.rows:,} rows"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one case cost. `idle` is CPU seconds a second; `scan` and `audit` are CPU seconds of one."""

    ready: float
    scanned: float
    start_cpu: float
    idle: float
    scan: float
    audit: float
    rss: int
    peak_rss: int
    rows_a_second: float
    files_a_second: float
    compared_a_second: float

    @property
    def an_hour(self) -> float:
        """CPU seconds of an hour with the default intervals."""
        return HOUR * self.idle + HOUR / DEFAULT_RESCAN_SECONDS * self.scan + HOUR / AUDIT_SECONDS * self.audit


def write_tree(root: Path, case: Case) -> None:
    """Write the files into directories, of which a hundred each lie in one more."""
    for number in range(case.files):
        which = number % case.directories
        directory = root / f"d{which // 100:04d}" / f"e{which % 100:02d}"
        if number < case.directories:
            directory.mkdir(parents=True, exist_ok=True)
        (directory / f"orders-{number:07d}.csv").write_bytes(b"case;activity\n%d;start\n" % number)


def rows_of(folder: Folder, case: Case) -> Iterator[dict[str, Any]]:
    """Yield a row for each file on disk, and then as many of files that were archived as make up the number."""
    common = {"folder": FOLDER, "table": DATATABLE, "tenant": TENANT, "lane": f"{TENANT}/{DATATABLE}"}

    def row(number: int, path: bytes, **changes: Any) -> dict[str, Any]:
        digest = f"{number:064x}"
        given = {"path": path, "sha256": digest, "etag": digest[32:], "seq": number, "at": 1.7e9 + number}
        return common | given | changes

    number = 0
    for found in scan(folder.root, Rules(folder), problem=lambda *_: None):
        number += 1
        st = found.stat
        look = {"size": st.st_size, "mtime": st.st_mtime_ns, "ctime": st.st_ctime_ns}
        look |= {"inode": st.st_ino, "device": st.st_dev}
        yield row(number, found.path, kept=1, location=b"", **look)
    for other in range(number + 1, case.rows + 1):
        path = b"d%04d/old-%08d.csv" % (other % 1000, other)
        look = {"size": 20 + other % 10_000, "mtime": _OLD_NS + other, "ctime": _OLD_NS + other}
        look |= {"inode": other, "device": 1}
        yield row(other, path, kept=0, location=b"/srv/archive/" + path, **look)


def fill(state: Path, folder: Folder, case: Case) -> float:
    """Write the rows into a fresh ledger; return how many a second."""
    Ledger.open(str(state)).close()
    started = time.monotonic()
    with sqlite3.connect(state / "ledger.db") as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(INSERT, rows_of(folder, case))
        connection.execute("INSERT INTO counts VALUES (?, 'done', ?)", (FOLDER, case.rows))
        connection.execute("INSERT INTO lanes VALUES (?, 1, ?)", (f"{TENANT}/{DATATABLE}", case.rows))
    connection.close()
    return case.rows / (time.monotonic() - started)


# ---- in this process ------------------------------------------------------------------------------------------


class _NoObserver:
    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:
        """Nothing."""

    def settled(self, folder: str, count: int) -> None:
        """Nothing."""

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:  # noqa: ARG002
        """Every file must be known."""
        if files:
            raise RuntimeError(f"{files} files are news to the ledger")

    def backlog_held(self, folder: str, count: int) -> None:
        """Nothing."""

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:
        """Nothing."""

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:
        """Nothing."""


def seconds_of(work: Callable[[], object], *, times: int = 3) -> float:
    """Return the median of the seconds that `work` takes."""
    taken = []
    for _ in range(times):
        started = time.monotonic()
        work()
        taken.append(time.monotonic() - started)
    return median(taken)


def scan_seconds(folder: Folder) -> float:
    """Return what walking the folder takes, without the ledger."""
    rules = Rules(folder)
    return seconds_of(lambda: sum(1 for _ in scan(folder.root, rules, problem=lambda *_: None)))


def compare_seconds(folder: Folder, ledger: Ledger) -> float:
    """Return what a whole scan of an armed intake takes: walking, and comparing with the ledger."""
    watcher = Watcher()
    intake = FolderIntake(folder, watcher=watcher, ledger=ledger, observer=_NoObserver())
    try:
        intake.turn(longest_wait=0)

        def again() -> None:
            intake.inbox.rescan()
            intake.turn(longest_wait=0)

        return seconds_of(again)
    finally:
        intake.close()
        watcher.close()


def audit_cpu_seconds(folder: Folder, ledger: Ledger) -> float:
    """Return the CPU seconds of one audit."""
    started = time.process_time()
    account = audit(folder, ledger)
    if account.unaccounted:
        raise RuntimeError(f"{account.unaccounted} files have no state: {account.named}")
    return time.process_time() - started


# ---- the daemon -----------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds (user and system) that a process has used."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int, name: str) -> int:
    """Return a figure of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def prepare(sink: Sink, root: Path, drop: Path, *, seconds: float) -> Daemon:
    """Return a daemon that is not started yet."""
    options = {"recursive": "true", "after_upload": '"keep"'}
    folders = folder_toml(FOLDER, drop, tenant="bench", datatable=DATATABLE, **options)
    daemon = Daemon(root, base_url=sink.origin, tenants={"bench": (TENANT, API_KEY)}, folders=folders)
    daemon.extra = '[log]\nlevel = "debug"\nformat = "json"\n'
    daemon.defaults = f'rescan_interval = "{seconds}s"'
    return daemon


def measure(sink: Sink, root: Path, drop: Path, case: Case, *, seconds: float) -> Measured:
    """Measure one case with a daemon and a ledger of its own."""
    folder = make_folder(drop, name=FOLDER, recursive=True)
    root.mkdir()
    with prepare(sink, root, drop, seconds=seconds) as daemon:
        daemon.state.mkdir()
        rows_a_second = fill(daemon.state, folder, case)
        started = time.monotonic()
        daemon.start()
        ready = time.monotonic() - started
        wait_for("the first scan", lambda: daemon.events("scanned"), seconds=_START_SECONDS)
        scanned, start_cpu = time.monotonic() - started, cpu_seconds(daemon.pid)
        time.sleep(_AFTER_START_SECONDS)
        idle_from, cpu_from = time.monotonic(), cpu_seconds(daemon.pid)
        time.sleep(seconds - _AFTER_START_SECONDS - _BEFORE_SCAN_SECONDS)
        idle_to, cpu_to = time.monotonic(), cpu_seconds(daemon.pid)
        idle, rss = (cpu_to - cpu_from) / (idle_to - idle_from), memory_bytes(daemon.pid, "VmRSS")
        wait_for("the next scan", lambda: len(daemon.events("scanned")) > 1, seconds=_START_SECONDS)
        scan_cpu = max(0.0, cpu_seconds(daemon.pid) - cpu_to - idle * (time.monotonic() - idle_to))
        peak = memory_bytes(daemon.pid, "VmHWM")
        if daemon.events("uploaded") or any(event["new_files"] for event in daemon.events("scanned")):
            raise RuntimeError("the daemon took a file for a new one")
        daemon.stop()
        ledger = Ledger.open(str(daemon.state), read_only=True)
        try:
            return Measured(
                ready=ready,
                scanned=scanned,
                start_cpu=start_cpu,
                idle=idle,
                scan=scan_cpu,
                audit=audit_cpu_seconds(folder, ledger),
                rss=rss,
                peak_rss=peak,
                rows_a_second=rows_a_second,
                files_a_second=case.files / scan_seconds(folder),
                compared_a_second=case.files / compare_seconds(folder, ledger),
            )
        finally:
            ledger.close()


def report(case: Case, found: Measured) -> None:
    """Print one case."""
    print(
        f"\n{case} (rows written at {found.rows_a_second:,.0f} a second)\n"
        f"  start: READY after {found.ready:.2f} s, first scan done after {found.scanned:.2f} s, "
        f"{found.start_cpu:.2f} CPU s\n"
        f"  idle: {1000 * found.idle:.2f} CPU ms a second; one scan {found.scan:.2f} CPU s; "
        f"one audit {found.audit:.2f} CPU s; together {found.an_hour:.1f} CPU s an hour\n"
        f"  RSS {found.rss / MB:.1f} MB, at most {found.peak_rss / MB:.1f} MB\n"
        f"  scanner: {found.files_a_second:,.0f} files a second, with the ledger {found.compared_a_second:,.0f}",
        flush=True,
    )


def times(before: float, after: float) -> str:
    """Return how a figure grew, where the clock had anything to tell."""
    return f"{after / before:.2f} times" if before else "from nothing"


def report_growth(measured: dict[Case, Measured]) -> None:
    """Print how the figures grow with the rows, and with the files."""
    cases = list(measured)
    print()
    for few, many in ((cases[0], cases[1]), (cases[2], cases[3])):
        a, b = measured[few], measured[many]
        print(
            f"{many.rows / few.rows:,.0f} times the rows, {few.files:,} files: READY {times(a.ready, b.ready)}, "
            f"first scan done {times(a.scanned, b.scanned)}, idle {times(a.idle, b.idle)}, "
            f"a scan {times(a.scan, b.scan)}, an hour {times(a.an_hour, b.an_hour)}, "
            f"RSS {times(a.rss, b.rss)} ({(b.rss - a.rss) / max(1, many.rows - few.rows):+.1f} bytes a row)"
        )
    few, many = cases[0], cases[2]
    a, b = measured[few], measured[many]
    print(
        f"{many.files / few.files:,.0f} times the files and directories: CPU of a scan for each file "
        f"{times(a.scan / few.files, b.scan / many.files)}, "
        f"RSS {(b.rss - a.rss) / max(1, many.directories - few.directories):,.0f} bytes a directory"
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="at least 100; a small tree has a hundredth")
    parser.add_argument("--directories", type=int, default=10_000, help="at least 100, at most the files")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large ledger; the small one has the files'")
    parser.add_argument("--seconds", type=float, default=60.0, help="idle time, and rescan_interval meanwhile")
    parser.add_argument("--directory", default="", help="where to work")
    options = parser.parse_args()
    if not 100 <= options.directories <= options.files <= options.rows:
        parser.error("it must be 100 <= directories <= files <= rows")
    if options.seconds < _BEFORE_SCAN_SECONDS + 2 * _AFTER_START_SECONDS:
        parser.error("--seconds is too short")
    trees = [(options.files // 100, options.directories // 100), (options.files, options.directories)]
    measured: dict[Case, Measured] = {}
    with scratch(options.directory) as directory, Sink(directory=directory, tls=False) as sink:
        print(f"{machine()}; idle for {options.seconds:g} s, aim of the scanner about 100,000 files a second")
        for files, directories in trees:
            drop = Path(directory, f"drop-{files}")
            write_tree(drop, Case(files, directories, 0))
            for rows in (files, options.rows):
                case = Case(files, directories, rows)
                root = Path(directory, f"daemon-{files}-{rows}")
                measured[case] = measure(sink, root, drop, case, seconds=options.seconds)
                report(case, measured[case])
    report_growth(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
