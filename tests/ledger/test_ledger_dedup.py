"""Which equal content goes again, what happens to equal files on their way, and files that only look changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.ledger import Decided, Disposed, Ledger, Verdict
from pmwatch.ledger.store import MAX_RECOVERIES
from pmwatch.model import Dedup, Destination, Order, State, Target
from support.ledgers import TARGET, back, claimed, current, drop, look, opened, sent, sha, succeed

OTHER = Target("acme", "table-2")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path, OTHER) as ledger:
        yield ledger


def decide(ledger: Ledger, path: str, content: str, policy: Dedup) -> Decided:
    """Drop a file, claim it, decide about it and carry the decision out; return it."""
    drop(ledger, path)
    delivery = claimed(ledger)
    decided = ledger.decide([([(delivery, sha(content), policy)])[0]])[0]
    if decided.verdict is Verdict.SEND:
        succeed(ledger, delivery, content, now=1000.0 + delivery.id)
    elif decided.verdict is Verdict.DUPLICATE:
        ledger.duplicate(delivery, sha256=sha(content), of=decided.of, now=1000.0 + delivery.id, dispose=False)
    return decided


@pytest.mark.parametrize(
    ("policy", "third"),
    [
        (Dedup.CONTENT, Decided(Verdict.DUPLICATE, 1, older=True)),
        (Dedup.LATEST, Decided(Verdict.SEND)),
        (Dedup.OFF, Decided(Verdict.SEND)),
    ],
)
def test_a_then_b_then_a_again(policy: Dedup, third: Decided, ledger: Ledger) -> None:
    assert decide(ledger, "1.csv", "A", policy) == Decided(Verdict.SEND)
    assert decide(ledger, "2.csv", "B", policy) == Decided(Verdict.SEND)
    assert decide(ledger, "3.csv", "A", policy) == third


@pytest.mark.parametrize(
    ("policy", "second"),
    [
        (Dedup.CONTENT, Decided(Verdict.DUPLICATE, 1)),
        (Dedup.LATEST, Decided(Verdict.DUPLICATE, 1)),
        (Dedup.OFF, Decided(Verdict.SEND)),
    ],
)
def test_a_then_a_again(policy: Dedup, second: Decided, ledger: Ledger) -> None:
    decide(ledger, "1.csv", "A", policy)
    assert decide(ledger, "2.csv", "A", policy) == second


def test_a_duplicate_names_the_one_that_was_uploaded_and_not_another_duplicate(ledger: Ledger) -> None:
    for path in ("1.csv", "2.csv"):
        decide(ledger, path, "A", Dedup.CONTENT)
    assert decide(ledger, "3.csv", "A", Dedup.CONTENT) == Decided(Verdict.DUPLICATE, 1)


def test_the_latest_is_what_was_uploaded_last_and_not_what_settled_last(ledger: Ledger) -> None:
    for content in ("A", "B", "A"):
        decide(ledger, f"{content}{ledger.total(State.DONE)}", content, Dedup.LATEST)
    assert decide(ledger, "again.csv", "B", Dedup.LATEST) == Decided(Verdict.SEND)
    assert decide(ledger, "more.csv", "B", Dedup.LATEST).verdict is Verdict.DUPLICATE


def test_equal_content_for_another_datatable_is_sent(ledger: Ledger) -> None:
    sent(ledger, "a.csv", "A")
    drop(ledger, "b.csv", target=OTHER)
    assert ledger.decide([([(claimed(ledger), sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)


def test_what_failed_is_no_reason_not_to_send_the_same_content(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    delivery = claimed(ledger)
    ledger.decide([([(delivery, sha("A"), Dedup.CONTENT)])[0]])[0]
    ledger.end(delivery, State.FAILED, reason="r", detail="", now=1.0)
    assert decide(ledger, "b.csv", "A", Dedup.CONTENT) == Decided(Verdict.SEND)


def test_a_datatable_that_is_named_in_two_ways_is_one_for_dedup(ledger: Ledger) -> None:
    by_name = Target("acme", "Sales/Orders")
    ledger.resolve(by_name, Destination("tenant-1", "dataset-1", "table-1"))
    sent(ledger, "a.csv", "A")
    drop(ledger, "b.csv", target=by_name)
    assert ledger.decide([([(claimed(ledger), sha("A"), Dedup.CONTENT)])[0]])[0].verdict is Verdict.DUPLICATE


# ---- two at the same time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Dedup.CONTENT, Dedup.LATEST])
def test_of_two_equal_files_on_their_way_the_second_waits_for_the_first(policy: Dedup, ledger: Ledger) -> None:
    drop(ledger, "a.csv", order=Order.NONE)
    drop(ledger, "b.csv", order=Order.NONE)
    first, second = claimed(ledger), claimed(ledger)
    assert ledger.decide([([(first, sha("A"), policy)])[0]])[0] == Decided(Verdict.SEND)
    assert ledger.decide([([(second, sha("A"), policy)])[0]])[0] == Decided(Verdict.WAIT)
    back(ledger, second)
    succeed(ledger, first, "A")
    assert ledger.decide([([(claimed(ledger), sha("A"), policy)])[0]])[0] == Decided(Verdict.DUPLICATE, first.id)


def test_of_two_equal_files_on_their_way_the_second_goes_when_the_first_failed(ledger: Ledger) -> None:
    drop(ledger, "a.csv", order=Order.NONE)
    drop(ledger, "b.csv", order=Order.NONE)
    first, second = claimed(ledger), claimed(ledger)
    ledger.decide([([(first, sha("A"), Dedup.CONTENT)])[0]])[0]
    assert ledger.decide([([(second, sha("A"), Dedup.CONTENT)])[0]])[0].verdict is Verdict.WAIT
    ledger.end(first, State.FAILED, reason="r", detail="", now=1.0)
    assert ledger.decide([([(second, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)


def test_with_dedup_off_two_equal_files_go_at_the_same_time(ledger: Ledger) -> None:
    drop(ledger, "a.csv", order=Order.NONE)
    drop(ledger, "b.csv", order=Order.NONE)
    for delivery in (claimed(ledger), claimed(ledger)):
        assert ledger.decide([([(delivery, sha("A"), Dedup.OFF)])[0]])[0] == Decided(Verdict.SEND)


def test_a_decision_may_be_asked_for_again_by_the_same_claim(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    delivery = claimed(ledger)
    for _ in range(2):
        assert ledger.decide([([(delivery, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)


@pytest.mark.parametrize("crashes", [1, MAX_RECOVERIES])
def test_a_crash_leaves_no_reservation_for_which_others_would_wait_for_ever(crashes: int, ledger: Ledger) -> None:
    drop(ledger, "a.csv", order=Order.NONE)
    for _ in range(crashes):
        ledger.decide([([(claimed(ledger), sha("A"), Dedup.CONTENT)])[0]])[0]
        ledger.recover()
    ledger.adopt([])  # holds what is still queued
    drop(ledger, "b.csv", order=Order.NONE)
    assert ledger.decide([([(claimed(ledger), sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)


def test_a_size_that_nobody_else_has_needs_no_hash_before_the_upload(ledger: Ledger) -> None:
    drop(ledger, "a.csv", look(size=5))
    assert ledger.reserve_size(claimed(ledger))


@pytest.mark.parametrize("target", [TARGET, OTHER])
def test_a_size_that_went_to_the_same_datatable_needs_the_hash(target: Target, ledger: Ledger) -> None:
    drop(ledger, "a.csv", look(size=5), target=target)
    succeed(ledger, claimed(ledger), "A")
    drop(ledger, "b.csv", look(size=5))
    assert ledger.reserve_size(claimed(ledger)) is (target == OTHER)


def test_a_file_waits_for_one_of_its_size_whose_hash_nobody_knows_yet(ledger: Ledger) -> None:
    drop(ledger, "a.csv", look(size=5), order=Order.NONE)
    first = claimed(ledger)
    assert ledger.reserve_size(first)
    drop(ledger, "b.csv", look(size=5), order=Order.NONE)
    drop(ledger, "c.csv", look(size=6), order=Order.NONE)
    second, third = claimed(ledger), claimed(ledger)
    assert not ledger.reserve_size(second)
    assert ledger.decide([([(second, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.WAIT)
    assert ledger.decide([([(third, sha("C"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)
    succeed(ledger, first, "A")
    assert ledger.decide([([(second, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.DUPLICATE, first.id)


# ---- the same file again -----------------------------------------------------------------------------------------


def test_a_kept_file_of_which_only_the_time_changed_is_the_same_delivery_as_before(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A", look(1))
    second = drop(ledger, "a.csv", look(2))
    touched = claimed(ledger)
    assert ledger.decide([([(touched, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.UNCHANGED, first)
    ledger.unchanged(touched)
    assert ledger.get(second) is None
    assert [one.id for one in ledger.find("orders", b"a.csv")] == [first]
    assert current(ledger, first).state is State.DONE
    assert drop(ledger, "a.csv", look(2)) == 0
    assert drop(ledger, "a.csv", look(3)) != 0


def test_a_kept_file_that_is_touched_again_while_it_is_hashed_is_looked_at_again(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A", look(1))
    drop(ledger, "a.csv", look(2))
    touched = claimed(ledger)
    third = drop(ledger, "a.csv", look(3))
    ledger.unchanged(touched)
    assert current(ledger, third).previous_id == first
    assert list(ledger.paths("orders")) == [b"a.csv"]
    again = claimed(ledger)
    assert ledger.decide([([(again, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.UNCHANGED, first)
    ledger.unchanged(again)
    assert [one.id for one in ledger.find("orders", b"a.csv")] == [first]
    assert drop(ledger, "a.csv", look(3)) == 0


def test_with_dedup_off_a_touched_file_goes_again(ledger: Ledger) -> None:
    sent(ledger, "a.csv", "A", look(1))
    drop(ledger, "a.csv", look(2))
    assert ledger.decide([([(claimed(ledger), sha("A"), Dedup.OFF)])[0]])[0] == Decided(Verdict.SEND)


def test_a_kept_file_with_new_content_goes(ledger: Ledger) -> None:
    sent(ledger, "a.csv", "A", look(1))
    drop(ledger, "a.csv", look(2))
    assert ledger.decide([([(claimed(ledger), sha("B"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.SEND)


def test_a_file_that_is_dropped_again_after_it_was_archived_is_a_duplicate_of_its_own(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A", dispose=True)
    ledger.disposed([Disposed(current(ledger, first), b"/archive/a.csv", False, 1001.0)])
    second = drop(ledger, "a.csv")
    again = claimed(ledger)
    assert (again.id, again.previous_id) == (second, first)
    assert ledger.decide([([(again, sha("A"), Dedup.CONTENT)])[0]])[0] == Decided(Verdict.DUPLICATE, first)


@pytest.mark.parametrize("end", ["superseded", "discarded", "crash_loop", "another datatable"])
def test_a_kept_file_whose_bytes_never_arrived_there_is_sent_when_it_comes_again(end: str, ledger: Ledger) -> None:
    drop(ledger, "a.csv", look(1), target=OTHER if end == "another datatable" else TARGET)
    first = claimed(ledger)
    ledger.decide([(first, sha("A"), Dedup.CONTENT)])  # the row knows the hash from here on
    if end == "superseded":
        back(ledger, first)
        drop(ledger, "b.csv", look(1), supersedes=True)
        ledger.end(claimed(ledger), State.FAILED, reason="r", detail="", now=1.0)
    elif end == "discarded":
        back(ledger, first)
        ledger.discard([first.id], now=1.0)
    elif end == "crash_loop":
        ledger.recover()
        for _ in range(MAX_RECOVERIES - 1):
            claimed(ledger)
            ledger.recover()
        assert current(ledger, first.id).state is State.HELD
    else:
        succeed(ledger, first, "A")
    drop(ledger, "a.csv", look(2))
    assert ledger.decide([(claimed(ledger), sha("A"), Dedup.CONTENT)]) == [Decided(Verdict.SEND)]


# ---- clocks ------------------------------------------------------------------------------------------------------


def test_the_latest_is_what_arrived_last_also_where_the_clock_stepped_back(ledger: Ledger) -> None:
    sent(ledger, "1.csv", "A", look(1), now=9000.0)
    second = sent(ledger, "2.csv", "B", look(1, size=20), now=5000.0)
    drop(ledger, "3.csv", look(1))
    again = claimed(ledger)
    assert ledger.last_size(again) == 20
    assert ledger.decide([(again, sha("A"), Dedup.LATEST)]) == [Decided(Verdict.SEND)]
    succeed(ledger, again, "A", now=4000.0)
    found = ledger.uploads("orders", since=0.0, until=1e4)
    assert [one.path for one in found] == [b"1.csv", b"2.csv", b"3.csv"]
    assert found[1].id == second
