"""The questions asked of the ledger."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from sqlalchemy import Connection, and_, func, or_, select

from pmwatch.ledger.base import Base
from pmwatch.ledger.moves import delivery_of, lane_is_ordered, lane_of_id
from pmwatch.ledger.schema import counts, deliveries
from pmwatch.ledger.statements import BEHIND, BLOCKING, ENDED_BADLY, RETRIED_HEADS, RETRIED_NOW
from pmwatch.ledger.values import Blocker
from pmwatch.model import BY_HAND, WAITING, Delivery, State

_d: Final = deliveries.c


class Questions(Base):
    """The part of the ledger that only answers."""

    def find(self, folder: str, path: bytes) -> list[Delivery]:
        """Return every delivery of a path, newest first."""
        query = select(deliveries).where(_d.folder == folder, _d.path == path).order_by(_d.id.desc())
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def get(self, id_: int) -> Delivery | None:
        """Return one delivery."""
        row = self._read(lambda c: c.execute(select(deliveries).where(_d.id == id_)).first())
        return delivery_of(row) if row is not None else None

    def list(self, *, states: Iterable[State] = (), folder: str | None = None, limit: int = 100) -> "list[Delivery]":
        """Return the newest deliveries, of some states and of one folder where asked."""
        query = select(deliveries).order_by(_d.seq.desc()).limit(limit)
        wanted = tuple(states)
        if wanted:
            query = query.where(_d.state.in_(wanted))
        if folder is not None:
            query = query.where(_d.folder == folder)
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def history(
        self,
        *,
        folder: str | None = None,
        states: Sequence[State] = (),
        outcome: str | None = None,
        since: float = 0.0,
        limit: int = 50,
    ) -> Sequence[Delivery]:
        """Return the newest deliveries that settled or ended at `since` (epoch seconds) or later."""
        query = select(deliveries).order_by(_d.seq.desc()).limit(limit)
        if folder is not None:
            query = query.where(_d.folder == folder)
        if states:
            query = query.where(_d.state.in_(states))
        if outcome is not None:
            query = query.where(_d.outcome == outcome)
        if since:
            query = query.where(or_(_d.settled_at >= since, _d.finished_at >= since, _d.uploaded_at >= since))
        return [delivery_of(row) for row in self._read(lambda c: c.execute(query).all())]

    def blocker(self, delivery: Delivery) -> Delivery | None:
        """Return the delivery for which a queued one of an ordered lane waits, if any."""
        sort_key = select(_d.sort_key).where(_d.id == delivery.id).scalar_subquery()
        before = or_(_d.sort_key < sort_key, and_(_d.sort_key == sort_key, _d.seq < delivery.seq))
        waits = or_(and_(_d.state == State.QUEUED, before), _d.state == State.UPLOADING)
        bad = and_(_d.blocks == 1, _d.state.in_(ENDED_BADLY))
        query = select(deliveries).where(_d.lane == lane_of_id(delivery.id), _d.id != delivery.id, or_(waits, bad))
        if not self._read(lambda c: c.execute(lane_is_ordered(delivery.id)).scalar()):
            return None
        first = query.order_by(_d.blocks.desc(), _d.sort_key, _d.seq).limit(1)
        row = self._read(lambda c: c.execute(first).first())
        return delivery_of(row) if row is not None else None

    def counts(self) -> dict[tuple[str, str], int]:
        """Return how many deliveries there are by folder and state, from a table kept in the same transactions."""
        rows = self._read(lambda c: c.execute(select(counts)).all())
        return {(row.folder, row.state): row.n for row in rows}

    def total(self, *states: State) -> int:
        """Return how many deliveries of folders are in any of these states."""
        return sum(n for (folder, state), n in self.counts().items() if state in states and folder != BY_HAND)

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
            rows = {row.id: row for query in (RETRIED_HEADS, RETRIED_NOW, BLOCKING) for row in c.execute(query)}
            found = []
            for row in rows.values():
                waiting = c.execute(BEHIND, {"of_lane": row.lane, "of_id": row.id}).all()
                if waiting:
                    found.append(Blocker(delivery_of(row), {one.folder: one.n for one in waiting}))
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
