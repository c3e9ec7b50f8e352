"""The ledger: every delivery, durable, in SQLite. It is the queue; nothing that must survive lives elsewhere."""

from pmwatch.ledger.lock import StateLock
from pmwatch.ledger.store import Arrived, Decided, Disposed, Ledger, StaleClaim, Verdict

__all__ = ["Arrived", "Decided", "Disposed", "Ledger", "StaleClaim", "StateLock", "Verdict"]
