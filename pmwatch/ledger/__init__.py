"""The ledger: every delivery, durable, in SQLite. It is the queue; nothing that must survive lives elsewhere."""

from pmwatch.ledger.lock import StateLock
from pmwatch.ledger.store import Decided, Ledger, StaleClaim, Verdict

__all__ = ["Decided", "Ledger", "StaleClaim", "StateLock", "Verdict"]
