"""Ledgers of every version: an older one is migrated with nothing lost, a newer one is refused and left alone."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pmwatch.doctor import Level, check_ledger
from pmwatch.errors import LedgerError, LedgerNewer
from pmwatch.ledger import VERSION, Action, Ledger
from pmwatch.ledger.schema import metadata
from pmwatch.model import Destination, State, Target
from support.versions import DUMPS, OLDER, content, lay

ALL = range(1, VERSION + 1)
TARGET = Target("acme", "Orders", "Order to cash")
Row = dict[str, Any]


def rows(file: Path, table: str) -> list[Row]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")]


def tables(file: Path) -> set[str]:
    return {row["name"] for row in rows(file, "sqlite_master") if row["type"] == "table"}


def test_there_is_a_ledger_of_every_version_with_a_delivery_in_every_state(tmp_path: Path) -> None:
    assert sorted(int(path.stem) for path in DUMPS.glob("*.sql")) == list(ALL)
    for version in ALL:
        file = lay(tmp_path / str(version), version)
        assert {row["state"] for row in rows(file, "deliveries")} == {str(state) for state in State}


@pytest.mark.parametrize("version", ALL)
def test_a_migrated_ledger_has_every_row_with_every_value(version: int, tmp_path: Path) -> None:
    file = lay(tmp_path, version)
    before = {table: rows(file, table) for table in tables(file) - {"destinations"}}
    ledger = Ledger.open(str(tmp_path))
    assert ledger.version_found == version
    ledger.close()
    for table, old in before.items():
        new = rows(file, table)
        assert [{name: row[name] for name in old[0]} for row in new] == old, table
        assert set(new[0]) == set(metadata.tables[table].c.keys())
    assert tables(file) == set(metadata.tables)
    assert content(tmp_path).keys() == {"ledger.db"}


@pytest.mark.parametrize("version", ALL)
def test_a_migrated_ledger_goes_on_where_the_old_one_was(version: int, tmp_path: Path) -> None:
    lay(tmp_path, version)
    with closing(Ledger.open(str(tmp_path))) as ledger:
        ledger.check()
        assert ledger.recover() == 1
        by_path = {one.path: one for one in ledger.list()}
        lost = by_path[b"under way.csv"]
        assert (lost.state, lost.reason, bool(lost.presigned_url)) == (State.QUEUED, "answer_lost", True)
        assert by_path[b"sub/archived \xff.csv"].location.endswith(b"/archived.csv")
        ledger.forget_destinations()
        ledger.resolve(TARGET, Destination("tenant-1", "dataset-1", "table-1"))
        going = [one.path for _ in range(10) if (one := ledger.claim(now=1.8e9)) is not None]
        assert {b"under way.csv", b"lost answer.csv", b"again.csv", b"first.csv"} <= set(going)
        assert b"second.csv" not in going, "it waits for the first"
        assert b"unresolved.csv" not in going
        by = Action(1.0, "ann", "retry")
        assert ledger.requeue([by_path[b"failed.csv"].id, by_path[b"held.csv"].id], by=by) == 2
        assert ledger.actions()[0].command == "retry"
        total = sum(ledger.counts().values())
        assert total == len(ledger.list(limit=1000))
        assert ledger.total(State.QUEUED) == len(ledger.ids(State.QUEUED))


@pytest.mark.parametrize("version", OLDER)
@pytest.mark.parametrize("read_only", [False, True])
def test_only_who_holds_the_lock_migrates(version: int, read_only: bool, tmp_path: Path) -> None:  # noqa: FBT001
    lay(tmp_path, version)
    before = content(tmp_path)
    with pytest.raises(LedgerError, match=f"has version {version}, and this pmwatch works on version") as caught:
        Ledger.open(str(tmp_path), read_only=read_only, older_too=False)
    assert "pmwatch run" in caught.value.hint
    assert "pmwatch ledger backup" in caught.value.hint
    assert content(tmp_path) == before


@pytest.mark.parametrize("version", OLDER)
def test_a_backup_before_the_upgrade_is_of_the_old_version_whole_and_without_urls(version: int, tmp_path: Path) -> None:
    file = lay(tmp_path / "state", version)
    before = content(tmp_path / "state")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "ledger.db"
    with closing(Ledger.open(str(tmp_path / "state"), read_only=True, older_too=True)) as ledger:
        ledger.check()
        assert sum(ledger.counts().values()) == len(rows(file, "deliveries"))
        ledger.backup(str(copy))
    assert content(tmp_path / "state") == before
    assert b"X-Amz-Signature" not in copy.read_bytes()
    blanked = [{**row, "presigned_url": ""} for row in rows(file, "deliveries")]
    assert rows(copy, "deliveries") == blanked
    with closing(Ledger.open(str(tmp_path / "copy"))) as ledger:
        assert ledger.version_found == version
        assert len(ledger.list(limit=1000)) == len(blanked)


@pytest.mark.parametrize(
    "ways", [{}, {"read_only": True}, {"older_too": False}, {"read_only": True, "older_too": True}]
)
def test_a_newer_ledger_is_refused_in_every_way_and_not_touched(ways: dict[str, bool], tmp_path: Path) -> None:
    lay(tmp_path, VERSION + 1)
    before = content(tmp_path)
    with pytest.raises(LedgerNewer, match=f"has version {VERSION + 1}") as caught:
        Ledger.open(str(tmp_path), **ways)
    assert "pmwatch ledger rebuild --from" in caught.value.hint
    assert content(tmp_path) == before


def test_a_newer_ledger_whose_pmwatch_was_killed_is_not_touched_either(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    file = lay(tmp_path / "running", VERSION)
    with closing(sqlite3.connect(file)) as running:  # its version is in the WAL alone
        running.execute(f"PRAGMA user_version = {VERSION + 1}")
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(file.with_name(name), state / name)
    before = content(state)
    assert before["ledger.db-wal"]
    with pytest.raises(LedgerNewer):
        Ledger.open(str(state))
    assert content(state) == before


def test_the_doctor_says_what_the_next_start_does_to_the_ledger(tmp_path: Path) -> None:
    assert list(check_ledger(str(tmp_path / "absent"))) == []
    found = {}
    for version in range(1, VERSION + 2):
        lay(tmp_path / str(version), version)
        [found[version]] = check_ledger(str(tmp_path / str(version)))
    assert [found[version].level for version in OLDER] == [Level.WARNING for _ in OLDER]
    assert f"it becomes version {VERSION}" in found[1].says
    assert "pmwatch ledger backup" in found[1].hint
    assert (found[VERSION].level, found[VERSION + 1].level) == (Level.OK, Level.ERROR)
