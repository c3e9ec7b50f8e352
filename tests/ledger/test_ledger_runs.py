"""Runs: several deliveries of one lane that are claimed, decided and put back together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmwatch.ledger import Arrived, Decided, Ledger, StaleClaim, Verdict
from pmwatch.model import Dedup, Delivery, Order, State, Target
from support.ledgers import TARGET, back, claimed, current, drop, look, opened, sent, settled, sha, succeed

BETA = Target("beta", "table-3")
SMALL = 100


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path, BETA) as ledger:
        yield ledger


def fill(ledger: Ledger, *sizes: int, **changes: Any) -> list[int]:
    return ledger.enqueue([settled(f"{i:03}", look(size=size), **changes) for i, size in enumerate(sizes)])


def run(ledger: Ledger, *, at_most: int = 10, now: float = 1000.0, share: int = 1) -> list[Delivery]:
    return ledger.claim_run(now=now, at_most=at_most, small=SMALL, share=share)


def test_small_ones_come_along_in_their_order(ledger: Ledger) -> None:
    ids = fill(ledger, *[10] * 5)
    assert [one.id for one in run(ledger, at_most=3)] == ids[:3]
    assert run(ledger) == []  # one claim at a time in an ordered lane
    assert ledger.total(State.UPLOADING) == 3


def test_every_one_of_a_run_is_claimed_and_counted(ledger: Ledger) -> None:
    fill(ledger, 10, 10)
    for one in run(ledger, now=1234.0):
        assert one == current(ledger, one.id)
        assert (one.state, one.attempts, one.claimed_at) == (State.UPLOADING, 1, 1234.0)


@pytest.mark.parametrize(("sizes", "length"), [((SMALL, SMALL + 1, 1), 1), ((SMALL + 1, 1, 1), 1), ((1, 1, 200), 2)])
def test_a_large_one_goes_alone(sizes: tuple[int, ...], length: int, ledger: Ledger) -> None:
    fill(ledger, *sizes)
    assert len(run(ledger)) == length


def test_one_that_is_not_due_ends_the_run(ledger: Ledger) -> None:
    first, second, third = fill(ledger, 1, 1, 1)
    taken = run(ledger)
    back(ledger, taken[1], not_before=5000.0)
    ledger.put_back([taken[0], taken[2]], reason="")
    assert [one.id for one in run(ledger)] == [first]
    succeed(ledger, current(ledger, first), "A")
    assert run(ledger) == []
    assert [one.id for one in run(ledger, now=5000.0)] == [second, third]


def test_one_that_may_have_killed_the_process_goes_alone(ledger: Ledger) -> None:
    ids = fill(ledger, 1, 1, 1)
    assert len(run(ledger)) == 3
    ledger.recover()
    for id_ in ids:
        (one,) = run(ledger)
        assert one.id == id_
        succeed(ledger, one, str(id_))


def test_a_run_is_of_one_tenant(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    ledger.resolve(BETA, ledger_destination(ledger))
    drop(ledger, "b.csv", target=BETA)
    assert [one.target for one in run(ledger)] == [TARGET]


def ledger_destination(ledger: Ledger) -> Any:
    """Return the ids of `TARGET`: two names of a configuration may stand for one tenant."""
    return current(ledger, 1).destination


@pytest.mark.parametrize(("waiting", "share", "taken"), [(8, 4, 2), (3, 4, 1), (8, 1, 8), (100, 4, 10)])
def test_without_an_order_each_worker_takes_its_part(waiting: int, share: int, taken: int, ledger: Ledger) -> None:
    fill(ledger, *[1] * waiting, order=Order.NONE)
    assert len(run(ledger, share=share)) == taken


def test_what_was_put_back_has_not_been_tried(ledger: Ledger) -> None:
    ids = fill(ledger, 1, 1)
    ledger.put_back(run(ledger), reason="gate")
    for id_ in ids:
        one = current(ledger, id_)
        assert (one.state, one.attempts, one.reason) == (State.QUEUED, 0, "gate")
    assert [one.id for one in run(ledger)] == ids
    assert ledger.counts() == {("orders", "queued"): 0, ("orders", "uploading"): 2}


def test_a_run_arrives_as_a_whole_or_not_at_all(ledger: Ledger) -> None:
    fill(ledger, 1, 1)
    first, second = run(ledger)
    back(ledger, second)
    with pytest.raises(StaleClaim):
        ledger.uploaded([Arrived(one, sha("A"), "e", "", 1.0, dispose=False) for one in (first, second)])
    assert current(ledger, first.id).state is State.UPLOADING


# ---- decisions within a run -----------------------------------------------------------------------------------


def decide(ledger: Ledger, contents: str, policy: Dedup) -> list[Decided]:
    fill(ledger, *[10] * len(contents))
    return ledger.decide([(one, sha(content), policy) for one, content in zip(run(ledger), contents, strict=True)])


@pytest.mark.parametrize("policy", [Dedup.CONTENT, Dedup.LATEST])
def test_new_contents_all_go(policy: Dedup, ledger: Ledger) -> None:
    assert decide(ledger, "ABC", policy) == [Decided(Verdict.SEND)] * 3


@pytest.mark.parametrize("policy", [Dedup.CONTENT, Dedup.LATEST])
def test_the_second_of_two_equal_ones_has_to_wait_for_the_first(policy: Dedup, ledger: Ledger) -> None:
    assert decide(ledger, "ABA", policy) == [Decided(Verdict.SEND)] * 2


def test_without_dedup_equal_ones_go_together(ledger: Ledger) -> None:
    assert decide(ledger, "AA", Dedup.OFF) == [Decided(Verdict.SEND)] * 2


def test_latest_cannot_be_told_before_what_goes_first_has_gone(ledger: Ledger) -> None:
    sent(ledger, "before.csv", "A")
    assert decide(ledger, "BA", Dedup.LATEST) == [Decided(Verdict.SEND)]


def test_a_repetition_behind_one_that_goes_repeats_an_older_version(ledger: Ledger) -> None:
    before = sent(ledger, "before.csv", "A")
    assert decide(ledger, "BA", Dedup.CONTENT) == [
        Decided(Verdict.SEND),
        Decided(Verdict.DUPLICATE, before, older=True),
    ]


def test_repetitions_in_front_are_told_together(ledger: Ledger) -> None:
    before = sent(ledger, "before.csv", "A")
    assert decide(ledger, "AAB", Dedup.LATEST) == [Decided(Verdict.DUPLICATE, before)] * 2 + [Decided(Verdict.SEND)]


def test_what_is_under_way_elsewhere_ends_a_run(ledger: Ledger) -> None:
    ledger.enqueue([settled("a.csv", order=Order.NONE)])
    ledger.decide([(claimed(ledger), sha("A"), Dedup.CONTENT)])
    assert decide(ledger, "AB", Dedup.CONTENT) == [Decided(Verdict.WAIT)]


def test_a_run_of_new_content_is_reserved_as_a_whole_or_not_at_all(ledger: Ledger) -> None:
    fill(ledger, 1, 2, 3)
    taken = run(ledger)
    back(ledger, taken[1])
    with pytest.raises(StaleClaim):
        ledger.decide([(one, sha(str(one.id)), Dedup.CONTENT) for one in taken])
    assert ledger.decide([(taken[0], sha("other"), Dedup.CONTENT)]) == [Decided(Verdict.SEND)]


def test_a_run_waits_for_content_that_another_thread_has_under_way(ledger: Ledger) -> None:
    fill(ledger, 1, 2, order=Order.NONE)
    (first,) = run(ledger, at_most=1)
    (second,) = run(ledger, at_most=1)
    assert ledger.decide([(first, sha("A"), Dedup.CONTENT)]) == [Decided(Verdict.SEND)]
    assert ledger.decide([(second, sha("A"), Dedup.CONTENT)]) == [Decided(Verdict.WAIT)]
    assert ledger.decide([(second, sha("B"), Dedup.CONTENT)]) == [Decided(Verdict.SEND)]
