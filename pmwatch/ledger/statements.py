"""The statements of the ledger, built once."""

from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Select, Update, and_, bindparam, case, exists, func, insert, select, update

from pmwatch.ledger.schema import counts, deliveries, destinations, lanes
from pmwatch.model import Outcome, State

_d: Final = deliveries.c
TARGET: Final = ("tenant", "dataset", "datatable", "process")
"""The columns of a target's names."""


ENDED_BADLY: Final = (State.FAILED, State.HELD)


FINGERPRINT: Final = (_d.size, _d.mtime_ns, _d.ctime_ns, _d.inode, _d.device)
SETTLED_VALUES: Final[dict[str, Any]] = {
    "presigned_url": "",
    "inflight_sha256": None,
    "first_failed_at": 0.0,
}
FRESH_VALUES: Final[dict[str, Any]] = {
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
    "row_count": None,
    "arrival": 0,
    "released": 0,
    "blocks": 0,
    "resent": 0,
    **SETTLED_VALUES,
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
            lanes.c.lane.not_in(bindparam("full_lanes", expanding=True)),
        )
        .order_by(lanes.c.turn)
        .limit(1)
    )


def _next_ordered() -> Select[Any]:
    head = select(_d.id).where(_d.lane == lanes.c.lane, _d.state == State.QUEUED).order_by(_d.sort_key, _d.seq).limit(1)
    other, bad = deliveries.alias("other"), deliveries.alias("bad")
    busy = exists().where(other.c.lane == lanes.c.lane, other.c.state == State.UPLOADING)
    blocked = exists().where(bad.c.lane == lanes.c.lane, bad.c.blocks == 1, bad.c.state.in_(ENDED_BADLY))
    return _next_of_lanes(head).where(lanes.c.ordered == 1, ~busy.correlate(lanes), ~blocked.correlate(lanes))


def _next_unordered() -> Select[Any]:
    due = _d.not_before <= bindparam("now")
    first = select(_d.id).where(_d.lane == lanes.c.lane, _d.state == State.QUEUED, due)
    return _next_of_lanes(first.order_by(_d.sort_key, _d.seq).limit(1)).where(lanes.c.ordered == 0)


@lru_cache(maxsize=256)
def move_statement(names: tuple[str, ...], *, with_attempt: bool) -> Update:
    """Build the compare-and-set for these columns."""
    condition = and_(_d.id == bindparam("of_id"), _d.state == bindparam("of_state"))
    if with_attempt:
        condition = and_(condition, _d.attempts == bindparam("of_attempt"))
    return update(deliveries).where(condition).values({name: bindparam(f"new_{name}") for name in (*names, "state")})


# Built once: composing a statement costs more than SQLite needs to run it.
NEXT_ORDERED: Final = _next_ordered()
NEXT_UNORDERED: Final = _next_unordered()
FOLLOWING: Final = (
    select(deliveries)
    .where(_d.lane == bindparam("of_lane"), _d.state == State.QUEUED, _d.id != bindparam("of_id"))
    .order_by(_d.sort_key, _d.seq)
    .limit(bindparam("longest"))
)
_some = select(_d.id).where(_d.lane == bindparam("of_lane"), _d.state == State.QUEUED).limit(bindparam("longest"))
WAITING: Final = select(func.count()).select_from(_some.subquery())
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
RETRIED_HEADS: Final = (
    select(deliveries)
    .select_from(lanes)
    .join(deliveries, _d.id == _first)
    .where(lanes.c.ordered == 1, ~_busy, _d.first_failed_at > 0)
)
RETRIED_NOW: Final = (
    select(deliveries).join(lanes, _in_ordered_lane).where(_d.state == State.UPLOADING, _d.first_failed_at > 0)
)
BLOCKING: Final = select(deliveries).join(lanes, _in_ordered_lane).where(_d.blocks == 1, _d.state.in_(ENDED_BADLY))
BEHIND: Final = (
    select(_d.folder, func.count().label("n"))
    .where(_d.lane == bindparam("of_lane"), _d.state == State.QUEUED, _d.id != bindparam("of_id"))
    .group_by(_d.folder)
)
STATE_OF: Final = select(_d.folder, _d.state).where(_d.id == bindparam("of_id"))
BY_ID: Final = select(deliveries).where(_d.id == bindparam("of_id"))
CURRENT: Final = select(deliveries).where(
    _d.folder == bindparam("of_folder"), _d.path == bindparam("of_path"), _d.current == 1
)
NEXT_DUE: Final = select(func.min(_d.not_before)).where(
    _d.state.in_((State.QUEUED, State.UPLOADED, State.FAILED)), _d.not_before > bindparam("now")
)
NEXT_DISPOSAL: Final = (
    select(deliveries).where(_d.state == State.UPLOADED, _d.not_before <= bindparam("now")).order_by(_d.seq).limit(1)
)
NEXT_QUARANTINE: Final = (
    select(deliveries)
    .where(_d.state == State.FAILED, _d.not_before > 0, _d.not_before <= bindparam("now"))
    .order_by(_d.not_before)
    .limit(1)
)
# An unresolved row has no id at all; asking for both columns lets ix_content find it among many that wait.
UNRESOLVED: Final = (
    select(*(_d[name] for name in TARGET))
    .where(_d.tenant_id == "", _d.datatable_id == "", _d.state == State.QUEUED)
    .distinct()
)
_OF_TABLE: Final = and_(_d.tenant_id == bindparam("of_tenant"), _d.datatable_id == bindparam("of_table"))
_UPLOADED_TO: Final = select(_d.id, _d.sha256).where(_OF_TABLE, _d.outcome == Outcome.UPLOADED).limit(1)
LAST_ARRIVAL: Final = select(func.max(_d.arrival)).where(_OF_TABLE)
LATEST: Final = _UPLOADED_TO.order_by(_d.arrival.desc())
# "+ 0" keeps SQLite from walking ix_latest for the order, past every upload: ix_content leads to the few equal ones.
LATEST_EQUAL: Final = _UPLOADED_TO.where(_d.size == bindparam("of_size"), _d.sha256 == bindparam("hash")).order_by(
    (_d.arrival + 0).desc()
)
_equal = deliveries.alias("equal")
RESERVE: Final = (
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
# The same for a run of which ANY_UPLOADED and ANY_UNDER_WAY find nothing, in the one transaction.
ANY_UPLOADED: Final = (
    select(_d.id)
    .where(
        _OF_TABLE,
        _d.size.in_(bindparam("sizes", expanding=True)),
        _d.sha256.in_(bindparam("hashes", expanding=True)),
        _d.outcome == Outcome.UPLOADED,
    )
    .limit(1)
)
ANY_UNDER_WAY: Final = (
    select(_d.id)
    .where(
        _OF_TABLE,
        _d.inflight_sha256.in_(bindparam("marks", expanding=True)),
        _d.id.not_in(bindparam("own", expanding=True)),
    )
    .limit(1)
)
RESERVE_NEW: Final = (
    update(deliveries)
    .where(_d.id == bindparam("of_id"), _d.state == bindparam("of_state"), _d.attempts == bindparam("of_attempt"))
    .values(inflight_sha256=bindparam("hash"), sha256=bindparam("hash"))
)
LAST_SIZE: Final = select(_d.size).where(_OF_TABLE, _d.outcome == Outcome.UPLOADED).order_by(_d.arrival.desc()).limit(1)
LAST_SEQ: Final = select(func.max(_d.seq))
IDS_SINCE: Final = select(_d.id).where(_d.seq >= bindparam("of_seq")).order_by(_d.seq)
PATHS_THERE: Final = select(_d.path).where(
    _d.folder == bindparam("of_folder"), _d.path.in_(bindparam("paths", expanding=True)), _d.current == 1
)
INSERT: Final = insert(deliveries)
TAKE_TURN: Final = (
    update(lanes)
    .where(lanes.c.lane == bindparam("of_lane"))
    .values(turn=select(func.max(lanes.alias("other").c.turn) + 1).scalar_subquery())
)
LANE: Final = select(lanes.c.lane).where(lanes.c.lane == bindparam("of_lane"))
ADD_COUNT: Final = (
    update(counts)
    .where(counts.c.folder == bindparam("of_folder"), counts.c.state == bindparam("of_state"))
    .values(n=counts.c.n + bindparam("by"))
)
# One that has no row in `to_state` yet changes only where it comes from.
MOVE_COUNT: Final = (
    update(counts)
    .where(
        counts.c.folder == bindparam("of_folder"),
        counts.c.state.in_((bindparam("of_state"), bindparam("to_state"))),
    )
    .values(n=counts.c.n + case((counts.c.state == bindparam("of_state"), -bindparam("by")), else_=bindparam("by")))
)
RESOLVED: Final = select(destinations).where(*(destinations.c[name] == bindparam(name) for name in TARGET))
