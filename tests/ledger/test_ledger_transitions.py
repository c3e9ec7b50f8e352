"""Every line of the state table: what may happen to a delivery, what is kept, and what is refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmwatch.errors import LedgerError
from pmwatch.ledger import Arrived, Disposed, Ledger, StaleClaim
from pmwatch.ledger.moves import DISPOSAL_LEASE_SECONDS
from pmwatch.ledger.store import MAX_RECOVERIES
from pmwatch.model import Delivery, Outcome, State
from support.ledgers import DESTINATION, TARGET, back, claimed, current, drop, look, opened, sent, settled, sha, succeed

URL = "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path) as ledger:
        yield ledger


def end(ledger: Ledger, delivery: Delivery, to: State, **kwargs: Any) -> None:
    facts: dict[str, Any] = {"reason": "why", "detail": "long", "now": 2000.0} | kwargs
    ledger.end(delivery, to, **facts)


# ---- nothing → queued -----------------------------------------------------------------------------------------------


def test_a_settled_file_is_queued_with_all_that_is_known_of_it(ledger: Ledger) -> None:
    id_ = drop(ledger, "sub/a.csv", look(7, size=3), seen_at=1.5, settled_at=2.5)
    delivery = current(ledger, id_)
    assert (delivery.state, delivery.outcome, delivery.attempts) == (State.QUEUED, "", 0)
    assert (delivery.folder, delivery.path, delivery.fingerprint) == ("orders", b"sub/a.csv", look(7, size=3))
    assert (delivery.target, delivery.destination) == (TARGET, DESTINATION)
    assert (delivery.seen_at, delivery.settled_at, delivery.seq) == (1.5, 2.5, 1)


def test_files_are_queued_in_the_order_in_which_they_settled(ledger: Ledger) -> None:
    ids = ledger.enqueue([settled("b"), settled("a"), settled("c")])
    assert [current(ledger, id_).seq for id_ in ids] == [1, 2, 3]
    assert [current(ledger, id_).path for id_ in ids] == [b"b", b"a", b"c"]


def test_new_paths_among_known_and_repeated_ones_keep_the_order_in_which_they_settled(ledger: Ledger) -> None:
    sent(ledger, "known", "A")
    waiting = drop(ledger, "waiting")
    files = [
        settled("a"),
        settled("known", look(2)),
        settled("b"),
        settled("waiting", look(2)),
        settled("a", look(3)),
        settled("a", look(3)),
        settled("other", folder="invoices"),
        settled("old", held="backlog"),
    ]
    ids = ledger.enqueue(files)
    rows = [current(ledger, id_) for id_ in dict.fromkeys(ids)]
    assert [(row.path, row.state) for row in sorted(rows, key=lambda row: row.seq)] == [
        (b"known", State.QUEUED),
        (b"b", State.QUEUED),
        (b"waiting", State.QUEUED),
        (b"a", State.QUEUED),
        (b"other", State.QUEUED),
        (b"old", State.HELD),
    ]
    assert waiting in ids
    assert len({row.seq for row in rows}) == len(rows)
    counts = ledger.counts()
    assert (counts["orders", "queued"], counts["invoices", "queued"], counts["orders", "held"]) == (4, 1, 1)
    ledger.enqueue([settled(f"{number:04}") for number in range(1100)])  # more than one question may name
    assert ledger.enqueue([settled(f"{number:04}") for number in range(1101)]) == [current(ledger, ids[-1]).id + 1101]


@pytest.mark.parametrize("changed", [look(ctime_ns=9), look(inode=9), look(device=9)])
def test_chown_a_hard_link_or_a_remount_is_no_news(changed: Any, ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    assert drop(ledger, "a.csv", changed) == 0
    succeed(ledger, claimed(ledger), "A")
    assert drop(ledger, "a.csv", changed) == 0
    known = ledger.known("orders", [b"a.csv"])[b"a.csv"]
    assert not known.is_news(changed)


@pytest.mark.parametrize("changed", [look(2), look(size=11)])
def test_another_size_or_mtime_after_an_upload_is_a_new_delivery(changed: Any, ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A")
    second = drop(ledger, "a.csv", changed)
    assert second not in {0, first}
    assert current(ledger, second).previous_id == first
    assert current(ledger, first).state is State.DONE


def test_a_new_file_with_the_inode_number_of_one_that_is_gone_inherits_nothing(ledger: Ledger) -> None:
    """File systems give a free number to the next file: where it repeats, only the times differ."""
    gone = look(1, ctime_ns=1, inode=7)
    first = sent(ledger, "a.csv", "A", gone)
    again = look(2, ctime_ns=2, inode=7)
    assert ledger.known("orders", [b"a.csv"])[b"a.csv"].is_news(again)
    second, elsewhere = drop(ledger, "a.csv", again), drop(ledger, "b.csv", gone)
    assert len({0, first, second, elsewhere}) == 4
    assert [current(ledger, id_).state for id_ in (first, second, elsewhere)] == [
        State.DONE,
        State.QUEUED,
        State.QUEUED,
    ]


def test_where_pmwatch_removed_the_source_even_an_equal_look_is_a_new_file(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A", dispose=True)
    ledger.disposed([Disposed(current(ledger, first), b"", kept=False, at=1001.0)])
    assert drop(ledger, "a.csv") not in {0, first}


def test_a_file_that_is_replaced_while_it_waits_keeps_its_row_and_goes_to_the_end_of_the_queue(ledger: Ledger) -> None:
    first = drop(ledger, "a.csv")
    drop(ledger, "b.csv")
    assert drop(ledger, "a.csv", look(2), settled_at=200.0) == first
    delivery = current(ledger, first)
    assert (delivery.seq, delivery.fingerprint, delivery.settled_at) == (3, look(2), 200.0)
    assert [one.path for one in ledger.find("orders", b"a.csv")] == [b"a.csv"]
    assert claimed(ledger).path == b"b.csv"


def test_a_file_that_is_replaced_while_it_waits_for_a_retry_forgets_the_trouble_of_the_one_before(
    ledger: Ledger,
) -> None:
    id_ = drop(ledger, "a.csv")
    back(ledger, claimed(ledger), not_before=5000.0, failed_at=900.0, url=URL)
    drop(ledger, "a.csv", look(2))
    delivery = current(ledger, id_)
    assert (delivery.not_before, delivery.first_failed_at, delivery.presigned_url) == (0.0, 0.0, "")
    assert (delivery.reason, delivery.detail) == ("", "")


def test_a_file_that_is_replaced_when_it_may_have_arrived_leaves_a_row_that_says_so(ledger: Ledger) -> None:
    before = sent(ledger, "a.csv", "A")
    first = drop(ledger, "a.csv", look(2))
    back(ledger, claimed(ledger), reason="answer_lost", not_before=5000.0, failed_at=900.0, url=URL)
    second = drop(ledger, "a.csv", look(3), settled_at=300.0)
    assert second not in {0, first}
    lost, newer = current(ledger, first), current(ledger, second)
    assert (lost.state, lost.reason, lost.presigned_url, lost.finished_at) == (State.VANISHED, "answer_lost", "", 300.0)
    assert "arrived" in lost.detail
    assert (newer.state, newer.fingerprint, newer.previous_id) == (State.QUEUED, look(3), before)
    end(ledger, claimed(ledger), State.VANISHED, reason="answer_lost")
    third = drop(ledger, "a.csv", look(3))
    assert third not in {0, first, second}
    assert current(ledger, second).state is State.VANISHED
    assert claimed(ledger).id == third


def test_a_file_that_is_replaced_while_it_is_sent_is_another_delivery_and_the_first_goes_on(ledger: Ledger) -> None:
    first = drop(ledger, "a.csv")
    running = claimed(ledger)
    second = drop(ledger, "a.csv", look(2))
    assert second not in {0, first}
    succeed(ledger, running, "A")
    assert current(ledger, first).state is State.DONE
    assert claimed(ledger).id == second


def test_a_file_that_is_replaced_while_its_old_version_waits_in_quarantine_for_a_retry_is_another_delivery(
    ledger: Ledger,
) -> None:
    first = drop(ledger, "a.csv")
    running = claimed(ledger)
    end(ledger, running, State.FAILED)
    ledger.moved(running, b"/quarantine/a.csv")
    ledger.requeue([first])
    second = drop(ledger, "a.csv", look(2))
    assert second not in {0, first}
    assert (current(ledger, first).state, current(ledger, first).location) == (State.QUEUED, b"/quarantine/a.csv")


def test_a_file_that_returns_after_it_was_moved_away_is_news_even_if_it_looks_the_same(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A", dispose=True)
    ledger.disposed([Disposed(current(ledger, first), b"/archive/a.csv", False, 1001.0)])
    assert ledger.known("orders", [b"a.csv"])[b"a.csv"].is_news(look())
    assert drop(ledger, "a.csv") not in {0, first}


def test_the_same_path_in_another_folder_is_another_file(ledger: Ledger) -> None:
    assert drop(ledger, "a.csv") != drop(ledger, "a.csv", folder="invoices")
    assert list(ledger.known("invoices", [b"a.csv", b"b.csv"])) == [b"a.csv"]


# ---- queued → uploading → … --------------------------------------------------------------------------------------


def test_a_claim_counts_the_attempt_and_remembers_when(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    delivery = claimed(ledger, now=1234.5)
    assert delivery == current(ledger, id_)
    assert (delivery.state, delivery.attempts, delivery.claimed_at) == (State.UPLOADING, 1, 1234.5)


def test_a_delivery_that_is_given_back_waits_for_its_time_and_keeps_its_url(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    back(ledger, claimed(ledger), not_before=1500.0, failed_at=1000.0, url=URL)
    assert ledger.claim(now=1499.0) is None
    assert ledger.next_due(now=1499.0) == 1500.0
    again = claimed(ledger, now=1500.0)
    assert (again.attempts, again.reason, again.detail) == (2, "r", "d")
    assert (again.first_failed_at, again.presigned_url) == (1000.0, URL)
    assert ledger.next_due(now=1500.0) is None


def test_a_confirmed_delivery_whose_source_stays_is_done(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    delivery = claimed(ledger)
    ledger.remember_urls([(delivery, URL, look(ctime_ns=2))])
    assert current(ledger, id_).presigned_url == URL
    ledger.uploaded([Arrived(delivery, sha("A"), "etag", "verified", 1001.0, False)])
    done = current(ledger, id_)
    assert (done.state, done.outcome, done.reason, done.detail) == (State.DONE, Outcome.UPLOADED, "", "verified")
    assert (done.sha256, done.etag, done.uploaded_at, done.finished_at) == (sha("A"), "etag", 1001.0, 1001.0)
    assert done.presigned_url == ""


def test_a_confirmed_delivery_whose_source_is_moved_is_uploaded_first_and_done_after(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    succeed(ledger, claimed(ledger), "A", now=1000.0, dispose=True)
    uploaded = current(ledger, id_)
    assert (uploaded.state, uploaded.finished_at, uploaded.presigned_url) == (State.UPLOADED, 0.0, "")
    ledger.disposed([Disposed(uploaded, b"/archive/a.csv", False, 1002.0)])
    done = current(ledger, id_)
    assert (done.state, done.outcome, done.location, done.finished_at) == (
        State.DONE,
        Outcome.UPLOADED,
        b"/archive/a.csv",
        1002.0,
    )


def test_a_duplicate_is_done_and_names_the_first(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A")
    second = drop(ledger, "b.csv")
    ledger.duplicate(claimed(ledger), sha256=sha("A"), of=first, now=1005.0, dispose=False)
    done = current(ledger, second)
    assert (done.state, done.outcome, done.duplicate_of) == (State.DONE, Outcome.DUPLICATE, first)
    assert (done.uploaded_at, done.finished_at) == (0.0, 1005.0)


def test_a_duplicate_is_disposed_of_like_an_uploaded_one_and_still_says_why(ledger: Ledger) -> None:
    first = sent(ledger, "a.csv", "A")
    second = drop(ledger, "b.csv")
    ledger.duplicate(claimed(ledger), sha256=sha("A"), of=first, now=1005.0, dispose=True)
    assert current(ledger, second).state is State.UPLOADED
    ledger.disposed([Disposed(current(ledger, second), b"", False, 1006.0)])
    done = current(ledger, second)
    assert (done.state, done.outcome, done.reason) == (State.DONE, Outcome.DUPLICATE, "duplicate")


@pytest.mark.parametrize("to", [State.HELD, State.FAILED, State.VANISHED])
def test_a_claimed_delivery_can_end_without_success(to: State, ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    delivery = claimed(ledger)
    ledger.remember_urls([(delivery, URL, look())])
    end(ledger, delivery, to)
    ended = current(ledger, id_)
    assert (ended.state, ended.reason, ended.detail, ended.finished_at) == (to, "why", "long", 2000.0)
    assert (ended.presigned_url, ended.outcome) == ("", "")
    assert ledger.claim(now=1e12) is None


def test_a_failed_source_that_was_moved_to_quarantine_is_found_there(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    delivery = claimed(ledger)
    end(ledger, delivery, State.FAILED)
    ledger.moved(delivery, b"/quarantine/a.csv")
    assert current(ledger, id_).location == b"/quarantine/a.csv"
    assert not ledger.known("orders", [b"a.csv"])[b"a.csv"].kept


def test_a_failed_delivery_that_fails_again_is_still_where_it_was_put(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    delivery = claimed(ledger)
    end(ledger, delivery, State.FAILED)
    ledger.moved(delivery, b"/quarantine/a.csv")
    ledger.requeue([id_])
    again = claimed(ledger)
    assert again.location == b"/quarantine/a.csv"
    end(ledger, again, State.FAILED, location=again.location)
    assert current(ledger, id_).location == b"/quarantine/a.csv"


# ---- held, failed, vanished → queued -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_an_operator_queues_what_was_held_or_failed_again(state: State, ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    end(ledger, claimed(ledger), state)
    assert ledger.requeue([id_, 4711]) == 1
    delivery = current(ledger, id_)
    assert (delivery.state, delivery.reason, delivery.detail) == (State.QUEUED, "retry", "")
    assert (delivery.first_failed_at, delivery.finished_at, delivery.recoveries) == (0.0, 0.0, 0)
    assert claimed(ledger).id == id_


@pytest.mark.parametrize("state", [State.QUEUED, State.UPLOADING, State.UPLOADED, State.DONE, State.VANISHED])
def test_an_operator_cannot_queue_anything_else_again(state: State, ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    if state is not State.QUEUED:
        delivery = claimed(ledger)
        if state in {State.UPLOADED, State.DONE}:
            succeed(ledger, delivery, "A", dispose=state is State.UPLOADED)
        elif state is State.VANISHED:
            end(ledger, delivery, state)
    assert current(ledger, id_).state is state
    assert ledger.requeue([id_]) == 0
    assert current(ledger, id_).state is state


def test_a_file_that_had_vanished_is_queued_again_when_it_returns(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    end(ledger, claimed(ledger), State.VANISHED)
    assert drop(ledger, "a.csv") == id_
    assert current(ledger, id_).state is State.QUEUED


def test_a_new_version_of_a_held_file_supersedes_it(ledger: Ledger) -> None:
    first = drop(ledger, "a.csv")
    end(ledger, claimed(ledger), State.HELD)
    second = drop(ledger, "a.csv", look(2), settled_at=300.0)
    held = current(ledger, first)
    assert (held.state, held.outcome, held.finished_at) == (State.DONE, Outcome.SUPERSEDED, 300.0)
    assert current(ledger, second).previous_id == first


def test_a_new_version_of_a_failed_file_leaves_the_failed_one_to_people(ledger: Ledger) -> None:
    first = drop(ledger, "a.csv")
    end(ledger, claimed(ledger), State.FAILED)
    second = drop(ledger, "a.csv", look(2))
    assert current(ledger, first).state is State.FAILED
    assert claimed(ledger).id == second


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_a_file_that_was_held_or_failed_is_no_news_while_it_stays_as_it_is(state: State, ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    end(ledger, claimed(ledger), state)
    assert drop(ledger, "a.csv") == 0


# ---- uploaded → done: disposal -------------------------------------------------------------------------------------


def test_whoever_uploads_has_a_minute_to_dispose_before_another_may(ledger: Ledger) -> None:
    id_ = sent(ledger, "a.csv", "A", now=1000.0, dispose=True)
    assert ledger.claim_disposal(now=1000.0 + DISPOSAL_LEASE_SECONDS - 1) is None
    taken = ledger.claim_disposal(now=1000.0 + DISPOSAL_LEASE_SECONDS)
    assert taken is not None
    assert taken.id == id_
    assert ledger.claim_disposal(now=1000.0 + DISPOSAL_LEASE_SECONDS) is None


def test_a_disposal_that_does_not_work_is_tried_again_later_and_the_upload_stays(ledger: Ledger) -> None:
    id_ = sent(ledger, "a.csv", "A", dispose=True)
    ledger.dispose_later(current(ledger, id_), reason="dispose", detail="read-only", not_before=5000.0)
    waiting = current(ledger, id_)
    assert (waiting.state, waiting.outcome, waiting.reason) == (State.UPLOADED, Outcome.UPLOADED, "dispose")
    assert ledger.claim_disposal(now=4999.0) is None
    assert ledger.next_due(now=4999.0) == 5000.0
    taken = ledger.claim_disposal(now=5000.0)
    assert taken is not None
    ledger.disposed([Disposed(taken, b"", False, 5001.0)])
    assert (current(ledger, id_).reason, current(ledger, id_).detail) == ("", "")


def test_a_second_disposal_of_the_same_delivery_is_refused(ledger: Ledger) -> None:
    uploaded = current(ledger, sent(ledger, "a.csv", "A", dispose=True))
    ledger.disposed([Disposed(uploaded, b"/archive/a.csv", False, 1001.0)])
    with pytest.raises(StaleClaim):
        ledger.disposed([Disposed(uploaded, b"", False, 1002.0)])
    assert current(ledger, uploaded.id).location == b"/archive/a.csv"


# ---- compare and set -----------------------------------------------------------------------------------------------

CLAIMED_STEPS: dict[str, Callable[[Ledger, Delivery], object]] = {
    "uploaded": lambda ledger, delivery: succeed(ledger, delivery, "A"),
    "duplicate": lambda ledger, d: ledger.duplicate(d, sha256=sha("A"), of=1, now=1.0, dispose=False),
    "unchanged": lambda ledger, delivery: ledger.unchanged(delivery),
    "given back": back,
    "held": lambda ledger, delivery: end(ledger, delivery, State.HELD),
    "failed": lambda ledger, delivery: end(ledger, delivery, State.FAILED),
    "vanished": lambda ledger, delivery: end(ledger, delivery, State.VANISHED),
    "url": lambda ledger, delivery: ledger.remember_urls([(delivery, URL, look())]),
}


@pytest.mark.parametrize("step", CLAIMED_STEPS)
def test_a_claim_that_was_given_back_since_can_do_nothing_more(step: str, ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    stale = claimed(ledger)
    back(ledger, stale)
    queued = current(ledger, id_)
    with pytest.raises(StaleClaim):
        CLAIMED_STEPS[step](ledger, stale)
    assert current(ledger, id_) == queued


@pytest.mark.parametrize("step", CLAIMED_STEPS)
def test_a_claim_that_somebody_else_has_by_now_can_do_nothing_more(step: str, ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    stale = claimed(ledger)
    back(ledger, stale)
    newer = claimed(ledger)
    with pytest.raises(StaleClaim, match=f"delivery {id_} is no longer uploading"):
        CLAIMED_STEPS[step](ledger, stale)
    assert current(ledger, id_) == newer
    succeed(ledger, newer, "A")


def test_a_stale_claim_is_a_ledger_error_with_a_reason_of_its_own() -> None:
    assert issubclass(StaleClaim, LedgerError)
    assert StaleClaim.reason == "stale_claim"


# ---- recovery --------------------------------------------------------------------------------------------------------


def test_what_was_under_way_when_the_process_ended_is_queued_again(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    claimed(ledger)
    assert ledger.recover() == 1
    delivery = current(ledger, id_)
    assert (delivery.state, delivery.reason, delivery.recoveries) == (State.QUEUED, "interrupted", 1)
    assert ledger.recover() == 0


def test_a_remembered_url_survives_a_crash_because_the_bytes_may_have_arrived(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    ledger.remember_urls([(claimed(ledger), URL, look())])
    ledger.recover()
    assert (current(ledger, id_).reason, current(ledger, id_).presigned_url) == ("answer_lost", URL)


def test_a_file_that_was_under_way_too_often_when_the_process_died_is_held_for_a_person(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    for recovery in range(1, MAX_RECOVERIES + 1):
        assert current(ledger, id_).state is State.QUEUED, recovery
        ledger.remember_urls([(claimed(ledger), URL, look())])
        assert ledger.recover() == 1
    held = current(ledger, id_)
    assert (held.state, held.reason, held.presigned_url) == (State.HELD, "crash_loop", "")
    assert str(MAX_RECOVERIES) in held.detail
    ledger.requeue([id_])
    assert current(ledger, id_).recoveries == 0


def test_a_disposal_that_was_under_way_may_be_repeated_at_once_after_a_crash(ledger: Ledger) -> None:
    id_ = sent(ledger, "a.csv", "A", now=1000.0, dispose=True)
    ledger.recover()
    taken = ledger.claim_disposal(now=1000.0)
    assert taken is not None
    assert taken.id == id_


def test_what_was_not_under_way_is_left_alone_by_a_recovery(ledger: Ledger) -> None:
    done = sent(ledger, "done", "A")
    queued = drop(ledger, "queued")
    before = [current(ledger, done), current(ledger, queued)]
    assert ledger.recover() == 0
    assert [current(ledger, done), current(ledger, queued)] == before
