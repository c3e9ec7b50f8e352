"""The ledger: every delivery, durable, in SQLite. It is the queue; nothing that must survive lives elsewhere."""

from pmwatch.ledger.care import Found
from pmwatch.ledger.schema import VERSION
from pmwatch.ledger.store import Ledger
from pmwatch.ledger.values import Action, Arrived, Blocker, ByHand, Decided, Disposed, StaleClaim, Verdict
from pmwatch.lock import StateLock

__all__ = [
    "VERSION",
    "Action",
    "Arrived",
    "Blocker",
    "ByHand",
    "Decided",
    "Disposed",
    "Found",
    "Ledger",
    "StaleClaim",
    "StateLock",
    "Verdict",
]
