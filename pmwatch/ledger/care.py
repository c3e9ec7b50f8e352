"""Keeping the ledger well: backups, what a rebuilt one is filled with, and what may be forgotten."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Column, Connection, Select, and_, delete, func, insert, select, tuple_, update

from pmwatch.errors import LedgerError
from pmwatch.ledger.base import Base
from pmwatch.ledger.moves import (
    DISPOSAL_LEASE_SECONDS,
    add_count,
    delivery_of,
    fingerprint_values,
    move_each,
    next_arrival,
    next_seq,
    target_values,
)
from pmwatch.ledger.schema import actions, deliveries
from pmwatch.ledger.statements import CURRENT, FRESH_VALUES, INSERT, TARGET
from pmwatch.ledger.values import Action
from pmwatch.model import WAITING, Delivery, Fingerprint, Order, Outcome, State, Target

_d: Final = deliveries.c
_FORGETTABLE: Final = (State.DONE, State.VANISHED)
_BATCH: Final = 500
_FIRST: Final = (-1.0, 0)  # before any place in the order of settling
RESTORED: Final = "restored"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a rebuild found where pmwatch once put it: in the archive, or in quarantine with its `reason`."""

    folder: str
    path: bytes
    location: bytes
    fingerprint: Fingerprint
    target: Target
    order: Order
    at: float  # epoch seconds of the upload or the failure, as far as known
    sha256: str = ""  # of what was archived
    reason: str = ""
    detail: str = ""


class Care(Base):
    """The part of the ledger that is for its own upkeep."""

    def backup(self, target: str) -> None:
        """Copy the ledger to a new file `target` while it is in use, with every presigned URL blanked.

        The file is complete and checked before it has its name. Raises LedgerError, also where it exists already.
        """
        part = f"{target}.part"
        try:
            if os.path.lexists(target):
                raise LedgerError(f"{target} is there already", hint="Name a new file; backups are not written over.")
            with suppress(FileNotFoundError):
                os.unlink(part)
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(_connect(self.path, "ro")) as source, closing(_connect(part, "rw")) as copy:
                source.backup(copy)  # in one step: a snapshot, during which others go on writing to the WAL
                _blank(copy)
            _sync(part)
            os.link(part, target)  # never over another file, unlike rename
            os.unlink(part)
            _sync(os.path.dirname(os.path.abspath(target)))
        except OSError as error:
            raise LedgerError(f"{target}: {error.strerror}", hint="Check the directory and its owner.") from None
        except sqlite3.Error as error:
            raise LedgerError(f"the backup failed: {error}", hint="Is there room on the disk?") from None

    def bring_near(self, *, now: float, longest: float) -> int:
        """Make due what waits for a time more than `longest` seconds ahead: the clock was set back. Return how many."""
        longest = max(longest, DISPOSAL_LEASE_SECONDS)
        far = and_(_d.state.in_((State.QUEUED, State.UPLOADED, State.FAILED)), _d.not_before > now + longest)
        if self._read(lambda c: c.execute(select(_d.id).where(far).limit(1)).first()) is None:
            return 0
        return self._write(lambda c: c.execute(update(deliveries).where(far).values(not_before=now)).rowcount)

    # ---- a rebuilt one ------------------------------------------------------------------------------------

    def hold_unsure(self) -> int:
        """Hold what waited when a backup was made, for it may have gone since; return how many."""
        detail = "it waited when the backup was made, and may have gone since"
        values = {"reason": RESTORED, "detail": detail, "inflight_sha256": None, "presigned_url": ""}

        def work(c: Connection) -> int:
            ids = c.execute(select(_d.id).where(_d.state.in_(WAITING))).scalars().all()
            return len(move_each(c, ids, WAITING, State.HELD, values))

        return self._write(work)

    def record(self, found: Sequence[Found]) -> int:
        """Enter files that lie in the archive (done) or in quarantine (failed); return how many were not known."""

        def work(c: Connection) -> int:
            return sum(_record(c, one) for one in found)

        return self._write(work)

    def note(self, action: Action) -> None:
        """Keep who did something to the ledger as a whole."""
        values = {"at": action.at, "who": action.who, "command": action.command, "why": action.why, "deliveries": ""}
        self._write(lambda c: c.execute(insert(actions).values(values)) and None)

    # ---- what may be forgotten ----------------------------------------------------------------------------

    def last_uploads(self) -> frozenset[int]:
        """Return the last upload to each datatable, which tells what is there and must not be forgotten."""
        last = select(func.max(_d.id)).where(_d.outcome == Outcome.UPLOADED).group_by(*(_d[name] for name in TARGET))
        return frozenset(self._read(lambda c: c.execute(last).scalars().all()))

    def ended_before(self, before: float, *, after_id: int = 0) -> list[Delivery]:
        """Return up to 500 deliveries that ended before `before` (epoch seconds), by id, those after `after_id`."""
        forgettable = _d.state.concat("").in_(_FORGETTABLE)  # by id: the index on state would be sorted for each page
        query = (
            select(deliveries)
            .where(_d.id > after_id, forgettable, _d.finished_at > 0, _d.finished_at < before)
            .order_by(_d.id)
            .limit(_BATCH)
        )
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def forget(self, ended: Sequence[Delivery]) -> int:
        """Delete rows of deliveries that ended, unless something happened to them since; return how many."""

        def work(c: Connection) -> int:
            gone = 0
            for one in ended:
                same = and_(_d.id == one.id, _d.state == one.state, _d.finished_at == one.finished_at)
                if c.execute(delete(deliveries).where(same)).rowcount:
                    add_count(c, one.folder, one.state, -1)
                    gone += 1
            return gone

        return self._write(work)

    def archived_before(self, folder: str, before: float, *, after: Delivery | None = None) -> list[Delivery]:
        """Return up to 500 deliveries of a folder uploaded before `before` whose source pmwatch has moved.

        In the order of settling, those after `after`; without those of which a repetition waits.
        """
        place = (after.settled_at, after.id) if after is not None else _FIRST
        query = _archived(folder, place, *deliveries.c).where(_d.settled_at < before, _d.finished_at < before)
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def archived(self, folder: str) -> Iterator[bytes]:
        """Yield where the sources of a folder lie that pmwatch has moved, without those of which a repetition waits."""
        place = _FIRST
        while rows := self._archived_after(folder, place):
            yield from (row.location for row in rows)
            place = rows[-1].settled_at, rows[-1].id

    def _archived_after(self, folder: str, place: tuple[float, int]) -> Sequence[Any]:
        query = _archived(folder, place, _d.settled_at, _d.id, _d.location)
        return self._read(lambda c: c.execute(query).all())

    def removed_from_archive(self, gone: Iterable[Delivery]) -> None:
        """Say that archived sources were removed, for their time was over."""
        ids = [one.id for one in gone]
        values = {"location": b"", "kept": 0, "detail": "removed from the archive, its time was over"}
        self._write(lambda c: c.execute(update(deliveries).where(_d.id.in_(ids)).values(**values)) and None)

    def locations(self, locations: Sequence[bytes]) -> dict[bytes, Delivery]:
        """Return which delivery each of these (at most 500) absolute paths belongs to, where pmwatch moved it there."""
        query = select(deliveries).where(tuple_(_d.location).in_([(one,) for one in locations])).order_by(_d.id)
        return {row.location: delivery_of(row) for row in self._read(lambda c: c.execute(query).all())}


def _archived(folder: str, place: tuple[float, int], *columns: Column[Any]) -> Select[Any]:
    """Select a page of what pmwatch has moved, after a place in the order of `ix_folder`, which needs no sorting."""
    again = deliveries.alias("again")
    waiting = select(again.c.location).where(again.c.folder == folder, again.c.state.in_(WAITING))
    return (
        select(*columns)
        .where(_d.folder == folder, _d.state == State.DONE, tuple_(_d.settled_at, _d.id) > place)
        .where(_d.location != b"", _d.location.not_in(waiting))
        .order_by(_d.settled_at, _d.id)
        .limit(_BATCH)
    )


def _record(c: Connection, found: Found) -> bool:
    known = select(_d.id).where(_d.folder == found.folder, _d.location == found.location)
    if c.execute(known.limit(1)).first() is not None:
        return False
    is_current = c.execute(CURRENT, {"of_folder": found.folder, "of_path": found.path}).first() is None
    values: dict[str, Any] = FRESH_VALUES | target_values(c, found.target, found.order)
    values |= fingerprint_values(found.fingerprint)
    values |= {"folder": found.folder, "path": found.path, "current": 1 if is_current else None, "kept": 0}
    values |= {"location": found.location, "seq": next_seq(c), "sort_key": b""}
    values |= {"attempts": 0, "previous_id": 0, "expected_sha256": "", "detail": found.detail, "reason": found.reason}
    values |= {"seen_at": found.at, "settled_at": found.at, "finished_at": found.at, "sha256": found.sha256}
    if found.sha256:
        place = next_arrival(c, values["tenant_id"], values["datatable_id"])
        values |= {"state": State.DONE, "outcome": Outcome.UPLOADED, "uploaded_at": found.at, "arrival": place}
    else:
        values |= {"state": State.FAILED}
    c.execute(INSERT, values)
    add_count(c, found.folder, values["state"], 1)
    return True


def _connect(path: str, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode={mode}", uri=True, isolation_level=None)


def _blank(copy: sqlite3.Connection) -> None:
    """Remove presigned URLs, also from pages that are free, and see that the copy is whole."""
    copy.execute("PRAGMA journal_mode = DELETE").close()
    copy.execute("UPDATE deliveries SET presigned_url = '' WHERE presigned_url != ''").close()
    copy.execute("VACUUM").close()
    [said] = copy.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise LedgerError(
            f"the ledger is damaged, and so would be its backup: {said}", hint="See pmwatch ledger rebuild."
        )


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
