"""Rows that arrived: some time after an upload the API is asked how many rows the datatable has now.

Nothing waits for the answer, and nothing depends on it: the service takes a file apart in its own time. What is
still to be asked lives in memory only.
"""

import threading
import time
from collections.abc import Callable

from pmwatch.delivery.gates import Gates
from pmwatch.delivery.limits import Limits
from pmwatch.delivery.remote import Remote
from pmwatch.errors import Interrupted, PmwatchError
from pmwatch.ledger import Ledger
from pmwatch.model import Delivery, Target


class RowCounts:
    """Asks once for each datatable, `after_seconds` after the last file that went there; 0 asks never."""

    def __init__(self, *, ledger: Ledger, gates: Gates, limits: Limits, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._gates = gates
        self._limits = limits
        self._now = now
        self._last: dict[Target, tuple[float, Delivery]] = {}
        self._lock = threading.Lock()
        self.after_seconds = 0.0

    def arrived(self, delivery: Delivery) -> None:
        """Remember to ask after this upload; callable from any thread."""
        if self.after_seconds and not delivery.target.process:
            with self._lock:
                self._last[delivery.target] = (self._now() + self.after_seconds, delivery)

    def ask(self, remote: Remote, check: Callable[[], None], *, at_once: bool = False) -> None:
        """Ask for what is due, or `at_once` for all, and record the answers. Trouble is not worth another try.

        `check` is called before each question and while a tenant's share of requests is waited for; where it raises
        Interrupted, what is left may be asked later.
        """
        with self._lock:
            due = {target: one for target, one in self._last.items() if at_once or one[0] <= self._now()}
        shut = set(self._gates.shut_for(sorted({target.tenant for target in due})))
        for target, one in due.items():
            if target.tenant in shut:
                self._take(target, one)
                continue
            try:
                check()
                self._limits.before_request(target.tenant, check)
            except Interrupted:
                return
            if self._take(target, one):
                self._ask(remote, one[1])

    def _take(self, target: Target, one: tuple[float, Delivery]) -> bool:
        """Take a question off the list, unless a later file went there meanwhile: then it is asked after that one."""
        with self._lock:
            is_last = self._last.get(target) is one
            if is_last:
                del self._last[target]
        return is_last

    def _ask(self, remote: Remote, delivery: Delivery) -> None:
        try:
            rows = remote.row_count(delivery)
        except PmwatchError:
            return
        if rows is not None:
            self._ledger.tell_rows(delivery.id, rows)
