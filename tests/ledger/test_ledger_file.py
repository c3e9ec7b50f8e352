"""The file of the ledger: schema and migrations, damage, permissions, read-only, and odd paths."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmwatch.errors import LedgerError
from pmwatch.ledger import Ledger, base
from pmwatch.ledger.schema import MIGRATIONS, VERSION, metadata
from pmwatch.model import State
from support.ledgers import claimed, current, drop, opened, sent

SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
Columns = dict[str, list[tuple[str, str, bool, bool]]]


def ask(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def columns(path: Path) -> Columns:
    """Return name, type, not null and primary key of every column; a primary key counts as not null."""
    tables = [str(name) for (name,) in ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {
        table: [
            (str(name), str(kind), bool(not_null) or bool(key), bool(key))
            for _, name, kind, not_null, _, key in ask(path, f"PRAGMA table_info({table})")
        ]
        for table in tables
    }


def schema(path: Path) -> list[tuple[object, ...]]:
    return ask(path, "SELECT type, name, sql FROM sqlite_master ORDER BY name")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a ledger that holds one delivery."""
    with opened(tmp_path) as ledger:
        drop(ledger, "a.csv")
    return tmp_path / "ledger.db"


# ---- schema ----------------------------------------------------------------------------------------------------------


def test_migrations_make_exactly_the_tables_that_queries_believe_in(file: Path, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'metadata.db'}")
    metadata.create_all(engine)
    engine.dispose()
    assert columns(file) == columns(tmp_path / "metadata.db")
    assert set(columns(file)) == set(metadata.tables)


def test_the_version_is_written_into_the_file(file: Path) -> None:
    assert VERSION == len(MIGRATIONS) > 0
    assert ask(file, "PRAGMA user_version") == [(VERSION,)]


def test_opening_again_changes_nothing(file: Path, tmp_path: Path) -> None:
    before = schema(file)
    for _ in range(2):
        with opened(tmp_path) as ledger:
            assert ledger.counts() == {("orders", "queued"): 1}
    assert schema(file) == before


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with opened(tmp_path) as ledger:
        assert drop(ledger, "a.csv") == 1


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_a_ledger_of_every_older_version_becomes_one_of_this_version(version: int, file: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    with closing(sqlite3.connect(older / "ledger.db")) as connection:
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    with opened(older):
        pass
    assert columns(older / "ledger.db") == columns(file)
    assert [row[:2] for row in schema(older / "ledger.db")] == [row[:2] for row in schema(file)]


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(file: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = schema(file)
    with pytest.raises(
        LedgerError, match=f"has version {VERSION + 1}, and this pmwatch knows versions up to"
    ) as caught:
        Ledger.open(str(tmp_path))
    assert "newer pmwatch" in caught.value.hint
    assert schema(file) == before
    assert ask(file, "PRAGMA user_version") == [(VERSION + 1,)]


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmwatch.ledger.schema.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE more (x)", "NONSENSE")))
    monkeypatch.setattr("pmwatch.ledger.schema.VERSION", VERSION + 1)
    with pytest.raises(LedgerError):
        Ledger.open(str(tmp_path))
    assert ask(tmp_path / "ledger.db", "PRAGMA user_version") == [(0,)]
    assert columns(tmp_path / "ledger.db") == {}


def test_the_queries_of_every_claim_use_an_index(file: Path) -> None:
    statements = {
        "next of a lane": "SELECT id FROM deliveries WHERE lane = 'l' AND state = 'queued' ORDER BY seq LIMIT 1",
        "current": "SELECT * FROM deliveries WHERE folder = 'f' AND path = x'61' AND current = 1",
        "last seq": "SELECT max(seq) FROM deliveries",
        "next due": "SELECT min(not_before) FROM deliveries WHERE state IN ('queued', 'uploaded') AND not_before > 5",
        "equal": "SELECT id FROM deliveries WHERE tenant_id = 't' AND datatable_id = 'd' AND size = 1 AND sha256 = 's'",
    }
    for what, statement in statements.items():
        plan = " ".join(str(row[3]) for row in ask(file, f"EXPLAIN QUERY PLAN {statement}"))
        assert "SEARCH" in plan, f"{what}: {plan}"
        assert "SCAN" not in plan, f"{what}: {plan}"


# ---- a file that cannot be used --------------------------------------------------------------------------------------


def not_a_database(file: Path) -> None:
    file.write_bytes(b"this is not a database, whatever its name says\n" * 100)


def broken_pages(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    file.write_bytes(content)


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [not_a_database, broken_pages, a_directory])
def test_a_damaged_file_is_an_error_with_a_hint(damage: Callable[[Path], None], file: Path, tmp_path: Path) -> None:
    damage(file)
    with pytest.raises(LedgerError) as caught:  # noqa: PT012  either step may notice
        ledger = Ledger.open(str(tmp_path))
        try:
            ledger.check()
        finally:
            ledger.close()
    assert caught.value.hint
    assert caught.value.__cause__ is None


def test_a_file_that_is_whole_passes_the_check(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        drop(ledger, "a.csv")
        ledger.check()
        assert ledger.total(State.QUEUED) == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_a_network_file_system_is_refused(
    read_only: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "file_system_type", lambda _path: "nfs4")
    with pytest.raises(LedgerError, match=r"network file system \(nfs4\)") as caught:
        Ledger.open(str(tmp_path), read_only=read_only)
    assert "local disk" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_absent_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory") as caught:
        Ledger.open(str(tmp_path / "absent"))
    assert caught.value.hint


# ---- permissions -----------------------------------------------------------------------------------------------------


def modes(directory: Path) -> dict[str, int]:
    return {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in directory.iterdir()}


def test_only_its_owner_reads_the_ledger_and_the_files_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path) as ledger:
            drop(ledger, "a.csv")
            found = modes(tmp_path)
    finally:
        os.umask(before)
    assert found == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}


def test_a_ledger_that_others_could_read_is_closed_to_them(file: Path, tmp_path: Path) -> None:
    file.chmod(0o644)
    with opened(tmp_path):
        assert modes(tmp_path)["ledger.db"] == 0o600


# ---- read only -------------------------------------------------------------------------------------------------------


def test_read_only_sees_what_a_running_one_wrote_and_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as writing, closing(Ledger.open(str(tmp_path), read_only=True)) as reading:
        id_ = drop(writing, "a.csv")
        assert current(reading, id_).path == b"a.csv"
        with pytest.raises(LedgerError, match="for reading only"):
            reading.claim(now=1.0)
        assert claimed(writing).id == id_
        assert current(reading, id_).state is State.UPLOADING


def test_read_only_does_not_make_a_ledger_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger") as caught:
        Ledger.open(str(tmp_path), read_only=True)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_read_only_of_an_empty_file_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with pytest.raises(LedgerError, match="is empty") as caught:
        Ledger.open(str(tmp_path), read_only=True)
    assert "pmwatch run" in caught.value.hint


# ---- durability ------------------------------------------------------------------------------------------------------


def test_what_a_method_wrote_is_there_for_another_connection_when_it_returns(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        id_ = drop(ledger, "a.csv")
        assert ask(tmp_path / "ledger.db", "SELECT id, state FROM deliveries") == [(id_, "queued")]
        claimed(ledger)
        assert ask(tmp_path / "ledger.db", "SELECT id, state FROM deliveries") == [(id_, "uploading")]


def test_commits_are_on_the_disk_and_not_only_on_their_way(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        assert ledger._write(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar_one()) == "wal"
        assert ledger._write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar_one()) == 2  # FULL


def test_a_process_that_is_killed_in_the_middle_leaves_a_ledger_that_recovers(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        done, running = sent(ledger, "done.csv", "A"), drop(ledger, "running.csv")
    script = (
        "import sys; from pmwatch.ledger import Ledger; "
        "ledger = Ledger.open(sys.argv[1]); print(ledger.claim(now=1.0).id, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{running}\n"
        process.kill()
    with opened(tmp_path) as ledger:
        ledger.check()
        assert ledger.recover() == 1
        assert current(ledger, done).state is State.DONE
        assert (current(ledger, running).state, current(ledger, running).attempts) == (State.QUEUED, 1)


# ---- names of files are bytes ----------------------------------------------------------------------------------------

PATHS = st.binary(min_size=1, max_size=80).filter(lambda path: b"\0" not in path)


@settings(max_examples=30 * SCALE, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(PATHS, min_size=1, max_size=20, unique=True))
def test_any_path_comes_back_as_it_went_in(paths: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    with opened(tmp_path_factory.mktemp("ledger")) as ledger:
        ids = {path: drop(ledger, path) for path in paths}
        assert set(ledger.known("orders", paths)) == set(paths) == set(ledger.paths("orders"))
        for path, id_ in ids.items():
            assert current(ledger, id_).path == path
            assert [one.id for one in ledger.find("orders", path)] == [id_]


@pytest.mark.parametrize("path", [b"caf\xe9.csv", b"a\nb.csv", b"\xff\xfe", b"%41.csv", b"a'b\"c.csv", b"-rf", b" "])
def test_paths_that_break_other_programs_are_just_bytes(path: bytes, tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        drop(ledger, path)
        assert drop(ledger, path) == 0
        assert claimed(ledger).path == path


@pytest.mark.parametrize("name", ["with blank", "per%cent", "question?", "hash#", "ümlaut", "a&b=c"])
def test_the_state_directory_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with opened(tmp_path / name) as ledger:
        drop(ledger, "a.csv")
    assert (tmp_path / name / "ledger.db").stat().st_size > 0
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
