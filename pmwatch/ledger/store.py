"""The transitions of a delivery, each a compare-and-set, and the questions asked of the ledger."""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import takewhile
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from pmwatch.errors import LedgerError
from pmwatch.failpoints import reached
from pmwatch.filesystems import NETWORK_FILE_SYSTEMS, file_system_type
from pmwatch.ledger.schema import counts, deliveries, destinations, lanes, migrate
from pmwatch.ledger.writer import Writer, make_engine, translate
from pmwatch.model import (
    WAITING,
    Dedup,
    Delivery,
    Destination,
    Fingerprint,
    Order,
    Outcome,
    Settled,
    State,
    Target,
)

MAX_RECOVERIES: Final = 5
"""A delivery that was under way when the process died this many times is held for a person."""

DISPOSAL_LEASE_SECONDS: Final = 60.0
"""How long a disposal may take before somebody else tries it; repeating one is harmless."""

_FILE_NAME: Final = "ledger.db"
_ENDED_BADLY: Final = (State.FAILED, State.HELD)
_FOLDER_REMOVED: Final = "folder_removed"
_CHUNK: Final = 500  # paths in one IN (…); SQLite takes 999 variables in its oldest builds
_d = deliveries.c
T = TypeVar("T")
_Row = Any  # SQLAlchemy 2.0 and 2.1 disagree on the parameters of Row


class StaleClaim(LedgerError):
    """The delivery is not in the state that its caller believed; somebody else moved it."""

    reason = "stale_claim"


class Verdict(StrEnum):
    """What dedup says about a delivery whose hash is known."""

    SEND = "send"
    DUPLICATE = "duplicate"
    UNCHANGED = "unchanged"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Decided:
    """A verdict, and which delivery it rests on (0: none). `older` tells that newer versions went in between."""

    verdict: Verdict
    of: int = 0
    older: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """A delivery whose bytes the storage confirmed at `at` (epoch seconds). Without `dispose` its source stays."""

    delivery: Delivery
    sha256: str
    etag: str
    detail: str
    at: float
    dispose: bool


@dataclass(frozen=True, slots=True)
class Disposed:
    """A delivery whose source was archived at `location`, deleted, or left because it is a newer version (`kept`)."""

    delivery: Delivery
    location: bytes
    kept: bool
    at: float


@dataclass(frozen=True, slots=True)
class Blocker:
    """A delivery behind which others wait: how many, by folder."""

    delivery: Delivery
    waiting: dict[str, int]


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger holds about a path: enough to tell whether a look at it is news."""

    fingerprint: Fingerprint
    state: State
    kept: bool

    def is_news(self, seen: Fingerprint) -> bool:
        """Tell whether the file that was just seen still has to be entered.

        A changed ctime, inode or device alone is no news (chown, hard link, remount); any file is, where
        pmwatch had moved or deleted the one before it.
        """
        if self.state is State.VANISHED or not self.kept:
            return True
        return not self.fingerprint.same_content_as(seen)


def lane_of(target: Target, destination: Destination | None, order: Order) -> str:
    """Return the name of the queue in which files of one datatable wait for each other."""
    key = f"{destination.tenant_id}/{destination.datatable_id}" if destination else f"?{target}"
    return f"{key}~" if order is Order.NONE else key


class Ledger:
    """Deliveries on disk. Safe to use from many threads; every write is on the disk when its method returns."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        self.path = path
        self._readers = make_engine(path, begin="BEGIN", pool=QueuePool, read_only=read_only)
        self._writing = None if read_only else make_engine(path, begin="BEGIN IMMEDIATE", pool=NullPool)
        self._writer = Writer(self._writing) if self._writing else None

    @classmethod
    def open(cls, state_dir: str, *, read_only: bool = False) -> "Ledger":
        """Open (and create or migrate, unless `read_only`) the ledger of a state directory.

        Raises LedgerError where it cannot be used: damaged, newer, on a network file system, not writable.
        """
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
            ledger = cls(path, read_only=read_only)
            if not read_only:
                ledger._write(migrate)
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror}", hint="Check the owner of [state] dir.") from None
        except (DBAPIError, sqlite3.Error) as error:
            raise (translate(error) if isinstance(error, DBAPIError) else LedgerError(f"{path}: {error}")) from None
        return ledger

    def close(self) -> None:
        """Close every connection."""
        if self._writer is not None:
            self._writer.close()
        if self._writing is not None:
            self._writing.dispose()
        self._readers.dispose()

    def _write(self, work: Callable[[Connection], T]) -> T:
        if self._writer is None:
            raise LedgerError("the ledger was opened for reading only")
        return self._writer.run(work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as connection:
                return work(connection)
        except DBAPIError as error:
            raise translate(error) from None

    # ---- start ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise LedgerError where SQLite finds the file damaged."""
        said = self._read(lambda c: c.exec_driver_sql("PRAGMA quick_check(1)").scalar_one())
        if said != "ok":
            raise LedgerError(
                f"the ledger is damaged: {said}", hint=f"Keep {self.path} aside and restore it from a backup."
            )

    def recover(self) -> int:
        """Give back what was under way when the process before this one ended; return how many. Idempotent.

        A remembered URL makes the reason `answer_lost`: the bytes may have arrived. What was under way
        `MAX_RECOVERIES` times is held, for it may be what kills the process.
        """

        def work(c: Connection) -> int:
            c.execute(update(deliveries).where(_d.state == State.UPLOADED).values(not_before=0.0))
            rows = c.execute(select(deliveries).where(_d.state == State.UPLOADING)).all()
            for row in rows:
                reached("during_recovery")
                tries = row.recoveries + 1
                held = tries >= MAX_RECOVERIES
                reason = "crash_loop" if held else "answer_lost" if row.presigned_url else "interrupted"
                detail = f"pmwatch died {tries} times while uploading it" if held else ""
                to = State.HELD if held else State.QUEUED
                values = {"recoveries": tries, "reason": reason, "detail": detail, "inflight_sha256": None}
                _move(
                    c,
                    row.id,
                    row.folder,
                    State.UPLOADING,
                    to,
                    values | ({"presigned_url": ""} if held else {}),
                )
            return len(rows)

        return self._write(work)

    def retarget(self, folder: str, target_of: Callable[[bytes], tuple[Target, Order] | None]) -> int:
        """Point waiting deliveries of `folder` to where the configuration says now; return how many changed.

        Also forgets resolved names, so that they are asked for again.
        """

        def work(c: Connection) -> int:
            changed = 0
            columns = (_d.id, _d.path, _d.tenant, _d.dataset, _d.datatable, _d.lane)
            rows = c.execute(select(*columns).where(_d.folder == folder, _d.state == State.QUEUED)).all()
            for row in rows:
                found = target_of(row.path)
                if found is None:
                    continue
                values = _target_values(c, *found)
                if (row.tenant, row.dataset, row.datatable, row.lane) != tuple(
                    values[key] for key in ("tenant", "dataset", "datatable", "lane")
                ):
                    if any(getattr(row, key) != values[key] for key in ("tenant", "dataset", "datatable")):
                        values["presigned_url"] = ""  # else it may still tell whether the bytes arrived
                    c.execute(update(deliveries).where(_d.id == row.id).values(**values))
                    changed += 1
            return changed

        return self._write(work)

    def adopt(self, folders: Iterable[str]) -> None:
        """Hold what waits for folders that are no longer configured; release it where they are back."""
        known = tuple(folders)

        def work(c: Connection) -> None:
            gone = select(_d.id, _d.folder).where(_d.state == State.QUEUED, _d.folder.not_in(known))
            detail = "its folder is no longer in the configuration"
            for row in c.execute(gone).all():
                values = {"reason": _FOLDER_REMOVED, "detail": detail, "presigned_url": ""}
                _move(c, row.id, row.folder, State.QUEUED, State.HELD, values)
            back = select(_d.id, _d.folder).where(
                _d.state == State.HELD, _d.reason == _FOLDER_REMOVED, _d.folder.in_(known)
            )
            for row in c.execute(back).all():
                _move(c, row.id, row.folder, State.HELD, State.QUEUED, {"reason": "", "detail": ""})

        self._write(work)

    def forget_destinations(self) -> None:
        """Forget which ids names stood for, so that they are resolved anew."""
        self._write(lambda c: c.execute(delete(destinations)) and None)

    # ---- intake -----------------------------------------------------------------------------------------

    def known(self, folder: str, paths: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what the ledger holds about these paths; those it never saw are absent."""

        def work(c: Connection) -> dict[bytes, Known]:
            found = {}
            for start in range(0, len(paths), _CHUNK):
                condition = and_(_d.folder == folder, _d.path.in_(paths[start : start + _CHUNK]), _d.current == 1)
                for row in c.execute(select(*_FINGERPRINT, _d.path, _d.state, _d.kept).where(condition)):
                    found[row.path] = Known(_fingerprint(row), State(row.state), bool(row.kept))
            return found

        return self._read(work)

    def enqueue(self, files: Sequence[Settled]) -> list[int]:
        """Enter settled files in this order, each unless it is no news; return the ids of what was queued."""
        return self._write(lambda c: [id_ for file in files if (id_ := _enqueue(c, file))])

    # ---- delivery ---------------------------------------------------------------------------------------

    def claim(self, *, now: float, without_tenants: Iterable[str] = ()) -> Delivery | None:
        """Claim the next delivery that may go: its attempt is counted, and it is `uploading` from now on."""
        return next(iter(self.claim_run(now=now, without_tenants=without_tenants)), None)

    def claim_run(
        self,
        *,
        now: float,
        without_tenants: Iterable[str] = (),
        at_most: int = 1,
        small: int = 0,
        share: int = 1,
    ) -> list[Delivery]:
        """Claim the next delivery that may go, and with it up to `at_most` in all that follow it in its lane.

        Lanes take turns. In an ordered lane only the first may go, and only when none is under way. The next
        ones come along while each is `small` (bytes) and of the same tenant; where the order does not matter,
        only their part of what waits, for `share` workers want some. One that was under way when the process
        died goes alone, for it may be what killed it.
        """
        without = tuple(without_tenants)

        def work(c: Connection) -> list[Delivery]:
            given: dict[str, Any] = {"now": now, "without": without}
            first = [row for query in (_NEXT_ORDERED, _NEXT_UNORDERED) if (row := c.execute(query, given).first())]
            if not first:
                return []
            head = min(first, key=lambda one: int(one.turn))
            run = [head]
            if at_most > 1 and _goes_along(head, head, small, now):
                longest = at_most - 1 if head.ordered else at_most * share - 1
                given = {"of_lane": head.lane, "of_id": head.id, "longest": longest}
                run += takewhile(lambda row: _goes_along(row, head, small, now), c.execute(_FOLLOWING, given))
                run = run if head.ordered else run[: max(1, min(at_most, len(run) // share))]
            claimed = [
                replace(_delivery(row), state=State.UPLOADING, attempts=row.attempts + 1, claimed_at=now) for row in run
            ]
            values = [(_delivery(row), {"attempts": row.attempts + 1, "claimed_at": now}) for row in run]
            _move_all(c, values, State.QUEUED, State.UPLOADING)
            c.execute(_TAKE_TURN, {"of_lane": head.lane})
            return claimed

        return self._write(work)

    def next_due(self, *, now: float) -> float | None:
        """Return when (epoch seconds) the next waiting delivery may be tried; None where none waits for a time."""
        due = self._read(lambda c: c.execute(_NEXT_DUE, {"now": now}).scalar_one())
        return None if due is None else float(due)

    def decide(self, asked: Sequence[tuple[Delivery, str, Dedup]]) -> list[Decided]:
        """Say of each delivery and its hash, in this order, whether its content still has to go.

        Where it has, the hash is reserved against an equal one. The answer is shorter than the question where
        a verdict depends on how one before it fares.
        """

        def work(c: Connection) -> list[Decided]:
            decided: list[Decided] = []
            for delivery, sha256, policy in asked:
                one = _decide(c, delivery, sha256, policy)
                if any(before.verdict is Verdict.SEND for before in decided):
                    if one.verdict is Verdict.WAIT or (one.verdict is Verdict.DUPLICATE and policy is Dedup.LATEST):
                        break
                    one = replace(one, older=one.verdict is Verdict.DUPLICATE)
                decided.append(one)
                if one.verdict is Verdict.WAIT:
                    break
            return decided

        return self._write(work)

    def reserve_size(self, delivery: Delivery) -> bool:
        """Tell whether no other delivery to this datatable has this size, so that its content must be new.

        Then the size is reserved while it is on its way: one of the same size that comes meanwhile has to wait,
        for its hash could not be compared.
        """
        assert delivery.destination is not None
        destination, size = delivery.destination, delivery.fingerprint.size

        def work(c: Connection) -> bool:
            _require_claim(c, delivery)
            same = and_(
                _d.tenant_id == destination.tenant_id,
                _d.datatable_id == destination.datatable_id,
                _d.size == size,
                _d.id != delivery.id,
            )
            if c.execute(select(_d.id).where(same).limit(1)).first() is not None:
                return False
            reserve = update(deliveries).where(_d.id == delivery.id).values(inflight_sha256=_size_mark(size))
            c.execute(reserve)
            return True

        return self._write(work)

    def remember_urls(self, asked: Sequence[tuple[Delivery, str, Fingerprint]]) -> None:
        """Keep presigned URLs, and the look at the source that each was asked for, before the first byte goes."""
        values = [(one, {"presigned_url": url, **_fingerprint_values(seen)}) for one, url, seen in asked]
        self._write(lambda c: _move_all_claimed(c, values, State.UPLOADING))

    def uploaded(self, arrived: Sequence[Arrived]) -> None:
        """The storage confirmed exactly these bytes. Where the source stays, that is the end."""
        for dispose in (True, False):
            values = [
                (
                    one.delivery,
                    {"sha256": one.sha256, "etag": one.etag, "detail": one.detail, "uploaded_at": one.at}
                    | {"outcome": Outcome.UPLOADED, "reason": ""}
                    | _ending(one.at, dispose=dispose),
                )
                for one in arrived
                if one.dispose is dispose
            ]
            if values:
                to = State.UPLOADED if dispose else State.DONE
                self._write(lambda c, values=values, to=to: _move_all_claimed(c, values, to))  # type: ignore[misc]

    def duplicate(self, delivery: Delivery, *, sha256: str, of: int, now: float, dispose: bool) -> None:
        """The content had gone before: nothing is sent, and the source is disposed of like an uploaded one."""
        values: dict[str, Any] = {"sha256": sha256, "duplicate_of": of, "outcome": Outcome.DUPLICATE}
        values |= {"reason": "duplicate"} | _ending(now, dispose=dispose)
        self._write(lambda c: _move_claimed(c, delivery, State.UPLOADED if dispose else State.DONE, values))

    def unchanged(self, delivery: Delivery) -> None:
        """Only times changed on a kept file: drop the row, and let the one before it know the new look."""

        def work(c: Connection) -> None:
            _require_claim(c, delivery)
            row = c.execute(_BY_ID, {"of_id": delivery.id}).one()
            newer = and_(_d.folder == row.folder, _d.path == row.path, _d.previous_id == delivery.id)
            c.execute(update(deliveries).where(newer).values(previous_id=delivery.previous_id))
            c.execute(delete(deliveries).where(_d.id == delivery.id))
            _count(c, delivery.folder, State.UPLOADING, -1)
            look = _fingerprint_values(delivery.fingerprint)
            before = update(deliveries).where(_d.id == delivery.previous_id)
            c.execute(before.values(current=row.current, **look))

        self._write(work)

    def claim_disposal(self, *, now: float) -> Delivery | None:
        """Claim an uploaded delivery whose source still has to be archived or deleted, for a minute."""
        given = {"now": now}
        if self._read(lambda c: c.execute(_NEXT_DISPOSAL, given).first()) is None:
            return None

        def work(c: Connection) -> Delivery | None:
            row = c.execute(_NEXT_DISPOSAL, given).first()
            if row is None:
                return None
            _move(
                c,
                row.id,
                row.folder,
                State.UPLOADED,
                State.UPLOADED,
                {"not_before": now + DISPOSAL_LEASE_SECONDS},
            )
            return _delivery(row)

        return self._write(work)

    def disposed(self, gone: Sequence[Disposed]) -> None:
        """Sources were archived, deleted or left: the end of these deliveries."""

        def work(c: Connection) -> None:
            for one in gone:
                values = {"location": one.location, "kept": int(one.kept), "finished_at": one.at, "not_before": 0.0}
                if one.delivery.outcome == Outcome.UPLOADED:
                    values |= {"reason": "", "detail": ""}
                _move(c, one.delivery.id, one.delivery.folder, State.UPLOADED, State.DONE, values)

        self._write(work)

    def dispose_later(self, delivery: Delivery, *, reason: str, detail: str, not_before: float) -> None:
        """The source could not be disposed of; try again at `not_before`. The upload itself is safe."""
        values = {"reason": reason, "detail": detail, "not_before": not_before}
        self._write(lambda c: _move(c, delivery.id, delivery.folder, State.UPLOADED, State.UPLOADED, values) and None)

    def give_back(
        self, delivery: Delivery, *, reason: str, detail: str, not_before: float, failed_at: float, url: str
    ) -> None:
        """Back to the queue. `failed_at` is when trouble of this file began (0: no trouble of its own).

        `url` is the presigned URL to repeat against, or empty for a new one.
        """
        values = {"reason": reason, "detail": detail, "not_before": not_before, "first_failed_at": failed_at}
        values |= {"presigned_url": url, "inflight_sha256": None}
        self._write(lambda c: _move_claimed(c, delivery, State.QUEUED, values))

    def put_back(self, run: Sequence[Delivery], *, reason: str) -> None:
        """Give deliveries back that were claimed and not begun: no attempt, and a remembered URL stays."""
        values = [
            (one, {"reason": reason, "detail": "", "inflight_sha256": None, "attempts": one.attempts - 1})
            for one in run
        ]
        self._write(lambda c: _move_all_claimed(c, values, State.QUEUED))

    def end(
        self,
        delivery: Delivery,
        to: State,
        *,
        reason: str,
        detail: str,
        now: float,
        location: bytes = b"",
        blocks: bool = False,
    ) -> None:
        """End a claimed delivery as held, failed or vanished; with `blocks` those behind it wait for a person."""
        values = {"reason": reason, "detail": detail, "finished_at": now, "location": location, "blocks": int(blocks)}
        values |= {"kept": int(not location)} | _SETTLED_VALUES
        self._write(lambda c: _move_claimed(c, delivery, to, values))

    def moved(self, delivery: Delivery, location: bytes) -> None:
        """A failed source now lies at `location` (quarantine)."""
        change = update(deliveries).where(_d.id == delivery.id).values(location=location, kept=0)
        self._write(lambda c: c.execute(change) and None)

    # ---- destinations -----------------------------------------------------------------------------------

    def unresolved(self) -> list[Target]:
        """Return the targets of queued deliveries whose names are not resolved to ids yet."""
        rows = self._read(lambda c: c.execute(_UNRESOLVED).all())
        return [Target(row.tenant, row.datatable, row.dataset) for row in rows]

    def count_unresolved(self, targets: Iterable[Target]) -> int:
        """Return how many queued deliveries go to any of these targets, which have no ids yet."""
        wanted = set(targets)
        columns = (_d.tenant, _d.dataset, _d.datatable, func.count().label("n"))
        query = select(*columns).where(_d.state == State.QUEUED, _d.datatable_id == "")
        rows = self._read(lambda c: c.execute(query.group_by(*columns[:3])).all())
        return sum(row.n for row in rows if Target(row.tenant, row.datatable, row.dataset) in wanted)

    def resolve(self, target: Target, destination: Destination) -> None:
        """Record which ids a target's names stand for, for waiting deliveries and for later ones."""

        def work(c: Connection) -> None:
            key = {"tenant": target.tenant, "dataset": target.dataset, "datatable": target.datatable}
            ids = _destination_values(destination)
            same = and_(*(destinations.c[name] == value for name, value in key.items()))
            c.execute(delete(destinations).where(same))
            c.execute(insert(destinations).values(**key, **ids))
            waiting = and_(*(_d[name] == value for name, value in key.items()), _d.datatable_id == "")
            for order in Order:
                old, new = lane_of(target, None, order), lane_of(target, destination, order)
                c.execute(update(deliveries).where(waiting, _d.lane == old).values(lane=new, **ids))
                _ensure_lane(c, new, order)

        self._write(work)

    # ---- operators --------------------------------------------------------------------------------------

    def requeue(self, ids: Sequence[int], *, release: bool = False) -> int:
        """Queue failed or held deliveries again, from where their source lies now; return how many.

        With `release` no guard and no check asks about them again.
        """
        values: dict[str, Any] = {"reason": "released" if release else "retry", "detail": "", "not_before": 0.0}
        values |= {"first_failed_at": 0.0, "recoveries": 0, "finished_at": 0.0, "presigned_url": "", "blocks": 0}
        values |= {"released": 1} if release else {}
        return self._write(lambda c: _move_each(c, ids, (State.FAILED, State.HELD), State.QUEUED, values))

    def discard(self, ids: Sequence[int], *, now: float) -> int:
        """End held or failed deliveries without sending them: a person does not want them; return how many."""
        values = {"outcome": Outcome.DISCARDED, "reason": "discarded", "detail": "", "finished_at": now, "blocks": 0}
        return self._write(lambda c: _move_each(c, ids, (State.FAILED, State.HELD), State.DONE, values))

    def ids(self, state: State, *, folder: str | None = None, reason: str | None = None) -> "list[int]":
        """Return the deliveries in a state, oldest first; of one folder and for one reason where asked."""
        query = select(_d.id).where(_d.state == state).order_by(_d.seq)
        if folder is not None:
            query = query.where(_d.folder == folder)
        if reason is not None:
            query = query.where(_d.reason == reason)
        return list(self._read(lambda c: c.execute(query).scalars().all()))

    def overtaken(self, id_: int) -> Delivery | None:
        """Return the newest delivery that reached the same datatable although it came later, if any."""
        query = (
            select(deliveries)
            .where(_d.lane == _lane_of_id(id_), _d.outcome == Outcome.UPLOADED)
            .where(_d.seq > select(_d.seq).where(_d.id == id_).scalar_subquery())
            .order_by(_d.seq.desc())
            .limit(1)
        )
        row = self._read(lambda c: c.execute(query).first())
        return _delivery(row) if row is not None else None

    def last_size(self, delivery: Delivery) -> int | None:
        """Return the size of what this folder last uploaded to the same datatable."""
        assert delivery.destination is not None
        given = {"of_tenant": delivery.destination.tenant_id, "of_table": delivery.destination.datatable_id}
        query = _LAST_SIZE.where(_d.folder == delivery.folder)
        size = self._read(lambda c: c.execute(query, given).scalar())
        return None if size is None else int(size)

    # ---- questions --------------------------------------------------------------------------------------

    def find(self, folder: str, path: bytes) -> list[Delivery]:
        """Return every delivery of a path, newest first."""
        query = select(deliveries).where(_d.folder == folder, _d.path == path).order_by(_d.id.desc())
        return [_delivery(row) for row in self._read(lambda c: c.execute(query).all())]

    def get(self, id_: int) -> Delivery | None:
        """Return one delivery."""
        row = self._read(lambda c: c.execute(select(deliveries).where(_d.id == id_)).first())
        return _delivery(row) if row is not None else None

    def list(self, *, states: Iterable[State] = (), folder: str | None = None, limit: int = 100) -> "list[Delivery]":
        """Return the newest deliveries, of some states and of one folder where asked."""
        query = select(deliveries).order_by(_d.seq.desc()).limit(limit)
        wanted = tuple(states)
        if wanted:
            query = query.where(_d.state.in_(wanted))
        if folder is not None:
            query = query.where(_d.folder == folder)
        return [_delivery(row) for row in self._read(lambda c: c.execute(query).all())]

    def blocker(self, delivery: Delivery) -> Delivery | None:
        """Return the delivery for which a queued one of an ordered lane waits, if any."""
        sort_key = select(_d.sort_key).where(_d.id == delivery.id).scalar_subquery()
        before = or_(_d.sort_key < sort_key, and_(_d.sort_key == sort_key, _d.seq < delivery.seq))
        waits = or_(and_(_d.state == State.QUEUED, before), _d.state == State.UPLOADING)
        bad = and_(_d.blocks == 1, _d.state.in_(_ENDED_BADLY))
        query = select(deliveries).where(_d.lane == _lane_of_id(delivery.id), _d.id != delivery.id, or_(waits, bad))
        if not self._read(lambda c: c.execute(_lane_is_ordered(delivery.id)).scalar()):
            return None
        first = query.order_by(_d.blocks.desc(), _d.sort_key, _d.seq).limit(1)
        row = self._read(lambda c: c.execute(first).first())
        return _delivery(row) if row is not None else None

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many deliveries there are by folder and state, from a table kept in the same transactions."""
        rows = self._read(lambda c: c.execute(select(counts)).all())
        return {(row.folder, row.state): row.n for row in rows}

    def total(self, *states: State) -> int:
        """Return how many deliveries are in any of these states."""
        return sum(n for (_, state), n in self.counts().items() if state in states)

    def oldest_pending(self) -> dict[str, float]:
        """Return, by folder, when (epoch seconds) the oldest delivery settled that is not uploaded yet."""
        query = select(_d.folder, func.min(_d.settled_at).label("at")).where(_d.state.in_(WAITING))
        rows = self._read(lambda c: c.execute(query.group_by(_d.folder)).all())
        return {row.folder: row.at for row in rows}

    def last_success(self) -> dict[str, float]:
        """Return, by folder, when (epoch seconds) a file last reached its datatable."""

        def work(c: Connection) -> dict[str, float]:
            found = {}
            for folder in c.execute(select(counts.c.folder).distinct()).scalars().all():
                at = c.execute(select(func.max(_d.uploaded_at)).where(_d.folder == folder)).scalar_one()
                if at:
                    found[folder] = float(at)
            return found

        return self._read(work)

    def blockers(self) -> Sequence[Blocker]:
        """Return what holds up the ordered lanes: a head that is being retried, or one that ended badly and blocks."""

        def work(c: Connection) -> Sequence[Blocker]:
            rows = {row.id: row for query in (_RETRIED_HEADS, _RETRIED_NOW, _BLOCKING) for row in c.execute(query)}
            found = []
            for row in rows.values():
                waiting = c.execute(_BEHIND, {"of_lane": row.lane, "of_id": row.id}).all()
                if waiting:
                    found.append(Blocker(_delivery(row), {one.folder: one.n for one in waiting}))
            return found

        return self._read(work)

    def blocked(self) -> dict[str, int]:
        """Return, by folder, how many files wait behind another one that is being retried or blocks."""
        found = Counter[str]()
        for blocker in self.blockers():
            found.update(blocker.waiting)
        return dict(found)

    def paths(self, folder: str) -> Iterator[bytes]:
        """Yield every path of a folder that the ledger knows."""
        query = select(_d.path).where(_d.folder == folder, _d.current == 1)
        yield from self._read(lambda c: c.execute(query).scalars().all())


def _make_private(path: str) -> None:
    """Create the file where it is absent, for its owner only: presigned URLs are secrets until they expire.

    Before SQLite sees it, because the files of the WAL get the mode that the database has. One that exists is not
    opened: closing it again would end SQLite's locks on it in this process (sqlite.org, "How To Corrupt", 2.2).
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.chmod(path, 0o600)


# ---- statements -----------------------------------------------------------------------------------------

_FINGERPRINT: Final = (_d.size, _d.mtime_ns, _d.ctime_ns, _d.inode, _d.device)
_SETTLED_VALUES: Final[dict[str, Any]] = {
    "presigned_url": "",
    "inflight_sha256": None,
    "first_failed_at": 0.0,
}
_FRESH_VALUES: Final[dict[str, Any]] = {
    "state": State.QUEUED,
    "outcome": "",
    "reason": "",
    "detail": "",
    "sha256": "",
    "etag": "",
    "recoveries": 0,
    "not_before": 0.0,
    "claimed_at": 0.0,
    "uploaded_at": 0.0,
    "finished_at": 0.0,
    "duplicate_of": 0,
    "kept": 1,
    "location": b"",
    "released": 0,
    "blocks": 0,
    "resent": 0,
    **_SETTLED_VALUES,
}


def _next_of_lanes(choice: Select[Any]) -> Select[Any]:
    """Build the query for the delivery that `choice` picks in a lane, over all lanes, longest unserved first."""
    chosen = deliveries.alias("chosen")
    return (
        select(chosen, lanes.c.turn, lanes.c.ordered)
        .select_from(lanes)
        .join(chosen, chosen.c.id == choice.correlate(lanes).scalar_subquery())
        .where(
            chosen.c.not_before <= bindparam("now"),
            chosen.c.datatable_id != "",
            chosen.c.tenant.not_in(bindparam("without", expanding=True)),
        )
        .order_by(lanes.c.turn)
        .limit(1)
    )


def _next_ordered() -> Select[Any]:
    head = select(_d.id).where(_d.lane == lanes.c.lane, _d.state == State.QUEUED).order_by(_d.sort_key, _d.seq).limit(1)
    other, bad = deliveries.alias("other"), deliveries.alias("bad")
    busy = exists().where(other.c.lane == lanes.c.lane, other.c.state == State.UPLOADING)
    blocked = exists().where(bad.c.lane == lanes.c.lane, bad.c.blocks == 1, bad.c.state.in_(_ENDED_BADLY))
    return _next_of_lanes(head).where(lanes.c.ordered == 1, ~busy.correlate(lanes), ~blocked.correlate(lanes))


def _next_unordered() -> Select[Any]:
    due = _d.not_before <= bindparam("now")
    first = select(_d.id).where(_d.lane == lanes.c.lane, _d.state == State.QUEUED, due)
    return _next_of_lanes(first.order_by(_d.sort_key, _d.seq).limit(1)).where(lanes.c.ordered == 0)


@lru_cache(maxsize=256)
def _move_statement(names: tuple[str, ...], *, with_attempt: bool) -> Update:
    condition = and_(_d.id == bindparam("of_id"), _d.state == bindparam("of_state"))
    if with_attempt:
        condition = and_(condition, _d.attempts == bindparam("of_attempt"))
    return update(deliveries).where(condition).values({name: bindparam(f"new_{name}") for name in (*names, "state")})


# Built once: composing a statement costs more than SQLite needs to run it.
_NEXT_ORDERED: Final = _next_ordered()
_NEXT_UNORDERED: Final = _next_unordered()
_FOLLOWING: Final = (
    select(deliveries)
    .where(_d.lane == bindparam("of_lane"), _d.state == State.QUEUED, _d.id != bindparam("of_id"))
    .order_by(_d.sort_key, _d.seq)
    .limit(bindparam("longest"))
)
_in_ordered_lane = and_(lanes.c.lane == _d.lane, lanes.c.ordered == 1)
_head = deliveries.alias("head")
_busy = exists().where(_head.c.lane == lanes.c.lane, _head.c.state == State.UPLOADING).correlate(lanes)
_first = (
    select(_head.c.id)
    .where(_head.c.lane == lanes.c.lane, _head.c.state == State.QUEUED)
    .order_by(_head.c.sort_key, _head.c.seq)
    .limit(1)
    .correlate(lanes)
    .scalar_subquery()
)
_RETRIED_HEADS: Final = (
    select(deliveries)
    .select_from(lanes)
    .join(deliveries, _d.id == _first)
    .where(lanes.c.ordered == 1, ~_busy, _d.first_failed_at > 0)
)
_RETRIED_NOW: Final = (
    select(deliveries).join(lanes, _in_ordered_lane).where(_d.state == State.UPLOADING, _d.first_failed_at > 0)
)
_BLOCKING: Final = select(deliveries).join(lanes, _in_ordered_lane).where(_d.blocks == 1, _d.state.in_(_ENDED_BADLY))
_BEHIND: Final = (
    select(_d.folder, func.count().label("n"))
    .where(_d.lane == bindparam("of_lane"), _d.state == State.QUEUED, _d.id != bindparam("of_id"))
    .group_by(_d.folder)
)
_STATE_OF: Final = select(_d.folder, _d.state).where(_d.id == bindparam("of_id"))
_BY_ID: Final = select(deliveries).where(_d.id == bindparam("of_id"))
_CURRENT: Final = select(deliveries).where(
    _d.folder == bindparam("of_folder"), _d.path == bindparam("of_path"), _d.current == 1
)
_NEXT_DUE: Final = select(func.min(_d.not_before)).where(
    _d.state.in_((State.QUEUED, State.UPLOADED)), _d.not_before > bindparam("now")
)
_NEXT_DISPOSAL: Final = (
    select(deliveries).where(_d.state == State.UPLOADED, _d.not_before <= bindparam("now")).order_by(_d.seq).limit(1)
)
# An unresolved row has no id at all; asking for both columns lets ix_content find it among many that wait.
_UNRESOLVED: Final = (
    select(_d.tenant, _d.dataset, _d.datatable)
    .where(_d.tenant_id == "", _d.datatable_id == "", _d.state == State.QUEUED)
    .distinct()
)
_OF_TABLE: Final = and_(_d.tenant_id == bindparam("of_tenant"), _d.datatable_id == bindparam("of_table"))
_UPLOADED_TO: Final = select(_d.id, _d.sha256).where(_OF_TABLE, _d.outcome == Outcome.UPLOADED).limit(1)
_LATEST: Final = _UPLOADED_TO.order_by(_d.uploaded_at.desc(), _d.seq.desc())
# "+ 0" keeps SQLite from walking ix_latest for the order, past every upload: ix_content leads to the few equal ones.
_LATEST_EQUAL: Final = _UPLOADED_TO.where(_d.size == bindparam("of_size"), _d.sha256 == bindparam("hash")).order_by(
    (_d.uploaded_at + 0).desc(), _d.seq.desc()
)
_equal = deliveries.alias("equal")
_RESERVE: Final = (
    update(deliveries)
    .where(
        _d.id == bindparam("of_id"),
        _d.state == State.UPLOADING,
        _d.attempts == bindparam("of_attempt"),
        ~exists().where(
            _equal.c.tenant_id == bindparam("of_tenant"),
            _equal.c.datatable_id == bindparam("of_table"),
            _equal.c.inflight_sha256.in_((bindparam("hash"), bindparam("size_mark"))),
            _equal.c.id != bindparam("of_id"),
        ),
    )
    .values(inflight_sha256=bindparam("hash"), sha256=bindparam("hash"))
)
_LAST_SIZE: Final = (
    select(_d.size)
    .where(_OF_TABLE, _d.outcome == Outcome.UPLOADED)
    .order_by(_d.uploaded_at.desc(), _d.seq.desc())
    .limit(1)
)
_LAST_SEQ: Final = select(func.max(_d.seq))
_INSERT: Final = insert(deliveries)
_TAKE_TURN: Final = (
    update(lanes)
    .where(lanes.c.lane == bindparam("of_lane"))
    .values(turn=select(func.max(lanes.alias("other").c.turn) + 1).scalar_subquery())
)
_LANE: Final = select(lanes.c.lane).where(lanes.c.lane == bindparam("of_lane"))
_ADD_COUNT: Final = (
    update(counts)
    .where(counts.c.folder == bindparam("of_folder"), counts.c.state == bindparam("of_state"))
    .values(n=counts.c.n + bindparam("by"))
)
_RESOLVED: Final = select(destinations).where(
    *(destinations.c[name] == bindparam(name) for name in ("tenant", "dataset", "datatable"))
)


def _fingerprint(row: _Row) -> Fingerprint:
    return Fingerprint(row.size, row.mtime_ns, row.ctime_ns, row.inode, row.device)


def _fingerprint_values(look: Fingerprint) -> dict[str, int]:
    return {name: getattr(look, name) for name in ("size", "mtime_ns", "ctime_ns", "inode", "device")}


def _destination_values(destination: Destination | None) -> dict[str, str]:
    ids = destination or Destination("", "", "")
    return {"tenant_id": ids.tenant_id, "dataset_id": ids.dataset_id, "datatable_id": ids.datatable_id}


def _target_values(c: Connection, target: Target, order: Order) -> dict[str, str]:
    """Return the columns of a target, with its ids where they are known, and make sure that its lane exists."""
    names = {"tenant": target.tenant, "dataset": target.dataset, "datatable": target.datatable}
    row = c.execute(_RESOLVED, names).first()
    destination = Destination(row.tenant_id, row.dataset_id, row.datatable_id) if row is not None else None
    lane = lane_of(target, destination, order)
    _ensure_lane(c, lane, order)
    return names | {"lane": lane} | _destination_values(destination)


def _ensure_lane(c: Connection, lane: str, order: Order) -> None:
    if c.execute(_LANE, {"of_lane": lane}).first() is None:
        c.execute(insert(lanes).values(lane=lane, ordered=int(order is not Order.NONE), turn=0))


def _ending(now: float, *, dispose: bool) -> dict[str, Any]:
    """Return what a confirmed delivery becomes: done, or leased to the one who disposes of its source."""
    if dispose:
        return _SETTLED_VALUES | {"not_before": now + DISPOSAL_LEASE_SECONDS}
    return _SETTLED_VALUES | {"not_before": 0.0, "finished_at": now}


def _lane_of_id(id_: int) -> Any:
    return select(_d.lane).where(_d.id == id_).scalar_subquery()


def _lane_is_ordered(id_: int) -> Select[Any]:
    return select(lanes.c.ordered).where(lanes.c.lane == _lane_of_id(id_))


def _count(c: Connection, folder: str, state: str, by: int) -> None:
    if c.execute(_ADD_COUNT, {"of_folder": folder, "of_state": state, "by": by}).rowcount == 0:
        c.execute(insert(counts).values(folder=folder, state=state, n=by))


def _move(  # noqa: PLR0917  who, from where, to where: read in this order at every call
    c: Connection,
    id_: int,
    folder: str,
    source: State,
    to: State,
    values: dict[str, Any],
    *,
    attempt: int | None = None,
) -> bool:
    """Move a delivery from one state to another, if it is (still) in the first; raise StaleClaim otherwise."""
    statement = _move_statement(tuple(sorted(values)), with_attempt=attempt is not None)
    given = {f"new_{name}": value for name, value in values.items()}
    given |= {"of_id": id_, "of_state": source, "new_state": to, "of_attempt": attempt}
    if c.execute(statement, given).rowcount != 1:
        raise StaleClaim(f"delivery {id_} is no longer {source}")
    if source != to:
        _count(c, folder, source, -1)
        _count(c, folder, to, 1)
    return True


def _move_all(c: Connection, moves: Sequence[tuple[Delivery, dict[str, Any]]], source: State, to: State) -> None:
    """Move many deliveries from one state to another, each with values for the same columns; all or none."""
    if not moves:
        return
    statement = _move_statement(tuple(sorted(moves[0][1])), with_attempt=True)
    given = [
        {f"new_{name}": value for name, value in values.items()}
        | {"of_id": one.id, "of_state": source, "new_state": to, "of_attempt": one.attempts}
        for one, values in moves
    ]
    if c.execute(statement, given).rowcount != len(moves):
        raise StaleClaim(f"delivery {' or '.join(str(one.id) for one, _ in moves)} is no longer {source}")
    if source != to:
        for folder, number in Counter(one.folder for one, _ in moves).items():
            _count(c, folder, source, -number)
            _count(c, folder, to, number)


def _move_all_claimed(c: Connection, moves: Sequence[tuple[Delivery, dict[str, Any]]], to: State) -> None:
    _move_all(c, moves, State.UPLOADING, to)


def _goes_along(row: _Row, head: _Row, small: int, now: float) -> bool:
    """Tell whether a delivery may be claimed together with the one before it."""
    ready = bool(row.datatable_id) and row.not_before <= now and row.tenant == head.tenant
    return ready and row.size <= small and not row.recoveries


def _move_each(c: Connection, ids: Sequence[int], sources: tuple[State, ...], to: State, values: dict[str, Any]) -> int:
    """Move those that are in one of the states; return how many."""
    done = 0
    for id_ in ids:
        row = c.execute(_STATE_OF, {"of_id": id_}).first()
        if row is not None and row.state in sources:
            done += _move(c, id_, row.folder, State(row.state), to, values)
    return done


def _move_claimed(c: Connection, delivery: Delivery, to: State, values: dict[str, Any]) -> None:
    """Move what this claim holds; the attempt number tells it from a claim that was given back since."""
    _move(c, delivery.id, delivery.folder, State.UPLOADING, to, values, attempt=delivery.attempts)


def _require_claim(c: Connection, delivery: Delivery) -> None:
    _move_claimed(c, delivery, State.UPLOADING, {})


def _enqueue(c: Connection, file: Settled) -> int:
    """Enter one settled file; return its delivery's id, or 0 where it is no news."""
    row = c.execute(_CURRENT, {"of_folder": file.folder, "of_path": file.path}).first()
    if row is None:
        return _insert(c, file, previous_id=0)
    known = Known(_fingerprint(row), State(row.state), bool(row.kept))
    if not known.is_news(file.fingerprint):
        return 0
    if known.state is State.VANISHED or (known.state is State.QUEUED and known.kept):
        return _renew(c, row, file)  # one that waits in quarantine for its retry stays what it is
    if known.state is State.HELD:
        superseded = {"outcome": Outcome.SUPERSEDED, "finished_at": file.settled_at}
        _move(c, row.id, row.folder, State.HELD, State.DONE, superseded)
    c.execute(update(deliveries).where(_d.id == row.id).values(current=None))
    return _insert(c, file, previous_id=row.id)


def _file_values(c: Connection, file: Settled) -> dict[str, Any]:
    seq = int(c.execute(_LAST_SEQ).scalar() or 0) + 1
    facts: dict[str, Any] = {
        "sort_key": _sort_key(file),
        "seen_at": file.seen_at,
        "settled_at": file.settled_at,
        "expected_sha256": file.expected_sha256,
    }
    if file.held:
        facts |= {"state": State.HELD, "reason": file.held, "finished_at": file.settled_at}
    return _target_values(c, file.target, file.order) | _fingerprint_values(file.fingerprint) | facts | {"seq": seq}


def _sort_key(file: Settled) -> bytes:
    """Return a file's place among those that wait in its lane; equal ones go as they came."""
    if file.order is Order.NAME:
        return os.path.basename(file.path)
    return b"%020d" % file.fingerprint.mtime_ns if file.order is Order.MTIME else b""


def _insert(c: Connection, file: Settled, *, previous_id: int) -> int:
    values = _FRESH_VALUES | _file_values(c, file) | {"attempts": 0, "previous_id": previous_id}
    result = c.execute(_INSERT, {"folder": file.folder, "path": file.path, "current": 1, **values})
    _count(c, file.folder, values["state"], 1)
    id_ = int(result.inserted_primary_key[0])  # type: ignore[index]  # always there after an INSERT of one row
    if file.supersedes:
        _supersede(c, file, id_)
    return id_


def _supersede(c: Connection, file: Settled, by: int) -> None:
    """End what still waits for the same datatable in this folder: only the newest matters there."""
    target = file.target
    older = select(_d.id).where(
        _d.folder == file.folder,
        _d.state == State.QUEUED,
        _d.tenant == target.tenant,
        _d.dataset == target.dataset,
        _d.datatable == target.datatable,
        _d.id != by,
    )
    values = {"outcome": Outcome.SUPERSEDED, "reason": "superseded", "finished_at": file.settled_at}
    _move_each(c, c.execute(older).scalars().all(), (State.QUEUED,), State.DONE, values | _SETTLED_VALUES)


def _renew(c: Connection, row: _Row, file: Settled) -> int:
    """Let a delivery that has not gone yet stand for the new version at its path, at the end of the queue."""
    values = _FRESH_VALUES | _file_values(c, file)
    _move(
        c,
        row.id,
        row.folder,
        State(row.state),
        values["state"],
        {k: v for k, v in values.items() if k != "state"},
    )
    return int(row.id)


def _decide(c: Connection, delivery: Delivery, sha256: str, policy: Dedup) -> Decided:
    if policy is Dedup.OFF:
        return Decided(Verdict.SEND)
    previous = c.execute(_BY_ID, {"of_id": delivery.previous_id}).first() if delivery.previous_id else None
    if previous is not None and _is_same_file_again(previous, sha256):
        return Decided(Verdict.UNCHANGED, previous.id)
    equal = _last_uploaded(c, delivery, sha256)
    if equal is not None:
        latest = _last_uploaded(c, delivery)
        older = latest is not None and latest.sha256 != sha256
        if policy is Dedup.CONTENT or not older:
            return Decided(Verdict.DUPLICATE, equal.id, older=older)
    assert delivery.destination is not None
    given = {"of_id": delivery.id, "of_attempt": delivery.attempts, "hash": sha256}
    given |= {"of_tenant": delivery.destination.tenant_id, "of_table": delivery.destination.datatable_id}
    given |= {"size_mark": _size_mark(delivery.fingerprint.size)}
    return Decided(Verdict.SEND if c.execute(_RESERVE, given).rowcount else Verdict.WAIT)


def _size_mark(size: int) -> str:
    """Return what stands in place of a hash while a file of unknown content is on its way."""
    return f"size {size}"


def _is_same_file_again(previous: _Row, sha256: str) -> bool:
    return bool(previous.state == State.DONE and previous.kept and previous.sha256 == sha256)


def _last_uploaded(c: Connection, delivery: Delivery, sha256: str | None = None) -> _Row | None:
    """Return the delivery that last reached this datatable, with this content where one is given."""
    assert delivery.destination is not None
    given = {"of_tenant": delivery.destination.tenant_id, "of_table": delivery.destination.datatable_id}
    if sha256 is None:
        return c.execute(_LATEST, given).first()
    return c.execute(_LATEST_EQUAL, given | {"of_size": delivery.fingerprint.size, "hash": sha256}).first()


def _delivery(row: _Row) -> Delivery:
    destination = Destination(row.tenant_id, row.dataset_id, row.datatable_id) if row.datatable_id else None
    return Delivery(
        id=row.id,
        folder=row.folder,
        path=row.path,
        target=Target(row.tenant, row.datatable, row.dataset),
        destination=destination,
        state=State(row.state),
        outcome=row.outcome,
        reason=row.reason,
        detail=row.detail,
        fingerprint=_fingerprint(row),
        sha256=row.sha256,
        etag=row.etag,
        seq=row.seq,
        attempts=row.attempts,
        recoveries=row.recoveries,
        not_before=row.not_before,
        seen_at=row.seen_at,
        settled_at=row.settled_at,
        claimed_at=row.claimed_at,
        first_failed_at=row.first_failed_at,
        uploaded_at=row.uploaded_at,
        finished_at=row.finished_at,
        presigned_url=row.presigned_url,
        duplicate_of=row.duplicate_of,
        previous_id=row.previous_id,
        location=row.location,
        released=bool(row.released),
        expected_sha256=row.expected_sha256,
        resent=bool(row.resent),
    )
