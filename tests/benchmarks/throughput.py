"""Many small files into one SeaweedFS: pmwatch's daemon, rclone, s5cmd, and the vendor's way (two `curl` a file).

pmwatch's time runs from the first rename into the drop folders to the last `done` in the ledger: pick-up, presign, PUT,
SHA-256, ETag check, ledger and archive included. rclone and s5cmd copy the same files to the same server; they presign
nothing and remember nothing. `--rtt-ms` puts a delaying proxy in front of the storage and the API, for all of them.

    PYTHONPATH=tests python -m benchmarks.throughput [--files 10000] [--size 4K] [--transfers 32] [--rtt-ms 40]
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.bench import Cost, Sink, clean_environment, machine, run, scratch, size_of
from benchmarks.latency import ArchivingDaemon
from benchmarks.sink import API_KEY, DATASET, DATATABLE, TENANT
from benchmarks.small_files import LOOP, write_files
from support.s3servers import BUCKET, SeaweedFS, running_seaweedfs

RCLONE: Final = ["--s3-provider", "Other", "--s3-no-check-bucket", "--checkers", "32", "--log-level", "ERROR"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where everybody sends to: the storage, the API in front of it, and the keys of the storage."""

    storage: str
    sink: Sink
    access_key_id: str
    secret_key: str

    def environment(self) -> list[str]:
        """Return an `env` command that holds what rclone and s5cmd read."""
        keys = {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        given = [f"{name}={value}" for name, value in (keys | {"AWS_REGION": "us-east-1"}).items()]
        return ["env", "-u", "AWS_CA_BUNDLE", *given]


@contextmanager
def far(origin: str, rtt_ms: float) -> Iterator[str]:
    """Yield the address of a server as if it were `rtt_ms` away; its own where that is 0."""
    if not rtt_ms:
        yield origin
        return
    parts = urlsplit(origin)
    command = [sys.executable, "-m", "benchmarks.delay", "--to", f"{parts.hostname}:{parts.port}"]
    process = subprocess.Popen(
        [*command, "--rtt-ms", str(rtt_ms)], stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    try:
        assert process.stdout is not None
        yield f"{parts.scheme}://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def with_pmwatch(
    place: Place, directory: str, options: argparse.Namespace, *, order: str, tables: int, parallel: int
) -> Cost:
    """Send all files by a fresh daemon with a fresh ledger; return the cost of one."""
    with ArchivingDaemon(place.sink, directory, order=order, max_parallel=parallel, tables=tables) as daemon:
        names = list(write_files(daemon.staging, options.files, options.size))
        cpu, started = daemon.cpu_seconds(), time.monotonic()
        daemon.rename_into_place(names)
        daemon.wait_until_done(options.files)
        cost = Cost((time.monotonic() - started) / options.files, (daemon.cpu_seconds() - cpu) / options.files)
        daemon.require_verified(options.files)
    return cost


def with_program(command: list[str], files: int) -> Cost:
    """Run a program that sends all files; return the cost of one."""
    cost = run(command)
    return Cost(cost.seconds / files, cost.cpu_seconds / files)


def with_shell_loop(place: Place, directory: str, options: argparse.Namespace) -> Cost:
    """Send a sample the vendor's way."""
    write_files(directory, options.sample, options.size)
    presign = f"{place.sink.origin}/tenant/{TENANT}/datatable/{DATATABLE}/uploads/presignedurl"
    facts = {"TRUST": "", "KEY": API_KEY, "PRESIGN": presign, "DATASET": DATASET, "SIZE": str(options.size)}
    settings = [f"{name}={value}" for name, value in facts.items()]
    return with_program(["env", *settings, "sh", "-c", LOOP, "loop", directory], options.sample)


def contestants(place: Place, options: argparse.Namespace) -> dict[str, Callable[[str], Cost]]:
    """Return everybody who takes part, each with what it does in a directory of its own."""

    def pmwatch(order: str, tables: int, parallel: int) -> Callable[[str], Cost]:
        return lambda own: with_pmwatch(place, own, options, order=order, tables=tables, parallel=parallel)

    def copying(*words: str) -> Callable[[str], Cost]:
        def copy(own: str) -> Cost:
            write_files(own, options.files, options.size)
            return with_program([*place.environment(), *(word.replace("SOURCE", own) for word in words)], options.files)

        return copy

    everybody: dict[str, Callable[[str], Cost]] = {"shell loop": lambda own: with_shell_loop(place, own, options)}
    transfers = str(options.transfers)
    if shutil.which("rclone"):
        target = f":s3,env_auth:{BUCKET}/rclone-{time.monotonic_ns()}"
        asked = ["--transfers", transfers, "--s3-endpoint", place.storage]
        everybody["rclone"] = copying("rclone", "copy", "SOURCE", target, *RCLONE, *asked)
    if shutil.which("s5cmd"):
        target = f"s3://{BUCKET}/s5cmd-{time.monotonic_ns()}/"
        asked = ["--numworkers", transfers, "--endpoint-url", place.storage]
        everybody["s5cmd"] = copying("s5cmd", "--log", "error", *asked, "cp", "SOURCE/*", target)
    everybody["in order, 1 datatable"] = pmwatch("arrival", 1, 4)
    everybody["in order, 8 datatables"] = pmwatch("arrival", 8, 8)
    everybody["any order, 4 at once"] = pmwatch("none", 1, 4)
    if options.rtt_ms:
        everybody[f"any order, {transfers} at once"] = pmwatch("none", 1, options.transfers)
    return everybody


def report(costs: dict[str, Cost]) -> None:
    """Print each, and how it stands to the others."""
    peers = [name for name in ("shell loop", "rclone", "s5cmd") if name in costs]
    for name, cost in costs.items():
        line = f"  {name:<24} {1 / cost.seconds:>8,.1f} files/s  {1000 * cost.cpu_seconds:>6.2f} CPU ms/file"
        if name not in peers:
            line += "   " + ", ".join(f"{costs[peer].seconds / cost.seconds:.2f} of {peer}" for peer in peers)
        print(line, flush=True)


def measure(directory: str, server: SeaweedFS, options: argparse.Namespace) -> None:
    """Run everybody once and print."""
    with ExitStack() as stack:
        sink = stack.enter_context(Sink(directory=directory, tls=False))
        storage = stack.enter_context(far(server.origin, options.rtt_ms))
        keys = server.credentials
        signing = {"origin": storage, "bucket": BUCKET, "access_key_id": keys.access_key_id}
        sink.control(s3=signing | {"secret_key": keys.secret_key})
        sink.origin = stack.enter_context(far(sink.origin, options.rtt_ms))
        place = Place(storage, sink, keys.access_key_id, keys.secret_key)
        print(
            f"{machine()}; {options.files:,} files of {options.size:,} bytes into SeaweedFS, "
            f"round trip +{options.rtt_ms:g} ms; the loop measured on {options.sample}"
        )
        costs: dict[str, Cost] = {}
        for number, (name, send) in enumerate(contestants(place, options).items()):
            own = os.path.join(directory, f"run-{number}")
            os.makedirs(own)
            costs[name] = send(own)
            shutil.rmtree(own)
            report({peer: cost for peer, cost in costs.items() if peer in ("shell loop", "rclone", "s5cmd", name)})


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=200, help="for the shell loop; its time a file is taken")
    parser.add_argument("--size", type=size_of, default=4096, help="bytes of each file")
    parser.add_argument("--transfers", type=int, default=32, help="of rclone and s5cmd at a time")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip to storage and API, by a proxy")
    parser.add_argument("--directory", default="", help="where to work")
    options = parser.parse_args()
    with scratch(options.directory) as directory:
        data = Path(directory, "seaweedfs")
        data.mkdir()
        with running_seaweedfs(data) as server:
            measure(directory, server, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
