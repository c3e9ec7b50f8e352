"""What a changed configuration does to deliveries that wait: other targets, folders that come and go."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.errors import LedgerError
from pmwatch.ledger import Ledger
from pmwatch.model import Destination, Order, State, Target
from support.ledgers import DESTINATION, TARGET, back, claimed, current, drop, look, opened, sent, settled, succeed

OTHER = Target("acme", "table-2")
OTHER_DESTINATION = Destination("tenant-of-acme", "dataset-1", "table-2")
URL = "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path, OTHER) as ledger:
        yield ledger


# ---- retarget --------------------------------------------------------------------------------------------------------


def test_what_waits_goes_where_the_configuration_says_now(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    assert ledger.retarget("orders", lambda _path: (OTHER, Order.ARRIVAL)) == 1
    delivery = current(ledger, id_)
    assert (delivery.target, delivery.destination) == (OTHER, OTHER_DESTINATION)
    assert claimed(ledger).id == id_


def test_a_url_for_the_old_target_is_forgotten(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    back(ledger, claimed(ledger), url=URL)
    ledger.retarget("orders", lambda _path: (OTHER, Order.ARRIVAL))
    assert current(ledger, id_).presigned_url == ""


def test_nothing_changes_where_the_target_is_the_same(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    before = current(ledger, id_)
    assert ledger.retarget("orders", lambda _path: (TARGET, Order.ARRIVAL)) == 0
    assert current(ledger, id_) == before


def test_a_file_that_is_mapped_nowhere_now_keeps_its_target(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    assert ledger.retarget("orders", lambda _path: None) == 0
    assert current(ledger, id_).target == TARGET


def test_other_folders_and_what_no_longer_waits_keep_their_target(ledger: Ledger) -> None:
    done = sent(ledger, "done.csv", "A")
    elsewhere = drop(ledger, "a.csv", folder="second")
    assert ledger.retarget("orders", lambda _path: (OTHER, Order.ARRIVAL)) == 0
    assert {current(ledger, done).target, current(ledger, elsewhere).target} == {TARGET}


def test_an_order_that_was_turned_off_lets_the_next_pass(ledger: Ledger) -> None:
    ledger.enqueue([settled("a"), settled("b")])
    first = claimed(ledger)
    back(ledger, first, not_before=5000.0, failed_at=1000.0)
    assert ledger.claim(now=1000.0) is None
    assert ledger.retarget("orders", lambda _path: (TARGET, Order.NONE)) == 2
    assert claimed(ledger).path == b"b"


def test_each_file_is_mapped_by_its_own_path(ledger: Ledger) -> None:
    ids = ledger.enqueue([settled("x/a"), settled(b"\xff/b")])
    ledger.retarget("orders", lambda path: (OTHER if path == b"\xff/b" else TARGET, Order.ARRIVAL))
    assert [current(ledger, id_).target for id_ in ids] == [TARGET, OTHER]


# ---- names that are resolved anew ------------------------------------------------------------------------------------


def test_after_ids_were_forgotten_names_are_asked_for_again_before_anything_goes(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    ledger.forget_destinations()
    ledger.retarget("orders", lambda _path: (TARGET, Order.ARRIVAL))
    assert ledger.unresolved() == [TARGET]
    assert ledger.claim(now=1000.0) is None
    moved = Destination("tenant-1", "dataset-1", "table-new")
    ledger.resolve(TARGET, moved)
    assert current(ledger, id_).destination == moved
    assert claimed(ledger).id == id_


def test_a_start_after_a_crash_keeps_the_url_that_may_tell_whether_the_bytes_arrived(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    ledger.remember_urls([(claimed(ledger), URL, look())])
    ledger.recover()
    ledger.forget_destinations()
    ledger.adopt(["orders"])
    ledger.retarget("orders", lambda _path: (TARGET, Order.ARRIVAL))
    ledger.resolve(TARGET, DESTINATION)
    again = claimed(ledger)
    assert (again.id, again.presigned_url, again.reason) == (id_, URL, "answer_lost")


def test_a_forgotten_name_does_not_change_what_is_done(ledger: Ledger) -> None:
    id_ = sent(ledger, "a.csv", "A")
    before = current(ledger, id_)
    ledger.forget_destinations()
    ledger.resolve(TARGET, Destination("tenant-1", "dataset-1", "table-new"))
    assert current(ledger, id_) == before


# ---- folders that come and go ----------------------------------------------------------------------------------------


def test_what_waits_for_a_folder_that_is_gone_is_held_and_released_when_it_is_back(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    stays = drop(ledger, "b.csv", folder="second", target=OTHER)
    ledger.adopt(["second"])
    held = current(ledger, id_)
    assert (held.state, held.reason) == (State.HELD, "folder_removed")
    assert "no longer in the configuration" in held.detail
    assert current(ledger, stays).state is State.QUEUED
    ledger.adopt(["orders", "second"])
    back_ = current(ledger, id_)
    assert (back_.state, back_.reason, back_.detail) == (State.QUEUED, "", "")


def test_without_any_folder_all_that_waits_is_held(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    drop(ledger, "b.csv", folder="second")
    ledger.adopt(iter([]))
    assert ledger.total(State.HELD) == 2
    assert ledger.counts()["orders", "queued"] == 0


def test_what_was_held_for_another_reason_stays_held_when_its_folder_is_back(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    ledger.end(claimed(ledger), State.HELD, reason="crash_loop", detail="", now=1.0)
    ledger.adopt([])
    ledger.adopt(["orders"])
    assert (current(ledger, id_).state, current(ledger, id_).reason) == (State.HELD, "crash_loop")


def test_what_is_done_stays_done_when_its_folder_is_gone(ledger: Ledger) -> None:
    id_ = sent(ledger, "a.csv", "A")
    drop(ledger, "b.csv")
    running = claimed(ledger)
    ledger.adopt([])
    assert current(ledger, id_).state is State.DONE
    succeed(ledger, running, "B")
    assert ledger.total(State.DONE) == 2


def test_a_configuration_is_taken_over_whole_or_not_at_all(ledger: Ledger) -> None:
    ids = [drop(ledger, "a.csv"), drop(ledger, "b.csv", folder="second"), drop(ledger, "c.csv", folder="third")]
    before = [current(ledger, id_) for id_ in ids]

    def broken(_path: bytes) -> tuple[Target, Order]:
        raise LedgerError("the disk is full")

    with pytest.raises(LedgerError):
        ledger.configure({"orders": lambda _path: (OTHER, Order.ARRIVAL), "second": broken})
    assert [current(ledger, id_) for id_ in ids] == before
    assert ledger.total(State.QUEUED) == 3
    ledger.configure({"orders": lambda _path: (OTHER, Order.ARRIVAL), "second": lambda _path: None})
    assert [current(ledger, id_).target for id_ in ids] == [OTHER, TARGET, TARGET]
    assert [current(ledger, id_).state for id_ in ids] == [State.QUEUED, State.QUEUED, State.HELD]
