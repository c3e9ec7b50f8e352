"""The most memory that the daemon ever has resident, with a small and with a very large file.

Each size gets a fresh process; the file is sparse, so it costs no disk. `VmHWM` of /proc/PID/status, after the upload.

    PYTHONPATH=tests python -m benchmarks.memory [--small 50MB] [--large 5GB] [--rounds 1]
"""

import argparse
import hashlib
import os
import sys

from benchmarks.bench import MB, Daemon, Sink, machine, median, scratch, size_of

NAME = "sparse.csv"


def md5_of_zeros(size: int) -> str:
    """Return the MD5 of so many zero bytes."""
    digest, block = hashlib.md5(usedforsecurity=False), bytes(MB)
    for start in range(0, size, MB):
        digest.update(block[: min(MB, size - start)])
    return digest.hexdigest()


def peak_rss(sink: Sink, directory: str, size: int, md5: str) -> tuple[int, int]:
    """Return the peak RSS in bytes of a fresh daemon, before and after it uploaded a file of this size."""
    with Daemon(sink, directory) as daemon:
        with open(os.path.join(daemon.staging, NAME), "wb") as file:
            file.truncate(size)
        sink.expect({NAME: md5})
        idle = daemon.peak_rss_bytes()
        daemon.rename_into_place([NAME])
        daemon.wait_until_done(1)
        sink.require(puts=1, size=size)
        daemon.require_verified(1)
        return idle, daemon.peak_rss_bytes()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=size_of, default=50 * MB)
    parser.add_argument("--large", type=size_of, default=5000 * MB, help="at most 5 GiB, as S3 takes no more")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--directory", default="", help="where to work")
    options = parser.parse_args()
    peaks: dict[int, list[int]] = {options.small: [], options.large: []}
    with scratch(options.directory) as directory, Sink(directory=directory) as sink:
        print(machine())
        for size, each in peaks.items():
            md5 = md5_of_zeros(size)
            for number in range(options.rounds):
                idle, peak = peak_rss(sink, os.path.join(directory, f"{size}-{number}"), size, md5)
                each.append(peak)
                print(f"  {size / MB:>7,.0f} MB file: peak RSS {peak / MB:.1f} MB (idle {idle / MB:.1f} MB)")
    small, large = (median(each) for each in peaks.values())
    print(f"  difference of the medians: {(large - small) / MB:+.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
