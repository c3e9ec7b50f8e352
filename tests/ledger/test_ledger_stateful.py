"""Any sequence of steps, against a model that is a plain dictionary: states, claims and counters always agree."""

import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmwatch.ledger import Disposed, Ledger, StaleClaim, Verdict
from pmwatch.ledger.store import MAX_RECOVERIES
from pmwatch.model import Dedup, Delivery, Order, State, Target
from support.ledgers import TARGET, drop, look, opened, sha, succeed

SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
TARGETS = (TARGET, Target("acme", "table-2"), Target("beta", "table-3"))
FOLDERS = ("orders", "invoices")
URL = "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1"
PATHS = (b"a.csv", b"b\n.csv", b"\xff.csv")
CONTENTS = ("A", "B")
POLICIES = st.sampled_from(Dedup)

ALLOWED = {
    (None, State.QUEUED),
    (State.QUEUED, State.UPLOADING),
    (State.QUEUED, State.HELD),
    (State.QUEUED, State.DONE),  # a person gave it up
    (State.QUEUED, State.VANISHED),  # replaced after its answer was lost
    (State.UPLOADING, State.QUEUED),
    (State.UPLOADING, State.UPLOADED),
    (State.UPLOADING, State.DONE),
    (State.UPLOADING, State.HELD),
    (State.UPLOADING, State.FAILED),
    (State.UPLOADING, State.VANISHED),
    (State.UPLOADING, None),  # unchanged: the row before it stands for the file
    (State.UPLOADED, State.DONE),
    (State.HELD, State.QUEUED),
    (State.HELD, State.DONE),
    (State.FAILED, State.QUEUED),
    (State.FAILED, State.DONE),
    (State.VANISHED, State.QUEUED),
}


@dataclass
class Row:
    """What the model knows of a delivery."""

    state: State
    folder: str
    path: bytes
    mtime: int
    target: Target
    order: Order
    kept: bool = True
    attempts: int = 0
    recoveries: int = 0
    not_before: float = 0.0
    reason: str = ""
    sha256: str = ""
    previous: int = 0
    blocks: bool = False
    run: int = 0
    url: bool = False

    @property
    def lane(self) -> tuple[Target, bool]:
        """Files of one datatable wait for each other unless their folder says that it does not matter."""
        return self.target, self.order is Order.NONE

    @property
    def sort_key(self) -> bytes:
        return os.path.basename(self.path) if self.order is Order.NAME else b""


@dataclass
class Model:
    """The ledger as a dictionary."""

    rows: dict[int, Row] = field(default_factory=dict)
    newest: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def in_state(self, *states: State) -> list[int]:
        return [id_ for id_, row in self.rows.items() if row.state in states]


class LedgerMachine(RuleBasedStateMachine):
    """Steps that intake, uploaders, operators and restarts take, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.model = Model()
        self.claims: dict[int, Delivery] = {}
        self.stale: list[Delivery] = []
        self.seen: dict[int, State] = {}
        self.now = 1000.0
        self.runs = 0
        self.context = opened(self.directory, *TARGETS[1:])
        self.ledger: Ledger = self.context.__enter__()

    @initialize()
    def start_with_files(self) -> None:
        for path in PATHS:
            self.file_settles("orders", path, 1, (TARGET, Order.ARRIVAL))

    def teardown(self) -> None:
        self.context.__exit__(None, None, None)
        shutil.rmtree(self.directory)

    # ---- intake ------------------------------------------------------------------------------------------------------

    @rule(
        folder=st.sampled_from(FOLDERS),
        path=st.sampled_from(PATHS),
        mtime=st.integers(1, 3),
        lane=st.tuples(st.sampled_from(TARGETS), st.sampled_from((Order.ARRIVAL, Order.NAME, Order.NONE))),
    )
    def file_settles(self, folder: str, path: bytes, mtime: int, lane: tuple[Target, Order]) -> None:
        target, order = lane
        key = folder, path
        before = self.model.newest.get(key)
        id_ = drop(self.ledger, path, look(mtime), folder=folder, target=target, order=order)
        fresh = Row(State.QUEUED, folder, path, mtime, target, order)
        if before is not None:
            old = self.model.rows[before]
            if old.state is not State.VANISHED and old.kept and old.mtime == mtime:
                assert id_ == 0, "what did not change was entered again"
                return
            gone = old.state is State.VANISHED
            if old.reason == "answer_lost" and (gone or (old.url and old.state is State.QUEUED and old.kept)):
                assert id_ not in self.model.rows, "what may have arrived keeps its row to itself"
                old.state, fresh.previous = State.VANISHED, old.previous
            elif gone or (old.state is State.QUEUED and old.kept):
                assert id_ == before, "what waits, or returns, keeps its row"
                fresh.attempts, fresh.previous = old.attempts, old.previous
            else:
                assert id_ not in self.model.rows
                fresh.previous = before
                if old.state is State.HELD:
                    old.state = State.DONE
        self.model.rows[id_] = fresh
        self.model.newest[key] = id_

    # ---- uploaders ---------------------------------------------------------------------------------------------------

    def claimable(self) -> set[int]:
        """Return who may go next by the rules, whoever's turn it is."""
        found = set()
        for lane in {row.lane for row in self.model.rows.values()}:
            members = [row for row in self.model.rows.values() if row.lane == lane]
            waiting = self.waiting(lane)
            if not lane[1]:
                busy = any(row.state is State.UPLOADING for row in members)
                blocked = any(row.blocks and row.state in {State.HELD, State.FAILED} for row in members)
                found |= {id_ for id_ in waiting[:1] if not busy and not blocked and self.is_due(id_)}
            else:
                found |= set([id_ for id_ in waiting if self.is_due(id_)][:1])
        return found

    def waiting(self, lane: tuple[Target, bool]) -> list[int]:
        """Return what waits in a lane, in its order."""
        ids = [id_ for id_ in self.model.in_state(State.QUEUED) if self.model.rows[id_].lane == lane]
        return sorted(ids, key=lambda id_: (self.model.rows[id_].sort_key, self.seq(id_)))

    def seq(self, id_: int) -> int:
        delivery = self.ledger.get(id_)
        assert delivery is not None
        return delivery.seq

    def is_due(self, id_: int) -> bool:
        return self.model.rows[id_].not_before <= self.now

    @rule(at_most=st.sampled_from([1, 2, 5]), share=st.sampled_from([1, 3]))
    def claim(self, at_most: int, share: int) -> None:
        may = self.claimable()
        run = self.ledger.claim_run(now=self.now, at_most=at_most, small=100, share=share)
        if not run:
            assert may == set(), "somebody could have gone"
            return
        assert run[0].id in may
        assert len(run) <= at_most
        self.goes_along(run)
        self.runs += 1
        for delivery in run:
            row = self.model.rows[delivery.id]
            row.state, row.attempts, row.run = State.UPLOADING, row.attempts + 1, self.runs
            assert delivery.attempts == row.attempts
            self.claims[delivery.id] = delivery

    def goes_along(self, run: list[Delivery]) -> None:
        """A run is the head of its lane and those right behind it; whoever may have killed the process goes alone."""
        lane = self.model.rows[run[0].id].lane
        ids = [delivery.id for delivery in run]
        if not lane[1]:
            assert ids == self.waiting(lane)[: len(ids)]
        assert all(self.model.rows[id_].lane == lane and self.is_due(id_) for id_ in ids)
        assert len(ids) == 1 or not any(self.model.rows[id_].recoveries for id_ in ids)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        delivery, row = self.take(data)
        self.ledger.put_back([delivery], reason="gate")
        row.state, row.attempts, row.reason = State.QUEUED, row.attempts - 1, "gate"
        self.stale.remove(delivery)  # its attempt was never made, so the next claim has its number

    def take(self, data: st.DataObject) -> tuple[Delivery, Row]:
        id_ = data.draw(st.sampled_from(sorted(self.claims)))
        delivery = self.claims.pop(id_)
        self.stale.append(delivery)
        return delivery, self.model.rows[id_]

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), content=st.sampled_from(CONTENTS), policy=POLICIES, dispose=st.booleans())
    def decide_and_finish(self, data: st.DataObject, content: str, policy: Dedup, *, dispose: bool) -> None:
        delivery, row = self.take(data)
        decided = self.ledger.decide([([(delivery, sha(content), policy)])[0]])[0]
        ended = State.UPLOADED if dispose else State.DONE
        if decided.verdict is Verdict.SEND:
            succeed(self.ledger, delivery, content, now=self.now, dispose=dispose)
            row.state, row.sha256 = ended, sha(content)
        elif decided.verdict is Verdict.DUPLICATE:
            assert self.model.rows[decided.of].sha256 == sha(content)
            self.ledger.duplicate(delivery, sha256=sha(content), of=decided.of, now=self.now, dispose=dispose)
            row.state, row.sha256 = ended, sha(content)
        elif decided.verdict is Verdict.UNCHANGED:
            previous = self.model.rows[row.previous]
            assert decided.of == row.previous
            assert (previous.sha256, previous.kept, previous.state) == (sha(content), True, State.DONE)
            self.ledger.unchanged(delivery)
            previous.mtime = row.mtime
            key = row.folder, row.path
            if self.model.newest[key] == delivery.id:
                self.model.newest[key] = row.previous
            for newer in self.model.rows.values():
                if newer.previous == delivery.id:
                    newer.previous = row.previous
            del self.model.rows[delivery.id]
            self.stale = [claim for claim in self.stale if claim.id != delivery.id]
        else:
            self.give(delivery, row, 0.0)

    def give(self, delivery: Delivery, row: Row, not_before: float, *, lost: bool = False) -> None:
        reason, url = ("answer_lost", URL) if lost else ("r", "")
        self.ledger.give_back(
            delivery, reason=reason, detail="", not_before=not_before, failed_at=not_before and self.now, url=url
        )
        row.state, row.not_before, row.reason, row.url = State.QUEUED, not_before, reason, lost

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 10.0]), lost=st.booleans())
    def give_back(self, data: st.DataObject, wait: float, *, lost: bool) -> None:
        delivery, row = self.take(data)
        self.give(delivery, row, self.now + wait if wait else 0.0, lost=lost)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        to=st.sampled_from([State.HELD, State.FAILED, State.VANISHED]),
        location=st.sampled_from([b"", b"/quarantine/x"]),
        reason=st.sampled_from(["r", "answer_lost"]),
        blocks=st.booleans(),
    )
    def end(self, data: st.DataObject, to: State, location: bytes, reason: str, *, blocks: bool) -> None:
        delivery, row = self.take(data)
        self.ledger.end(delivery, to, reason=reason, detail="", now=self.now, location=location, blocks=blocks)
        row.state, row.kept, row.reason, row.blocks, row.url = to, not location, reason, blocks, False

    @rule(kept=st.booleans())
    def dispose_one(self, *, kept: bool) -> None:
        waiting = self.model.in_state(State.UPLOADED)
        taken = self.ledger.claim_disposal(now=1e9)
        assert (taken is None) == (not waiting)
        if taken is None:
            return
        self.ledger.disposed([Disposed(taken, b"" if kept else b"/archive/x", kept, self.now)])
        row = self.model.rows[taken.id]
        row.state, row.kept = State.DONE, kept
        with pytest.raises(StaleClaim):
            self.ledger.disposed([Disposed(taken, b"", False, self.now)])

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def use_a_claim_that_is_over(self, data: st.DataObject) -> None:
        stale = data.draw(st.sampled_from(self.stale))
        with pytest.raises(StaleClaim):
            succeed(self.ledger, stale, "A")

    # ---- operators, restarts, time -----------------------------------------------------------------------------------

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        if not self.model.rows:
            return
        id_ = data.draw(st.sampled_from(sorted(self.model.rows)))
        row = self.model.rows[id_]
        may = row.state in {State.FAILED, State.HELD}
        assert self.ledger.requeue([id_]) == int(may)
        if may:
            row.state, row.recoveries, row.not_before, row.reason = State.QUEUED, 0, 0.0, "retry"
            row.blocks = False

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        if not self.model.rows:
            return
        id_ = data.draw(st.sampled_from(sorted(self.model.rows)))
        row = self.model.rows[id_]
        may = row.state in {State.FAILED, State.HELD, State.QUEUED}
        assert self.ledger.discard([id_], now=self.now) == int(may)
        if may:
            row.state, row.blocks = State.DONE, False

    @rule(reopen=st.booleans())
    def restart_after_a_crash(self, *, reopen: bool) -> None:
        if reopen:
            self.ledger.close()
            self.ledger = Ledger.open(str(self.directory))
        self.stale += self.claims.values()
        self.claims.clear()
        running = self.model.in_state(State.UPLOADING)
        assert self.ledger.recover() == len(running)
        for id_ in running:
            row = self.model.rows[id_]
            row.recoveries += 1
            row.state = State.HELD if row.recoveries >= MAX_RECOVERIES else State.QUEUED
            row.url = row.url and row.state is not State.HELD
            row.reason = "crash_loop" if row.state is State.HELD else "answer_lost" if row.url else "interrupted"

    @rule(folders=st.sets(st.sampled_from(FOLDERS)))
    def folders_change(self, folders: set[str]) -> None:
        self.ledger.adopt(folders)
        for row in self.model.rows.values():
            if row.state is State.QUEUED and row.folder not in folders:
                row.state, row.reason, row.url = State.HELD, "folder_removed", False
            elif row.state is State.HELD and row.reason == "folder_removed" and row.folder in folders:
                row.state, row.reason = State.QUEUED, ""

    @rule(seconds=st.sampled_from([-100.0, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # ---- what always holds -------------------------------------------------------------------------------------------

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.directory / "ledger.db")) as connection:
            return connection.execute(statement).fetchall()

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        found = {int(str(id_)): State(str(state)) for id_, state in self.ask("SELECT id, state FROM deliveries")}
        assert found == {id_: row.state for id_, row in self.model.rows.items()}

    @invariant()
    def every_transition_is_in_the_table(self) -> None:
        now = {id_: row.state for id_, row in self.model.rows.items()}
        moves = {(self.seen.get(id_), now.get(id_)) for id_ in self.seen.keys() | now.keys()}
        assert {(old, new) for old, new in moves if old is not new} <= ALLOWED
        self.seen = now

    @invariant()
    def counters_equal_a_count(self) -> None:
        counted = {
            (str(f), str(s)): n for f, s, n in self.ask("SELECT folder, state, count(*) FROM deliveries GROUP BY 1, 2")
        }
        assert {key: n for key, n in self.ledger.counts().items() if n} == counted
        assert Counter(row.state for row in self.model.rows.values()) == Counter(
            {State(state): self.ledger.total(State(state)) for _, state in counted}
        )

    @invariant()
    def every_path_has_one_newest_row(self) -> None:
        newest = {
            (str(f), bytes(p)): i for f, p, i in self.rows_of("SELECT folder, path, id FROM deliveries WHERE current")
        }
        assert newest == self.model.newest

    def rows_of(self, statement: str) -> list[tuple[str, bytes, int]]:
        with closing(sqlite3.connect(self.directory / "ledger.db")) as connection:
            return connection.execute(statement).fetchall()

    @invariant()
    def an_ordered_lane_has_one_under_way(self) -> None:
        busy = {
            (row.target, row.run)
            for row in self.model.rows.values()
            if row.state is State.UPLOADING and row.order is not Order.NONE
        }
        assert len({target for target, _ in busy}) == len(busy), "what is under way in a lane was claimed together"

    @invariant()
    def only_what_is_under_way_is_reserved(self) -> None:
        assert self.ask("SELECT id FROM deliveries WHERE inflight_sha256 IS NOT NULL AND state <> 'uploading'") == []

    @invariant()
    def what_has_ended_remembers_no_url(self) -> None:
        ended = "('uploaded', 'done', 'held', 'failed', 'vanished')"
        assert self.ask(f"SELECT id FROM deliveries WHERE presigned_url <> '' AND state IN {ended}") == []


LedgerMachine.TestCase.settings = settings(max_examples=25 * SCALE, stateful_step_count=40, deadline=None)


TestLedgerAgainstItsModel = LedgerMachine.TestCase
