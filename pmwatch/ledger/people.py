"""What people do to deliveries: try again, release, discard, send once more; and the record of who did it."""

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection, delete, insert, select, update

from pmwatch.ledger.base import Base
from pmwatch.ledger.moves import (
    UNORDERED_SUFFIX,
    add_count,
    delivery_of,
    destination_values,
    fingerprint_of,
    fingerprint_values,
    lane_of,
    lane_of_id,
    move_each,
    move_one,
    next_arrival,
    next_seq,
    size_mark,
    target_names,
    target_of,
    target_values,
)
from pmwatch.ledger.schema import actions, deliveries
from pmwatch.ledger.statements import (
    ANY_UNDER_WAY,
    BY_ID,
    FRESH_VALUES,
    INSERT,
    LAST_SIZE,
    LATEST_EQUAL,
    SETTLED_VALUES,
)
from pmwatch.ledger.values import Action, ByHand, Decided, Verdict
from pmwatch.lock import lock_by_hand
from pmwatch.model import BY_HAND, PENDING, Delivery, Order, Outcome, State

_d: Final = deliveries.c
_PEOPLES: Final = (State.FAILED, State.HELD)
_UNDER_WAY: Final = (*PENDING, State.HELD, State.FAILED)
_BEING_SENT: Final = select(_d.id).where(_d.folder == BY_HAND, _d.state == State.UPLOADING)


class People(Base):
    """The part of the ledger that operators change."""

    def requeue(self, ids: Sequence[int], *, release: bool = False, by: Action | None = None) -> int:
        """Queue failed or held deliveries again, from where their source lies now; return how many.

        With `release` no guard and no check asks about them again.
        """
        values: dict[str, Any] = {"reason": "released" if release else "retry", "detail": "", "not_before": 0.0}
        values |= {"first_failed_at": 0.0, "recoveries": 0, "finished_at": 0.0, "presigned_url": "", "blocks": 0}
        values |= {"released": 1} if release else {}
        return self._change(ids, State.QUEUED, values, by)

    def discard(self, ids: Sequence[int], *, now: float, by: Action | None = None) -> int:
        """End held, failed or waiting deliveries without sending them: a person does not want them; return how many."""
        values = {"outcome": Outcome.DISCARDED, "reason": "discarded", "detail": "", "finished_at": now, "blocks": 0}
        return self._change(ids, State.DONE, values | SETTLED_VALUES, by, sources=(*_PEOPLES, State.QUEUED))

    def _change(
        self,
        ids: Sequence[int],
        to: State,
        values: dict[str, Any],
        by: Action | None,
        *,
        sources: tuple[State, ...] = _PEOPLES,
    ) -> int:
        def work(c: Connection) -> int:
            changed = move_each(c, ids, sources, to, values)
            if by is not None and changed:
                _record(c, by, changed)
            return len(changed)

        return self._write(work)

    def resend(self, ids: Sequence[int], *, order_of: Callable[[str], Order], by: Action) -> list[int]:
        """Queue uploaded deliveries once more, in this order and before what waits; return the new ones' ids.

        Each goes from where its source lies now, and only if it still has the SHA-256 that it had. Past dedup and
        guards. Skipped are those of which a repetition waits already, and those in whose place a newer file stands.
        """

        def work(c: Connection) -> list[int]:
            action = _record(c, by, ids)
            again = [id_ for one in ids if (id_ := _resend(c, one, order_of, action, by.at))]
            c.execute(update(actions).where(actions.c.id == action).values(deliveries=ranges(again)))
            return again

        return self._write(work)

    # ---- past every folder --------------------------------------------------------------------------------

    def begin_by_hand(self, sent: ByHand, *, force: bool, now: float) -> Decided:
        """Say whether content that a person sends still has to go, as for a delivery: `of` is then its own id.

        Where it has to, it is `uploading` and reserved against an equal one, for as long as this process lives: then
        comes `uploaded_by_hand` or `left_by_hand`. With `force` it goes in any case.
        """
        locks: list[int] = []

        def work(c: Connection) -> Decided:
            _drop_left(c, self.state_dir)
            before, under_way = _equal_to(c, sent)
            if not force and (before or under_way):
                return Decided(Verdict.DUPLICATE, before) if before else Decided(Verdict.WAIT, under_way)
            id_ = _enter_by_hand(c, sent, now, inflight=None if under_way else sent.sha256)
            lock = lock_by_hand(self.state_dir, id_)
            assert lock is not None, "nobody else knows a delivery that is not committed"
            locks.append(lock)
            return Decided(Verdict.SEND, id_)

        try:
            decided = self._write(work, durable=False)
        except BaseException:
            for lock in locks:
                os.close(lock)
            raise
        if locks:
            self._by_hand[decided.of] = locks[-1]
        return decided

    def uploaded_by_hand(self, id_: int, *, etag: str, by: Action) -> None:
        """The storage confirmed it: it counts as uploaded from now on."""
        values: dict[str, Any] = {"outcome": Outcome.UPLOADED, "etag": etag, "uploaded_at": by.at, "finished_at": by.at}

        def work(c: Connection) -> None:
            row = c.execute(BY_ID, {"of_id": id_}).one()
            place = {
                "lane": row.lane.removesuffix(UNORDERED_SUFFIX),
                "arrival": next_arrival(c, row.tenant_id, row.datatable_id),
            }
            move_one(c, id_, BY_HAND, State.UPLOADING, State.DONE, values | SETTLED_VALUES | place)
            _record(c, by, [id_])

        self._write(work)
        os.close(self._by_hand.pop(id_))

    def left_by_hand(self, id_: int) -> None:
        """It did not arrive: forget it, and let an equal one go."""
        os.close(self._by_hand.pop(id_))
        self.drop_left_by_hand()

    def drop_left_by_hand(self) -> None:
        """Forget what was being sent by hand by processes that have died, so that equal content may go."""
        if self._read(lambda c: c.execute(_BEING_SENT).first()) is not None:
            self._write(lambda c: _drop_left(c, self.state_dir), durable=False)

    def uploads(self, folder: str, *, since: float, until: float) -> list[Delivery]:
        """Return what a folder uploaded from `since` to `until` (epoch seconds), in that order, without repetitions."""
        query = (
            select(deliveries)
            .where(_d.folder == folder, _d.uploaded_at >= since, _d.uploaded_at <= until)
            .where(_d.outcome == Outcome.UPLOADED, _d.resent == 0)
            .order_by(_d.arrival, _d.uploaded_at, _d.seq)
        )
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def actions(self, *, limit: int = 100) -> list[Action]:
        """Return what people did, the latest first."""
        query = select(actions).order_by(actions.c.id.desc()).limit(limit)
        rows = self._read(lambda c: c.execute(query).all())
        return [Action(row.at, row.who, row.command, row.why, row.deliveries, row.id) for row in rows]

    def ids(self, state: State, *, folder: str | None = None, reason: str | None = None) -> list[int]:
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
            .where(_d.lane == lane_of_id(id_), _d.outcome == Outcome.UPLOADED)
            .where(_d.seq > select(_d.seq).where(_d.id == id_).scalar_subquery())
            .order_by(_d.seq.desc())
            .limit(1)
        )
        row = self._read(lambda c: c.execute(query).first())
        return delivery_of(row) if row is not None else None

    def last_size(self, delivery: Delivery) -> int | None:
        """Return the size of what this folder last uploaded to the same datatable."""
        assert delivery.destination is not None
        given = {"of_tenant": delivery.destination.tenant_id, "of_table": delivery.destination.datatable_id}
        query = LAST_SIZE.where(_d.folder == delivery.folder)
        size = self._read(lambda c: c.execute(query, given).scalar())
        return None if size is None else int(size)


def ranges(ids: Iterable[int]) -> str:
    """Return ids in short.

    >>> ranges([7, 3, 4, 5])
    '3-5,7'
    """
    ordered = sorted(set(ids))
    if not ordered:
        return ""
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))


def _equal_to(c: Connection, sent: ByHand) -> tuple[int, int]:
    """Return which delivery of equal content has reached the datatable, and which may be under way (0: none)."""
    size = sent.fingerprint.size
    of_table = {"of_tenant": sent.destination.tenant_id, "of_table": sent.destination.datatable_id}
    before = c.execute(LATEST_EQUAL, of_table | {"of_size": size, "hash": sent.sha256}).scalar()
    under_way = c.execute(ANY_UNDER_WAY, of_table | {"marks": [sent.sha256, size_mark(size)], "own": []}).scalar()
    return int(before or 0), int(under_way or 0)


def _enter_by_hand(c: Connection, sent: ByHand, now: float, *, inflight: str | None) -> int:
    values = FRESH_VALUES | fingerprint_values(sent.fingerprint) | target_names(sent.target)
    values |= destination_values(sent.destination)
    lane = lane_of(sent.target, sent.destination, Order.NONE)  # until it has arrived: nothing waits behind it
    values |= {"lane": lane, "sort_key": b"", "attempts": 1}
    values |= {"folder": BY_HAND, "path": sent.path, "current": None, "expected_sha256": "", "previous_id": 0}
    values |= {"state": State.UPLOADING, "sha256": sent.sha256, "inflight_sha256": inflight}
    values |= dict.fromkeys(("seen_at", "settled_at", "claimed_at"), now)
    values |= {"seq": next_seq(c)}
    add_count(c, BY_HAND, State.UPLOADING, 1)
    return int(c.execute(INSERT, values).inserted_primary_key[0])  # type: ignore[index]  # as below


def _drop_left(c: Connection, state_dir: str) -> None:
    for id_ in c.execute(_BEING_SENT).scalars().all():
        lock = lock_by_hand(state_dir, id_)
        if lock is not None:
            c.execute(delete(deliveries).where(_d.id == id_))
            add_count(c, BY_HAND, State.UPLOADING, -1)
            os.close(lock)


def _record(c: Connection, by: Action, ids: Iterable[int]) -> int:
    values = {"at": by.at, "who": by.who, "command": by.command, "why": by.why, "deliveries": ranges(ids)}
    return int(c.execute(insert(actions).values(values)).inserted_primary_key[0])  # type: ignore[index]


def _resend(c: Connection, id_: int, order_of: Callable[[str], Order], action: int, now: float) -> int:
    row = c.execute(BY_ID, {"of_id": id_}).first()
    in_place = row is not None and not row.location
    if row is None or row.state != State.DONE or (in_place and not (row.current and row.kept)):
        return 0
    waiting = select(_d.id).where(_d.duplicate_of == id_, _d.resent > 0, _d.state.in_(_UNDER_WAY))
    if c.execute(waiting.limit(1)).first() is not None:
        return 0
    if in_place:
        c.execute(update(deliveries).where(_d.id == id_).values(current=None))
    values = FRESH_VALUES | target_values(c, target_of(row), order_of(row.folder))
    values |= fingerprint_values(fingerprint_of(row))
    values |= {"folder": row.folder, "path": row.path, "current": row.current if in_place else None}
    values |= {"seq": next_seq(c), "sort_key": b"", "attempts": 0, "previous_id": 0}
    values |= {"seen_at": now, "settled_at": now, "reason": "resend", "expected_sha256": row.sha256}
    values |= {"released": 1, "resent": action, "duplicate_of": id_, "location": row.location, "kept": int(in_place)}
    result = c.execute(INSERT, values)
    add_count(c, row.folder, State.QUEUED, 1)
    return int(result.inserted_primary_key[0])  # type: ignore[index]  # always there after an INSERT of one row
