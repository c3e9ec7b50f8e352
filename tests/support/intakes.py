"""One folder's intake on real files and a real ledger, where the clock and the events are the test's."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pmwatch.errors import FolderDown
from pmwatch.explain import Answer, why
from pmwatch.intake.folder import FolderIntake
from pmwatch.intake.inbox import Inbox
from pmwatch.intake.settle import Candidate
from pmwatch.intake.watch import Identity, Watch, Watcher
from pmwatch.ledger import Ledger
from pmwatch.model import Delivery, Folder
from support.folders import make_folder
from support.ledgers import DESTINATION, TARGET
from support.remotes import Clock


class QuietWatch(Watch):
    """A watch that never says anything: the test itself puts hints into the inbox."""

    def __init__(self) -> None:
        pass

    @property
    def alive(self) -> bool:
        return True

    @property
    def complete(self) -> bool:
        return True

    def watch(self, path: bytes, identity: Identity) -> None:
        pass

    def close(self) -> None:
        pass


class QuietWatcher(Watcher):
    """Arms watches that never say anything, and counts them."""

    armed = 0

    def watch(  # the seam's own arguments
        self,
        root: bytes,  # noqa: ARG002
        identity: Identity,  # noqa: ARG002
        *,
        inbox: Inbox,  # noqa: ARG002
        enters: Callable[[bytes], bool],  # noqa: ARG002
        deep: bool,  # noqa: ARG002
    ) -> Watch:
        self.armed += 1
        return QuietWatch()


class Told:
    """What an intake told its observer."""

    def __init__(self) -> None:
        self.settled_counts: list[int] = []
        self.problems: list[str] = []
        self.backlogs: list[int] = []
        self.overdue: list[Candidate] = []
        self.scans = 0
        self.missed: list[int] = []
        self.unmapped_directories: list[tuple[bytes, str]] = []

    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:  # noqa: ARG002  as above
        self.problems.append(problem.message if problem else "")

    def settled(self, folder: str, count: int) -> None:  # noqa: ARG002  as above
        self.settled_counts.append(count)

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:  # noqa: ARG002  as above
        self.scans += 1
        self.missed.append(missed)

    def backlog_held(self, folder: str, count: int) -> None:  # noqa: ARG002  as above
        self.backlogs.append(count)

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:  # noqa: ARG002  as above
        self.unmapped_directories.append((directory, reason))

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:  # noqa: ARG002  as above
        self.overdue.append(candidate)


class DiskIntake:
    """Brings files of `drop` into a ledger, one turn at a time. `changes` are those of its folder.

    Without a `watcher` there are no events but those that the test itself makes (`hint`).
    """

    def __init__(self, base: Path, *, watcher: Watcher | None = None, **changes: Any) -> None:
        self.drop = base / "drop"
        self.drop.mkdir(exist_ok=True)
        state = base / "state"
        state.mkdir(exist_ok=True)
        self.ledger = Ledger.open(str(state))
        self.ledger.resolve(TARGET, DESTINATION)
        self.clock = Clock(1000.0)
        self.wall = Clock(time.time())
        self.told = Told()
        self.quiet = QuietWatcher()
        self.watcher = watcher or self.quiet
        self.folder: Folder = make_folder(self.drop, **{"settle_seconds": 5.0} | changes)
        self.intake = self.restart()

    def close(self) -> None:
        self.intake.close()
        self.ledger.close()

    def restart(self) -> FolderIntake:
        """Begin anew, as a new process would: only the ledger stays."""
        self.intake = FolderIntake(
            self.folder,
            watcher=self.watcher,
            ledger=self.ledger,
            observer=self.told,
            monotonic=self.clock,
            wall=self.wall,
        )
        return self.intake

    # ---- writers

    def write(self, name: str, data: bytes = b"id\n1\n", *, mtime: float | None = None) -> Path:
        """Write a file without telling anybody."""
        path = self.drop / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    def arrive(self, name: str, data: bytes = b"id\n1\n", *, renamed: bool = False, mtime: float | None = None) -> Path:
        """Write a file and let its event come."""
        path = self.write(name, data, mtime=mtime)
        self.hint(name, renamed=renamed)
        return path

    def hint(self, name: str, *, renamed: bool = False) -> None:
        self.intake.inbox.put(os.fsencode(name), renamed=renamed)

    def change_after(self, name: str, other: str) -> None:
        """Change a file's ctime so that it is later than another's: the kernel's clock has ticks."""
        path, after = self.drop / name, (self.drop / other).stat().st_ctime_ns
        while path.stat().st_ctime_ns <= after:
            path.chmod(0o640)

    # ---- time

    def turn(self, *, after: float = 0.0) -> None:
        """Let time pass, and make one turn."""
        self.clock.advance(after)
        self.wall.advance(after)
        self.intake.turn(longest_wait=0.0)

    def settle(self) -> None:
        """Make turns until everything that goes by itself has gone."""
        self.turn()
        for _ in range(3):
            self.turn(after=self.folder.settle_seconds)

    def scan(self) -> None:
        """Let a full scan run."""
        self.intake.inbox.rescan()
        self.turn()

    # ---- answers

    def deliveries(self) -> list[Delivery]:
        """Return what is in the ledger, in its order."""
        return sorted(self.ledger.list(limit=10_000), key=lambda one: one.seq)

    def entered(self) -> list[str]:
        """Return the paths that are in the ledger, in its order."""
        return [one.display_path for one in self.deliveries()]

    def waits_for(self, name: str) -> str:
        """Return what a file waits for; empty where it does not."""
        candidate = self.intake.candidate(os.fsencode(name))
        return "" if candidate is None else candidate.waits_for

    def why(self, name: str, *, running: bool = True, configured: bool = True) -> Answer:
        """Ask what `pmwatch why` asks, also where the folder is no longer configured."""
        return why(
            os.fsencode(self.drop / name),
            folders=[self.folder] if configured else [],
            ledger=self.ledger,
            candidate_of=(lambda _, below: self.intake.candidate(below)) if running else None,
            now=self.wall(),
        )
