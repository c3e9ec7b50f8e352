"""`backlog = "ask"`: very many old files at the start wait for a person's word, and nothing else does."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmwatch.model import Backlog, Completeness, CompleteWhen, Guards, State
from support.intakes import DiskIntake
from support.ledgers import claimed

OLD = 10**9
MOST = 3


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(old: int, *, backlog: Backlog = Backlog.ASK, most: int = MOST, **changes: Any) -> DiskIntake:
        disk = DiskIntake(tmp_path, guards=Guards(backlog=backlog, max_backlog=most), **changes)
        for number in range(old):
            disk.write(f"{number}.csv", b"%d" % number, mtime=OLD + 10 - number)
        made.append(disk)
        disk.settle()
        return disk

    yield build
    for one in made:
        one.close()


def states(disk: DiskIntake) -> list[tuple[str, str]]:
    return [(str(one.state), one.reason) for one in disk.deliveries()]


def test_more_than_that_are_all_held_in_their_order(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    assert states(disk) == [("held", "backlog")] * 4
    assert disk.entered() == ["3.csv", "2.csv", "1.csv", "0.csv"]
    assert disk.told.backlogs == [4]
    assert disk.ledger.counts() == {("orders", "held"): 4}
    assert disk.ledger.claim(now=time.time() + 1e6) is None
    assert disk.intake.idle


@pytest.mark.parametrize(
    ("old", "backlog", "most"),
    [(MOST, Backlog.ASK, MOST), (MOST + 1, Backlog.SEND, MOST), (0, Backlog.ASK, 0)],
)
def test_otherwise_all_go(make: Callable[..., DiskIntake], old: int, backlog: Backlog, most: int) -> None:
    disk = make(old, backlog=backlog, most=most)
    assert states(disk) == [("queued", "")] * old
    assert disk.told.backlogs == []


def test_none_at_all_may_be_asked_for(make: Callable[..., DiskIntake]) -> None:
    assert states(make(1, most=0)) == [("held", "backlog")]


@pytest.mark.parametrize("when", [CompleteWhen.AUTO, CompleteWhen.RENAMED, CompleteWhen.STABLE])
def test_whichever_evidence_counts(make: Callable[..., DiskIntake], when: CompleteWhen) -> None:
    assert states(make(MOST + 1, completeness=Completeness(when))) == [("held", "backlog")] * 4


def test_files_that_come_after_the_start_go(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    disk.arrive("new.csv", renamed=True)
    disk.arrive("moved-in.csv", b"with an old time", renamed=True, mtime=OLD)
    disk.settle()
    assert states(disk)[4:] == [("queued", "")] * 2


def test_files_newer_than_the_start_go_although_the_first_scan_finds_them(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, guards=Guards(backlog=Backlog.ASK, max_backlog=0))
    try:
        disk.write("old.csv", mtime=OLD)
        disk.write("new.csv", b"new", mtime=disk.wall() + 10)
        disk.settle()
        assert {one.display_path: str(one.state) for one in disk.deliveries()} == {
            "old.csv": "held",
            "new.csv": "queued",
        }
    finally:
        disk.close()


def test_a_restart_neither_asks_again_nor_sends(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    disk.restart()
    disk.settle()
    assert states(disk) == [("held", "backlog")] * 4
    assert disk.told.backlogs == [4]


def test_a_restart_before_they_were_entered_asks_then(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, guards=Guards(backlog=Backlog.ASK, max_backlog=1))
    try:
        for name in ("a.csv", "b.csv"):
            disk.write(name, mtime=OLD)
        disk.turn()
        assert disk.entered() == []
        disk.restart()
        disk.settle()
        assert states(disk) == [("held", "backlog")] * 2
    finally:
        disk.close()


def test_a_held_one_that_changes_goes_as_a_new_version(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    disk.arrive("1.csv", b"corrected", renamed=True)
    disk.turn()
    newest, before = disk.ledger.find("orders", b"1.csv")
    assert (newest.state, newest.reason) == (State.QUEUED, "")
    assert (before.state, before.outcome) == (State.DONE, "superseded")


def test_the_answer_yes_queues_them_in_their_order(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    assert disk.ledger.requeue(disk.ledger.ids(State.HELD, reason="backlog")) == 4
    order = []
    for _ in range(4):
        delivery = claimed(disk.ledger, now=disk.wall() + 1)
        order.append(delivery.display_path)
        disk.ledger.end(delivery, State.FAILED, reason="r", detail="", now=1.0)
    assert order == ["3.csv", "2.csv", "1.csv", "0.csv"]


def test_the_answer_no_ends_them_and_a_new_version_goes(make: Callable[..., DiskIntake]) -> None:
    disk = make(MOST + 1)
    ids = disk.ledger.ids(State.HELD, reason="backlog")
    assert disk.ledger.discard(ids, now=disk.wall()) == 4
    assert {(str(one.state), one.outcome) for one in disk.deliveries()} == {("done", "discarded")}
    disk.restart()
    disk.settle()
    assert len(disk.deliveries()) == 4
    disk.arrive("0.csv", b"a new version", renamed=True)
    disk.turn()
    assert states(disk)[4:] == [("queued", "")]


def test_why_names_the_commands_that_answer(make: Callable[..., DiskIntake]) -> None:
    told = make(MOST + 1).why("0.csv")
    assert told.verdict == "held"
    assert told.sentences[0] == "It is held for a person (backlog)."
    for command in ("pmwatch backfill", "pmwatch mark-seen", "pmwatch release", "pmwatch discard"):
        assert command in " ".join(told.sentences[1:])
