"""More files than are taken in at a time, and scans that break off: all get in, in their order, in little memory."""

import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.errors import FolderDown, LedgerError
from pmwatch.intake import folder as folder_module
from pmwatch.intake.rules import Rules
from pmwatch.intake.scan import scan
from pmwatch.intake.settle import Admission
from pmwatch.model import Backlog, Completeness, CompleteWhen, Guards, WatchMode
from support.folders import make_folder
from support.intakes import DiskIntake

MOST = 3
OLD = 10**9
SETTLE = 5.0


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DiskIntake]]:
    monkeypatch.setattr(folder_module, "_ADMITTED", MOST)
    monkeypatch.setattr(folder_module, "_BATCH", 2)
    made: list[DiskIntake] = []

    def build(**changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, **changes))
        return made[-1]

    yield build
    for one in made:
        one.close()


def write_old(disk: DiskIntake, count: int) -> list[str]:
    """Write files whose names say nothing about their age; return their names, the oldest first."""
    names = [f"{number:02d}.csv" for number in range(count)]
    random.Random(count).shuffle(names)
    for age, name in enumerate(names):
        disk.write(name, name.encode(), mtime=OLD + age // 2)
    return [name for _, name in sorted((age // 2, name) for age, name in enumerate(names))]


def turns(disk: DiskIntake, count: int = 60) -> int:
    """Make turns; return the most files that were in hand at a time."""
    most = 0
    for _ in range(count):
        disk.turn(after=1.0)
        most = max(most, len(disk.intake.unsettled()))
    return most


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 8))
def test_whatever_the_order_they_are_found_in_the_first_ones_come_in(mtimes: list[int], most: int) -> None:
    admission, here = Admission(most), set()
    places = [(mtime, b"%d" % number, True) for number, mtime in enumerate(mtimes)]
    for place in places:
        if admission.admits(place):
            here.add(place)
        here.difference_update(admission.sent_back())
    assert len(here) < 2 * most or not places
    assert here == set(sorted(places)[: len(here)])
    assert len(here) >= min(most, len(places))
    assert admission.more == (len(here) < len(places))


@pytest.mark.parametrize("count", [5, 6, 7, 20, 31])
def test_all_get_in_in_the_order_of_their_times(make: Callable[..., DiskIntake], count: int) -> None:
    disk = make()
    expected = write_old(disk, count)
    assert turns(disk, 100) < 2 * MOST + 2
    assert disk.entered() == expected
    assert disk.intake.idle


def test_it_is_not_idle_before_all_are_in(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    write_old(disk, 10)
    for _ in range(100):
        disk.turn(after=1.0)
        if disk.intake.idle:
            break
    assert len(disk.entered()) == 10
    disk.write("late.csv")
    disk.intake.begin_last_scan()
    assert not disk.intake.idle
    turns(disk, 8)
    assert disk.intake.idle
    assert disk.entered()[-1] == "late.csv"


def test_none_is_unaccounted_for_while_others_are_let_in(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    names = write_old(disk, 10)
    disk.turn()
    assert disk.intake.candidate(os.fsencode(names[-1])) is None
    assert disk.intake.accounts_for(os.fsencode(names[-1]))
    assert disk.intake.in_hand()[1]
    assert disk.why(names[-1]).verdict == "new"
    turns(disk)
    assert disk.intake.in_hand() == ([], False)
    assert not disk.intake.accounts_for(b"another.csv")


def test_one_that_is_renamed_into_place_meanwhile_overtakes_none(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    expected = write_old(disk, 10)
    disk.turn()
    disk.arrive("00-late.csv", renamed=True)
    disk.turn()
    disk.hint(expected[-1], renamed=True)
    disk.intake.inbox.rescan()
    turns(disk)
    assert disk.entered() == [*expected, "00-late.csv"]


def test_a_directory_that_is_moved_in_with_more_of_them_comes_in_whole(make: Callable[..., DiskIntake]) -> None:
    disk = make(recursive=True)
    disk.turn()
    names = [f"{number:02d}.csv" for number in range(10)]
    for name in names:
        disk.write(f"moved/{name}", name.encode(), mtime=OLD)
    disk.intake.inbox.put_directory(b"moved")
    turns(disk)
    assert disk.entered() == [f"moved/{name}" for name in names]


def test_files_that_never_settle_keep_no_other_out(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    for number in range(3 * MOST):
        disk.write(f"empty{number}.csv", b"", mtime=OLD)
    expected = [f"{number}.csv" for number in range(3 * MOST)]
    for name in expected:
        disk.write(name, name.encode(), mtime=OLD + 1)
    turns(disk, 100)
    assert disk.entered() == expected


def test_all_of_a_batch_are_found_however_many(make: Callable[..., DiskIntake]) -> None:
    disk = make(completeness=Completeness(CompleteWhen.AUTO, batch_marker="*.complete"))
    expected = write_old(disk, 10)
    turns(disk)
    assert disk.entered() == []
    disk.arrive("now.complete")
    turns(disk)
    assert disk.entered() == expected


def test_a_scan_gives_way_for_as_long_as_it_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_BATCH", 2)
    disk = DiskIntake(tmp_path)
    try:
        write_old(disk, 5)
        gave: list[float] = []
        real = disk.ledger.known

        def known(folder: str, paths: list[bytes]) -> Any:
            disk.clock.advance(len(paths))  # seconds of work
            return real(folder, paths)

        monkeypatch.setattr(disk.ledger, "known", known)
        disk.intake._give_way = gave.append
        disk.turn()
        assert gave == [2.0, 2.0, 1.0]
    finally:
        disk.close()


def test_a_scan_needs_the_same_memory_for_many_files(tmp_path: Path) -> None:
    peaks = []
    for count in (500, 5000):
        drop = tmp_path / str(count)
        drop.mkdir()
        for number in range(count):
            (drop / f"{number:06d}.csv").write_bytes(b"")
        rules = Rules(make_folder(drop))
        tracemalloc.start()
        found = sum(1 for _ in scan(os.fsencode(drop), rules, problem=lambda *_: None))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count
    assert peaks[1] < peaks[0] + 16 * 1024


# ---- the backlog that a person is asked about -----------------------------------------------------------------


def ask(most: int) -> Guards:
    return Guards(backlog=Backlog.ASK, max_backlog=most)


def held(disk: DiskIntake) -> list[str]:
    return [one.reason for one in disk.deliveries()]


@pytest.mark.parametrize(("most", "reason"), [(9, "backlog"), (10, ""), (0, "backlog")])
def test_they_are_a_backlog_together(make: Callable[..., DiskIntake], most: int, reason: str) -> None:
    disk = make(guards=ask(most))
    write_old(disk, 10)
    turns(disk)
    assert held(disk) == [reason] * 10


@pytest.mark.parametrize("trouble", ["ledger", "folder"])
@pytest.mark.parametrize(("most", "reason"), [(9, "backlog"), (10, "")])
def test_a_first_scan_that_broke_off_changes_nothing(
    make: Callable[..., DiskIntake], monkeypatch: pytest.MonkeyPatch, trouble: str, most: int, reason: str
) -> None:
    monkeypatch.setattr(folder_module, "_ADMITTED", 1000)
    disk = make(guards=ask(most))
    expected = write_old(disk, 10)
    calls = 0
    real = disk.ledger.known

    def known(folder: str, paths: list[bytes]) -> Any:
        nonlocal calls
        calls += 1
        if calls % 5 == 4 and calls < 20:
            raise LedgerError("the disk is full") if trouble == "ledger" else FolderDown("gone", hint="")
        return real(folder, paths)

    monkeypatch.setattr(disk.ledger, "known", known)
    for _ in range(60):
        try:
            disk.turn(after=1.0)
        except LedgerError:
            assert trouble == "ledger"
    assert calls > 20
    assert held(disk) == [reason] * 10
    assert disk.entered() == expected


# ---- holding back what came later -----------------------------------------------------------------------------


def test_a_steady_stream_of_files_that_only_scans_find_gets_in(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, watch=WatchMode.POLL, poll_seconds=10.0, settle_seconds=30.0)
    try:
        for number in range(60):
            if number % 5 == 0:  # one before each scan, which never stops
                disk.write(f"{number:02d}.csv", b"%d" % number)
            disk.turn(after=2.0)
        assert len(disk.entered()) >= 8
    finally:
        disk.close()


def test_hints_that_were_taken_when_the_ledger_failed_are_found_by_a_scan_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = DiskIntake(tmp_path, recursive=True)
    try:
        disk.turn()
        for name in ("one", "two"):
            disk.write(f"{name}/a.csv", name.encode())
            disk.intake.inbox.put_directory(os.fsencode(name))

        def known(*_: Any) -> Any:
            raise LedgerError("the disk is full")

        monkeypatch.setattr(disk.ledger, "known", known)
        with pytest.raises(LedgerError):
            disk.turn()
        monkeypatch.undo()
        for _ in range(8):
            disk.turn(after=1.0)
        assert sorted(disk.entered()) == ["one/a.csv", "two/a.csv"]
    finally:
        disk.close()


# ---- what never settles ---------------------------------------------------------------------------------------


def test_a_file_that_never_settles_is_reported_once_and_anew_when_it_comes_again(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path)
    try:
        disk.turn()
        for times in (1, 2):
            path = disk.arrive("slow.csv", b"%d" % times)
            with path.open("ab") as writer:
                for minute in range(40):
                    writer.write(b"%d\n" % minute)
                    writer.flush()
                    disk.turn(after=60)
            assert [one.path for one in disk.told.overdue] == [b"slow.csv"] * times
            path.unlink()
            disk.hint("slow.csv")
            for _ in range(3):
                disk.turn(after=60)
        assert disk.entered() == []
    finally:
        disk.close()
