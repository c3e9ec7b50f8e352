"""A folder whose directories are more than the kernel lets one user watch, in a user namespace with its own limit.

    unshare --user --map-root-user python -m support.few_watches DIRECTORY LIMIT

Prints a line of JSON for each step: what is up, what is watched, the problem, and what reached the ledger.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from pmwatch.intake.watch import Watcher
from support.intakes import DiskIntake

_LIMIT: Final = "/proc/sys/user/max_inotify_watches"  # namespaces(7); at the limit the kernel says ENOSPC


def _set_limit(limit: int) -> None:
    Path(_LIMIT).write_text(str(limit))


def main(directory: str, limit: int) -> None:
    """Take in files while there are too few watches, and when there are enough again."""
    watcher = Watcher()
    disk = DiskIntake(Path(directory), watcher=watcher, recursive=True)

    def say(step: str) -> None:
        status = disk.intake.status()
        problem = status.problem
        facts: dict[str, Any] = {
            "step": step,
            "up": status.up,
            "watched": watcher.count(),
            "message": problem.message if problem else "",
            "hint": problem.hint if problem else "",
            "told": len(disk.told.problems),
            "scans": disk.told.scans,
            "entered": disk.entered(),
        }
        sys.stdout.write(json.dumps(facts) + "\n")

    for name in ("a", "b", "c"):
        disk.write(f"{name}/first.csv", name.encode())
    _set_limit(limit)
    disk.settle()
    say("too few")
    for name in ("a", "b", "c"):
        disk.write(f"{name}/second.csv", b"2" + name.encode())
    for _ in range(12):  # as long as a folder without a watch waits for its next scan, and to settle
        disk.turn(after=2)
    say("scanned")
    _set_limit(1000)
    for _ in range(6):
        disk.turn(after=2)
    say("enough")
    disk.write("c/third.csv", b"3c")
    while not disk.intake.inbox.holds(b"c/third.csv"):
        pass
    scans = disk.told.scans
    disk.settle()
    assert disk.told.scans == scans
    say("announced")
    disk.close()
    watcher.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
