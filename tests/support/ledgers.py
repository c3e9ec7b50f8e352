"""Ledgers with deliveries in them, for tests of everything above."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pmwatch.ledger import Arrived, Ledger
from pmwatch.model import Delivery, Destination, Fingerprint, Order, Settled, Target

TARGET = Target("acme", "table-1")
DESTINATION = Destination("tenant-1", "dataset-1", "table-1")


def sha(content: str) -> str:
    """Return the SHA-256 of a short text, for tests in which the content is only a name."""
    return hashlib.sha256(content.encode()).hexdigest()


def look(mtime_ns: int = 1, *, size: int = 10, ctime_ns: int = 1, inode: int = 1, device: int = 1) -> Fingerprint:
    """Return a fingerprint; by default all are of the same size."""
    return Fingerprint(size, mtime_ns, ctime_ns, inode, device)


def settled(path: bytes | str, fingerprint: Fingerprint | None = None, **changes: Any) -> Settled:
    """Return a settled file of folder `orders` on its way to `TARGET`."""
    values: dict[str, Any] = {
        "folder": "orders",
        "path": path.encode() if isinstance(path, str) else path,
        "fingerprint": fingerprint or look(),
        "target": TARGET,
        "order": Order.ARRIVAL,
        "seen_at": 90.0,
        "settled_at": 100.0,
    }
    return Settled(**values | changes)


@contextmanager
def opened(state_dir: Path, *targets: Target) -> Iterator[Ledger]:
    """Open a ledger in which `TARGET`, and each of `targets` by its own name, is resolved."""
    ledger = Ledger.open(str(state_dir))
    try:
        ledger.resolve(TARGET, DESTINATION)
        for target in targets:
            ledger.resolve(target, Destination(f"tenant-of-{target.tenant}", "dataset-1", target.datatable))
        yield ledger
    finally:
        ledger.close()


def drop(ledger: Ledger, path: bytes | str, fingerprint: Fingerprint | None = None, **changes: Any) -> int:
    """Enter one settled file; return its delivery's id, 0 where it is no news."""
    return next(iter(ledger.enqueue([settled(path, fingerprint, **changes)])), 0)


def claimed(ledger: Ledger, *, now: float = 1000.0) -> Delivery:
    """Claim the next delivery; there must be one."""
    delivery = ledger.claim(now=now)
    assert delivery is not None, "nothing to claim"
    return delivery


def succeed(ledger: Ledger, delivery: Delivery, content: str, *, now: float = 1000.0, dispose: bool = False) -> None:
    """Let a claimed delivery be confirmed by the storage."""
    ledger.uploaded([Arrived(delivery, sha(content), "e", "", now, dispose)])


def back(ledger: Ledger, delivery: Delivery, *, not_before: float = 0.0, failed_at: float = 0.0, **facts: str) -> None:
    """Give a claimed delivery back to the queue."""
    facts = {"reason": "r", "detail": "d", "url": ""} | facts
    ledger.give_back(delivery, not_before=not_before, failed_at=failed_at, **facts)


def sent(ledger: Ledger, path: bytes | str, content: str, fingerprint: Fingerprint | None = None, **kwargs: Any) -> int:
    """Enter a file and let it reach its datatable; return the delivery's id."""
    id_ = drop(ledger, path, fingerprint)
    delivery = claimed(ledger, now=kwargs.get("now", 1000.0))
    assert delivery.id == id_
    succeed(ledger, delivery, content, **kwargs)
    return id_


def current(ledger: Ledger, id_: int) -> Delivery:
    """Return a delivery that must exist, as it is now."""
    delivery = ledger.get(id_)
    assert delivery is not None, f"there is no delivery {id_}"
    return delivery
