"""The ledger: every delivery, durable, in SQLite. It is the queue; nothing that must survive lives elsewhere."""

from pmwatch.ledger.care import Found
from pmwatch.ledger.lock import StateLock
from pmwatch.ledger.schema import VERSION
from pmwatch.ledger.store import Ledger
from pmwatch.ledger.values import Action, Arrived, Decided, Disposed, StaleClaim, Verdict

__all__ = [
    "VERSION",
    "Action",
    "Arrived",
    "Decided",
    "Disposed",
    "Found",
    "Ledger",
    "StaleClaim",
    "StateLock",
    "Verdict",
]
