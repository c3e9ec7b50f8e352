"""Hints on their way from the watcher to a folder's intake. Bounded: an overflow becomes "scan the folder"."""

import threading
from dataclasses import dataclass, field
from typing import Final

MAX_HINTS: Final = 20_000


@dataclass(slots=True)
class Hints:
    """What came in since the last look: paths below the root, and whether each was renamed into place.

    `directories` are to be scanned, `rescan` asks for the whole folder.
    """

    paths: dict[bytes, bool] = field(default_factory=dict)
    directories: set[bytes] = field(default_factory=set)
    rescan: bool = False


class Inbox:
    """A folder's mailbox. `put` never blocks and never raises, for it runs in the thread that reads inotify."""

    def __init__(self, *, limit: int = MAX_HINTS) -> None:
        self._limit = limit
        self._hints = Hints()
        self._lock = threading.Lock()
        self._filled = threading.Event()

    def put(self, path: bytes, *, renamed: bool = False) -> None:
        """Say that something happened to `path`; `renamed` if it came whole under this name."""
        with self._lock:
            if path not in self._hints.paths and len(self._hints.paths) >= self._limit:
                self._hints.rescan = True
            else:
                self._hints.paths[path] = renamed
        self._filled.set()

    def put_directory(self, path: bytes) -> None:
        """Say that a directory appeared, whose files nobody may have seen coming."""
        with self._lock:
            self._hints.directories.add(path)
            if len(self._hints.directories) > self._limit:
                self._hints.rescan = True
        self._filled.set()

    def rescan(self) -> None:
        """Ask for a full scan: events were lost, or somebody doubts."""
        with self._lock:
            self._hints.rescan = True
        self._filled.set()

    def holds(self, path: bytes) -> bool:
        """Tell whether a hint at `path`, or at a directory above it, waits to be taken."""
        with self._lock:
            if path in self._hints.paths:
                return True
            while self._hints.directories and b"/" in path:
                path = path.rpartition(b"/")[0]
                if path in self._hints.directories:
                    return True
            return False

    def wake(self) -> None:
        """End a running `take` early."""
        self._filled.set()

    def take(self, timeout: float) -> Hints:
        """Wait up to `timeout` seconds for hints, and return all there are."""
        self._filled.wait(timeout)
        with self._lock:
            hints, self._hints = self._hints, Hints()
            self._filled.clear()
        return hints
