"""The transitions of a delivery, each a compare-and-set."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Final

from sqlalchemy import Connection, Select, and_, delete, func, insert, select, update

from pmwatch.failpoints import reached
from pmwatch.ledger.care import Care
from pmwatch.ledger.moves import (
    DISPOSAL_LEASE_SECONDS,
    MOST_IN_ONE,
    UNORDERED_SUFFIX,
    add_count,
    all_new,
    arrivals,
    delivery_of,
    destination_values,
    ending,
    ensure_lane,
    enter_files,
    fingerprint_values,
    goes_along,
    lane_of,
    move_all,
    move_all_claimed,
    move_claimed,
    move_one,
    require_claim,
    size_mark,
    target_names,
    target_of,
    target_values,
    verdict_on,
)
from pmwatch.ledger.people import People
from pmwatch.ledger.questions import Questions
from pmwatch.ledger.schema import deliveries, destinations
from pmwatch.ledger.statements import (
    BY_ID,
    FINGERPRINT,
    FOLLOWING,
    NEXT_DISPOSAL,
    NEXT_DUE,
    NEXT_ORDERED,
    NEXT_QUARANTINE,
    NEXT_UNORDERED,
    SETTLED_VALUES,
    TAKE_TURN,
    TARGET,
    UNRESOLVED,
    WAITING,
)
from pmwatch.ledger.values import Arrived, Decided, Disposed, Known, Verdict
from pmwatch.model import BY_HAND, Dedup, Delivery, Destination, Fingerprint, Order, Outcome, Settled, State, Target

_FOLDER_REMOVED: Final = "folder_removed"
_NO_FOLDER: Final = "its folder is no longer in the configuration"
_MAY_GO: Final = (State.QUEUED, State.HELD, State.FAILED)
_AT_ONCE: Final = 1.0
"""A time that is past, for 0 says that nothing is due."""

_d: Final = deliveries.c

Mapper = Callable[[bytes], tuple[Target, Order] | None]
"""Says where a path goes, and in what order; None for what does not go."""

MAX_RECOVERIES: Final = 5
"""A delivery that was under way when the process died this many times is held for a person."""


class Ledger(People, Care, Questions):
    """Deliveries on disk. Safe to use from many threads.

    What others rely on is on the disk when its method returns: a remembered URL before the first byte goes, `uploaded`
    before a source is touched. Entering, claiming and deciding are there with the next such commit, in order; should a
    power cut take one back, the scan enters the file again and nothing had gone.
    """

    # ---- start ------------------------------------------------------------------------------------------

    def recover(self, *, blocking: Collection[str] = ()) -> int:
        """Give back what was under way when the process before this one died; return how many. Idempotent.

        A remembered URL makes the reason `answer_lost`: the bytes may have arrived. What was under way
        `MAX_RECOVERIES` times is held, for it may be what kills the process; in folders that are `blocking` those
        behind it wait for a person.
        """

        def work(c: Connection) -> int:
            c.execute(update(deliveries).where(_d.state == State.UPLOADED).values(not_before=0.0))
            undone = and_(_d.state == State.FAILED, _d.not_before > 0)
            c.execute(update(deliveries).where(undone).values(not_before=_AT_ONCE))
            rows = c.execute(select(deliveries).where(_d.state == State.UPLOADING, _d.folder != BY_HAND)).all()
            for row in rows:
                reached("during_recovery")
                tries = row.recoveries + 1
                held = tries >= MAX_RECOVERIES
                reason = "crash_loop" if held else "answer_lost" if row.presigned_url else "interrupted"
                detail = f"pmwatch died {tries} times while uploading it" if held else ""
                to = State.HELD if held else State.QUEUED
                values = {"recoveries": tries, "reason": reason, "detail": detail, "inflight_sha256": None}
                values |= {"blocks": int(held and row.folder in blocking)}
                move_one(
                    c,
                    row.id,
                    row.folder,
                    State.UPLOADING,
                    to,
                    values | ({"presigned_url": ""} if held else {}),
                )
            return len(rows)

        return self._write(work)

    def hand_back(self) -> int:
        """Give back what this process still holds when it ends as it should, which is no crash; return how many."""

        def work(c: Connection) -> int:
            rows = c.execute(select(deliveries).where(_d.state == State.UPLOADING, _d.folder != BY_HAND)).all()
            detail = "pmwatch stopped while it was being uploaded"
            values = {"reason": "interrupted", "detail": detail, "inflight_sha256": None}
            move_all(c, [(row, values) for row in rows], State.UPLOADING, State.QUEUED)
            return len(rows)

        return self._write(work)

    def configure(self, folders: Mapping[str, Mapper]) -> None:
        """Take over a configuration whole or, where that raises LedgerError, not at all: `adopt` and `retarget`."""

        def work(c: Connection) -> None:
            _adopt(c, tuple(folders))
            for folder, mapper in folders.items():
                _retarget(c, folder, mapper)

        self._write(work)

    def retarget(self, folder: str, target_of: Mapper) -> int:
        """Point deliveries of `folder` that may still go to where the configuration says now; return how many changed.

        What is under way keeps its target, which `redirect` changes before the next attempt.
        """
        return self._write(lambda c: _retarget(c, folder, target_of))

    def redirect(self, delivery: Delivery, target: Target, order: Order) -> None:
        """Give a claimed delivery back that was not begun, on its way to another target."""

        def work(c: Connection) -> None:
            values = target_values(c, target, order) | {"presigned_url": "", "inflight_sha256": None}
            move_claimed(c, delivery, State.QUEUED, values | {"attempts": delivery.attempts - 1})

        self._write(work)

    def adopt(self, folders: Iterable[str]) -> None:
        """Hold what waits for folders that are no longer configured; release it where they are back."""
        known = tuple(folders)
        self._write(lambda c: _adopt(c, known))

    def hold_without_folder(self, delivery: Delivery) -> None:
        """Hold a claimed delivery whose folder a reload has removed, until `adopt` knows it again."""
        values = {"reason": _FOLDER_REMOVED, "detail": _NO_FOLDER} | SETTLED_VALUES
        self._write(lambda c: move_claimed(c, delivery, State.HELD, values))

    def forget_destination(self, target: Target) -> None:
        """Forget which ids a target's names stood for, also for what waits, so that they are resolved anew.

        A URL for the old ids is forgotten with them.
        """
        names = target_names(target)

        def work(c: Connection) -> None:
            c.execute(delete(destinations).where(*(destinations.c[name] == value for name, value in names.items())))
            waiting = and_(*(_d[name] == value for name, value in names.items()), _d.state == State.QUEUED)
            unordered = func.substr(_d.lane, -1) == UNORDERED_SUFFIX
            for order, such in ((Order.ARRIVAL, ~unordered), (Order.NONE, unordered)):
                lane = lane_of(target, None, order)
                ensure_lane(c, lane, order)
                values = destination_values(None) | {"lane": lane, "presigned_url": ""}
                c.execute(update(deliveries).where(waiting, such).values(**values))

        self._write(work)

    def forget_destinations(self) -> None:
        """Forget which ids names stood for, so that they are resolved anew."""
        self._write(lambda c: c.execute(delete(destinations)) and None)

    # ---- intake -----------------------------------------------------------------------------------------

    def known(self, folder: str, paths: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what the ledger holds about these paths; those it never saw are absent."""

        def work(c: Connection) -> dict[bytes, Known]:
            found = {}
            for start in range(0, len(paths), MOST_IN_ONE):
                condition = and_(_d.folder == folder, _d.path.in_(paths[start : start + MOST_IN_ONE]), _d.current == 1)
                query = select(_d.path, _d.state, _d.kept, *FINGERPRINT).where(condition)
                for path, state, kept, *look in c.execute(query).all():
                    found[path] = Known(Fingerprint(*look), State(state), bool(kept))
            return found

        return self._read(work)

    def enqueue(self, files: Sequence[Settled]) -> list[int]:
        """Enter settled files in this order, each unless it is no news; return the ids of what was queued."""
        return self._write(lambda c: enter_files(c, files), durable=False)

    # ---- delivery ---------------------------------------------------------------------------------------

    def claim(self, *, now: float, without_tenants: Iterable[str] = ()) -> Delivery | None:
        """Claim the next delivery that may go: its attempt is counted, and it is `uploading` from now on."""
        return next(iter(self.claim_run(now=now, without_tenants=without_tenants)), None)

    def claim_run(
        self,
        *,
        now: float,
        without_tenants: Iterable[str] = (),
        full_tables: Iterable[str] = (),
        at_most: int = 1,
        small: int = 0,
        share: int = 1,
    ) -> list[Delivery]:
        """Claim the next delivery that may go, and with it up to `at_most` in all that follow it in its lane.

        Lanes take turns. In an ordered lane only the first may go, and only when none is under way. The next
        ones come along while each is `small` (bytes) and of the same tenant; where the order does not matter,
        only their part of what waits, for `share` workers want some. One that was under way when the process
        died goes alone, for it may be what killed it. `full_tables` are `tenant id/datatable id` that get no more at
        a time.
        """
        without = tuple(without_tenants)
        full = tuple(f"{table}{suffix}" for table in full_tables for suffix in ("", UNORDERED_SUFFIX))

        def work(c: Connection) -> list[Delivery]:
            given: dict[str, Any] = {"now": now, "without": without, "full_lanes": full}
            first = [row for query in (NEXT_ORDERED, NEXT_UNORDERED) if (row := c.execute(query, given).first())]
            if not first:
                return []
            head = min(first, key=lambda one: int(one.turn))
            run = [head]
            if at_most > 1 and goes_along(head, head, small, now):
                more = at_most - 1
                if not head.ordered:
                    some = {"of_lane": head.lane, "longest": at_most * share}
                    more = int(c.execute(WAITING, some).scalar_one()) // share - 1
                given = {"of_lane": head.lane, "of_id": head.id, "longest": more}
                if more > 0:
                    run += takewhile(lambda row: goes_along(row, head, small, now), c.execute(FOLLOWING, given))
            values = [(row, {"attempts": row.attempts + 1, "claimed_at": now}) for row in run]
            move_all(c, values, State.QUEUED, State.UPLOADING)
            c.execute(TAKE_TURN, {"of_lane": head.lane})
            return [delivery_of(row, state=State.UPLOADING, attempts=row.attempts + 1, claimed_at=now) for row in run]

        return self._write(work, durable=False)

    def next_due(self, *, now: float) -> float | None:
        """Return when (epoch seconds) the next waiting delivery may be tried; None where none waits for a time."""
        due = self._read(lambda c: c.execute(NEXT_DUE, {"now": now}).scalar_one())
        return None if due is None else float(due)

    def decide(self, asked: Sequence[tuple[Delivery, str, Dedup]]) -> list[Decided]:
        """Say of each delivery and its hash, in this order, whether its content still has to go.

        Where it has, the hash is reserved against an equal one. The answer is shorter than the question where
        a verdict depends on how one before it fares.
        """

        def work(c: Connection) -> list[Decided]:
            new = all_new(c, asked)
            if new:
                return new
            decided: list[Decided] = []
            for delivery, sha256, policy in asked:
                one = verdict_on(c, delivery, sha256, policy)
                if any(before.verdict is Verdict.SEND for before in decided):
                    if one.verdict is Verdict.WAIT or (one.verdict is Verdict.DUPLICATE and policy is Dedup.LATEST):
                        break
                    one = replace(one, older=one.verdict is Verdict.DUPLICATE)
                decided.append(one)
                if one.verdict is Verdict.WAIT:
                    break
            return decided

        return self._write(work, durable=False)

    def reserve_size(self, delivery: Delivery) -> bool:
        """Tell whether no other delivery to this datatable has this size, so that its content must be new.

        Then the size is reserved while it is on its way: one of the same size that comes meanwhile has to wait,
        for its hash could not be compared.
        """
        assert delivery.destination is not None
        destination, size = delivery.destination, delivery.fingerprint.size

        def work(c: Connection) -> bool:
            require_claim(c, delivery)
            same = and_(
                _d.tenant_id == destination.tenant_id,
                _d.datatable_id == destination.datatable_id,
                _d.size == size,
                _d.id != delivery.id,
            )
            if c.execute(select(_d.id).where(same).limit(1)).first() is not None:
                return False
            reserve = update(deliveries).where(_d.id == delivery.id).values(inflight_sha256=size_mark(size))
            c.execute(reserve)
            return True

        return self._write(work, durable=False)

    def remember_urls(self, asked: Sequence[tuple[Delivery, str, Fingerprint]]) -> None:
        """Keep presigned URLs, and the look at the source that each was asked for, before the first byte goes."""
        values = [(one, {"presigned_url": url, **fingerprint_values(seen)}) for one, url, seen in asked]
        self._write(lambda c: move_all_claimed(c, values, State.UPLOADING))

    def uploaded(self, arrived: Sequence[Arrived]) -> None:
        """The storage confirmed exactly these bytes. Where the source stays, that is the end."""

        def work(c: Connection) -> None:
            placed = list(zip(arrived, arrivals(c, arrived), strict=True))
            for dispose in (True, False):
                values = [
                    (
                        one.delivery,
                        {"sha256": one.sha256, "etag": one.etag, "detail": one.detail, "uploaded_at": one.at}
                        | {"outcome": Outcome.UPLOADED, "reason": "", "arrival": place}
                        | ending(one.at, dispose=dispose),
                    )
                    for one, place in placed
                    if one.dispose is dispose
                ]
                move_all_claimed(c, values, State.UPLOADED if dispose else State.DONE)

        self._write(work)

    def duplicate(self, delivery: Delivery, *, sha256: str, of: int, now: float, dispose: bool) -> None:
        """The content had gone before: nothing is sent, and the source is disposed of like an uploaded one."""
        values: dict[str, Any] = {"sha256": sha256, "duplicate_of": of, "outcome": Outcome.DUPLICATE}
        values |= {"reason": "duplicate"} | ending(now, dispose=dispose)
        self._write(lambda c: move_claimed(c, delivery, State.UPLOADED if dispose else State.DONE, values))

    def unchanged(self, delivery: Delivery) -> None:
        """Only times changed on a kept file: drop the row, and let the one before it know the new look."""

        def work(c: Connection) -> None:
            require_claim(c, delivery)
            row = c.execute(BY_ID, {"of_id": delivery.id}).one()
            newer = and_(_d.folder == row.folder, _d.path == row.path, _d.previous_id == delivery.id)
            c.execute(update(deliveries).where(newer).values(previous_id=delivery.previous_id))
            c.execute(delete(deliveries).where(_d.id == delivery.id))
            add_count(c, delivery.folder, State.UPLOADING, -1)
            look = fingerprint_values(delivery.fingerprint)
            before = update(deliveries).where(_d.id == delivery.previous_id)
            c.execute(before.values(current=row.current, **look))

        self._write(work)

    def claim_disposal(self, *, now: float) -> Delivery | None:
        """Claim an uploaded delivery whose source still has to be archived or deleted, for a minute."""
        return self._lease(NEXT_DISPOSAL, now)

    def _lease(self, query: Select[Any], now: float) -> Delivery | None:
        """Claim the delivery that a query finds, in the state that it has, to move its source."""
        given = {"now": now}
        if self._read(lambda c: c.execute(query, given).first()) is None:
            return None

        def work(c: Connection) -> Delivery | None:
            row = c.execute(query, given).first()
            if row is None:
                return None
            state = State(row.state)
            move_one(c, row.id, row.folder, state, state, {"not_before": now + DISPOSAL_LEASE_SECONDS})
            return delivery_of(row)

        return self._write(work, durable=False)

    def disposed(self, gone: Sequence[Disposed]) -> None:
        """Sources were archived, deleted or left: the end of these deliveries."""

        def work(c: Connection) -> None:
            for uploaded in (True, False):
                said = {"reason": "", "detail": ""} if uploaded else {}
                moves = [
                    (
                        one.delivery,
                        {"location": one.location, "kept": int(one.kept), "finished_at": one.at, "not_before": 0.0}
                        | said,
                    )
                    for one in gone
                    if (one.delivery.outcome == Outcome.UPLOADED) is uploaded
                ]
                move_all(c, moves, State.UPLOADED, State.DONE, with_attempt=False)

        self._write(work)

    def dispose_later(self, delivery: Delivery, *, reason: str, detail: str, not_before: float) -> None:
        """The source could not be disposed of; try again at `not_before`. The upload itself is safe."""
        values = {"reason": reason, "detail": detail, "not_before": not_before}
        self._write(
            lambda c: move_one(c, delivery.id, delivery.folder, State.UPLOADED, State.UPLOADED, values) and None
        )

    def give_back(
        self, delivery: Delivery, *, reason: str, detail: str, not_before: float, failed_at: float, url: str
    ) -> None:
        """Back to the queue. `failed_at` is when trouble of this file began (0: no trouble of its own).

        `url` is the presigned URL to repeat against, or empty for a new one.
        """
        values = {"reason": reason, "detail": detail, "not_before": not_before, "first_failed_at": failed_at}
        values |= {"presigned_url": url, "inflight_sha256": None}
        self._write(lambda c: move_claimed(c, delivery, State.QUEUED, values))

    def put_back(self, run: Sequence[Delivery], *, reason: str) -> None:
        """Give deliveries back that were claimed and not begun: no attempt, and a remembered URL stays."""
        values = [
            (one, {"reason": reason, "detail": "", "inflight_sha256": None, "attempts": one.attempts - 1})
            for one in run
        ]
        self._write(lambda c: move_all_claimed(c, values, State.QUEUED))

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
        to_quarantine: bool = False,
    ) -> None:
        """End a claimed delivery as held, failed or vanished; with `blocks` those behind it wait for a person.

        `to_quarantine` leases it to the caller, who moves its source and then says `moved`.
        """
        values = {"reason": reason, "detail": detail, "finished_at": now, "location": location, "blocks": int(blocks)}
        values |= {"kept": int(not location), "not_before": now + DISPOSAL_LEASE_SECONDS if to_quarantine else 0.0}
        values |= SETTLED_VALUES
        self._write(lambda c: move_claimed(c, delivery, to, values))

    def claim_quarantine(self, *, now: float) -> Delivery | None:
        """Claim a failed delivery whose source still has to be put into quarantine, for a minute."""
        return self._lease(NEXT_QUARANTINE, now)

    def moved(self, delivery: Delivery, location: bytes, *, again_at: float = 0.0) -> None:
        """A failed source now lies at `location` (quarantine), or, where that is empty, is still in its place.

        `again_at` is when the move shall be tried again; 0 for never. What a person has queued meanwhile goes from
        there.
        """
        place = {"location": location, "kept": 0} if location else {}

        def work(c: Connection) -> None:
            if place:
                c.execute(update(deliveries).where(_d.id == delivery.id).values(**place))
            failed = and_(_d.id == delivery.id, _d.state == State.FAILED)
            c.execute(update(deliveries).where(failed).values(not_before=again_at))

        self._write(work)

    # ---- destinations -----------------------------------------------------------------------------------

    def unresolved(self) -> list[Target]:
        """Return the targets of queued deliveries whose names are not resolved to ids yet."""
        rows = self._read(lambda c: c.execute(UNRESOLVED).all())
        return [target_of(row) for row in rows]

    def count_unresolved(self, targets: Iterable[Target]) -> int:
        """Return how many queued deliveries go to any of these targets, which have no ids yet."""
        wanted = set(targets)
        names = [_d[name] for name in TARGET]
        query = select(*names, func.count().label("n")).where(_d.state == State.QUEUED, _d.datatable_id == "")
        rows = self._read(lambda c: c.execute(query.group_by(*names)).all())
        return sum(row.n for row in rows if target_of(row) in wanted)

    def tell_rows(self, id_: int, rows: int) -> None:
        """Record how many rows the datatable of an upload had when the API was asked afterwards."""
        change = update(deliveries).where(_d.id == id_, _d.outcome == Outcome.UPLOADED).values(row_count=rows)
        self._write(lambda c: c.execute(change) and None)

    def resolve(self, target: Target, destination: Destination) -> None:
        """Record which ids a target's names stand for, for waiting deliveries and for later ones."""

        def work(c: Connection) -> None:
            key = target_names(target)
            ids = destination_values(destination)
            same = and_(*(destinations.c[name] == value for name, value in key.items()))
            c.execute(delete(destinations).where(same))
            c.execute(insert(destinations).values(**key, **ids))
            waiting = and_(*(_d[name] == value for name, value in key.items()), _d.datatable_id == "")
            for order in Order:
                old, new = lane_of(target, None, order), lane_of(target, destination, order)
                c.execute(update(deliveries).where(waiting, _d.lane == old).values(lane=new, **ids))
                ensure_lane(c, new, order)

        self._write(work)


def _retarget(c: Connection, folder: str, target_of: Mapper) -> int:
    changed = 0
    columns = (_d.id, _d.path, *(_d[name] for name in TARGET), _d.lane)
    rows = c.execute(select(*columns).where(_d.folder == folder, _d.state.in_(_MAY_GO))).all()
    for row in rows:
        found = target_of(row.path)
        if found is None:
            continue
        values = target_values(c, *found)
        if any(getattr(row, key) != values[key] for key in (*TARGET, "lane")):
            if any(getattr(row, key) != values[key] for key in TARGET):
                values["presigned_url"] = ""  # else it may still tell whether the bytes arrived
            c.execute(update(deliveries).where(_d.id == row.id).values(**values))
            changed += 1
    return changed


def _adopt(c: Connection, known: Sequence[str]) -> None:
    gone = select(_d.id, _d.folder).where(_d.state == State.QUEUED, _d.folder.not_in(known))
    for row in c.execute(gone).all():
        values = {"reason": _FOLDER_REMOVED, "detail": _NO_FOLDER, "presigned_url": ""}
        move_one(c, row.id, row.folder, State.QUEUED, State.HELD, values)
    back = select(_d.id, _d.folder).where(_d.state == State.HELD, _d.reason == _FOLDER_REMOVED, _d.folder.in_(known))
    for row in c.execute(back).all():
        move_one(c, row.id, row.folder, State.HELD, State.QUEUED, {"reason": "", "detail": ""})
