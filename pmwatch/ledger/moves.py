"""What happens to rows inside one transaction: entered, moved from state to state, decided."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, insert, select, update

from pmwatch.errors import AnswerLost
from pmwatch.ledger.schema import counts, deliveries, lanes
from pmwatch.ledger.statements import (
    ADD_COUNT,
    ANY_UNDER_WAY,
    ANY_UPLOADED,
    BY_ID,
    CURRENT,
    FRESH_VALUES,
    IDS_SINCE,
    INSERT,
    LANE,
    LAST_ARRIVAL,
    LAST_SEQ,
    LATEST,
    LATEST_EQUAL,
    MOVE_COUNT,
    PATHS_THERE,
    RESERVE,
    RESERVE_NEW,
    RESOLVED,
    SETTLED_VALUES,
    STATE_OF,
    TARGET,
    move_statement,
)
from pmwatch.ledger.values import Arrived, Decided, Known, StaleClaim, Verdict
from pmwatch.model import Dedup, Delivery, Destination, Fingerprint, Order, Outcome, Settled, State, Target

_d: Final = deliveries.c
_REPLACED: Final = "replaced by a newer version before it could be asked whether it had arrived"
Row = Any  # SQLAlchemy 2.0 and 2.1 disagree on the parameters of Row

DISPOSAL_LEASE_SECONDS: Final = 60.0
"""How long a disposal may take before somebody else tries it; repeating one is harmless."""


UNORDERED_SUFFIX: Final = "~"
MOST_IN_ONE: Final = 500
"""How many values stand in one IN (…); SQLite takes 999 variables in its oldest builds."""


def lane_of(target: Target, destination: Destination | None, order: Order) -> str:
    """Return the name of the queue in which files of one datatable wait for each other."""
    key = f"{destination.tenant_id}/{destination.datatable_id}" if destination else f"?{target}"
    return key + UNORDERED_SUFFIX if order is Order.NONE else key


def fingerprint_of(row: Row) -> Fingerprint:
    """Return the look at the source that a row holds."""
    return Fingerprint(row.size, row.mtime_ns, row.ctime_ns, row.inode, row.device)


def fingerprint_values(look: Fingerprint) -> dict[str, int]:
    """Return the columns of a look."""
    return {
        "size": look.size,
        "mtime_ns": look.mtime_ns,
        "ctime_ns": look.ctime_ns,
        "inode": look.inode,
        "device": look.device,
    }


def destination_values(destination: Destination | None) -> dict[str, str]:
    """Return the columns of resolved ids, empty where there are none."""
    ids = destination or Destination("", "", "")
    return {"tenant_id": ids.tenant_id, "dataset_id": ids.dataset_id, "datatable_id": ids.datatable_id}


def target_names(target: Target) -> dict[str, str]:
    """Return the columns of a target's names."""
    return {name: getattr(target, name) for name in TARGET}


def target_of(row: Row) -> Target:
    """Return the target whose names a row holds."""
    return Target(row.tenant, row.datatable, row.dataset, row.process)


def target_values(c: Connection, target: Target, order: Order) -> dict[str, str]:
    """Return the columns of a target, with its ids where they are known, and make sure that its lane exists."""
    names = target_names(target)
    row = c.execute(RESOLVED, names).first()
    destination = Destination(row.tenant_id, row.dataset_id, row.datatable_id) if row is not None else None
    lane = lane_of(target, destination, order)
    ensure_lane(c, lane, order)
    return names | {"lane": lane} | destination_values(destination)


def ensure_lane(c: Connection, lane: str, order: Order) -> None:
    """Make sure that a lane has its row."""
    if c.execute(LANE, {"of_lane": lane}).first() is None:
        c.execute(insert(lanes).values(lane=lane, ordered=int(order is not Order.NONE), turn=0))


def ending(now: float, *, dispose: bool) -> dict[str, Any]:
    """Return what a confirmed delivery becomes: done, or leased to the one who disposes of its source."""
    if dispose:
        return SETTLED_VALUES | {"not_before": now + DISPOSAL_LEASE_SECONDS}
    return SETTLED_VALUES | {"not_before": 0.0, "finished_at": now}


def lane_of_id(id_: int) -> Any:
    """Return the subquery for a delivery's lane."""
    return select(_d.lane).where(_d.id == id_).scalar_subquery()


def lane_is_ordered(id_: int) -> Select[Any]:
    """Return the query for whether files of a delivery's lane wait for each other."""
    return select(lanes.c.ordered).where(lanes.c.lane == lane_of_id(id_))


def move_count(c: Connection, folder: str, source: str, to: str, number: int) -> None:
    """Change the counts of a folder for deliveries that went from one state to another."""
    given = {"of_folder": folder, "of_state": source, "to_state": to, "by": number}
    if c.execute(MOVE_COUNT, given).rowcount != 2:  # the second is new: count it alone
        add_count(c, folder, to, number)


def add_count(c: Connection, folder: str, state: str, by: int) -> None:
    """Change how many deliveries of a folder are in a state."""
    if c.execute(ADD_COUNT, {"of_folder": folder, "of_state": state, "by": by}).rowcount == 0:
        c.execute(insert(counts).values(folder=folder, state=state, n=by))


def move_one(  # noqa: PLR0917  who, from where, to where: read in this order at every call
    c: Connection,
    id_: int,
    folder: str,
    source: State,
    to: State,
    values: dict[str, Any],
) -> bool:
    """Move a delivery from one state to another, if it is (still) in the first; raise StaleClaim otherwise."""
    statement = move_statement(tuple(sorted(values)), with_attempt=False)
    given = {f"new_{name}": value for name, value in values.items()}
    given |= {"of_id": id_, "of_state": source, "new_state": to}
    if c.execute(statement, given).rowcount != 1:
        raise StaleClaim(f"delivery {id_} is no longer {source}")
    if source != to:
        move_count(c, folder, source, to, 1)
    return True


def move_all(
    c: Connection,
    moves: Sequence[tuple[Delivery | Row, dict[str, Any]]],
    source: State,
    to: State,
    *,
    with_attempt: bool = True,
) -> None:
    """Move many deliveries from one state to another, each with values for the same columns; all or none."""
    if not moves:
        return
    names = tuple(sorted(moves[0][1]))
    statement = move_statement(names, with_attempt=with_attempt)
    keys = [(f"new_{name}", name) for name in names]
    given = []
    for one, values in moves:
        row = {key: values[name] for key, name in keys}
        row |= {"of_id": one.id, "of_state": source, "new_state": to}
        given.append(row | {"of_attempt": one.attempts} if with_attempt else row)
    if c.execute(statement, given).rowcount != len(moves):
        raise StaleClaim(f"delivery {' or '.join(str(one.id) for one, _ in moves)} is no longer {source}")
    if source != to:
        for folder, number in Counter(one.folder for one, _ in moves).items():
            move_count(c, folder, source, to, number)


def move_all_claimed(c: Connection, moves: Sequence[tuple[Delivery, dict[str, Any]]], to: State) -> None:
    """Move what one claim holds; all or none."""
    move_all(c, moves, State.UPLOADING, to)


def goes_along(row: Row, head: Row, small: int, now: float) -> bool:
    """Tell whether a delivery may be claimed together with the one before it."""
    ready = bool(row.datatable_id) and row.not_before <= now and row.tenant == head.tenant
    return ready and row.size <= small and not row.recoveries


def move_each(
    c: Connection, ids: Sequence[int], sources: tuple[State, ...], to: State, values: dict[str, Any]
) -> list[int]:
    """Move those that are in one of the states; return which."""
    moved = []
    for id_ in ids:
        row = c.execute(STATE_OF, {"of_id": id_}).first()
        if row is not None and row.state in sources:
            move_one(c, id_, row.folder, State(row.state), to, values)
            moved.append(id_)
    return moved


def move_claimed(c: Connection, delivery: Delivery, to: State, values: dict[str, Any]) -> None:
    """Move what this claim holds; the attempt number tells it from a claim that was given back since."""
    move_all_claimed(c, [(delivery, values)], to)


def require_claim(c: Connection, delivery: Delivery) -> None:
    """Raise StaleClaim unless the claim still holds."""
    move_claimed(c, delivery, State.UPLOADING, {})


def enter_files(c: Connection, files: Sequence[Settled]) -> list[int]:
    """Enter settled files in this order, each unless it is no news; return the ids of what was queued.

    New paths, which are most, are entered together, some hundred at a time; each of the others where it stands among
    them.
    """
    entered: list[int] = []
    for start in range(0, len(files), MOST_IN_ONE):
        entered += _enter_some(c, files[start : start + MOST_IN_ONE])
    return entered


def _enter_some(c: Connection, files: Sequence[Settled]) -> list[int]:
    entered: list[int] = []
    fresh: list[Settled] = []
    taken = _paths_there(c, files)
    for file in files:
        key = (file.folder, file.path)
        if key not in taken and not file.supersedes:
            fresh.append(file)
        else:
            entered += _insert_all(c, fresh)
            fresh.clear()
            entered += [id_ for id_ in (_enter_file(c, file),) if id_]
        taken.add(key)
    return entered + _insert_all(c, fresh)


def _paths_there(c: Connection, files: Sequence[Settled]) -> set[tuple[str, bytes]]:
    """Return the folder and path of each of these files that has a delivery."""
    there: set[tuple[str, bytes]] = set()
    for folder in {file.folder for file in files}:
        given = {"of_folder": folder, "paths": [file.path for file in files if file.folder == folder]}
        there.update((folder, path) for path in c.execute(PATHS_THERE, given).scalars())
    return there


def _insert_all(c: Connection, files: Sequence[Settled]) -> list[int]:
    """Enter files that have no delivery yet; return the ids, in this order."""
    if not files:
        return []
    first = next_seq(c)
    targets: dict[tuple[Target, Order], dict[str, str]] = {}
    rows = []
    for seq, file in enumerate(files, start=first):
        wanted = file.target, file.order
        if wanted not in targets:
            targets[wanted] = target_values(c, *wanted)
        rows.append(_new_row(file, targets[wanted], seq, previous_id=0))
    result = c.execute(INSERT, rows)
    for (folder, state), number in Counter((row["folder"], row["state"]) for row in rows).items():
        add_count(c, folder, state, number)
    if len(rows) == 1:
        return [int(result.inserted_primary_key[0])]  # type: ignore[index]  # always there after an INSERT of one row
    return list(c.execute(IDS_SINCE, {"of_seq": first}).scalars())


def _new_row(file: Settled, target: dict[str, str], seq: int, *, previous_id: int) -> dict[str, Any]:
    own = {"folder": file.folder, "path": file.path, "current": 1, "attempts": 0, "previous_id": previous_id}
    return FRESH_VALUES | _file_values(file, target, seq) | own


def next_seq(c: Connection) -> int:
    """Return the place in the order of all deliveries for the one that is entered next."""
    return int(c.execute(LAST_SEQ).scalar() or 0) + 1


def next_arrival(c: Connection, tenant_id: str, datatable_id: str) -> int:
    """Return the place among the uploads to a datatable for the one that arrives next."""
    return int(c.execute(LAST_ARRIVAL, {"of_tenant": tenant_id, "of_table": datatable_id}).scalar() or 0) + 1


def arrivals(c: Connection, arrived: Sequence[Arrived]) -> list[int]:
    """Return the place of each of these uploads, in their order, among those to its datatable."""
    next_of: dict[Destination | None, int] = {}
    places = []
    for one in arrived:
        to = one.delivery.destination
        assert to is not None
        if to not in next_of:
            next_of[to] = next_arrival(c, to.tenant_id, to.datatable_id)
        places.append(next_of[to])
        next_of[to] += 1
    return places


def _enter_file(c: Connection, file: Settled) -> int:
    """Enter one settled file; return its delivery's id, or 0 where it is no news."""
    row = c.execute(CURRENT, {"of_folder": file.folder, "of_path": file.path}).first()
    if row is None:
        return _insert(c, file, previous_id=0)
    known = Known(fingerprint_of(row), State(row.state), bool(row.kept))
    if not known.is_news(file.fingerprint):
        return 0
    previous_id = row.id
    if known.state is State.VANISHED or (known.state is State.QUEUED and known.kept):
        if not _may_have_arrived(row):
            return _renew(c, row, file)  # one that waits in quarantine for its retry stays what it is
        previous_id = row.previous_id
        if known.state is State.QUEUED:
            lost = {"detail": _REPLACED, "finished_at": file.settled_at} | SETTLED_VALUES
            move_one(c, row.id, row.folder, State.QUEUED, State.VANISHED, lost)
    elif known.state is State.HELD:
        superseded = {"outcome": Outcome.SUPERSEDED, "finished_at": file.settled_at}
        move_one(c, row.id, row.folder, State.HELD, State.DONE, superseded)
    c.execute(update(deliveries).where(_d.id == row.id).values(current=None))
    return _insert(c, file, previous_id=previous_id)


def _may_have_arrived(row: Row) -> bool:
    """Tell whether a version was sent and its answer lost, and it is gone or replaced before anybody could ask again.

    Its row stays as it is: the only sign that the datatable may hold it.
    """
    return row.reason == AnswerLost.reason and (row.state == State.VANISHED or bool(row.presigned_url))


def _file_values(file: Settled, target: dict[str, str], seq: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "seq": seq,
        "sort_key": _sort_key(file),
        "seen_at": file.seen_at,
        "settled_at": file.settled_at,
        "expected_sha256": file.expected_sha256,
    }
    if file.held:
        facts |= {"state": State.HELD, "reason": file.held, "finished_at": file.settled_at}
    return target | fingerprint_values(file.fingerprint) | facts


def _sort_key(file: Settled) -> bytes:
    """Return a file's place among those that wait in its lane; equal ones go as they came."""
    if file.order is Order.NAME:
        return os.path.basename(file.path)
    return b"%020d" % file.fingerprint.mtime_ns if file.order is Order.MTIME else b""


def _insert(c: Connection, file: Settled, *, previous_id: int) -> int:
    values = _new_row(file, target_values(c, file.target, file.order), next_seq(c), previous_id=previous_id)
    result = c.execute(INSERT, values)
    add_count(c, file.folder, values["state"], 1)
    id_ = int(result.inserted_primary_key[0])  # type: ignore[index]  # always there after an INSERT of one row
    if file.supersedes:
        _supersede(c, file)
    return id_


def _supersede(c: Connection, file: Settled) -> None:
    """End what still waits for the same datatable in this folder but the newest, in the folder's order.

    What a person wants sent, or sent once more, is left alone.
    """
    waiting = select(_d.id).where(
        _d.folder == file.folder,
        _d.state == State.QUEUED,
        _d.released == 0,  # a repetition is released as well
        *(_d[name] == value for name, value in target_names(file.target).items()),
    )
    *older, _newest = c.execute(waiting.order_by(_d.sort_key, _d.seq)).scalars().all() or [0]
    values = {"outcome": Outcome.SUPERSEDED, "reason": "superseded", "finished_at": file.settled_at}
    move_each(c, older, (State.QUEUED,), State.DONE, values | SETTLED_VALUES)


def _renew(c: Connection, row: Row, file: Settled) -> int:
    """Let a delivery that has not gone yet stand for the new version at its path, at the end of the queue."""
    values = FRESH_VALUES | _file_values(file, target_values(c, file.target, file.order), next_seq(c))
    move_one(
        c,
        row.id,
        row.folder,
        State(row.state),
        values["state"],
        {k: v for k, v in values.items() if k != "state"},
    )
    if file.supersedes:
        _supersede(c, file)
    return int(row.id)


def verdict_on(c: Connection, delivery: Delivery, sha256: str, policy: Dedup) -> Decided:
    """Say whether content still has to go, and reserve it where it has."""
    if policy is Dedup.OFF:
        return Decided(Verdict.SEND)
    previous = c.execute(BY_ID, {"of_id": delivery.previous_id}).first() if delivery.previous_id else None
    if previous is not None and _is_same_file_again(previous, delivery, sha256):
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
    given |= {"size_mark": size_mark(delivery.fingerprint.size)}
    return Decided(Verdict.SEND if c.execute(RESERVE, given).rowcount else Verdict.WAIT)


def all_new(c: Connection, asked: Sequence[tuple[Delivery, str, Dedup]]) -> list[Decided]:
    """Reserve the content of a run of which nothing went before or is under way; empty where that is not so.

    What two questions answer for a whole run, `verdict_on` would ask for each delivery.
    """
    first = asked[0][0].destination
    hashes = {sha256 for _, sha256, _ in asked}
    plain = all(policy is not Dedup.OFF and not delivery.previous_id for delivery, _, policy in asked)
    one_table = first is not None and all(delivery.destination == first for delivery, _, _ in asked)
    if not (plain and one_table and len(hashes) == len(asked)):
        return []
    assert first is not None
    table = {"of_tenant": first.tenant_id, "of_table": first.datatable_id}
    sizes = {delivery.fingerprint.size for delivery, _, _ in asked}
    marks = [size_mark(size) for size in sizes]
    if c.execute(ANY_UPLOADED, table | {"sizes": list(sizes), "hashes": list(hashes)}).first() is not None:
        return []
    own = [delivery.id for delivery, _, _ in asked]
    if c.execute(ANY_UNDER_WAY, table | {"marks": [*hashes, *marks], "own": own}).first() is not None:
        return []
    reserve = [
        {"of_id": delivery.id, "of_state": State.UPLOADING, "of_attempt": delivery.attempts, "hash": sha256}
        for delivery, sha256, _ in asked
    ]
    if c.execute(RESERVE_NEW, reserve).rowcount != len(asked):
        raise StaleClaim(f"delivery {' or '.join(map(str, own))} is no longer {State.UPLOADING}")
    return [Decided(Verdict.SEND)] * len(asked)


def size_mark(size: int) -> str:
    """Return what stands in place of a hash while a file of unknown content is on its way."""
    return f"size {size}"


def _is_same_file_again(previous: Row, delivery: Delivery, sha256: str) -> bool:
    """Tell whether a kept file with these bytes has arrived there: a row may know its hash and never have gone."""
    arrived = previous.state == State.DONE and previous.outcome in (Outcome.UPLOADED, Outcome.DUPLICATE)
    same_bytes = previous.kept and previous.sha256 == sha256
    return bool(arrived and same_bytes and delivery_of(previous).destination == delivery.destination)


def _last_uploaded(c: Connection, delivery: Delivery, sha256: str | None = None) -> Row | None:
    """Return the delivery that last reached this datatable, with this content where one is given."""
    assert delivery.destination is not None
    given = {"of_tenant": delivery.destination.tenant_id, "of_table": delivery.destination.datatable_id}
    if sha256 is None:
        return c.execute(LATEST, given).first()
    return c.execute(LATEST_EQUAL, given | {"of_size": delivery.fingerprint.size, "hash": sha256}).first()


def delivery_of(
    row: Row, *, state: State | None = None, attempts: int | None = None, claimed_at: float | None = None
) -> Delivery:
    """Return a row as people and the other layers see it, or as it is once it was claimed."""
    destination = Destination(row.tenant_id, row.dataset_id, row.datatable_id) if row.datatable_id else None
    return Delivery(
        id=row.id,
        folder=row.folder,
        path=row.path,
        target=target_of(row),
        destination=destination,
        state=State(row.state) if state is None else state,
        outcome=row.outcome,
        reason=row.reason,
        detail=row.detail,
        fingerprint=fingerprint_of(row),
        sha256=row.sha256,
        etag=row.etag,
        seq=row.seq,
        attempts=row.attempts if attempts is None else attempts,
        recoveries=row.recoveries,
        not_before=row.not_before,
        seen_at=row.seen_at,
        settled_at=row.settled_at,
        claimed_at=row.claimed_at if claimed_at is None else claimed_at,
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
        row_count=row.row_count,
    )
