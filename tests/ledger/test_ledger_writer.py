"""Group commits: those that wait share one, one that fails fails alone, and trouble passes."""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from pmwatch.errors import LedgerError
from pmwatch.ledger import Ledger, StaleClaim, writer
from pmwatch.ledger.writer import Writer
from pmwatch.model import Dedup, State
from support.ledgers import back, claimed, current, drop, opened, settled, sha, succeed

PATIENCE_SECONDS = 60.0


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path) as ledger:
        yield ledger


def writer_of(ledger: Ledger) -> Writer:
    assert ledger._writer is not None
    return ledger._writer


class Announced(deque[Any]):
    """The writer's queue, telling of every operation that is waiting in it."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Semaphore(0)

    def append(self, operation: Any) -> None:
        super().append(operation)
        self.arrived.release()


def together(ledger: Ledger, *works: Callable[[], object]) -> list[object]:
    """Run calls of the ledger in threads so that all wait for one commit; return their results or errors."""
    one = writer_of(ledger)
    waiting = one._waiting = Announced()
    results: list[object] = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001  the caller compares it
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(works))]
    with one._lock:
        for thread in threads:
            thread.start()
            assert waiting.arrived.acquire(timeout=PATIENCE_SECONDS)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    return results


def commits_of(ledger: Ledger) -> list[Connection]:
    seen: list[Connection] = []
    event.listen(ledger._writing, "commit", seen.append)
    return seen


def test_operations_that_wait_share_one_commit(ledger: Ledger) -> None:
    commits = commits_of(ledger)
    ids = together(ledger, *(lambda i=i: drop(ledger, f"{i}.csv") for i in range(8)))
    assert sorted(ids, key=str) == list(range(1, 9))
    assert len(commits) == 1
    assert ledger.total(State.QUEUED) == 8


FULL, NORMAL = 2, 1  # https://www.sqlite.org/pragma.html#pragma_synchronous


def syncs_of(ledger: Ledger) -> list[int]:
    seen: list[int] = []

    def on_commit(c: Connection) -> None:
        raw = c.connection.driver_connection
        assert raw is not None
        seen.append(raw.execute("PRAGMA synchronous").fetchone()[0])

    event.listen(ledger._writing, "commit", on_commit)
    return seen


def test_what_others_rely_on_is_on_the_disk_and_what_may_be_repeated_need_not_be(ledger: Ledger) -> None:
    syncs = syncs_of(ledger)
    drop(ledger, "a.csv")
    delivery = claimed(ledger)
    ledger.decide([(delivery, sha("A"), Dedup.CONTENT)])
    assert set(syncs) == {NORMAL}
    syncs.clear()
    ledger.remember_urls([(delivery, "https://storage.example/x", delivery.fingerprint)])
    succeed(ledger, delivery, "A", dispose=True)
    assert set(syncs) == {FULL}
    syncs.clear()
    assert ledger.claim_disposal(now=2000.0) is not None
    assert syncs == [NORMAL]


def test_a_commit_that_one_of_those_that_share_it_needs_on_the_disk_goes_there(ledger: Ledger) -> None:
    drop(ledger, "a.csv")
    delivery = claimed(ledger)
    syncs = syncs_of(ledger)
    together(ledger, lambda: drop(ledger, "b.csv"), lambda: succeed(ledger, delivery, "A"))
    assert syncs == [FULL]


def test_one_that_fails_does_not_fail_the_others_and_leaves_nothing(ledger: Ledger) -> None:
    drop(ledger, "stale.csv")
    stale = claimed(ledger)
    back(ledger, stale)

    def half_done(c: Connection) -> None:
        c.execute(text("UPDATE counts SET n = 4711"))
        raise ZeroDivisionError

    def broken(c: Connection) -> None:
        c.execute(text("INSERT INTO deliveries (id) VALUES (99)"))

    commits = commits_of(ledger)
    results = together(
        ledger,
        lambda: drop(ledger, "one.csv"),
        lambda: succeed(ledger, stale, "A"),
        lambda: ledger._write(half_done),
        lambda: ledger._write(broken),
        lambda: drop(ledger, "two.csv"),
    )
    assert [type(result) for result in results] == [int, StaleClaim, ZeroDivisionError, LedgerError, int]
    assert len(commits) == 1
    assert ledger.counts()["orders", "queued"] == 3
    assert set(ledger.paths("orders")) == {b"stale.csv", b"one.csv", b"two.csv"}
    assert ledger.get(99) is None


def test_an_operation_that_fails_alone_leaves_nothing(ledger: Ledger) -> None:
    def half_done(c: Connection) -> None:
        c.execute(text("INSERT INTO counts VALUES ('x', 'y', 1)"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger._write(half_done)
    assert ledger.counts() == {}
    assert drop(ledger, "a.csv") == 1


def test_when_a_whole_commit_is_broken_off_nobody_believes_that_he_wrote(ledger: Ledger) -> None:
    def interrupted(_c: Connection) -> None:
        raise KeyboardInterrupt

    results = together(ledger, lambda: drop(ledger, "a.csv"), lambda: ledger._write(interrupted))
    assert [type(result) for result in results] == [KeyboardInterrupt, KeyboardInterrupt]
    assert ledger.counts() == {}
    assert drop(ledger, "b.csv") == 1


def test_a_full_disk_is_told_with_a_hint_and_work_goes_on_once_there_is_space(ledger: Ledger) -> None:
    one = writer_of(ledger)

    def limit_pages(count: str) -> None:
        one._connection.exec_driver_sql(f"PRAGMA max_page_count = {count}")
        one._connection.rollback()

    pages = one._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    one._connection.rollback()
    limit_pages(str(pages))
    with pytest.raises(LedgerError, match="full") as caught:
        ledger.enqueue([settled(f"{i}-{'x' * 200}") for i in range(200)])
    assert "free some space" in caught.value.hint
    results = together(
        ledger,
        lambda: ledger.enqueue([settled(f"{i}-{'y' * 200}") for i in range(200)]),
        lambda: ledger.enqueue([settled(f"{i}-{'z' * 200}") for i in range(200)]),
    )
    assert [type(result) for result in results] == [LedgerError, LedgerError]
    assert list(ledger.paths("orders")) == []
    limit_pages("1000000")
    assert drop(ledger, "a.csv") == 1
    ledger.check()


def test_a_ledger_that_another_program_holds_is_told_and_work_goes_on_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = tuple(pragma for pragma in writer._PRAGMAS if "busy_timeout" not in pragma)
    monkeypatch.setattr(writer, "_PRAGMAS", (*quick, "PRAGMA busy_timeout = 1"))
    with opened(tmp_path) as ledger, closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked") as caught:
            drop(ledger, "a.csv")
        assert "Another program" in caught.value.hint
        assert ledger.counts() == {}  # who only reads is not disturbed
        other.execute("ROLLBACK")
        assert drop(ledger, "a.csv") == 1


def test_who_reads_is_not_disturbed_by_who_writes(ledger: Ledger) -> None:
    id_ = drop(ledger, "a.csv")
    seen: list[object] = []

    def work(c: Connection) -> None:
        c.execute(text("UPDATE deliveries SET reason = 'half'"))
        seen.append(current(ledger, id_).reason)

    ledger._write(work)
    assert seen == [""]
    assert current(ledger, id_).reason == "half"


def test_an_error_holds_no_statement_and_no_values(ledger: Ledger) -> None:
    def broken(c: Connection) -> None:
        c.execute(text("INSERT INTO counts VALUES (NULL, :secret, 1)"), {"secret": "canary"})

    with pytest.raises(LedgerError) as caught:
        ledger._write(broken)
    assert "canary" not in str(caught.value)
    assert "INSERT" not in str(caught.value)
    assert caught.value.__suppress_context__
