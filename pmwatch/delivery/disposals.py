"""What this process has to dispose of, and what some thread of it is at: it outlives a reload of the configuration."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pmwatch.model import Delivery

_MOST: Final = 64
_LONGEST_SECONDS: Final = 0.5


class Disposals:
    """Deliveries whose sources wait to be moved or deleted, or are being so. Safe to use from many threads.

    The ledger's lease keeps a second process away; a copy to another file system may outlive it, and then this keeps
    the other threads away, also from one that a person has queued again meanwhile.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: list[Delivery] = []
        self._since = 0.0  # monotonic: when the first of them came
        self._under_way: set[int] = set()  # those, and what some thread is at

    def put(self, ended: Sequence[Delivery]) -> None:
        """Let deliveries wait for the next `take`."""
        with self._lock:
            if ended and not self._waiting:
                self._since = self._monotonic()
            self._waiting += ended
            self._under_way.update(one.id for one in ended)

    def take(self) -> list[Delivery]:
        """Return all that wait; they are under way until `over`."""
        with self._lock:
            mine, self._waiting = self._waiting, []
        return mine

    @property
    def is_time(self) -> bool:
        """Tell whether enough wait, or one for long enough, that sending has to wait for them."""
        with self._lock:
            waited = self._monotonic() - self._since if self._waiting else 0.0
            return len(self._waiting) >= _MOST or waited > _LONGEST_SECONDS

    def begin(self, id_: int) -> bool:
        """Say that this thread moves a delivery's source; False where another one does already."""
        with self._lock:
            free = id_ not in self._under_way
            self._under_way.add(id_)
            return free

    def over(self, ids: Iterable[int]) -> None:
        """Say that the sources of these deliveries are moved no longer."""
        with self._lock:
            self._under_way.difference_update(ids)

    def __contains__(self, id_: int) -> bool:
        """Tell whether some thread moves a delivery's source, or is about to."""
        with self._lock:
            return id_ in self._under_way
