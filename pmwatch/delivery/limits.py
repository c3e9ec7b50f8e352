"""How much goes at once and how often the API is asked: by tenant and by datatable, less where the other side asks.

A tenant whose API or storage answers 429 or 503 gets half as many uploads at a time as it had, and one more each time
that it went well for a while. State lives in memory: after a restart each starts with all it may have.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pmwatch.model import Delivery

_GROW_SECONDS: Final = 30.0
_LONGEST_NAP_SECONDS: Final = 0.25

Claim = Callable[[Sequence[str], Sequence[str]], list[Delivery]]


@dataclass(frozen=True, slots=True)
class Most:
    """At most so many uploads at a time: in all, for each tenant, for each datatable; and API requests a second.

    0 is no limit of its own. `requests` is by tenant name.
    """

    parallel: int = 4
    for_tenant: int = 0
    for_datatable: int = 0
    requests: Mapping[str, float] = field(default_factory=dict)


class Limits:
    """Counts what is under way. `changed` is told when a tenant's share is halved or has grown back whole."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        changed: Callable[[str, int], None] = lambda _tenant, _now: None,
    ) -> None:
        self.most = Most()
        self._monotonic = monotonic
        self._sleep = sleep
        self._changed = changed
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._of_tenant: Counter[str] = Counter()
        self._of_table: Counter[tuple[str, str]] = Counter()
        self._share: dict[str, int] = {}  # of tenants that were asked to slow down
        self._grown_at: dict[str, float] = {}
        self._asked_until: dict[str, float] = {}

    # ---- at a time ----------------------------------------------------------------------------------------

    def claim(self, claim: Claim) -> list[Delivery]:
        """Claim a run within the limits. `claim` gets the tenants and the (tenant id, table id) that have enough.

        What it returns counts until `ended`.
        """
        if not (self.most.for_tenant or self.most.for_datatable or self._share):
            return self._began(claim((), ()))
        with self._claiming:  # or two could take the last place
            return self._began(claim(*self._full()))

    def _began(self, claimed: list[Delivery]) -> list[Delivery]:
        if claimed:
            with self._lock:
                self._of_tenant[claimed[0].target.tenant] += 1
                self._of_table[_table(claimed[0])] += 1
        return claimed

    def ended(self, delivery: Delivery) -> None:
        """Say that the run of this delivery is over."""
        with self._lock:
            self._of_tenant[delivery.target.tenant] -= 1
            self._of_table[_table(delivery)] -= 1
            self._of_tenant += Counter()  # which drops what is zero
            self._of_table += Counter()

    @property
    def busy(self) -> bool:
        """Tell whether anything is under way."""
        return bool(self._of_tenant)

    def _full(self) -> tuple[Sequence[str], Sequence[str]]:
        with self._lock:
            tenants = [name for name, count in self._of_tenant.items() if count >= self._allowed(name)]
            most = self.most.for_datatable
            tables = ["/".join(key) for key, count in self._of_table.items() if most and count >= most]
            return tenants, tables

    def _allowed(self, tenant: str) -> int:
        most = self.most.for_tenant or self.most.parallel
        return min(most, self._share.get(tenant, most))

    # ---- slower on request --------------------------------------------------------------------------------

    def slow_down(self, tenant: str) -> None:
        """Halve what goes at a time: the other side answered 429 or 503."""
        with self._lock:
            share = max(1, self._allowed(tenant) // 2)
            before, self._share[tenant] = self._share.get(tenant), share
            self._grown_at[tenant] = self._monotonic()
        if before != share:
            self._changed(tenant, share)

    def went_well(self, tenant: str) -> None:
        """Let one more go at a time, where the last change is half a minute ago."""
        if tenant not in self._share:
            return
        with self._lock:
            share = self._share.get(tenant)
            if share is None or self._monotonic() - self._grown_at[tenant] < _GROW_SECONDS:
                return
            self._grown_at[tenant] = self._monotonic()
            self._share[tenant] = share + 1
            whole = share + 1 >= (self.most.for_tenant or self.most.parallel)
            if whole:
                del self._share[tenant]
        if whole:
            self._changed(tenant, self._allowed(tenant))

    def slowed(self) -> dict[str, int]:
        """Return how many uploads at a time the tenants have that were asked to slow down."""
        with self._lock:
            return {tenant: self._allowed(tenant) for tenant in self._share}

    # ---- requests a second --------------------------------------------------------------------------------

    def before_request(self, tenant: str, check: Callable[[], None]) -> None:
        """Wait until the tenant may ask the API again; `check` may raise, and is called while waiting."""
        rate = self.most.requests.get(tenant, 0.0)
        if not rate:
            return
        with self._lock:
            now = self._monotonic()
            due = max(now, self._asked_until.get(tenant, 0.0))
            self._asked_until[tenant] = due + 1 / rate
        while (left := due - self._monotonic()) > 0:
            check()
            self._sleep(min(left, _LONGEST_NAP_SECONDS))


def _table(delivery: Delivery) -> tuple[str, str]:
    destination = delivery.destination
    return (destination.tenant_id, destination.datatable_id) if destination else ("", str(delivery.target))
