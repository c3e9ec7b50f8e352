"""The settler: which of the files seen are complete. Pure: looks and clocks come in as arguments.

State: one candidate for each file that is not settled yet, in memory only; a crash here costs one scan.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from pmwatch.intake.evidence import Answer, Evidence, renamed_into_place
from pmwatch.model import Fingerprint

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

    @property
    def rank(self) -> tuple[float, int, bytes]:
        """The place in the order of arrival."""
        return self.batch, self.fingerprint.mtime_ns, self.path


class Settler:
    """Decides by two looks, `settle_seconds` apart, and by what `no_writer` knows."""

    def __init__(self, settle_seconds: float, no_writer: Callable[[bytes], Evidence]) -> None:
        self._settle = settle_seconds
        self._no_writer = no_writer
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
        settled, waits_for = self._judge(candidate, now)
        if settled:
            self.forget(path)
            return candidate
        self._keep(replace(candidate, waits_for=waits_for), now)
        return None

    def _judge(self, candidate: Candidate, now: float) -> tuple[bool, str]:
        """Tell whether a file is complete, or what it waits for."""
        quiet = now - candidate.same_since >= self._settle
        renamed = renamed_into_place(renamed=candidate.renamed, mtime_ns=candidate.fingerprint.mtime_ns)
        if candidate.fingerprint.size == 0:
            return False, "content: it is empty"
        if not quiet and renamed.answer is not Answer.YES:
            return False, f"a second look, unchanged for {self._settle:g} s"
        writer = self._no_writer(candidate.path)
        if writer.answer is Answer.NO:
            return False, writer.sentence
        if not quiet and writer.answer is Answer.UNKNOWN:
            return False, f"a second look, unchanged for {self._settle:g} s"
        return True, ""

    def _keep(self, candidate: Candidate, now: float) -> None:
        self._candidates[candidate.path] = candidate
        due = candidate.same_since + self._settle
        if due <= now:  # quiet, but somebody has it open, or it is empty: look again, ever more seldom
            due = now + min(60.0, max(0.5, self._settle, (now - candidate.same_since) / 4))
        heapq.heappush(self._due, (due, candidate.path))

    def overdue(self, now: float) -> list[Candidate]:
        """Return files that have been settling for more than a quarter of an hour; an empty one waits for content."""
        return [
            candidate
            for candidate in self._candidates.values()
            if now - candidate.first_seen >= _LONG_SECONDS and candidate.fingerprint.size
        ]
