"""What people do to deliveries: try again, release, discard, send once more; and the record of who did it."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from pmwatch.ledger.base import Base
from pmwatch.ledger.moves import (
    add_count,
    delivery_of,
    destination_values,
    fingerprint_of,
    fingerprint_values,
    lane_of,
    lane_of_id,
    move_each,
    target_names,
    target_of,
    target_values,
)
from pmwatch.ledger.schema import actions, deliveries
from pmwatch.ledger.statements import BY_ID, FRESH_VALUES, INSERT, LAST_SEQ, LAST_SIZE, SETTLED_VALUES
from pmwatch.ledger.values import Action, ByHand
from pmwatch.model import BY_HAND, PENDING, Delivery, Order, Outcome, State

_d: Final = deliveries.c
_PEOPLES: Final = (State.FAILED, State.HELD)
_UNDER_WAY: Final = (*PENDING, State.HELD, State.FAILED)


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

    def uploaded_by_hand(self, sent: ByHand, *, by: Action) -> int:
        """Record what a person sent past every folder, so that it counts as uploaded from now on; return its id."""

        def work(c: Connection) -> int:
            values = FRESH_VALUES | fingerprint_values(sent.fingerprint) | target_names(sent.target)
            values |= destination_values(sent.destination)
            values |= {"lane": lane_of(sent.target, sent.destination, Order.ARRIVAL), "sort_key": b"", "attempts": 1}
            values |= {"folder": BY_HAND, "path": sent.path, "current": None, "expected_sha256": "", "previous_id": 0}
            values |= {"state": State.DONE, "outcome": Outcome.UPLOADED, "sha256": sent.sha256, "etag": sent.etag}
            values |= dict.fromkeys(("seen_at", "settled_at", "claimed_at", "uploaded_at", "finished_at"), by.at)
            values |= {"seq": int(c.execute(LAST_SEQ).scalar() or 0) + 1}
            id_ = int(c.execute(INSERT, values).inserted_primary_key[0])  # type: ignore[index]  # as below
            add_count(c, BY_HAND, State.DONE, 1)
            _record(c, by, [id_])
            return id_

        return self._write(work)

    def uploads(self, folder: str, *, since: float, until: float) -> list[Delivery]:
        """Return what a folder uploaded from `since` to `until` (epoch seconds), in that order, without repetitions."""
        query = (
            select(deliveries)
            .where(_d.folder == folder, _d.uploaded_at >= since, _d.uploaded_at <= until)
            .where(_d.outcome == Outcome.UPLOADED, _d.resent == 0)
            .order_by(_d.uploaded_at, _d.seq)
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
    values |= {"seq": int(c.execute(LAST_SEQ).scalar() or 0) + 1, "sort_key": b"", "attempts": 0, "previous_id": 0}
    values |= {"seen_at": now, "settled_at": now, "reason": "resend", "expected_sha256": row.sha256}
    values |= {"released": 1, "resent": action, "duplicate_of": id_, "location": row.location, "kept": int(in_place)}
    result = c.execute(INSERT, values)
    add_count(c, row.folder, State.QUEUED, 1)
    return int(result.inserted_primary_key[0])  # type: ignore[index]  # always there after an INSERT of one row
