"""The one writer of the ledger: group commits, each beginning IMMEDIATE, and the engines behind them."""

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from pmwatch.errors import LedgerError

T = TypeVar("T")
_BUSY_TIMEOUT_MS: Final = 30_000

# WAL lets readers go on while one writes. synchronous=FULL: a commit is on the disk when it returns, for "uploaded"
# must never be forgotten after the source was deleted. Steps that nothing outside the ledger relies on yet do with
# NORMAL (see `Writer.run`), which in WAL mode cannot damage the file either; checkpoints sync in both. The size limit
# keeps a long reader from leaving a huge WAL. (https://www.sqlite.org/pragma.html#pragma_synchronous)
_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA temp_store = MEMORY",
)


def make_engine(path: str, *, begin: str, pool: type[NullPool | QueuePool], read_only: bool = False) -> Engine:
    """Return an engine on the SQLite file `path` whose transactions start with the statement `begin`."""
    uri = f"file:{quote(os.fsencode(path))}?mode={'ro' if read_only else 'rwc'}"

    def connect() -> sqlite3.Connection:  # a URL of SQLAlchemy's own would be unescaped once more on the way
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=pool)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin or commit on its own
        for pragma in _PRAGMAS[1:] if read_only else _PRAGMAS:
            connection.execute(pragma).close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def translate(error: DatabaseError | DBAPIError) -> LedgerError:
    """Put a database error into plain words."""
    said = str(error.orig)
    hints = {
        "full": "The disk of [state] dir is full; free some space, pmwatch goes on by itself.",
        "readonly": "The [state] dir cannot be written; check its owner and mount.",
        "malformed": "The ledger is damaged; pmwatch ledger rebuild makes a new one, and sets this one aside.",
        "not a database": "Damaged, or no ledger; pmwatch ledger rebuild makes a new one, and sets this aside.",
        "unable to open": "Check that [state] dir is there, what lies in it, and its owner.",
        "I/O error": "The disk of [state] dir does not work; look into the kernel's log (dmesg).",
        "locked": "Another program holds the ledger open for writing; end it.",
    }
    hint = next((text for word, text in hints.items() if word in said), "")
    return LedgerError(f"the ledger cannot be used: {said}", hint=hint)


class _Operation(Generic[T]):
    def __init__(self, work: Callable[[Connection], T], *, durable: bool) -> None:
        self.work = work
        self.durable = durable
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None

    def perform(self, connection: Connection) -> None:
        try:
            self.value = self.work(connection)
        except Exception as error:
            self.error = error
            raise


class Writer:
    """Runs write operations one after the other; those that wait meanwhile share one commit.

    Whoever holds the lock performs everything that has queued up, each in a savepoint of its own, and commits
    once: with N threads a commit's fsync is paid once for up to N operations.
    """

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        self._lock = threading.Lock()
        self._waiting: deque[_Operation[Any]] = deque()
        self._syncs = True  # as the connection was opened

    def run(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        """Perform `work` in a write transaction and return what it returns, once that is on disk.

        Without `durable` it is there with the next durable commit, for the log is written in order: a process that
        dies loses nothing, a power cut may take the step back. For steps that are harmless to repeat.
        """
        operation = _Operation(work, durable=durable)
        self._waiting.append(operation)
        with self._lock:
            if not operation.done:
                self._commit_all()
        if operation.error is not None:
            if isinstance(operation.error, DBAPIError):
                raise translate(operation.error) from None
            raise operation.error
        return operation.value  # type: ignore[return-value]  # set by perform() where there is no error

    def _commit_all(self) -> None:
        batch = []
        while self._waiting:  # only the holder of the lock takes out; others append
            batch.append(self._waiting.popleft())
        try:
            self._sync(any(operation.durable for operation in batch))
            with self._connection.begin():
                for operation in batch:
                    self._perform(operation, alone=len(batch) == 1)
        except BaseException as error:  # noqa: BLE001  every waiting thread must learn of it
            for operation in batch:
                operation.error = operation.error or error
        finally:
            for operation in batch:
                operation.done = True

    def _sync(self, wanted: bool) -> None:  # noqa: FBT001  not a switch of behaviour, but the thing itself
        """Let the next commits wait for the disk, or not. SQLite takes this between transactions only."""
        if wanted != self._syncs:
            raw = self._connection.connection.driver_connection
            assert raw is not None
            raw.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}").close()
            self._syncs = wanted

    def _perform(self, operation: _Operation[Any], *, alone: bool) -> None:
        if alone:
            operation.perform(self._connection)
            return
        savepoint = self._connection.begin_nested()
        try:
            operation.perform(self._connection)
        except Exception:  # noqa: BLE001  kept in operation.error, raised in its own thread
            savepoint.rollback()
        else:
            savepoint.commit()

    def close(self) -> None:
        """Close the connection, once a running operation is through."""
        with self._lock:
            self._connection.close()
