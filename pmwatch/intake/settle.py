"""The settler: which of the files seen are complete. Pure: looks and clocks come in as arguments.

State: one candidate for each file that is not settled yet, in memory only; a crash here costs one scan.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from pmwatch.intake.evidence import Answer, Evidence, renamed_into_place, unchanged
from pmwatch.model import CompleteWhen, Fingerprint

TURN: Final = "the files that were found before it"  # complete, and about to be entered
_LONG_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file on its way to being settled. `first_seen` and `same_since` are monotonic seconds, `seen_at` epoch.

    `batch` and `rank` are its place in the order of arrival: files first seen in one scan share a batch and
    are ranked by (mtime, name).
    """

    path: bytes
    fingerprint: Fingerprint
    first_seen: float
    same_since: float
    seen_at: float
    batch: float
    renamed: bool
    waits_for: str = "a second look"
    expected_sha256: str = ""

    @property
    def rank(self) -> tuple[float, int, bytes]:
        """The place in the order of arrival."""
        return self.batch, self.fingerprint.mtime_ns, self.path


def _no_marker(_path: bytes, _ctime_ns: int) -> Evidence:
    return Evidence(Answer.UNKNOWN, "no marker is asked for")


def _unless_yes(evidence: Evidence) -> str:
    return "" if evidence.answer is Answer.YES else evidence.sentence


def _unless_closed(writer: Evidence) -> str:
    if writer.answer is Answer.UNKNOWN:
        return f"proof that nobody has it open for writing: {writer.sentence}"
    return "" if writer.answer is Answer.YES else "the process that has it open for writing"


class Settler:
    """Decides by the evidence that `when` asks for: two looks, `settle_seconds` apart, and what the others know.

    `no_writer` answers for a path, `marked` for a path and its ctime (ns). A file without a byte is complete only
    where `empty_too` says so.
    """

    def __init__(
        self,
        settle_seconds: float,
        no_writer: Callable[[bytes], Evidence],
        *,
        when: CompleteWhen = CompleteWhen.AUTO,
        marked: Callable[[bytes, int], Evidence] = _no_marker,
        empty_too: bool = False,
    ) -> None:
        self._settle = settle_seconds
        self._no_writer = no_writer
        self._when = when
        self._marked = marked
        self._empty_too = empty_too
        self._candidates: dict[bytes, Candidate] = {}
        self._due: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._candidates)

    def __contains__(self, path: bytes) -> bool:
        return path in self._candidates

    def candidates(self) -> Iterable[Candidate]:
        """Return all files that are not settled yet."""
        return tuple(self._candidates.values())

    def candidate(self, path: bytes) -> Candidate | None:
        """Return one file that is not settled yet."""
        return self._candidates.get(path)

    def next_due(self) -> float | None:
        """Return when (monotonic seconds) the next look is due."""
        while self._due and self._is_stale(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def _is_stale(self, due: float, path: bytes) -> bool:
        candidate = self._candidates.get(path)
        return candidate is None or due < candidate.same_since

    def due(self, now: float) -> list[bytes]:
        """Return the paths whose next look is due."""
        found = []
        while self._due and self._due[0][0] <= now:
            due, path = heapq.heappop(self._due)
            if not self._is_stale(due, path):
                found.append(path)
        return list(dict.fromkeys(found))

    def forget(self, path: bytes) -> None:
        """Drop a file: it is gone, settled, or not wanted."""
        self._candidates.pop(path, None)

    def saw(
        self,
        path: bytes,
        fingerprint: Fingerprint,
        *,
        now: float,
        wall: float,
        renamed: bool = False,
        batch: float | None = None,
    ) -> Candidate | None:
        """Take a look into account; return the candidate if it is settled by it, and forget it then."""
        before = self._candidates.get(path)
        if before is None:
            candidate = Candidate(path, fingerprint, now, now, wall, now if batch is None else batch, renamed)
        elif before.fingerprint != fingerprint:
            candidate = replace(before, fingerprint=fingerprint, same_since=now, renamed=renamed, waits_for="quiet")
        else:
            candidate = replace(before, renamed=before.renamed or renamed)
        waits_for = self._waits_for(candidate, now)
        if not waits_for:
            self.forget(path)
            return candidate
        self._keep(replace(candidate, waits_for=waits_for), now)
        return None

    def _waits_for(self, candidate: Candidate, now: float) -> str:
        """Return what a file waits for; empty where it is complete."""
        if not candidate.fingerprint.size and not self._empty_too:
            return "content: it is empty"
        if self._when is CompleteWhen.MARKER:
            return _unless_yes(self._marked(candidate.path, candidate.fingerprint.ctime_ns))
        quiet = unchanged(seconds=now - candidate.same_since, settle_seconds=self._settle)
        if self._when is CompleteWhen.STABLE:
            return _unless_yes(quiet)
        if self._when is CompleteWhen.CLOSED:
            return _unless_yes(quiet) or _unless_closed(self._no_writer(candidate.path))
        return self._waits_by_name(candidate, quiet)

    def _waits_by_name(self, candidate: Candidate, quiet: Evidence) -> str:
        """Let a file go at once that was renamed into place, and any other when it is quiet; never an open one."""
        by_rule = self._when is CompleteWhen.RENAMED  # its writers use temporary names, also when nobody looked
        renamed = renamed_into_place(renamed=candidate.renamed or by_rule, mtime_ns=candidate.fingerprint.mtime_ns)
        at_once = renamed.answer is Answer.YES
        if quiet.answer is Answer.NO and not at_once:
            return quiet.sentence
        writer = self._no_writer(candidate.path)
        if writer.answer is Answer.NO:
            return _unless_closed(writer)
        unproven = writer.answer is Answer.UNKNOWN and not by_rule
        return quiet.sentence if quiet.answer is Answer.NO and unproven else ""

    def _keep(self, candidate: Candidate, now: float) -> None:
        self._candidates[candidate.path] = candidate
        due = candidate.same_since + self._settle
        if due <= now:  # quiet, but somebody has it open, or it is empty: look again, ever more seldom
            due = now + min(60.0, max(0.5, self._settle, (now - candidate.same_since) / 4))
        heapq.heappush(self._due, (due, candidate.path))

    def overdue(self, now: float) -> list[Candidate]:
        """Return files that have been settling for more than a quarter of an hour; an empty one waits for content."""
        return overdue(self._candidates.values(), now)


def overdue(candidates: Iterable[Candidate], now: float) -> list[Candidate]:
    """Return files with content that have been waiting for more than a quarter of an hour."""
    return [one for one in candidates if now - one.first_seen >= _LONG_SECONDS and one.fingerprint.size]


Place = tuple[int, bytes, bool]
"""A file's place in the order of arrival among those of its scan: mtime (ns) and path, and whether no event came."""


class Admission:
    """Which of the files that one scan finds come in now: the first `most`, up to twice as many, in their order.

    The others are left to the next scan (`more`), so that a million new files need no more memory than these.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: list[Place] = []
        self._last: Place | None = None

    @property
    def more(self) -> bool:
        """Tell whether some were left to the next scan."""
        return self._last is not None

    def admits(self, place: Place) -> bool:
        """Tell whether a file that the scan found comes in now."""
        if self._last is not None and place > self._last:
            return False
        self._places.append(place)
        return True

    def sent_back(self) -> list[Place]:
        """Return those that came in, and have to leave again for so many that come before them."""
        if len(self._places) < 2 * self._most:
            return []
        self._places.sort()
        back = self._places[self._most :]
        del self._places[self._most :]
        self._last = self._places[-1]
        return back
