"""Gates: the pause shared by all deliveries that need one API key or one storage host.

A gate closes on trouble of the destination, so that no file burns attempts on it. When its time has come, one
delivery goes through as a probe; its luck opens the gate or closes it for longer. State lives in memory only:
after a restart every gate is open, and the first delivery finds out.
"""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import PmwatchError

_UNUSED_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate as it stands. `closed_at` is in epoch seconds, for people, and 0.0 means open; the rest is monotonic."""

    name: str
    closed_at: float = 0.0
    closed_since: float = 0.0
    opens_at: float = 0.0
    probing: bool = False
    reason: str = ""
    message: str = ""
    hint: str = ""

    @property
    def is_open(self) -> bool:
        """Tell whether deliveries flow."""
        return self.closed_at == 0.0


class Gates:
    """All gates, by name: a tenant's name, or a storage host. `changed` is told of each opening and closing."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        changed: Callable[[Gate], None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self._now = now
        self._monotonic = monotonic
        self._changed = changed
        self._gates: dict[str, Gate] = {}
        self._tenants: frozenset[str] = frozenset()
        self._gone: frozenset[str] = frozenset()  # tenants whose last requests may still end
        self._hosts: dict[str, str] = {}  # the storage host that a tenant's URLs last pointed to
        self._used_at: dict[str, float] = {}  # when (monotonic) somebody last came to a gate
        self._probers: dict[str, int] = {}  # the thread that probes
        self._through_at: dict[str, float] = {}  # when (monotonic) a file last had there what it needs
        self._fallen: dict[str, set[int]] = {}  # deliveries, at most two, that have failed there since
        self._lock = threading.Lock()

    def keep(self, tenants: Collection[str]) -> None:
        """Show these tenants' gates from the start, open; drop those of other tenants, and of hosts that none uses."""
        with self._lock:
            self._gone = (self._gone | self._tenants).difference(tenants)
            self._tenants = frozenset(tenants)
            self._hosts = {tenant: host for tenant, host in self._hosts.items() if tenant in tenants}
            used = {*tenants, *self._hosts.values()}
            since = self._monotonic() - _UNUSED_SECONDS
            for name in [one for one in self._gates if one not in used]:
                if name in self._gone or self._used_at.get(name, since) <= since:
                    del self._gates[name]
                    for known in (self._used_at, self._through_at, self._fallen):
                        known.pop(name, None)
            for name in tenants:
                self._gates.setdefault(name, Gate(name))

    def shut_for(self, tenants: list[str]) -> list[str]:
        """Return the tenants of whom nothing may be claimed now, for their own gate or their storage's."""
        with self._lock:
            return [tenant for tenant in tenants if any(not self._passable(name) for name in self._path(tenant))]

    def to_probe(self, tenants: list[str]) -> list[str]:
        """Return the tenants of whom one delivery may be claimed, to probe a gate that is closed."""
        with self._lock:
            passable = [tenant for tenant in tenants if all(self._passable(name) for name in self._path(tenant))]
            return [tenant for tenant in passable if any(not self._is_open(name) for name in self._path(tenant))]

    def shut(self, tenant: str) -> Gate | None:
        """Return the closed gate that a tenant's deliveries wait for: its own, or its storage's."""
        with self._lock:
            gates = [self._gates[name] for name in self._path(tenant) if name in self._gates]
        return next((gate for gate in gates if not gate.is_open), None)

    def _path(self, tenant: str) -> list[str]:
        return [tenant, self._hosts[tenant]] if tenant in self._hosts else [tenant]

    def _is_open(self, name: str) -> bool:
        return name not in self._gates or self._gates[name].is_open

    def _passable(self, name: str) -> bool:
        gate = self._gates.get(name)
        return gate is None or gate.is_open or (not gate.probing and self._monotonic() >= gate.opens_at)

    def enter(self, name: str) -> bool:
        """Go through, as the probe where the gate is closed and its time has come. False: turn back."""
        with self._lock:
            self._used_at[name] = self._monotonic()
            if not self._passable(name):
                return False
            gate = self._gates.get(name, Gate(name))
            self._set(gate if gate.is_open else replace(gate, probing=True))
            if not gate.is_open:
                self._probers[name] = threading.get_ident()
            return True

    def _set(self, gate: Gate) -> None:
        if gate.name not in self._gone:
            self._gates[gate.name] = gate

    def points_to(self, tenant: str, host: str) -> None:
        """Remember which storage host a tenant's URLs point to."""
        with self._lock:
            self._hosts[tenant] = host

    def succeeded(self, name: str) -> None:
        """Open the gate: somebody got through."""
        with self._lock:
            before = self._gates.get(name, Gate(name))
            self._set(Gate(name))
        if not before.is_open:
            self._changed(Gate(name))

    def got_through(self, name: str) -> None:
        """Open the gate: what a file needs from behind it has been done."""
        with self._lock:
            self._through_at[name] = self._monotonic()
            self._fallen.pop(name, None)
        self.succeeded(name)

    def fell(self, name: str, delivery_id: int, *, quiet: float) -> bool:
        """Say that a delivery failed beyond an open gate; tell whether that is trouble of more than the one file.

        It is where another one failed there as well and none has got through since, nor in the last `quiet` seconds.
        """
        with self._lock:
            fallen = self._fallen.setdefault(name, set())
            if len(fallen) < 2:
                fallen.add(delivery_id)
            through_at = self._through_at.get(name)
            return fallen != {delivery_id} and (through_at is None or self._monotonic() - through_at >= quiet)

    def left(self, name: str) -> None:
        """This thread's probe, if it has one, ended without saying anything about the destination; another may try."""
        with self._lock:
            if name in self._gates and not self._probed_by_another(name):
                self._gates[name] = replace(self._gates[name], probing=False)

    def _probed_by_another(self, name: str) -> bool:
        return name in self._gates and self._gates[name].probing and self._probers[name] != threading.get_ident()

    def failed(self, name: str, error: PmwatchError, *, retry_after: float | None = None) -> None:
        """Close the gate, for `retry_after` seconds where the other side said so, else by back-off.

        Where another thread probes, this is news from somebody who went through before: that probe goes on.
        """
        now = self._monotonic()
        with self._lock:
            before = self._gates.get(name, Gate(name))
            since = now if before.is_open else before.closed_since
            wait = retry_after or self._policy.wait(now - since)  # "Retry-After: 0" must not become a busy loop
            gate = Gate(
                name,
                closed_at=before.closed_at or self._now(),
                closed_since=since,
                opens_at=now + wait,
                probing=self._probed_by_another(name),
                reason=error.reason,
                message=error.message,
                hint=error.hint,
            )
            self._set(gate)
            self._used_at[name] = now
        if before.is_open or before.reason != gate.reason:
            self._changed(gate)

    def try_now(self, name: str) -> None:
        """Let a closed gate be probed at once: the key file changed, or somebody asks."""
        with self._lock:
            if name in self._gates:
                self._gates[name] = replace(self._gates[name], opens_at=self._monotonic())

    def all(self) -> list[Gate]:
        """Return every gate."""
        with self._lock:
            return list(self._gates.values())

    def seconds_to_opening(self) -> float | None:
        """Return in how many seconds the next closed gate may be probed.

        One whose time has come counts no more: nothing waits for it, or somebody would probe it.
        """
        now = self._monotonic()
        waits = [gate.opens_at - now for gate in self.all() if not gate.is_open and not gate.probing]
        return min((wait for wait in waits if wait > 0), default=None)
