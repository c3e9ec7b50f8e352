"""Many small files over TLS: pmwatch's daemon against the vendor's way, two `curl` runs a file in a shell loop.

The loop asks for the URL with one curl and PUTs with another, for a sample of the files; pmwatch sends all of them,
from the first rename into the drop folder to the last `done` in the ledger, once with `order = "arrival"` (the default:
one after the other, as all go to one datatable) and once with `order = "none"` (four at once). Same sink, same run.
`--rtt-ms` lets the sink answer as if it were that far away, which is what a loopback leaves out.

    PYTHONPATH=tests python -m benchmarks.small_files [--files 2000] [--size 4K] [--sample 200] [--rtt-ms 20]
"""

import argparse
import os
import sys
import time

from benchmarks.bench import Cost, Daemon, Sink, machine, median, run, scratch, size_of, write_random
from benchmarks.sink import API_KEY, DATASET, DATATABLE, TENANT

LOOP = """
set -e
for path in "$1"/*.csv; do
  name=${path##*/}
  answer=$(curl -sS --fail --noproxy '*' $TRUST -H "x-api-key: $KEY" \\
    "$PRESIGN?datasetid=$DATASET&filename=$name&filesize=$SIZE&filelastmodified=$(date +%s)000")
  url=${answer#*'"PreSignedUploadUrl": "'}
  curl -sS --fail --noproxy '*' $TRUST -T "$path" "${url%%'"'*}"
done
"""


def write_files(directory: str, count: int, size: int) -> dict[str, str]:
    """Write files of random bytes; return the MD5 of each name."""
    names = [f"orders-{number:06d}.csv" for number in range(count)]
    return {name: write_random(os.path.join(directory, name), size) for name in names}


def with_shell_loop(sink: Sink, directory: str, *, sample: int, size: int) -> Cost:
    """Send `sample` files the vendor's way; return the cost of one file."""
    os.makedirs(directory)
    sink.expect(write_files(directory, sample, size))
    trust = f"--cacert {sink.ca_file}" if sink.ca_file else ""
    presign = f"{sink.origin}/tenant/{TENANT}/datatable/{DATATABLE}/uploads/presignedurl"
    facts = {"TRUST": trust, "KEY": API_KEY, "PRESIGN": presign, "DATASET": DATASET, "SIZE": str(size)}
    settings = [f"{name}={value}" for name, value in facts.items()]
    cost = run(["env", *settings, "sh", "-c", LOOP, "loop", directory])
    sink.require(puts=sample, size=sample * size)
    return Cost(cost.seconds / sample, cost.cpu_seconds / sample)


def with_pmwatch(sink: Sink, directory: str, *, files: int, size: int, order: str, parallel: int) -> Cost:
    """Send all files by a fresh daemon with a fresh ledger; return the cost of one file."""
    with Daemon(sink, directory, order=order, max_parallel=parallel) as daemon:
        expected = write_files(daemon.staging, files, size)
        sink.expect(expected)
        cpu = daemon.cpu_seconds()
        started = time.monotonic()
        daemon.rename_into_place(list(expected))
        daemon.wait_until_done(files)
        seconds = time.monotonic() - started
        cpu = daemon.cpu_seconds() - cpu
        sink.require(puts=files, size=files * size)
        daemon.require_verified(files)
    return Cost(seconds / files, cpu / files)


def measure(sink: Sink, directory: str, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """Run the shell loop and both orders of pmwatch in turns; return what one file cost in each round."""
    costs: dict[str, list[Cost]] = {"shell loop": [], "pmwatch, in order": [], "pmwatch, any order": []}
    for number in range(options.rounds):
        loop = os.path.join(directory, f"loop-{number}")
        costs["shell loop"].append(with_shell_loop(sink, loop, sample=options.sample, size=options.size))
        for name, order in (("pmwatch, in order", "arrival"), ("pmwatch, any order", "none")):
            own = os.path.join(directory, f"{order}-{number}")
            given = {"files": options.files, "size": options.size, "parallel": options.parallel}
            costs[name].append(with_pmwatch(sink, own, order=order, **given))
    return costs


def report(costs: dict[str, list[Cost]]) -> None:
    """Print medians, and ratios as the median over the rounds."""
    for name, each in costs.items():
        speeds = sorted(1 / cost.seconds for cost in each)
        cpu = 1000 * median([cost.cpu_seconds for cost in each])
        spread = f"{speeds[0]:,.1f} to {speeds[-1]:,.1f}"
        print(f"  {name:<20} {median(speeds):>7,.1f} files/s  ({spread})  {cpu:.2f} CPU ms/file")
    for name in list(costs)[1:]:
        ratios = [a.seconds / b.seconds for a, b in zip(costs["shell loop"], costs[name], strict=True)]
        print(f"  {name} / shell loop: {median(ratios):.1f} times  ({min(ratios):.1f} to {max(ratios):.1f})")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="for pmwatch")
    parser.add_argument("--sample", type=int, default=200, help="for the shell loop; its time a file is taken")
    parser.add_argument("--size", type=size_of, default=4096, help="bytes of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=4, help="[delivery] max_parallel")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip to the sink, emulated")
    parser.add_argument("--plain", action="store_true", help="http instead of https")
    parser.add_argument("--directory", default="", help="where to work")
    options = parser.parse_args()
    with scratch(options.directory) as directory, Sink(directory=directory, tls=not options.plain) as sink:
        sink.control(round_trip_seconds=options.rtt_ms / 1000)
        print(
            f"{machine()}; {options.files:,} files of {options.size:,} bytes, "
            f"loop measured on {options.sample}, round trip +{options.rtt_ms:g} ms"
        )
        report(measure(sink, directory, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
