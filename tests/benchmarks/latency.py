"""From the rename into the drop folder to the first byte of the PUT: pmwatch, inotifywait with curl, and lsyncd.

Files are dropped one after the other at a modest rate. The sink notes when the first byte of each body came, by the
clock that all processes of a machine share. pmwatch runs twice, keeping its sources and archiving them: moving files
out of the folder must not hold up events. It asks for a presigned URL first; the shell loop does not, and puts at once.
lsyncd copies to a local directory with the delay that it has by default (15 s), so it gets a few files only, one when
the other has come; its time ends when the file, or rsync's temporary one, appears.

    PYTHONPATH=tests python -m benchmarks.latency [--files 1000] [--rate 50] [--size 4K] [--lsyncd-files 3]
"""

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from benchmarks.bench import Daemon, Sink, clean_environment, machine, scratch, size_of, write_random
from benchmarks.sink import client_context
from benchmarks.small_files import write_files

AIM_P50_SECONDS: Final = 0.010
AIM_P99_SECONDS: Final = 0.050
_POLL_SECONDS: Final = 0.002
_PATIENCE_SECONDS: Final = 120.0
LOOP: Final = """
inotifywait -m -e moved_to --format %f "$1" | while IFS= read -r name; do
  curl -sS --fail --noproxy '*' $TRUST -o /dev/null -T "$1/$name" "$ORIGIN/uploads/$name"
done
"""


class ArchivingDaemon(Daemon):
    """The daemon with `after_upload = "archive"`."""

    after_upload = "archive"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the values that at least `percent` per cent of them do not exceed."""
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def first_bytes(sink: Sink) -> dict[str, float]:
    """Return when the first byte of each file came to the sink."""
    parts = urlsplit(sink.origin)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if sink.ca_file:
        context = client_context(sink.ca_file)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
    try:
        connection.request("POST", "/control", body=json.dumps({"first_bytes": True}))
        found: dict[str, float] = json.loads(connection.getresponse().read())["first_byte_at"]
    finally:
        connection.close()
    return found


def wait_until(what: str, probe: Callable[[], bool], *, seconds: float = _PATIENCE_SECONDS) -> float:
    """Wait until `probe` holds; return when it did."""
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)
    return time.monotonic()


def drop_one_by_one(names: Iterable[str], rename: Callable[[str], None], *, rate: float) -> dict[str, float]:
    """Rename the files into place, `rate` a second; return when each was."""
    dropped: dict[str, float] = {}
    started = time.monotonic()
    for number, name in enumerate(names):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        dropped[name] = time.monotonic()
        rename(name)
    return dropped


def latencies(dropped: dict[str, float], came: dict[str, float]) -> list[float]:
    """Return the seconds that each file took. Raises KeyError where one did not come."""
    return [came[name] - at for name, at in dropped.items()]


def with_pmwatch(sink: Sink, kind: type[Daemon], directory: str, options: argparse.Namespace) -> list[float]:
    """Measure a fresh daemon with a fresh ledger."""
    with kind(sink, directory) as daemon:
        expected = write_files(daemon.staging, options.files, options.size)
        sink.expect(expected)
        dropped = drop_one_by_one(expected, lambda name: daemon.rename_into_place([name]), rate=options.rate)
        daemon.wait_until_done(options.files)
        sink.require(puts=options.files, size=options.files * options.size)
        return latencies(dropped, first_bytes(sink))


@contextmanager
def running(command: Sequence[str], environment: dict[str, str] | None = None, log: str = "") -> Iterator[None]:
    """Run a program and all that it starts, until the end of the block."""
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(
            command,
            env=clean_environment() | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def with_shell_loop(sink: Sink, directory: str, options: argparse.Namespace) -> list[float]:
    """Measure `inotifywait -m` and one `curl -T` a file."""
    drop, staging, log = (os.path.join(directory, name) for name in ("drop", "staging", "log"))
    os.makedirs(drop)
    os.makedirs(staging)
    expected = write_files(staging, options.files, options.size)
    sink.expect(expected)
    facts = {"TRUST": f"--cacert {sink.ca_file}" if sink.ca_file else "", "ORIGIN": sink.origin}
    with running(["sh", "-c", LOOP, "loop", drop], facts, log):
        wait_until("inotifywait's watch", lambda: _holds(log, b"Watches established"))
        dropped = drop_one_by_one(
            expected, lambda name: os.rename(os.path.join(staging, name), os.path.join(drop, name)), rate=options.rate
        )
        wait_until("the last curl", lambda: sink.control()["puts"] >= options.files)
        return latencies(dropped, first_bytes(sink))


def _holds(path: str, text: bytes) -> bool:
    with open(path, "rb") as file:
        return text in file.read()


def with_lsyncd(directory: str, options: argparse.Namespace) -> list[float]:
    """Measure lsyncd with its default delay, by rsync into a local directory."""
    drop, staging, copy, log = (os.path.join(directory, name) for name in ("drop", "staging", "copy", "log"))
    for path in (drop, staging, copy):
        os.makedirs(path)
    write_random(os.path.join(drop, "first.csv"), options.size)
    names = list(write_files(staging, options.lsyncd_files, options.size))
    taken = []
    with running(["lsyncd", "-nodaemon", "-rsync", drop, copy], log=log):
        wait_until("lsyncd's first copy", lambda: "first.csv" in os.listdir(copy))
        for name in names:
            dropped = time.monotonic()
            os.rename(os.path.join(staging, name), os.path.join(drop, name))
            taken.append(wait_until(f"lsyncd's copy of {name}", partial(_appeared, copy, name)) - dropped)
    return taken


def _appeared(directory: str, name: str) -> bool:
    return any(entry == name or entry.startswith(f".{name}.") for entry in os.listdir(directory))


def report(name: str, taken: Sequence[float], *, aim: bool = False) -> None:
    """Print the percentiles, and whether the aim is met."""
    p50, p99 = percentile(taken, 50), percentile(taken, 99)
    line = f"  {name:<24} p50 {1000 * p50:>9,.2f} ms   p99 {1000 * p99:>9,.2f} ms   most {1000 * max(taken):>9,.2f} ms"
    if aim:
        met = "met" if p50 < AIM_P50_SECONDS and p99 < AIM_P99_SECONDS else "not met"
        line += f"   aim (p50 < {1000 * AIM_P50_SECONDS:g} ms, p99 < {1000 * AIM_P99_SECONDS:g} ms) {met}"
    print(f"{line}   {len(taken):,} files", flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="for pmwatch and for the shell loop")
    parser.add_argument("--rate", type=float, default=50.0, help="files dropped a second")
    parser.add_argument("--size", type=size_of, default=4096, help="bytes of each file")
    parser.add_argument("--lsyncd-files", type=int, default=3, help="each takes lsyncd's delay; 0 leaves it out")
    parser.add_argument("--plain", action="store_true", help="http instead of https")
    parser.add_argument("--directory", default="", help="where to work")
    options = parser.parse_args()
    with scratch(options.directory) as directory, Sink(directory=directory, tls=not options.plain) as sink:
        print(f"{machine()}; {options.files:,} files of {options.size:,} bytes, {options.rate:g} a second")
        for name, kind in (("pmwatch, keep", Daemon), ("pmwatch, archive", ArchivingDaemon)):
            own = os.path.join(directory, kind.__name__)
            report(name, with_pmwatch(sink, kind, own, options), aim=True)
        if shutil.which("inotifywait"):
            report("inotifywait and curl -T", with_shell_loop(sink, os.path.join(directory, "loop"), options))
        else:
            print("  inotifywait and curl -T: left out, inotifywait is not here (Debian package inotify-tools)")
        if options.lsyncd_files and shutil.which("lsyncd"):
            report("lsyncd, default delay", with_lsyncd(os.path.join(directory, "lsyncd"), options))
        else:
            print("  lsyncd: left out (Debian package lsyncd)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
