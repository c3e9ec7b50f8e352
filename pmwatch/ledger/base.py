"""The file of the ledger: opened, checked, read and written."""

import os
import sqlite3
from collections.abc import Callable
from typing import Final, Self, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from pmwatch.errors import LedgerError
from pmwatch.filesystems import NETWORK_FILE_SYSTEMS, file_system_type
from pmwatch.ledger.schema import VERSION, migrate, version_of
from pmwatch.ledger.writer import Writer, make_engine, translate

T = TypeVar("T")

_FILE_NAME: Final = "ledger.db"


class Base:
    """The file behind a ledger: one writer, many readers."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self.path = path
        self.state_dir = os.path.dirname(path)
        self._by_hand: dict[int, int] = {}  # what this process sends by hand, and the descriptor that locks it
        self.version_found = VERSION  # before it was migrated; 0 where it was made
        self._readers = make_engine(path, begin="BEGIN", pool=QueuePool, read_only=read_only)
        self._writing = None if read_only else make_engine(path, begin="BEGIN IMMEDIATE", pool=NullPool)
        self._writer = Writer(self._writing) if self._writing else None

    @classmethod
    def open(cls, state_dir: str, *, read_only: bool = False, older_too: bool | None = None) -> Self:
        """Open the ledger of a state directory. An older one is refused unless `older_too`, the default for writing.

        It is then migrated (and an absent one created), for which the caller holds the state directory's lock: the
        pmwatch that runs may be the older one. With `read_only` it stays as it is: for `backup`, `check`, `counts`.
        Raises LedgerError where it cannot be used: damaged, on a network file system, not writable; LedgerNewer
        for a newer one, which is not touched.
        """
        older_too = not read_only if older_too is None else older_too
        path = os.path.join(state_dir, _FILE_NAME)
        kind = file_system_type(os.fsencode(state_dir))
        if kind in NETWORK_FILE_SYSTEMS:
            raise LedgerError(
                f"{state_dir} lies on a network file system ({kind}), where SQLite's locks do not hold",
                hint="Put [state] dir on a local disk.",
            )
        if read_only and not os.path.exists(path):
            raise LedgerError(f"there is no ledger in {state_dir}", hint="Has pmwatch run with this [state] dir?")
        try:
            if not read_only:
                _make_private(path)
            found = _version_found(path)
            if found < VERSION and not (older_too and (found or not read_only)):
                raise _too_old(path, found)
            ledger = cls(path, read_only=read_only)
            ledger.version_found = found
            if not read_only:
                ledger._write(migrate)
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror}", hint="Check the owner of [state] dir.") from None
        except (DBAPIError, sqlite3.Error) as error:
            raise (translate(error) if isinstance(error, DBAPIError) else LedgerError(f"{path}: {error}")) from None
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and give up what this process still sends by hand."""
        if self._writer is not None:
            self._writer.close()
        if self._writing is not None:
            self._writing.dispose()
        self._readers.dispose()
        while self._by_hand:
            os.close(self._by_hand.popitem()[1])

    def _write(self, work: Callable[[Connection], T], *, durable: bool = True) -> T:
        if self._writer is None:
            raise LedgerError("the ledger was opened for reading only")
        return self._writer.run(work, durable=durable)

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection:
                return work(connection)
        except DBAPIError as error:
            raise translate(error) from None

    def check(self) -> None:
        """Raise LedgerError where SQLite finds the file damaged."""
        said = self._read(lambda c: c.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
        if said != "ok":
            raise LedgerError(
                f"the ledger is damaged: {said}", hint="pmwatch ledger rebuild makes a new one; it sets this one aside."
            )


def _version_found(path: str) -> int:
    """Look before anything is written: to open a file for writing may already change it."""
    engine = make_engine(path, begin="BEGIN", pool=NullPool, read_only=True)
    with engine.connect() as connection:
        return version_of(connection)


def _too_old(path: str, found: int) -> LedgerError:
    if not found:
        return LedgerError(f"{path} is empty", hint="pmwatch run fills it; has it ever run with this [state] dir?")
    return LedgerError(
        f"the ledger has version {found}, and this pmwatch works on version {VERSION}",
        hint="It is of an older pmwatch, and is upgraded when pmwatch run starts. "
        "Make a copy first: pmwatch ledger backup FILE.",
    )


def _make_private(path: str) -> None:
    """Create the file where it is absent, for its owner only: presigned URLs are secrets until they expire.

    Before SQLite sees it, because the files of the WAL get the mode that the database has. One that exists is not
    opened: closing it again would end SQLite's locks on it in this process (sqlite.org, "How To Corrupt", 2.2).
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.chmod(path, 0o600)
