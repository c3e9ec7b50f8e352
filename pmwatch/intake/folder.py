"""The intake of one folder: one thread that owns its watch, its scans and its settler.

Watch first, then a full scan, then ready. Nothing here survives a crash, and nothing needs to: the ledger knows
what was entered, and the next scan finds the rest.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pmwatch.errors import FolderDown, LedgerError
from pmwatch.files import look
from pmwatch.filesystems import file_system_type, has_events, mounts_below
from pmwatch.intake.batch import Batches
from pmwatch.intake.evidence import Evidence, marked, marker_of, no_writer
from pmwatch.intake.inbox import Hints, Inbox
from pmwatch.intake.rules import MARKER, UNMAPPED, Rules
from pmwatch.intake.scan import Found, require_marker, root_identity, scan
from pmwatch.intake.settle import TURN, Admission, Candidate, Settler, overdue
from pmwatch.intake.watch import Identity, Watch, Watcher
from pmwatch.ledger import Ledger
from pmwatch.model import Backlog, CompleteWhen, Empty, Fingerprint, Folder, Settled, WatchMode, display, file_kind

_CHECK_SECONDS: Final = 5.0  # how often the root is compared with the one that is watched
_POLL_SECONDS: Final = 10.0  # the longest time between scans while there is no watch
_RETRY_FIRST, _RETRY_LONGEST = 0.5, 30.0
_BATCH: Final = 500
_ADMITTED: Final = 50_000  # of the files that a scan finds; with the ledger's work about 100 MB
_OVERDUE_SECONDS: Final = 10.0  # how often all that settles is searched for what never does
_MAX_KNOWN_PROBLEMS: Final = 1000
_SHOWN_OVERDUE: Final = 5
_MOST_OFTEN: Final = 16  # how many times as often a folder is scanned whose watch misses files


class Observer(Protocol):
    """Who is told what an intake notices."""

    def folder_changed(self, folder: str, problem: FolderDown | None) -> None:
        """The folder went down, or came back (None)."""

    def settled(self, folder: str, count: int) -> None:
        """Files were entered into the ledger."""

    def scanned(self, folder: str, seconds: float, *, files: int, missed: int) -> None:
        """A full scan ended; `missed` files were found by it alone."""

    def backlog_held(self, folder: str, count: int) -> None:
        """Old files wait for a person's word."""

    def never_settles(self, folder: str, candidate: Candidate, seconds: float) -> None:
        """A file has been settling for very long."""

    def unmapped(self, folder: Folder, directory: bytes, reason: str) -> None:
        """A file lies in a directory that leads to no destination; told of every such file, at every look."""


@dataclass(frozen=True, slots=True)
class IntakeStatus:
    """What the status page and the metrics show of one intake.

    `polled` says why it is scanned instead of watched; `ignored` counts verdicts by reason.
    """

    up: bool
    watching: bool
    polled: str
    problem: FolderDown | None
    scanned_once: bool
    settling: int
    oldest_unsettled_at: float | None
    ignored: dict[str, int]
    never_settling: list[Candidate]


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
        give_way: Callable[[float], None] = lambda _seconds: None,
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
        self._give_way = give_way
        self._monotonic = monotonic
        self._wall = wall
        self._settler = Settler(
            folder.settle_seconds,
            self._no_writer,
            when=folder.completeness.when,
            marked=self._marked,
            empty_too=folder.guards.empty is not Empty.SKIP,
        )
        self._batches = Batches(folder.root, folder.completeness, self._no_writer)
        self._polled = ""  # why there is no watch, where there is to be none
        self._eventless = ""  # what is mounted below and has to be polled, although the rest is watched
        self._unwatched: FolderDown | None = None  # the limit that keeps directories from being watched
        self._started_at_ns = int(wall() * 1e9)
        self._old = 0  # files that the first walk found, that are older than the start and not in the ledger
        self._walked = False  # a scan has been through the whole folder
        self._first_batch = math.nan
        self._more = False  # more files than are taken in at a time: the next scan finds the others
        self._unannounced = 0  # news of the running scan of which no event is on its way
        self._rescan_seconds = folder.rescan_seconds
        self._watch: Watch | None = None
        self._watched_root: Identity | None = None
        self._problem: FolderDown | None = None
        self._scans_asked = 1
        self._scans_answered = 0
        self._next_scan = 0.0
        self._next_check = 0.0
        self._retry = _RETRY_FIRST
        self._ready: dict[bytes, Candidate] = {}  # settled, and not in the ledger yet
        self._batch: float | None = None  # that of the scan that runs, or broke off and is to run again
        self._holds: dict[float, float] = {}  # until when what came after a scan waits for what that scan found
        self._ignored: Counter[str] = Counter()
        self._reported: set[bytes] = set()
        self._next_overdue = 0.0

    def _no_writer(self, path: bytes) -> Evidence:
        return no_writer(self.folder.root, path)

    def _marked(self, path: bytes, ctime_ns: int) -> Evidence:
        return marked(self.folder.root, path, self.folder.completeness.marker, ctime_ns=ctime_ns)

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
        if now >= self._scan_due():
            self._scan()
        if self._batches.waiting():
            for candidate in self._batches.released(self._settler.candidates()):
                self._complete(candidate)
        self._enqueue(now)
        self._report_overdue(now)

    def _wait(self, longest: float) -> float:
        due = self._settler.next_due()
        held_until = min(self._holds.values(), default=0.0) if self._ready else math.inf
        nearest = min(self._scan_due(), self._next_check, math.inf if due is None else due, held_until)
        return max(0.0, min(longest, nearest - self._monotonic()))

    def _scan_due(self) -> float:
        """Return when to scan: not before the first of very many files have made room for the others."""
        if self._more and self._ready:
            return math.inf
        return max(self._holds.values()) if self._more and self._holds else self._next_scan

    def _check_root(self, now: float) -> None:
        """Keep the watch on the directory that is there now: it may be new, replaced, unmounted or gone."""
        if now < self._next_check:
            return
        try:
            root = root_identity(self.folder.root)
            if self.folder.root_marker:
                require_marker(self.folder.root, self.folder.root_marker)
            self._next_check = now + _CHECK_SECONDS
            watch = self._watch
            blind = not self._polled and (watch is None or not watch.alive or not watch.complete)
            if blind or root != self._watched_root:
                self._arm(root)
                self._next_scan = now
            self._retry = _RETRY_FIRST
            self._set_problem(self._unwatched)
        except FolderDown as problem:
            self._next_check = now + self._retry
            self._retry = min(_RETRY_LONGEST, 2 * self._retry)
            self._set_problem(problem)
            if problem.reason != "folder_down":  # readable, only not watchable: scan it instead
                self._next_scan = min(self._next_scan, now + _POLL_SECONDS)

    def _arm(self, root: Identity) -> None:
        self._disarm()
        self._polled = self._why_polled()
        if not self._polled:
            self._watch = self._watcher.watch(
                self.folder.root, root, inbox=self.inbox, enters=self.rules.enters, deep=self.rules.deep
            )
        self._watched_root = root

    def _why_polled(self) -> str:
        """Say why this folder is polled; empty where it is watched."""
        if self.folder.watch is WatchMode.POLL:
            return 'watch = "poll"'
        kind = file_system_type(self.folder.root)
        if self.folder.watch is WatchMode.AUTO and not has_events(kind):
            return f"{kind} has no events"
        return ""

    def _why_polled_too(self) -> str:
        """Say what is mounted below the root that has no events; empty where all is watched."""
        if self._polled or self.folder.watch is not WatchMode.AUTO or not self.rules.deep:
            return ""
        found = (
            f"{kind} at {display(path)} has no events"
            for path, kind in sorted(mounts_below(self.folder.root).items())
            if not has_events(kind) and self.rules.enters(path)
        )
        return next(found, "")

    def _enter(self, directory: bytes, identity: Identity) -> None:
        """Watch a directory that a scan is about to read: what comes before is found by it, what comes later tells."""
        self._beat()
        if self._watch is None or not directory:
            return
        try:
            self._watch.watch(directory, identity)
        except FolderDown as limit:
            self._unwatched = limit

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
        markers = set[bytes]()
        for path, renamed in hints.paths.items():
            mapped = self.rules.map(path)
            if mapped.target is not None:
                if not self._more or self.candidate(path) is not None:  # else its turn comes with the next scan
                    self._look(path, renamed=renamed)
            elif mapped.reason == MARKER:
                markers.add(path)
            else:
                self._say_unmapped(path, mapped.reason)
        if markers and self.folder.completeness.when is CompleteWhen.MARKER:
            for candidate in self._settler.candidates():
                if marker_of(candidate.path, self.folder.completeness.marker) in markers:
                    self._look(candidate.path)
        for directory in _outermost(hints.directories):
            self._scan_below(directory)
        if self._watch is not None and self._unwatched is not None:
            self._set_problem(self._unwatched)
            self._next_scan = min(self._next_scan, self._monotonic() + _POLL_SECONDS)

    def _scan_below(self, directory: bytes) -> None:
        batch = self._monotonic()
        try:
            found = scan(self.folder.root, self.rules, below=directory, problem=_ignore, enter=self._enter)
            if self._see(found, batch):
                self._holds[batch] = self._monotonic() + self.folder.settle_seconds
        except LedgerError:
            self._next_scan = batch + self._retry  # the hints that were taken with this one are lost
            raise

    def _look(self, path: bytes, *, renamed: bool = False) -> None:
        st = look(self.folder.root, path)
        if st is None or file_kind(st.st_mode):
            self._settler.forget(path)
            self._batches.forget(path)
        else:
            self._saw(path, Fingerprint.of(st), renamed=renamed)

    def _saw(self, path: bytes, seen: Fingerprint, *, renamed: bool = False, batch: float | None = None) -> None:
        complete = self._batches.candidate(path) or self._ready.get(path)
        if complete is not None and complete.fingerprint == seen:
            return
        self._batches.forget(path)
        self._ready.pop(path, None)
        now = self._monotonic()
        settled = self._settler.saw(path, seen, now=now, wall=self._wall(), renamed=renamed, batch=batch)
        if settled is None:
            return
        if self._batches.asked_for:
            self._batches.hold(settled)
        else:
            self._complete(settled)

    def _complete(self, candidate: Candidate) -> None:
        """Let a file wait for its turn to be entered."""
        self._ready[candidate.path] = replace(candidate, waits_for=TURN)

    def _see(self, files: Iterable[Found], batch: float) -> int:
        """Look at files that a scan found, unless the ledger knows them; return how many were news."""
        news, chunk, admission = 0, list[Found](), Admission(_ADMITTED)
        for found in files:
            chunk.append(found)
            if len(chunk) >= _BATCH:
                news += self._see_chunk(chunk, batch, admission)
                chunk.clear()
        news += self._see_chunk(chunk, batch, admission)
        self._more = self._more or admission.more
        return news

    def _see_chunk(self, chunk: list[Found], batch: float, admission: Admission) -> int:
        self._beat()  # a scan of many files is many turns
        started = self._monotonic()
        known = self._ledger.known(self.folder.name, [found.path for found in chunk])
        news = 0
        for found in chunk:
            seen = Fingerprint.of(found.stat)
            before = known.get(found.path)
            if before is not None and not before.is_news(seen):
                continue
            if not self._walked and batch == self._first_batch and seen.mtime_ns < self._started_at_ns:
                self._old += 1
            if self.candidate(found.path) is None:
                unannounced = not self.inbox.holds(found.path)
                if not admission.admits((seen.mtime_ns, found.path, unannounced)):
                    continue
                news += 1
                self._unannounced += unannounced
            self._saw(found.path, seen, batch=batch)
        for _, path, unannounced in admission.sent_back():
            self._forget(path)
            news -= 1
            self._unannounced -= unannounced
        self._give_way(self._monotonic() - started)
        return news

    def _forget(self, path: bytes) -> None:
        self._settler.forget(path)
        self._batches.forget(path)
        self._ready.pop(path, None)

    def _scan(self) -> None:
        started, asked = self._monotonic(), self._scans_asked
        self._unannounced = 0
        batch = self._batch = started if self._batch is None else self._batch
        held, self._holds[batch] = self._holds.get(batch, 0.0), math.inf
        if not self._scans_answered:
            self._first_batch = batch
        if not self._walked:
            self._old = 0
        ignored: Counter[str] = Counter()

        def problem(path: bytes, reason: str) -> None:
            self._beat()
            self._say_unmapped(path, reason)
            if len(ignored) < _MAX_KNOWN_PROBLEMS:
                ignored[reason.partition(":")[0]] += 1

        self._more, self._unwatched = False, None
        self._eventless = self._why_polled_too()
        try:
            news = self._see(scan(self.folder.root, self.rules, problem=problem, enter=self._enter), batch)
        except FolderDown as error:
            self._set_problem(error)
            self._next_check = started + self._retry
            return
        except LedgerError:
            self._next_scan = started + self._retry  # nothing was entered; the next scan finds it all again
            raise
        if self._watch is not None:
            self._set_problem(self._unwatched)
        self._ignored = ignored
        self._walked = True
        watched = self._watch is not None and not self._eventless
        missed = self._unannounced if self._scans_answered and watched else 0
        if not self._more:
            self._scans_answered = asked
        ended = self._monotonic()
        self._holds[batch] = ended + self.folder.settle_seconds if news or held == math.inf else held
        if self._scans_answered:  # all that the first scan finds, in however many attempts, came at one time
            self._batch = None
        self._next_scan = ended + max(self._seconds_to_next_scan(missed=missed), 2 * (ended - started))
        self._observer.scanned(self.folder.name, ended - started, files=news, missed=missed)

    def _seconds_to_next_scan(self, *, missed: int) -> float:
        """Return how long to wait: less where the watch has missed files, less still where it is none or not whole."""
        if self._polled or self._eventless:
            return min(self.folder.poll_seconds, self.folder.rescan_seconds)
        if self._watch is None or not self._watch.alive or self._unwatched is not None or self._more:
            return min(_POLL_SECONDS, self.folder.rescan_seconds)
        longest = self.folder.rescan_seconds
        changed = self._rescan_seconds / 2 if missed else self._rescan_seconds * 2
        self._rescan_seconds = min(longest, max(longest / _MOST_OFTEN, changed))
        return self._rescan_seconds

    def _say_unmapped(self, path: bytes, reason: str) -> None:
        if reason.startswith(UNMAPPED):
            self._observer.unmapped(self.folder, path.rpartition(b"/")[0], reason)

    # ---- into the ledger ----------------------------------------------------------------------------------

    def _enqueue(self, now: float) -> None:
        """Enter what has settled, in the order of arrival. What the ledger cannot take stays for the next turn.

        What came after a scan waits until the files that it found had their second look: a file renamed into place
        just now must not overtake the backlog. `now` is before the looks of this turn.
        """
        self._holds = {batch: until for batch, until in self._holds.items() if now < until}
        if self.folder.guards.backlog is Backlog.ASK and not self._walked:
            return  # nobody knows yet whether there are too many old ones
        first_held = min(self._holds, default=math.inf)
        going = (candidate for candidate in self._ready.values() if candidate.batch < first_held)
        ready = sorted(going, key=lambda candidate: candidate.rank)
        if not ready:
            return
        files = [file for candidate in ready if (file := self._settled(candidate)) is not None]
        entered = self._ledger.enqueue(files)
        for candidate in ready:
            del self._ready[candidate.path]
        if self._more:
            self._next_scan = now
        if entered:
            self._observer.settled(self.folder.name, len(entered))
        backlog = sum(file.held == "backlog" for file in files)
        if backlog:
            self._observer.backlog_held(self.folder.name, backlog)

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
            supersedes=self.folder.supersede,
            held="backlog" if self._is_backlog(candidate) else "",
            expected_sha256=candidate.expected_sha256,
        )

    def _is_backlog(self, candidate: Candidate) -> bool:
        """Tell whether a file waits for a person's word: one of very many old ones that lay there at the start."""
        guards = self.folder.guards
        if guards.backlog is Backlog.SEND or self._old <= guards.max_backlog:
            return False
        return candidate.batch == self._first_batch and candidate.fingerprint.mtime_ns < self._started_at_ns

    def _report_overdue(self, now: float) -> None:
        """Report each file that never settles, once for as long as it does not."""
        if now < self._next_overdue:
            return
        self._next_overdue = now + _OVERDUE_SECONDS
        found = self._settler.overdue(now) + overdue(self._batches.waiting(), now)
        for candidate in found:
            if candidate.path not in self._reported:
                self._observer.never_settles(self.folder.name, candidate, now - candidate.first_seen)
        self._reported = {candidate.path for candidate in found}

    # ---- questions ----------------------------------------------------------------------------------------

    def begin_last_scan(self) -> None:
        """Ask for one more full scan; `idle` is False until it has run. Callable from one other thread."""
        self._scans_asked += 1
        self.inbox.rescan()

    def unsettled(self) -> list[Candidate]:
        """Return the files that have content and are not in the ledger yet."""
        settling = [candidate for candidate in self._settler.candidates() if candidate.fingerprint.size]
        return settling + self._batches.waiting() + list(self._ready.values())

    @property
    def idle(self) -> bool:
        """Tell whether everything that was seen is in the ledger: scanned, nothing settling but empty files."""
        return self.scanned and not self.unsettled()

    @property
    def scanned(self) -> bool:
        """Tell whether a full scan has run since it was last asked for."""
        return self._scans_answered == self._scans_asked

    @property
    def reachable(self) -> bool:
        """Tell whether the folder can be read."""
        return self._problem is None or self._problem.reason != "folder_down"

    @property
    def ready(self) -> bool:
        """Tell whether the watch was tried: armed, or the folder is down and will come back."""
        return self._watched_root is not None or self._problem is not None

    def status(self) -> IntakeStatus:
        """Return a snapshot for other threads."""
        candidates = self.unsettled()
        watch = self._watch
        watching = watch is not None and watch.alive
        return IntakeStatus(
            up=self._problem is None and self._watched_root is not None and (bool(self._polled) or watching),
            watching=watching,
            polled=self._polled or self._eventless,
            problem=self._problem,
            scanned_once=self._scans_answered > 0,
            settling=len(candidates),
            oldest_unsettled_at=min((candidate.seen_at for candidate in candidates), default=None),
            ignored=dict(self._ignored),
            never_settling=overdue(candidates, self._monotonic())[:_SHOWN_OVERDUE],
        )

    def candidate(self, path: bytes) -> Candidate | None:
        """Return a file that is not in the ledger yet: still settling, or complete and about to be entered."""
        return self._settler.candidate(path) or self._batches.candidate(path) or self._ready.get(path)

    def in_hand(self) -> tuple[list[bytes], bool]:
        """Return the files that are on their way to the ledger, and whether a next scan is to find more of them."""
        waiting = [*self._settler.candidates(), *self._batches.waiting(), *list(self._ready.values())]
        return [candidate.path for candidate in waiting], self._more or not self._scans_answered

    def accounts_for(self, path: bytes) -> bool:
        """Tell whether a file that is not in the ledger is on its way there, or its turn comes with a next scan."""
        return self._more or self.candidate(path) is not None

    def close(self) -> None:
        """Stop watching."""
        self._disarm()


def _outermost(directories: set[bytes]) -> list[bytes]:
    """Return those that lie below no other of them: a scan takes in all that is below."""

    def is_below_another(directory: bytes) -> bool:
        while b"/" in directory:
            directory = directory.rpartition(b"/")[0]
            if directory in directories:
                return True
        return False

    return sorted(directory for directory in directories if not is_below_another(directory))


def _ignore(_path: bytes, _reason: str) -> None:
    """Take no note: the next full scan counts it."""
