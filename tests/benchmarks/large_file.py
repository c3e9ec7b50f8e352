"""Large files over TLS: pmwatch's daemon against `curl -T`, with and without the hashes, one file and several at once.

pmwatch's time runs from the rename into the drop folder to `done` in the ledger: pick-up, presign, PUT, SHA-256, MD5
against the ETag, and the commits. All of them send the same file to the same sink, in turns, for several rounds.

    PYTHONPATH=tests python -m benchmarks.large_file [--size 1G] [--rounds 5] [--paced-rounds 3] [--mbit 1000]
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable

from benchmarks.bench import Cost, Daemon, Sink, machine, median, rate, run, scratch, size_of, write_random
from benchmarks.sink import raw_put_seconds

NAME = "large.csv"
SUMS = "sha256sum && md5sum && curl -T"


def curl_command(sink: Sink, path: str) -> list[str]:
    """Return the command line that puts a file into the sink."""
    trust = ["--cacert", sink.ca_file] if sink.ca_file else []
    return [
        "curl",
        "-sS",
        "--fail",
        "--noproxy",
        "*",
        *trust,
        "-T",
        path,
        f"{sink.origin}/uploads/{os.path.basename(path)}",
    ]


def with_curl(sink: Sink, path: str) -> Cost:
    """Upload by curl alone."""
    return run(curl_command(sink, path))


def with_sha256sum_and_curl(sink: Sink, path: str) -> Cost:
    """Hash first, then upload by curl: what a script does that wants to know what it sent."""
    return run(["sh", "-c", f"sha256sum {shlex.quote(path)} && {shlex.join(curl_command(sink, path))}"])


def with_both_sums_and_curl(sink: Sink, path: str) -> Cost:
    """Compute both hashes, then upload by curl: as much as pmwatch does."""
    quoted = shlex.quote(path)
    return run(["sh", "-c", f"sha256sum {quoted} && md5sum {quoted} && {shlex.join(curl_command(sink, path))}"])


def with_pmwatch(sink: Sink, path: str, *, directory: str) -> Cost:
    """Upload by a fresh daemon with a fresh ledger."""
    with Daemon(sink, directory) as daemon:
        os.link(path, os.path.join(daemon.staging, NAME))
        cpu = daemon.cpu_seconds()
        started = time.monotonic()
        daemon.rename_into_place([NAME])
        daemon.wait_until_done(1)
        cost = Cost(time.monotonic() - started, daemon.cpu_seconds() - cpu)
        daemon.require_verified(1)
    return cost


def compare(sink: Sink, path: str, *, directory: str, rounds: int, pace: float) -> dict[str, list[Cost]]:
    """Run all of them in turns; return what each round of each took."""
    size = os.path.getsize(path)
    sink.control(bytes_per_second=pace)
    costs: dict[str, list[Cost]] = {"curl -T": [], "sha256sum && curl -T": [], SUMS: [], "pmwatch": []}
    for number in range(rounds):
        own = os.path.join(directory, f"{'paced' if pace else 'fast'}-{number}")

        def by_daemon(sink: Sink, path: str, own: str = own) -> Cost:
            return with_pmwatch(sink, path, directory=own)

        for name, send in _in_turn(number, by_daemon):
            sink.control(reset=True)
            costs[name].append(send(sink, path))
            sink.require(puts=1, size=size)
    return costs


Send = Callable[[Sink, str], Cost]


def _in_turn(number: int, by_daemon: Send) -> list[tuple[str, Send]]:
    """Return all of them, another one first in each round."""
    all_of_them: list[tuple[str, Send]] = [
        ("curl -T", with_curl),
        ("sha256sum && curl -T", with_sha256sum_and_curl),
        (SUMS, with_both_sums_and_curl),
        ("pmwatch", by_daemon),
    ]
    first = number % len(all_of_them)
    return all_of_them[first:] + all_of_them[:first]


def report(title: str, costs: dict[str, list[Cost]], size: int) -> None:
    """Print medians, and ratios as the median over the rounds."""
    print(f"\n{title}")
    for name, each in costs.items():
        speeds = sorted(rate(size, cost.seconds) for cost in each)
        cpu = median([cost.cpu_seconds for cost in each]) / (size / 1e9)
        spread = f"{speeds[0]:,.0f} to {speeds[-1]:,.0f}"
        print(f"  {name:<22} {median(speeds):>8,.1f} MB/s  ({spread})  {cpu:.2f} CPU s/GB")
    for other in costs.keys() - {"pmwatch"}:
        ratios = [a.seconds / b.seconds for a, b in zip(costs[other], costs["pmwatch"], strict=True)]
        print(f"  pmwatch / {other:<32} {median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")
    if SUMS in costs:
        work = [a.cpu_seconds / b.cpu_seconds for a, b in zip(costs["pmwatch"], costs[SUMS], strict=True)]
        print(f"  CPU of pmwatch / {SUMS}: {median(work):.3f}  ({min(work):.3f} to {max(work):.3f})")


def compare_parallel(sink: Sink, directory: str, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """Send several files at once: by as many curls, and by the daemon to as many datatables."""
    names = [f"large-{number}.csv" for number in range(options.parallel)]
    size = options.size // options.parallel
    paths = [os.path.join(directory, name) for name in names]
    sink.control(bytes_per_second=0)
    sink.expect({name: write_random(path, size) for name, path in zip(names, paths, strict=True)})
    costs: dict[str, list[Cost]] = {"curl -T": [], "pmwatch": []}
    script = "\n".join(f"{shlex.join(curl_command(sink, path))} & p{n}=$!" for n, path in enumerate(paths))
    script += "\n" + " && ".join(f"wait $p{n}" for n in range(len(paths)))
    for number in range(options.rounds):
        sink.control(reset=True)
        costs["curl -T"].append(run(["sh", "-c", script]))
        sink.require(puts=len(names), size=len(names) * size)
        sink.control(reset=True)
        own = os.path.join(directory, f"parallel-{number}")
        with Daemon(sink, own, max_parallel=options.parallel, tables=options.parallel) as daemon:
            for name, path in zip(names, paths, strict=True):
                os.link(path, os.path.join(daemon.staging, name))
            cpu, started = daemon.cpu_seconds(), time.monotonic()
            daemon.rename_into_place(names)
            daemon.wait_until_done(len(names))
            costs["pmwatch"].append(Cost(time.monotonic() - started, daemon.cpu_seconds() - cpu))
            daemon.require_verified(len(names))
    return costs


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=1 << 30, help="such as 1G or 500MB")
    parser.add_argument("--rounds", type=int, default=5, help="unthrottled rounds")
    parser.add_argument("--paced-rounds", type=int, default=3, help="rounds at --mbit")
    parser.add_argument("--mbit", type=float, default=1000.0, help="the sink reads this many Mbit/s when paced")
    parser.add_argument("--parallel", type=int, default=4, help="files at once, which share --size; 0 leaves it out")
    parser.add_argument("--plain", action="store_true", help="http instead of https")
    parser.add_argument("--directory", default="", help="where to work (needs the size twice)")
    options = parser.parse_args()
    with scratch(options.directory) as directory, Sink(directory=directory, tls=not options.plain) as sink:
        path = os.path.join(directory, NAME)
        sink.expect({NAME: write_random(path, options.size)})
        print(f"{machine()}; {options.size / 1e9:.2f} GB, {'plain http' if options.plain else 'TLS'}")
        limit = median([raw_put_seconds(sink.origin, sink.ca_file, options.size) for _ in range(3)])
        print(f"limit of the sink (bare socket, zeros): {rate(options.size, limit):,.0f} MB/s")
        fast = compare(sink, path, directory=directory, rounds=options.rounds, pace=0)
        report("unthrottled", fast, options.size)
        if options.parallel:
            parallel = compare_parallel(sink, directory, options)
            report(f"{options.parallel} files at once, unthrottled", parallel, options.size)
        if options.paced_rounds:
            pace = options.mbit * 1e6 / 8
            paced = compare(sink, path, directory=directory, rounds=options.paced_rounds, pace=pace)
            report(f"paced at {options.mbit:g} Mbit/s", paced, options.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
