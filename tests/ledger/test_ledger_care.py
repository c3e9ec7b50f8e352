"""Backups, what may be forgotten, and what a rebuilt ledger is filled with."""

import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from pmwatch.errors import LedgerError
from pmwatch.ledger import Action, Disposed, Ledger
from pmwatch.ledger.care import RESTORED
from pmwatch.ledger.people import ranges
from pmwatch.model import Delivery, Order, State
from support.ledgers import back, claimed, current, drop, look, opened, sent, succeed

SECRET = "https://bucket.s3.amazonaws.com/x?X-Amz-Signature=0123456789abcdef"
BY = Action(500.0, "ann", "resend", "because")


def backup_of(ledger: Ledger, directory: Path) -> Path:
    target = directory / "backup.db"
    ledger.backup(str(target))
    return target


def test_a_backup_holds_every_row_and_no_presigned_url_not_even_in_free_pages(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for number in range(50):
            drop(ledger, f"{number}.csv")
        run = ledger.claim_run(now=1000.0, at_most=20, small=100)
        ledger.remember_urls([(one, f"{SECRET}{one.id}", one.fingerprint) for one in run])
        target = backup_of(ledger, tmp_path)
        assert SECRET.encode() not in target.read_bytes()
        assert current(ledger, run[0].id).presigned_url, "the ledger itself keeps it"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir() if "backup" in path.name) == ["backup.db"]
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT count(*), max(presigned_url) FROM deliveries").fetchone() == (50, "")


def test_a_backup_taken_while_others_write_is_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                drop(ledger, f"{number}.csv")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(5):
                ledger.backup(str(tmp_path / f"backup-{number}.db"))
        finally:
            stop.set()
            writer.join()
    rows = []
    for number in range(5):
        with closing(sqlite3.connect(tmp_path / f"backup-{number}.db")) as copy:
            [(total, counted)] = copy.execute("SELECT count(*), (SELECT sum(n) FROM counts) FROM deliveries").fetchall()
            assert total == (counted or 0)
            rows.append(total)
    assert rows == sorted(rows)


def test_a_backup_never_takes_the_place_of_another_file_and_a_bad_place_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        target = backup_of(ledger, tmp_path)
        before = target.read_bytes()
        with pytest.raises(LedgerError, match="is there already"):
            ledger.backup(str(target))
        assert target.read_bytes() == before
        with pytest.raises(LedgerError, match="No such file or directory"):
            ledger.backup(str(tmp_path / "none" / "backup.db"))


def test_what_waited_when_a_backup_was_made_is_held_and_what_had_ended_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        done = sent(ledger, "done.csv", "content")
        waiting, under_way = drop(ledger, "a.csv"), drop(ledger, "b.csv")
        assert claimed(ledger).id == waiting
        assert ledger.hold_unsure() == 2
        assert [(current(ledger, id_).state, current(ledger, id_).reason) for id_ in (waiting, under_way)] == [
            (State.HELD, RESTORED)
        ] * 2
        assert current(ledger, done).state is State.DONE
        assert ledger.counts()["orders", "held"] == 2


def test_what_ended_is_offered_by_id_and_the_last_upload_of_a_datatable_is_known(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ids = [sent(ledger, f"{number}.csv", str(number), now=1000.0 + number) for number in range(3)]
        assert [one.id for one in ledger.ended_before(5000.0)] == ids
        assert [one.id for one in ledger.ended_before(1001.0)] == ids[:1], "only what ended before"
        assert ledger.ended_before(5000.0, after_id=ids[2]) == []
        assert ledger.last_uploads() == {ids[2]}


def test_forgetting_keeps_the_counts_right_and_spares_what_happened_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ids = [sent(ledger, f"{number}.csv", str(number), now=1000.0 + number) for number in range(3)]
        old = ledger.ended_before(1002.0)
        assert ledger.forget(old) == 2
        assert ledger.forget(old) == 0
        assert ledger.counts()["orders", "done"] == 1
        assert ledger.get(ids[0]) is None
        assert drop(ledger, "0.csv") > ids[2], "a forgotten path is new again"


def archive_all(ledger: Ledger, ids: list[int]) -> None:
    disposed = [Disposed(current(ledger, id_), b"/archive/%d" % id_, kept=False, at=1001.0) for id_ in ids]
    ledger.disposed(disposed)


def test_what_was_archived_is_walked_through_page_by_page_also_where_all_settled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmwatch.ledger.care._BATCH", 2)
    with opened(tmp_path) as ledger:
        ids = [sent(ledger, f"{number}.csv", str(number), now=1000.0, dispose=True) for number in range(5)]
        archive_all(ledger, ids)
        assert list(ledger.archived("orders")) == [b"/archive/%d" % id_ for id_ in ids]
        assert list(ledger.archived("other")) == []
        pages: list[list[int]] = []
        after = None
        while found := ledger.archived_before("orders", 5000.0, after=after):
            pages.append([one.id for one in found])
            after = found[-1]
        assert pages == [ids[:2], ids[2:4], ids[4:]]


def test_no_walk_through_the_whole_ledger_sorts_it_again_for_each_page(tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked[statement] = parameters

    with opened(tmp_path) as ledger:
        event.listen(Engine, "before_cursor_execute", note)
        try:
            ledger.ended_before(5000.0)
            ledger.archived_before("orders", 5000.0)
            list(ledger.archived("orders"))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    asked = {statement: parameters for statement, parameters in asked.items() if "ORDER BY" in statement}
    assert len(asked) == 3
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        for statement, parameters in asked.items():
            plan = " ".join(str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))
            assert "SEARCH deliveries USING" in plan, plan
            assert "TEMP B-TREE" not in plan, plan


def test_an_archived_source_of_which_a_repetition_waits_is_not_offered_for_removal(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ids = [sent(ledger, f"{name}.csv", name, now=1000.0, dispose=True) for name in "ab"]
        archive_all(ledger, ids)
        assert [one.id for one in ledger.archived_before("orders", 5000.0)] == ids
        assert ledger.archived_before("orders", 500.0) == []
        ledger.resend(ids[:1], order_of=lambda _: Order.ARRIVAL, by=BY)
        assert [one.id for one in ledger.archived_before("orders", 5000.0)] == ids[1:]
        assert list(ledger.archived("orders")) == [b"/archive/%d" % ids[1]]
        ledger.removed_from_archive([current(ledger, ids[1])])
        assert current(ledger, ids[1]).location == b""
        assert set(ledger.locations([b"/archive/%d" % id_ for id_ in ids])) == {b"/archive/%d" % ids[0]}


def test_a_repetition_goes_before_what_waits_in_the_asked_order_with_its_own_content_expected(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        first = [sent(ledger, f"{name}.csv", name, now=1000.0 + number) for number, name in enumerate("bac")]
        later = drop(ledger, "0.csv", order=Order.NAME)
        assert [one.id for one in ledger.uploads("orders", since=1000.5, until=2000.0)] == first[1:]
        again = ledger.resend(first, order_of=lambda _: Order.NAME, by=BY)
        order = []
        while (one := ledger.claim(now=3000.0)) is not None:
            order.append(one)
            ledger.end(one, State.FAILED, reason="r", detail="", now=3000.0)
        assert [one.id for one in order] == [*again, later]
        assert [one.duplicate_of for one in order] == [*first, 0]
        assert [one.expected_sha256 for one in order[:3]] == [current(ledger, id_).sha256 for id_ in first]
        assert ledger.uploads("orders", since=0.0, until=9999.0) == [current(ledger, id_) for id_ in first]


def test_a_repetition_is_entered_once_and_only_of_what_is_there_and_done(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        done = sent(ledger, "a.csv", "a")
        replaced = sent(ledger, "b.csv", "b")
        drop(ledger, "b.csv", look(mtime_ns=9))
        waiting = drop(ledger, "c.csv")
        asked = [done, replaced, waiting, 999]
        [again] = ledger.resend(asked, order_of=lambda _: Order.ARRIVAL, by=BY)
        assert current(ledger, again).duplicate_of == done
        assert ledger.resend(asked, order_of=lambda _: Order.ARRIVAL, by=BY) == []
        assert [(one.who, one.why, one.deliveries) for one in ledger.actions()] == [
            ("ann", "because", ""),
            ("ann", "because", str(again)),
        ]
        assert drop(ledger, "a.csv") == 0, "the file itself is no news"


def test_what_people_do_is_kept_with_the_deliveries_that_it_changed(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ids = [drop(ledger, f"{number}.csv") for number in range(4)]
        for _ in ids[:3]:
            ledger.end(claimed(ledger), State.HELD, reason="r", detail="", now=1.0)
        assert ledger.requeue([ids[0], ids[1], ids[3]], by=Action(7.0, "bob", "retry")) == 2
        assert ledger.discard([ids[2]], now=8.0, by=Action(8.0, "bob", "discard", "no")) == 1
        assert ledger.discard([ids[2]], now=9.0, by=Action(9.0, "bob", "discard")) == 0
        assert [(one.command, one.deliveries) for one in ledger.actions()] == [
            ("discard", str(ids[2])),
            ("retry", ranges(ids[:2])),
        ]


def test_a_waiting_delivery_can_be_given_up_and_lets_the_next_one_go(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        first, second = drop(ledger, "a.csv"), drop(ledger, "b.csv")
        one = claimed(ledger)
        ledger.give_back(one, reason="r", detail="", not_before=9e9, failed_at=1.0, url=SECRET)
        assert ledger.claim(now=2000.0) is None
        assert ledger.discard([first], now=2000.0) == 1
        assert current(ledger, first).presigned_url == ""
        assert claimed(ledger, now=2000.0).id == second


@pytest.mark.parametrize(
    ("ids", "shown"), [([], ""), ([4], "4"), ([4, 2, 3], "2-4"), ([1, 2, 4, 5, 9, 9], "1-2,4-5,9")]
)
def test_ids_are_written_in_short(ids: list[int], shown: str) -> None:
    assert ranges(ids) == shown


# ---- a clock that was set back ---------------------------------------------------------------------------------------


def test_what_waits_for_a_time_that_no_wait_reaches_is_due(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        near = drop(ledger, "near.csv", order=Order.NONE)
        back(ledger, claimed(ledger), not_before=1300.0)
        far = drop(ledger, "far.csv", order=Order.NONE)
        back(ledger, claimed(ledger), not_before=1300.5)
        succeed(ledger, claim_of(ledger, drop(ledger, "moved.csv", order=Order.NONE)), "A", now=90_000.0, dispose=True)
        assert ledger.claim_disposal(now=1000.0) is None
        bad = claim_of(ledger, drop(ledger, "bad.csv", order=Order.NONE))
        ledger.end(bad, State.FAILED, reason="invalid", detail="", now=90_000.0, to_quarantine=True)
        assert ledger.bring_near(now=1000.0, longest=300.0) == 3
        assert current(ledger, bad.id).not_before == 1000.0
        assert (current(ledger, near).not_before, current(ledger, far).not_before) == (1300.0, 1000.0)
        assert ledger.claim_disposal(now=1000.0) is not None
        assert claimed(ledger).id == far
        assert ledger.bring_near(now=1000.0, longest=1.0) == 1, "near.csv; a disposal keeps its lease"


def test_looking_for_such_waits_is_cheap(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger, closing(sqlite3.connect(ledger.path)) as raw:
        asked = list[tuple[str, Any]]()

        def executed(_c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            asked.append((statement, values))

        event.listen(Engine, "before_cursor_execute", executed)
        try:
            ledger.bring_near(now=1000.0, longest=300.0)
        finally:
            event.remove(Engine, "before_cursor_execute", executed)
        [(query, values)] = [one for one in asked if one[0] != "BEGIN"]
        [step] = raw.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
        assert "COVERING INDEX ix_state (state=? AND not_before>?)" in step[3]


def claim_of(ledger: Ledger, id_: int) -> Delivery:
    delivery = claimed(ledger)
    assert delivery.id == id_
    return delivery
