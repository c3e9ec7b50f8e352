"""How fast bytes may go, and how fast they went."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from pmwatch.timetable import Bandwidth

_PIECE_SECONDS: Final = 0.1
_SMALLEST_PIECE: Final = 16 * 1024
_LONGEST_NAP_SECONDS: Final = 0.25
_MEASURED_BYTES: Final = 1024 * 1024  # below this a PUT says more about the round trip than about the line
_WEIGHT: Final = 0.3


class Pace:
    """Holds all uploads together to a bandwidth, and knows how fast uploads have been."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bandwidth = Bandwidth()
        self._now = now
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = 0.0
        self._seen = 0.0

    def paced(self, chunks: Iterator[bytes], check: Callable[[], None]) -> Iterator[bytes]:
        """Yield a body no faster than its share of the bandwidth; `check` may raise, and is called while waiting."""
        for chunk in chunks:
            rate = self.bandwidth.at(time.localtime(self._now()))
            if not rate:
                yield chunk
                continue
            size = max(_SMALLEST_PIECE, min(len(chunk), int(rate * _PIECE_SECONDS)))
            view = memoryview(chunk)
            for start in range(0, len(chunk), size):
                piece = view[start : start + size]
                self._wait(len(piece) / rate, check)
                yield bytes(piece)

    def _wait(self, seconds: float, check: Callable[[], None]) -> None:
        """Wait until these bytes are paid for: each takes its place behind those of all other uploads."""
        with self._lock:
            now = self._monotonic()
            due = max(now, self._paid_until)
            self._paid_until = due + seconds
        while (left := due - self._monotonic()) > 0:
            check()
            self._sleep(min(left, _LONGEST_NAP_SECONDS))

    def saw(self, size: int, seconds: float) -> None:
        """Learn from an upload of `size` bytes how fast the line is."""
        if size < _MEASURED_BYTES or seconds <= 0:
            return
        with self._lock:
            rate = size / seconds
            self._seen = rate if not self._seen else (1 - _WEIGHT) * self._seen + _WEIGHT * rate

    def expected_seconds(self, size: int) -> float:
        """Return how long an upload of `size` bytes will take as far as known; 0.0 where nothing is known."""
        limit = self.bandwidth.at(time.localtime(self._now()))
        rates = [rate for rate in (self._seen, limit) if rate]
        return size / min(rates) if rates else 0.0
