"""The intake of one folder: one thread that owns its watch, its scans and its settler.

Watch first, then a full scan, then ready. Nothing here survives a crash, and nothing needs to: the ledger knows
what was entered, and the next scan finds the rest.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from pmwatch.errors import FolderDown, LedgerError
from pmwatch.files import look
from pmwatch.intake.evidence import Evidence, no_writer
from pmwatch.intake.inbox import Hints, Inbox
from pmwatch.intake.rules import Rules
from pmwatch.intake.scan import Found, root_identity, scan
from pmwatch.intake.settle import Candidate, Settler
from pmwatch.intake.watch import Watch, Watcher
from pmwatch.ledger import Ledger
from pmwatch.model import Fingerprint, Folder, Settled, file_kind

_CHECK_SECONDS: Final = 5.0  # how often the root is compared with the one that is watched
_POLL_SECONDS: Final = 10.0  # the longest time between scans while there is no watch
_RETRY_FIRST, _RETRY_LONGEST = 0.5, 30.0
_BATCH: Final = 500
_MAX_KNOWN_PROBLEMS: Final = 1000


class Observer(Protocol):
    """Who is told what an intake notices."""

    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:
        """The folder went down, or came back (None)."""

    def settled(self, folder: str, count: int) -> None:
        """Files were entered into the ledger."""

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:
        """A full scan ended; `missed` files were found by it alone."""

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:
        """A file has been settling for very long."""


@dataclass(frozen=True, slots=True)
class IntakeStatus:
    """What the status page and the metrics show of one intake. `ignored` counts verdicts by reason."""

    up: bool
    watching: bool
    problem: FolderDown | None
    scanned_once: bool
    settling: int
    oldest_unsettled_at: float | None
    ignored: dict[str, int]


class FolderIntake:
    """Brings the files of one folder from disk into the ledger. All state belongs to the thread that calls `turn`."""

    def __init__(
        self,
        folder: Folder,
        *,
        watcher: Watcher,
        ledger: Ledger,
        observer: Observer,
        beat: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.inbox = Inbox()
        self.rules = Rules(folder)
        self._watcher = watcher
        self._ledger = ledger
        self._observer = observer
        self._beat = beat
        self._monotonic = monotonic
        self._wall = wall
        self._settler = Settler(folder.settle_seconds, self._no_writer)
        self._watch: Watch | None = None
        self._watched_root: tuple[int, int] | None = None
        self._problem: FolderDown | None = None
        self._scans_asked = 1
        self._scans_answered = 0
        self._next_scan = 0.0
        self._next_check = 0.0
        self._retry = _RETRY_FIRST
        self._ready: list[Candidate] = []
        self._hold_until = 0.0
        self._ignored: Counter[str] = Counter()
        self._reported: set[bytes] = set()

    def _no_writer(self, path: bytes) -> Evidence:
        return no_writer(self.folder.root, path)

    # ---- one turn -----------------------------------------------------------------------------------------

    def turn(self, *, longest_wait: float = 1.0) -> None:
        """Wait for hints or the next look, at most `longest_wait` seconds, and act on what came."""
        hints = self.inbox.take(self._wait(longest_wait))
        now = self._monotonic()
        if hints.rescan:
            self._next_scan = self._next_check = now
        self._check_root(now)
        if self._problem is not None and self._problem.reason == "folder_down":
            return
        self._take(hints)
        for path in self._settler.due(now):
            self._look(path)
        if now >= self._next_scan:
            self._scan()
        self._enqueue(now)
        self._report_overdue(now)

    def _wait(self, longest: float) -> float:
        due = self._settler.next_due()
        nearest = min(self._next_scan, self._next_check, self._next_scan if due is None else due)
        if self._ready:
            nearest = min(nearest, self._hold_until)
        return max(0.0, min(longest, nearest - self._monotonic()))

    def _check_root(self, now: float) -> None:
        """Keep the watch on the directory that is there now: it may be new, replaced, unmounted or gone."""
        if now < self._next_check:
            return
        try:
            root = root_identity(self.folder.root)
            self._next_check = now + _CHECK_SECONDS
            if self._watch is None or not self._watch.alive or root != self._watched_root:
                self._arm(root)
                self._next_scan = now
            self._retry = _RETRY_FIRST
            self._set_problem(None)
        except FolderDown as problem:
            self._next_check = now + self._retry
            self._retry = min(_RETRY_LONGEST, 2 * self._retry)
            self._set_problem(problem)
            if problem.reason != "folder_down":  # readable, only not watchable: scan it instead
                self._next_scan = min(self._next_scan, now + _POLL_SECONDS)

    def _arm(self, root: tuple[int, int]) -> None:
        self._disarm()
        self._watch = self._watcher.watch(
            self.folder.root, inbox=self.inbox, enters=self.rules.enters, deep=self.rules.deep
        )
        self._watched_root = root

    def _disarm(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _set_problem(self, problem: FolderDown | None) -> None:
        before, self._problem = self._problem, problem
        if (before.message if before else "") != (problem.message if problem else ""):
            self._observer.folder_changed(self.folder.name, problem)

    # ---- looks --------------------------------------------------------------------------------------------

    def _take(self, hints: Hints) -> None:
        for path, renamed in hints.paths.items():
            if self.rules.map(path).target is not None:
                self._look(path, renamed=renamed)
        for directory in hints.directories:
            self._see(scan(self.folder.root, self.rules, below=directory, problem=_ignore))

    def _look(self, path: bytes, *, renamed: bool = False) -> None:
        st = look(self.folder.root, path)
        if st is None or file_kind(st.st_mode):
            self._settler.forget(path)
        else:
            self._saw(path, Fingerprint.of(st), renamed=renamed)

    def _saw(self, path: bytes, seen: Fingerprint, *, renamed: bool = False, batch: float | None = None) -> None:
        now = self._monotonic()
        settled = self._settler.saw(path, seen, now=now, wall=self._wall(), renamed=renamed, batch=batch)
        if settled is not None:
            self._ready.append(settled)

    def _see(self, files: Iterable[Found]) -> int:
        """Look at files that a scan found, unless the ledger knows them; return how many were news."""
        batch, news, chunk = self._monotonic(), 0, list[Found]()
        for found in files:
            chunk.append(found)
            if len(chunk) >= _BATCH:
                news += self._see_chunk(chunk, batch)
                chunk.clear()
        news += self._see_chunk(chunk, batch)
        if news:
            self._hold_until = self._monotonic() + self.folder.settle_seconds
        return news

    def _see_chunk(self, chunk: list[Found], batch: float) -> int:
        self._beat()  # a scan of many files is many turns
        known = self._ledger.known(self.folder.name, [found.path for found in chunk])
        news = 0
        for found in chunk:
            seen = Fingerprint.of(found.stat)
            before = known.get(found.path)
            if before is not None and not before.is_news(seen):
                continue
            news += found.path not in self._settler
            self._saw(found.path, seen, batch=batch)
        return news

    def _scan(self) -> None:
        started, asked = self._monotonic(), self._scans_asked
        ignored: Counter[str] = Counter()

        def problem(_path: bytes, reason: str) -> None:
            self._beat()
            if len(ignored) < _MAX_KNOWN_PROBLEMS:
                ignored[reason.partition(":")[0]] += 1

        try:
            news = self._see(scan(self.folder.root, self.rules, problem=problem))
        except FolderDown as error:
            self._set_problem(error)
            self._next_check = started + self._retry
            return
        except LedgerError:
            self._next_scan = started + self._retry  # nothing was entered; the next scan finds it all again
            raise
        self._ignored = ignored
        missed = news if self._scans_answered and self._watch is not None else 0
        self._scans_answered = asked
        ended = self._monotonic()
        watching = self._watch is not None and self._watch.alive
        interval = self.folder.rescan_seconds if watching else min(_POLL_SECONDS, self.folder.rescan_seconds)
        self._next_scan = ended + max(interval, 2 * (ended - started))
        self._observer.scanned(self.folder.name, ended - started, files=news, missed=missed)

    # ---- into the ledger ----------------------------------------------------------------------------------

    def _enqueue(self, now: float) -> None:
        """Enter what has settled, in the order of arrival. What the ledger cannot take stays for the next turn.

        After a scan found files, later arrivals wait until these had their second look: a file renamed into
        place just now must not overtake the backlog.
        """
        if not self._ready or now < self._hold_until:  # `now` is before the looks of this turn
            return
        ready = sorted(self._ready, key=lambda candidate: candidate.rank)
        files = [file for candidate in ready if (file := self._settled(candidate)) is not None]
        entered = self._ledger.enqueue(files)
        self._ready.clear()
        self._reported.difference_update(candidate.path for candidate in ready)
        if entered:
            self._observer.settled(self.folder.name, len(entered))

    def _settled(self, candidate: Candidate) -> Settled | None:
        target = self.rules.map(candidate.path).target
        if target is None:
            return None
        return Settled(
            folder=self.folder.name,
            path=candidate.path,
            fingerprint=candidate.fingerprint,
            target=target,
            order=self.folder.order,
            seen_at=candidate.seen_at,
            settled_at=self._wall(),
        )

    def _report_overdue(self, now: float) -> None:
        for candidate in self._settler.overdue(now):
            if candidate.path not in self._reported:
                self._reported.add(candidate.path)
                self._observer.never_settles(self.folder.name, candidate, now - candidate.first_seen)

    # ---- questions ----------------------------------------------------------------------------------------

    def begin_last_scan(self) -> None:
        """Ask for one more full scan; `idle` is False until it has run. Callable from one other thread."""
        self._scans_asked += 1
        self.inbox.rescan()

    def unsettled(self) -> list[Candidate]:
        """Return the files that have content and are not in the ledger yet."""
        return [candidate for candidate in self._settler.candidates() if candidate.fingerprint.size] + self._ready

    @property
    def idle(self) -> bool:
        """Tell whether everything that was seen is in the ledger: scanned, nothing settling but empty files."""
        return self._scans_answered == self._scans_asked and not self.unsettled()

    @property
    def reachable(self) -> bool:
        """Tell whether the folder can be read."""
        return self._problem is None or self._problem.reason != "folder_down"

    @property
    def ready(self) -> bool:
        """Tell whether the watch was tried: armed, or the folder is down and will come back."""
        return self._watch is not None or self._problem is not None

    def status(self) -> IntakeStatus:
        """Return a snapshot for other threads."""
        candidates = self.unsettled()
        watch = self._watch
        return IntakeStatus(
            up=self._problem is None and watch is not None and watch.alive,
            watching=watch is not None and watch.alive,
            problem=self._problem,
            scanned_once=self._scans_answered > 0,
            settling=len(candidates),
            oldest_unsettled_at=min((candidate.seen_at for candidate in candidates), default=None),
            ignored=dict(self._ignored),
        )

    def candidate(self, path: bytes) -> Candidate | None:
        """Return a file that is still settling."""
        return self._settler.candidate(path)

    def close(self) -> None:
        """Stop watching."""
        self._disarm()


def _ignore(_path: bytes, _reason: str) -> None:
    """Take no note: the next full scan counts it."""
