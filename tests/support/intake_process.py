"""One folder's intake and a ledger in a process of their own, which a test may stop and watch: no delivery, no API.

    python -m support.intake_process DIRECTORY STATE_DIR

It writes a line of JSON to standard output when its first scan is done, and one with what it counted when its
standard input ends.
"""

import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pmwatch.errors import FolderDown
from pmwatch.intake.evidence import quietens_leases
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.inbox import Hints, Inbox
from pmwatch.intake.settle import Candidate
from pmwatch.intake.watch import Watcher
from pmwatch.ledger import Ledger
from pmwatch.model import Folder
from support.folders import make_folder

SETTLE_SECONDS: Final = 0.5
_TESTS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(slots=True)
class Counted:
    """What an intake process saw: scans, files entered and files that only a scan found.

    `most_hints` is the most that its inbox ever held, `rescans` how often the inbox asked for a scan, of which
    `overflows` because the kernel had dropped events.
    """

    scans: int = 0
    entered: int = 0
    missed: int = 0
    most_hints: int = 0
    rescans: int = 0
    overflows: int = 0
    turns: int = 0


class _CountingInbox(Inbox):
    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self._counted = counted

    def rescan(self) -> None:
        self._counted.overflows += 1
        super().rescan()

    def take(self, timeout: float) -> Hints:
        hints = super().take(timeout)
        self._counted.most_hints = max(self._counted.most_hints, len(hints.paths))
        self._counted.rescans += hints.rescan
        return hints


class _Observer:
    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:
        sys.stderr.write(f"{folder}: {problem.message if problem else 'up'}\n")

    def settled(self, folder: str, count: int) -> None:  # noqa: ARG002
        self._counted.entered += count

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:  # noqa: ARG002
        self._counted.scans += 1
        self._counted.missed += missed

    def backlog_held(self, folder: str, count: int) -> None:
        """Nothing."""

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:
        """Nothing."""

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:  # noqa: ARG002
        sys.stderr.write(f"{folder}: {candidate}\n")


class IntakeProcess:
    """The process, seen from the test."""

    def __init__(self, directory: Path, state_dir: Path) -> None:
        command = [sys.executable, "-P", "-m", "support.intake_process", str(directory), str(state_dir)]
        environment = {**os.environ, "PYTHONPATH": _TESTS}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        self._line()
        return self

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the intake process ended with {self._process.wait()}"
        facts: dict[str, Any] = json.loads(line)
        return facts

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def finish(self) -> Counted:
        """End the process and return what it counted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return Counted(**self._line())

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def memory(self, name: str = "VmRSS") -> int:
        """Return a figure of /proc/PID/status in bytes: `VmRSS` now, `VmHWM` the most there ever was."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _say(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main(directory: str, state_dir: str) -> None:
    """Take in files until standard input ends."""
    quietens_leases()
    counted = Counted()
    watcher, ledger = Watcher(), Ledger.open(state_dir)
    intake = FolderIntake(
        make_folder(Path(directory), settle_seconds=SETTLE_SECONDS),
        watcher=watcher,
        ledger=ledger,
        observer=_Observer(counted),
    )
    intake.inbox = _CountingInbox(counted)
    said = False
    while not select.select([sys.stdin], [], [], 0)[0]:
        intake.turn(longest_wait=0.2)
        counted.turns += 1
        if counted.scans and not said:
            _say({"ready": True})
            said = True
    intake.close()
    watcher.close()
    ledger.close()
    _say(asdict(counted))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
