"""What people do to deliveries: try again, release, discard."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import select

from pmwatch.ledger.base import Base
from pmwatch.ledger.moves import delivery_of, lane_of_id, move_each
from pmwatch.ledger.schema import deliveries
from pmwatch.ledger.statements import LAST_SIZE
from pmwatch.model import Delivery, Outcome, State

_d: Final = deliveries.c


class People(Base):
    """The part of the ledger that operators change."""

    def requeue(self, ids: Sequence[int], *, release: bool = False) -> int:
        """Queue failed or held deliveries again, from where their source lies now; return how many.

        With `release` no guard and no check asks about them again.
        """
        values: dict[str, Any] = {"reason": "released" if release else "retry", "detail": "", "not_before": 0.0}
        values |= {"first_failed_at": 0.0, "recoveries": 0, "finished_at": 0.0, "presigned_url": "", "blocks": 0}
        values |= {"released": 1} if release else {}
        return self._write(lambda c: move_each(c, ids, (State.FAILED, State.HELD), State.QUEUED, values))

    def discard(self, ids: Sequence[int], *, now: float) -> int:
        """End held or failed deliveries without sending them: a person does not want them; return how many."""
        values = {"outcome": Outcome.DISCARDED, "reason": "discarded", "detail": "", "finished_at": now, "blocks": 0}
        return self._write(lambda c: move_each(c, ids, (State.FAILED, State.HELD), State.DONE, values))

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
