"""What people decide: held entries, release, discard, what has overtaken a file, and ledgers from before that."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pmwatch.ledger import Ledger
from pmwatch.ledger.schema import MIGRATIONS, VERSION
from pmwatch.model import Order, Outcome, State, Target
from support.ledgers import claimed, current, drop, look, opened, sent, succeed

OTHER = Target("acme", "other")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path, OTHER) as made:
        yield made


def held(ledger: Ledger, path: str, *, state: State = State.HELD, size: int = 10) -> int:
    """Enter a file and let a guard refuse it."""
    id_ = drop(ledger, path, look(size=size))
    delivery = claimed(ledger)
    assert delivery.id == id_
    ledger.end(delivery, state, reason="too_small", detail="d", now=5.0)
    return id_


# ---- from before ----------------------------------------------------------------------------------------------------


def test_the_rows_of_the_first_version_are_kept(tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    row = {
        **dict.fromkeys(("tenant", "tenant_id"), "acme"),
        **dict.fromkeys(("dataset", "dataset_id", "outcome", "detail", "sha256", "etag", "presigned_url"), ""),
        **dict.fromkeys(("datatable", "datatable_id"), "table-1"),
        **dict.fromkeys(("mtime_ns", "ctime_ns", "inode", "device"), 1),
        **dict.fromkeys(("attempts", "recoveries", "duplicate_of", "previous_id"), 0),
        **dict.fromkeys(("not_before", "claimed_at", "first_failed_at", "uploaded_at", "finished_at"), 0.0),
        "folder": "orders",
        "current": 1,
        "lane": "acme/table-1",
        "seen_at": 1.0,
        "settled_at": 2.0,
        "size": 10,
        "inflight_sha256": None,
        "kept": 1,
        "location": b"",
    }
    rows = [row | {"id": id_, "seq": id_, "path": b"%d.csv" % id_} for id_ in (1, 2)]
    rows[0] |= {"state": "queued", "reason": ""}
    rows[1] |= {"state": "held", "reason": "crash_loop"}
    with closing(sqlite3.connect(older / "ledger.db")) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        for values in rows:
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(f"INSERT INTO deliveries ({names}) VALUES ({marks})", values)
        connection.execute("INSERT INTO lanes VALUES ('acme/table-1', 1, 0)")
        connection.executemany("INSERT INTO counts VALUES ('orders', ?, 1)", [("queued",), ("held",)])
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    assert VERSION >= 2
    with opened(older) as ledger:
        assert [(one.id, one.state, one.released, one.expected_sha256) for one in reversed(ledger.list())] == [
            (1, State.QUEUED, False, ""),
            (2, State.HELD, False, ""),
        ]
        assert claimed(ledger).id == 1
        assert ledger.requeue([2], release=True) == 1
        assert current(ledger, 2).released
        assert ledger.counts()["orders", "queued"] == 1


# ---- entered as held ------------------------------------------------------------------------------------------------


def test_a_held_entry_waits_for_a_person_and_is_no_news_again(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv", held="backlog", expected_sha256="ab")
    delivery = current(ledger, id_)
    assert (delivery.state, delivery.reason, delivery.expected_sha256) == (State.HELD, "backlog", "ab")
    assert delivery.finished_at == delivery.settled_at
    assert ledger.counts() == {("orders", "held"): 1}
    assert ledger.claim(now=1e9) is None
    assert drop(ledger, "a.csv", held="backlog") == 0
    assert drop(ledger, "a.csv") == 0


def test_a_held_entry_blocks_nobody(ledger: Ledger) -> None:
    drop(ledger, "a.csv", held="backlog")
    second = drop(ledger, "b.csv")
    assert claimed(ledger).id == second


def test_what_a_manifest_says_stays_with_the_version_it_was_said_of(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv", expected_sha256="ab")
    assert claimed(ledger).expected_sha256 == "ab"
    ledger.put_back([current(ledger, id_)], reason="r")
    assert current(ledger, id_).expected_sha256 == "ab"
    assert drop(ledger, "a.csv", look(2)) == id_
    assert current(ledger, id_).expected_sha256 == ""


def test_a_vanished_file_that_returns_as_held_is_held(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    ledger.end(claimed(ledger), State.VANISHED, reason="vanished", detail="", now=5.0)
    assert drop(ledger, "a.csv", look(2), held="backlog") == id_
    assert current(ledger, id_).state is State.HELD
    assert ledger.counts() == {("orders", "queued"): 0, ("orders", "uploading"): 0} | {
        ("orders", "vanished"): 0,
        ("orders", "held"): 1,
    }


def test_a_new_version_takes_the_place_of_a_held_one(ledger: Ledger) -> None:
    first = held(ledger, "a.csv")
    second = drop(ledger, "a.csv", look(2))
    assert (current(ledger, first).state, current(ledger, first).outcome) == (State.DONE, Outcome.SUPERSEDED)
    assert claimed(ledger).id == second
    assert ledger.requeue([first], release=True) == 0
    assert ledger.discard([first], now=6.0) == 0


# ---- release and discard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_release_is_remembered_over_a_retry_and_forgotten_with_a_new_version(ledger: Ledger, state: State) -> None:
    id_ = held(ledger, "a.csv", state=state)
    assert ledger.requeue([id_], release=True) == 1
    assert (current(ledger, id_).state, current(ledger, id_).reason) == (State.QUEUED, "released")
    delivery = claimed(ledger)
    assert delivery.released
    ledger.end(delivery, State.FAILED, reason="rejected", detail="", now=6.0)
    assert ledger.requeue([id_]) == 1
    assert current(ledger, id_).released
    drop(ledger, "a.csv", look(2))
    assert not current(ledger, id_).released


def test_a_retry_is_no_release(ledger: Ledger) -> None:
    id_ = held(ledger, "a.csv")
    ledger.requeue([id_])
    assert not claimed(ledger).released


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_discard_is_an_end(ledger: Ledger, state: State) -> None:
    id_ = held(ledger, "a.csv", state=state)
    assert ledger.discard([id_, 99], now=7.0) == 1
    delivery = current(ledger, id_)
    assert (delivery.state, delivery.outcome, delivery.reason) == (State.DONE, Outcome.DISCARDED, "discarded")
    assert (delivery.finished_at, delivery.uploaded_at) == (7.0, 0.0)
    assert ledger.discard([id_], now=8.0) == 0
    assert ledger.requeue([id_], release=True) == 0
    assert drop(ledger, "a.csv") == 0
    assert drop(ledger, "a.csv", look(2)) != 0
    assert ledger.counts()[("orders", "done")] == 1


def test_neither_touches_what_waits_or_is_done(ledger: Ledger) -> None:
    done = sent(ledger, "a.csv", "a")
    waits = drop(ledger, "b.csv")
    under_way = claimed(ledger).id
    assert waits == under_way
    for ids in ([done], [waits], [99]):
        assert ledger.discard(ids, now=1.0) == 0
        assert ledger.requeue(ids, release=True) == 0


def test_what_was_discarded_never_counts_as_uploaded(ledger: Ledger) -> None:
    id_ = held(ledger, "a.csv", size=1000)
    ledger.discard([id_], now=7.0)
    drop(ledger, "b.csv", look(size=1))
    assert ledger.last_size(claimed(ledger)) is None


# ---- overtaken, and the last size -----------------------------------------------------------------------------------


def newer(ledger: Ledger, id_: int) -> str:
    found = ledger.overtaken(id_)
    return found.display_path if found is not None else ""


def test_the_newest_that_went_after_a_held_one_has_overtaken_it(ledger: Ledger) -> None:
    before = sent(ledger, "before.csv", "0")
    id_ = held(ledger, "a.csv")
    assert newer(ledger, id_) == ""
    waits = drop(ledger, "waits.csv")
    assert newer(ledger, id_) == ""
    succeed(ledger, claimed(ledger), "1")
    sent(ledger, "newest.csv", "2")
    assert newer(ledger, id_) == "newest.csv"
    assert newer(ledger, before) == newer(ledger, waits) == "newest.csv"
    assert newer(ledger, 99) == ""


def test_other_datatables_overtake_nothing(ledger: Ledger) -> None:
    id_ = held(ledger, "a.csv")
    drop(ledger, "b.csv", target=OTHER)
    succeed(ledger, claimed(ledger), "1")
    assert newer(ledger, id_) == ""


def test_what_was_discarded_or_failed_overtakes_nothing(ledger: Ledger) -> None:
    id_ = held(ledger, "a.csv")
    ledger.discard([held(ledger, "b.csv")], now=7.0)
    held(ledger, "c.csv", state=State.FAILED)
    assert newer(ledger, id_) == ""


def test_the_last_size_is_of_the_same_folder_and_datatable(ledger: Ledger) -> None:
    drop(ledger, "a.csv", look(size=100))
    succeed(ledger, claimed(ledger), "1", now=10.0)
    drop(ledger, "b.csv", look(size=50), folder="other")
    succeed(ledger, claimed(ledger), "2", now=20.0)
    drop(ledger, "c.csv", look(size=70), target=OTHER)
    succeed(ledger, claimed(ledger), "3", now=30.0)
    drop(ledger, "d.csv", look(size=1), order=Order.NONE)
    delivery = claimed(ledger)
    assert ledger.last_size(delivery) == 100
    succeed(ledger, delivery, "4", now=40.0)
    drop(ledger, "e.csv", look(size=2))
    assert ledger.last_size(claimed(ledger)) == 1
