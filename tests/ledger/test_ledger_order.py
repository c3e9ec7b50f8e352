"""The order of a lane: by arrival, name or mtime; what blocks it; and folders in which only the newest matters."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.ledger import Action, Ledger
from pmwatch.model import Order, Outcome, State, Target
from support.ledgers import TARGET, back, claimed, current, drop, look, opened, sent, succeed

NAMES = ["b.csv", "sub/a.csv", "c.csv", "A.csv"]


def sent_order(ledger: Ledger) -> list[str]:
    """Let everything go, one after the other; return the names in that order."""
    order = []
    while (delivery := ledger.claim(now=5000.0)) is not None:
        order.append(delivery.path.decode())
        succeed(ledger, delivery, delivery.path.decode())
    return order


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order.ARRIVAL, NAMES),
        (Order.NAME, ["A.csv", "sub/a.csv", "b.csv", "c.csv"]),
        (Order.MTIME, ["A.csv", "c.csv", "sub/a.csv", "b.csv"]),
    ],
)
def test_what_waits_goes_by_arrival_by_name_or_by_mtime(tmp_path: Path, order: Order, expected: Sequence[str]) -> None:
    with opened(tmp_path) as ledger:
        for number, name in enumerate(NAMES):
            drop(ledger, name, look(mtime_ns=100 - number), order=order)
        assert sent_order(ledger) == expected


def test_a_file_that_comes_later_goes_before_those_that_wait_but_not_before_one_under_way(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for name in ("b.csv", "c.csv"):
            drop(ledger, name, order=Order.NAME)
        under_way = claimed(ledger)
        drop(ledger, "a.csv", order=Order.NAME)
        assert ledger.claim(now=5000.0) is None
        succeed(ledger, under_way, "b")
        assert sent_order(ledger) == ["a.csv", "c.csv"]


@given(mtimes=st.lists(st.integers(0, 2**62), min_size=1, max_size=12))
def test_any_mtimes_go_in_their_order_and_equal_ones_as_they_came(
    tmp_path_factory: pytest.TempPathFactory, mtimes: list[int]
) -> None:
    with opened(tmp_path_factory.mktemp("state")) as ledger:
        for number, mtime in enumerate(mtimes):
            drop(ledger, f"{number:02}.csv", look(mtime_ns=mtime), order=Order.MTIME)
        expected = sorted(range(len(mtimes)), key=lambda number: (mtimes[number], number))
        assert sent_order(ledger) == [f"{number:02}.csv" for number in expected]


def test_a_run_of_small_files_is_in_the_order_of_the_lane(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for name in NAMES:
            drop(ledger, name, order=Order.NAME)
        run = ledger.claim_run(now=1000.0, at_most=32, small=100)
        assert [one.path.decode() for one in run] == ["A.csv", "sub/a.csv", "b.csv", "c.csv"]


# ---- on_failure = "block" ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [True, False], ids=["block", "continue"])
@pytest.mark.parametrize("ended", [State.FAILED, State.HELD])
def test_what_ended_badly_blocks_its_lane_only_where_the_folder_says_so(
    tmp_path: Path, ended: State, *, blocks: bool
) -> None:
    other = Target("acme", "table-2")
    with opened(tmp_path, other) as ledger:
        first, second = drop(ledger, "1.csv"), drop(ledger, "2.csv")
        ledger.end(claimed(ledger), ended, reason="r", detail="", now=1.0, blocks=blocks)
        elsewhere = drop(ledger, "3.csv", target=other)
        going = {one.id for _ in range(2) if (one := ledger.claim(now=2000.0)) is not None}
        assert going == ({elsewhere} if blocks else {elsewhere, second}), "other lanes go on in any case"
        blocker = ledger.blocker(current(ledger, second))
        assert (blocker.id if blocker else 0) == (first if blocks else 0)
        assert ledger.blocked() == ({"orders": 1} if blocks else {})


@pytest.mark.parametrize("word", ["retry", "release", "discard"])
def test_a_word_of_a_person_unblocks_the_lane(tmp_path: Path, word: str) -> None:
    with opened(tmp_path) as ledger:
        first, second = drop(ledger, "1.csv"), drop(ledger, "2.csv")
        ledger.end(claimed(ledger), State.HELD, reason="r", detail="", now=1.0, blocks=True)
        assert ledger.claim(now=2000.0) is None
        if word == "discard":
            assert ledger.discard([first], now=2000.0) == 1
            assert sent_order(ledger) == ["2.csv"]
        else:
            assert ledger.requeue([first], release=word == "release") == 1
            assert sent_order(ledger) == ["1.csv", "2.csv"], "in its old place"
        assert current(ledger, second).state is State.DONE
        assert ledger.blockers() == []


def test_a_corrected_version_takes_the_place_of_a_held_one_and_the_lane_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        held = drop(ledger, "1.csv")
        drop(ledger, "2.csv")
        ledger.end(claimed(ledger), State.HELD, reason="r", detail="", now=1.0, blocks=True)
        drop(ledger, "1.csv", look(mtime_ns=9))
        assert current(ledger, held).outcome == Outcome.SUPERSEDED
        assert sent_order(ledger) == ["2.csv", "1.csv"]


def test_one_that_is_tried_again_is_named_as_what_the_others_wait_for(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        first, second = drop(ledger, "1.csv"), drop(ledger, "2.csv")
        back(ledger, claimed(ledger), not_before=9000.0, failed_at=1.0)
        assert ledger.claim(now=2000.0) is None
        blocker = ledger.blocker(current(ledger, second))
        assert blocker is not None
        assert blocker.id == first
        assert [(one.delivery.id, one.waiting) for one in ledger.blockers()] == [(first, {"orders": 1})]


# ---- supersede ---------------------------------------------------------------------------------------------------


def test_only_the_newest_of_what_waits_goes_where_the_folder_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        under_way = drop(ledger, "0.csv", supersedes=True)
        assert claimed(ledger).id == under_way
        ids = [drop(ledger, f"{number}.csv", supersedes=True) for number in range(1, 4)]
        others = drop(ledger, "other.csv", folder="other")
        assert [current(ledger, id_).state for id_ in ids] == [State.DONE, State.DONE, State.QUEUED]
        assert {current(ledger, id_).outcome for id_ in ids[:2]} == {Outcome.SUPERSEDED}
        assert current(ledger, under_way).state is State.UPLOADING, "what is under way is not broken off"
        assert current(ledger, others).state is State.QUEUED
        assert ledger.counts()["orders", "done"] == 2
        assert current(ledger, ids[0]).presigned_url == ""


def test_files_for_another_datatable_are_not_superseded(tmp_path: Path) -> None:
    other = Target("acme", "table-2")
    with opened(tmp_path, other) as ledger:
        first = drop(ledger, "a.csv", target=other, supersedes=True)
        drop(ledger, "b.csv", target=TARGET, supersedes=True)
        assert current(ledger, first).state is State.QUEUED


@pytest.mark.parametrize("order", [Order.MTIME, Order.NAME])
def test_the_newest_is_the_last_one_in_the_folders_order_and_not_what_came_last(order: Order, tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        newest = drop(ledger, "2.csv", look(2), order=order, supersedes=True)
        older = drop(ledger, "1.csv", look(1), order=order, supersedes=True)
        assert current(ledger, newest).state is State.QUEUED
        assert (current(ledger, older).state, current(ledger, older).outcome) == (State.DONE, Outcome.SUPERSEDED)


def test_what_a_person_wants_sent_is_not_superseded(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        first = sent(ledger, "0.csv", "A")
        by = Action(1.0, "ann", "resend", "")
        [again] = ledger.resend([first], order_of=lambda _: Order.ARRIVAL, by=by)
        released = drop(ledger, "1.csv", held="shrunk")
        assert ledger.requeue([released], release=True) == 1
        newest = drop(ledger, "2.csv", supersedes=True)
        assert {current(ledger, id_).state for id_ in (again, released, newest)} == {State.QUEUED}


def test_a_held_file_supersedes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        waiting = drop(ledger, "1.csv", supersedes=True)
        drop(ledger, "2.csv", supersedes=True, held="shrunk")
        assert current(ledger, waiting).state is State.QUEUED


def test_a_file_that_changes_while_it_waits_is_the_newest_again(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        first = drop(ledger, "1.csv", look(1))
        second = drop(ledger, "2.csv", look(2))
        assert drop(ledger, "1.csv", look(3), supersedes=True) == first
        assert current(ledger, second).outcome == Outcome.SUPERSEDED
