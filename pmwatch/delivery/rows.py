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

    def ask(self, remote: Remote, check: Callable[[], None]) -> None:
        """Ask for what is due and record the answers. Trouble of the API is not worth another try.

        `check` is called while a tenant's share of requests is waited for; it may raise.
        """
        with self._lock:
            due = {target: delivery for target, (at, delivery) in self._last.items() if at <= self._now()}
            for target in due:
                del self._last[target]
        shut = set(self._gates.shut_for(sorted({target.tenant for target in due})))
        for target, delivery in due.items():
            if target.tenant in shut:
                continue
            try:
                self._limits.before_request(target.tenant, check)
                rows = remote.row_count(delivery)
            except Interrupted:
                return
            except PmwatchError:
                continue
            if rows is not None:
                self._ledger.tell_rows(delivery, rows)
