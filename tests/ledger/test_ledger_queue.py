"""Who goes next: lanes, their order, their turns, and that a delivery is claimed by one thread only."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.ledger import Ledger
from pmwatch.model import Destination, Order, State, Target
from support.ledgers import DESTINATION, TARGET, back, claimed, current, drop, opened, settled, succeed

OTHER = Target("acme", "table-2")
BETA = Target("beta", "table-3")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path, OTHER, BETA) as ledger:
        yield ledger


def fill(ledger: Ledger, count: int, target: Target = TARGET, order: Order = Order.ARRIVAL, prefix: str = "") -> None:
    ledger.enqueue([settled(f"{prefix}{target.datatable}-{i:04}", target=target, order=order) for i in range(count)])


# ---- order within a datatable ----------------------------------------------------------------------------------------


def test_in_an_ordered_lane_one_goes_at_a_time_in_the_order_of_settling(ledger: Ledger) -> None:
    fill(ledger, 3)
    sequence = []
    for _ in range(3):
        delivery = claimed(ledger)
        assert ledger.claim(now=1000.0) is None
        sequence.append(delivery.seq)
        succeed(ledger, delivery, str(delivery.id))
    assert sequence == [1, 2, 3]


def test_in_an_ordered_lane_the_next_waits_while_the_first_is_retried(ledger: Ledger) -> None:
    fill(ledger, 2)
    first = claimed(ledger)
    back(ledger, first, not_before=2000.0, failed_at=1000.0)
    assert ledger.claim(now=1999.0) is None
    assert claimed(ledger, now=2000.0).id == first.id


@pytest.mark.parametrize("state", [State.HELD, State.FAILED, State.VANISHED])
def test_in_an_ordered_lane_what_has_ended_blocks_nobody(state: State, ledger: Ledger) -> None:
    fill(ledger, 2)
    first = claimed(ledger)
    ledger.end(first, state, reason="r", detail="", now=1.0)
    assert claimed(ledger).id != first.id


def test_without_an_order_all_may_go_at_the_same_time_and_pass_the_one_that_is_retried(ledger: Ledger) -> None:
    fill(ledger, 3, order=Order.NONE)
    first, second = claimed(ledger), claimed(ledger)
    back(ledger, first, not_before=2000.0, failed_at=1000.0)
    third = claimed(ledger)
    assert [delivery.seq for delivery in (first, second, third)] == [1, 2, 3]
    assert ledger.claim(now=1000.0) is None


def test_a_datatable_that_is_named_in_two_ways_is_one_lane_once_the_names_are_resolved(ledger: Ledger) -> None:
    by_name = Target("acme", "Sales/Orders")
    drop(ledger, "by-id")
    drop(ledger, "by-name", folder="second", target=by_name)
    ledger.resolve(by_name, DESTINATION)
    first = claimed(ledger)
    assert first.path == b"by-id"
    assert ledger.claim(now=1000.0) is None


def test_two_datatables_do_not_wait_for_each_other(ledger: Ledger) -> None:
    fill(ledger, 2)
    fill(ledger, 2, OTHER)
    assert {claimed(ledger).target, claimed(ledger).target} == {TARGET, OTHER}
    assert ledger.claim(now=1000.0) is None


# ---- what may not go -------------------------------------------------------------------------------------------------


def test_nothing_goes_to_a_datatable_that_is_not_resolved_and_its_name_is_asked_for(ledger: Ledger) -> None:
    unknown = Target("acme", "Sales/New", "d")
    drop(ledger, "a", target=unknown)
    drop(ledger, "b", target=unknown)
    assert ledger.claim(now=1000.0) is None
    assert ledger.unresolved() == [unknown]
    ledger.resolve(unknown, Destination("tenant-1", "dataset-1", "table-9"))
    assert ledger.unresolved() == []
    assert claimed(ledger).destination == Destination("tenant-1", "dataset-1", "table-9")
    drop(ledger, "c", target=unknown)
    assert ledger.unresolved() == []


def test_nothing_goes_to_a_tenant_whose_gate_is_shut(ledger: Ledger) -> None:
    fill(ledger, 1)
    fill(ledger, 1, BETA)
    taken = ledger.claim(now=1000.0, without_tenants=["acme"])
    assert taken is not None
    assert taken.target == BETA
    assert ledger.claim(now=1000.0, without_tenants=["acme"]) is None
    assert claimed(ledger).target == TARGET


# ---- turns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", Order)
@pytest.mark.parametrize("small", Order)
def test_a_thousand_files_in_one_lane_do_not_starve_another(big: Order, small: Order, ledger: Ledger) -> None:
    fill(ledger, 1000, order=big)
    fill(ledger, 5, OTHER, order=small)
    served: Counter[Target] = Counter()
    for step in range(10):
        delivery = claimed(ledger, now=1000.0 + step)
        served[delivery.target] += 1
        succeed(ledger, delivery, str(delivery.id))
    assert served == {TARGET: 5, OTHER: 5}


def test_turns_are_fair_when_the_clock_stands_still_or_is_set_back(ledger: Ledger) -> None:
    fill(ledger, 10)
    fill(ledger, 10, OTHER)
    served = []
    for now in (9e9, 9e9, 9e9, 5.0, 5.0, 5.0):
        delivery = claimed(ledger, now=now)
        served.append(delivery.target)
        succeed(ledger, delivery, str(delivery.id))
    assert Counter(served) == {TARGET: 3, OTHER: 3}


def test_a_lane_that_is_new_does_not_wait_for_a_whole_round(ledger: Ledger) -> None:
    fill(ledger, 10)
    for _ in range(5):
        delivery = claimed(ledger)
        succeed(ledger, delivery, str(delivery.id))
    fill(ledger, 1, OTHER)
    assert claimed(ledger).target == OTHER


# ---- many threads ----------------------------------------------------------------------------------------------------


def test_many_threads_claim_every_delivery_exactly_once(ledger: Ledger) -> None:
    fill(ledger, 60, order=Order.NONE)
    fill(ledger, 20, OTHER)
    taken: list[int] = []
    errors: list[BaseException] = []
    start = threading.Barrier(6)

    def work() -> None:
        start.wait(60)
        try:
            while (delivery := ledger.claim(now=1000.0)) is not None or ledger.total(State.QUEUED):
                if delivery is not None:
                    taken.append(delivery.id)
                    succeed(ledger, delivery, str(delivery.id))
        except BaseException as error:  # noqa: BLE001  shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(taken) == list(range(1, 81))
    assert ledger.counts() == {("orders", "queued"): 0, ("orders", "uploading"): 0, ("orders", "done"): 80}


def test_threads_never_hold_two_deliveries_of_one_ordered_lane(ledger: Ledger) -> None:
    fill(ledger, 30)
    held = threading.Semaphore(1)
    overlaps: list[int] = []
    order: list[int] = []

    def work() -> None:
        while ledger.total(State.QUEUED):
            delivery = ledger.claim(now=1000.0)
            if delivery is None:
                continue
            if not held.acquire(blocking=False):
                overlaps.append(delivery.id)
                return
            order.append(delivery.seq)
            held.release()
            succeed(ledger, delivery, str(delivery.id))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert overlaps == []
    assert order == sorted(order)
    assert len(order) == 30


# ---- what people ask about the queue ---------------------------------------------------------------------------------


def test_the_blocker_of_a_waiting_file_is_named(ledger: Ledger) -> None:
    fill(ledger, 3)
    first = claimed(ledger)
    back(ledger, first, not_before=2000.0, failed_at=1000.0)
    third = ledger.find("orders", b"table-1-0002")[0]
    blocker = ledger.blocker(third)
    assert blocker is not None
    assert blocker.id == first.id
    assert ledger.blocker(current(ledger, first.id)) is None


def test_without_an_order_nobody_blocks(ledger: Ledger) -> None:
    fill(ledger, 2, order=Order.NONE)
    assert ledger.blocker(ledger.find("orders", b"table-1-0001")[0]) is None


def test_files_behind_one_that_is_retried_are_counted_and_others_are_not(ledger: Ledger) -> None:
    fill(ledger, 4)
    fill(ledger, 4, OTHER)
    fill(ledger, 4, BETA, order=Order.NONE)
    assert ledger.blocked() == {}
    for _ in range(3):
        delivery = claimed(ledger)
        if delivery.target != OTHER:
            back(ledger, delivery, not_before=2000.0, failed_at=1000.0)
    assert ledger.blocked() == {"orders": 3}


def test_questions_about_folders_are_answered(ledger: Ledger) -> None:
    drop(ledger, "a", settled_at=50.0)
    drop(ledger, "b", settled_at=60.0, folder="second", target=OTHER)
    assert ledger.oldest_pending() == {"orders": 50.0, "second": 60.0}
    assert ledger.last_success() == {}
    for _ in range(2):
        succeed(ledger, claimed(ledger), "A", now=1007.0)
    assert ledger.oldest_pending() == {}
    assert ledger.last_success() == {"orders": 1007.0, "second": 1007.0}
    assert ledger.total(State.DONE) == 2
    assert ledger.total(State.QUEUED, State.UPLOADING) == 0


def test_lists_show_the_newest_first_and_can_be_narrowed(ledger: Ledger) -> None:
    for path in ("a", "b", "c"):
        drop(ledger, path)
    drop(ledger, "d", folder="second")
    succeed(ledger, claimed(ledger), "A")
    assert [one.path for one in ledger.list()] == [b"d", b"c", b"b", b"a"]
    assert [one.path for one in ledger.list(limit=2)] == [b"d", b"c"]
    assert [one.path for one in ledger.list(folder="orders", states=[State.QUEUED])] == [b"c", b"b"]
    assert [one.path for one in ledger.list(states=iter([State.DONE]))] == [b"a"]


def test_all_paths_of_a_folder_are_found_and_each_once(ledger: Ledger) -> None:
    fill(ledger, 3)
    drop(ledger, "x", folder="second")
    assert sorted(ledger.paths("orders")) == [b"table-1-0000", b"table-1-0001", b"table-1-0002"]


def test_more_paths_than_sqlite_takes_variables_can_be_asked_for_at_once(ledger: Ledger) -> None:
    fill(ledger, 1200)
    paths = [f"table-1-{i:04}".encode() for i in range(1500)]
    assert len(ledger.known("orders", paths)) == 1200
    assert ledger.known("orders", []) == {}
