"""Folders without events, and roots that come and go: real files, with the clock in the test's hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmwatch.intake import folder as folder_module
from pmwatch.model import WatchMode
from support.intakes import DiskIntake

POLL = 10.0
SETTLE = 5.0


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(**changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, **{"poll_seconds": POLL} | changes))
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_a_polled_folder_has_no_watch_and_finds_files_by_its_scans(make: Callable[..., DiskIntake]) -> None:
    disk = make(watch=WatchMode.POLL)
    disk.turn()
    status = disk.intake.status()
    assert (status.up, status.watching, status.polled) == (True, False, 'watch = "poll"')
    assert disk.quiet.armed == 0
    assert disk.told.scans == 1
    disk.write("a.csv")
    disk.turn(after=POLL - 1)
    assert disk.told.scans == 1
    disk.turn(after=1)
    assert disk.told.scans == 2
    assert disk.waits_for("a.csv") == "a second look, unchanged for 5 s"
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]


def test_it_is_scanned_no_less_often_than_any_folder(make: Callable[..., DiskIntake]) -> None:
    disk = make(watch=WatchMode.POLL, rescan_seconds=2.0)
    disk.turn()
    disk.turn(after=2)
    assert disk.told.scans == 2


@pytest.mark.parametrize(
    ("watch", "kind", "polled"),
    [
        (WatchMode.AUTO, "ext4", ""),
        (WatchMode.AUTO, "", ""),
        (WatchMode.AUTO, "overlay", ""),
        (WatchMode.AUTO, "nfs4", "nfs4 has no events"),
        (WatchMode.AUTO, "cifs", "cifs has no events"),
        (WatchMode.AUTO, "fuse.sshfs", "fuse.sshfs has no events"),
        (WatchMode.AUTO, "9p", "9p has no events"),
        (WatchMode.AUTO, "vboxsf", "vboxsf has no events"),
        (WatchMode.INOTIFY, "nfs4", ""),
        (WatchMode.POLL, "ext4", 'watch = "poll"'),
    ],
)
def test_the_file_system_and_the_configuration_decide(
    make: Callable[..., DiskIntake], monkeypatch: pytest.MonkeyPatch, watch: WatchMode, kind: str, polled: str
) -> None:
    monkeypatch.setattr(folder_module, "file_system_type", lambda _: kind)
    disk = make(watch=watch)
    disk.turn()
    status = disk.intake.status()
    assert (status.up, status.polled, status.watching) == (True, polled, not polled)


def test_another_file_system_below_the_same_path_is_judged_anew(
    make: Callable[..., DiskIntake], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["ext4"]
    monkeypatch.setattr(folder_module, "file_system_type", lambda _: kinds[0])
    disk = make()
    disk.turn()
    assert disk.intake.status().watching
    kinds[0] = "nfs4"
    disk.drop.rename(disk.drop.with_name("before"))
    disk.drop.mkdir()
    disk.write("a.csv")
    disk.turn(after=6)
    assert disk.intake.status().polled == "nfs4 has no events"
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]


def test_a_folder_without_its_marker_is_down_and_comes_back(make: Callable[..., DiskIntake]) -> None:
    disk = make(root_marker=".mounted")
    disk.write("a.csv")
    disk.settle()
    assert disk.entered() == []
    status = disk.intake.status()
    assert not status.up
    assert not disk.intake.reachable
    assert status.problem is not None
    assert status.problem.message.endswith("holds no .mounted: is what it lies on mounted?")
    assert "Mount it, or create the file .mounted there" in status.problem.hint
    disk.write(".mounted", b"")
    disk.turn(after=31)
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]
    assert disk.told.problems[-1] == ""
    assert disk.intake.status().up


def test_a_marker_that_is_taken_away_takes_the_folder_down(make: Callable[..., DiskIntake]) -> None:
    disk = make(root_marker="MOUNTED", include=("*",))
    disk.write("MOUNTED", b"")
    disk.settle()
    assert disk.entered() == []  # nor is it uploaded
    (disk.drop / "MOUNTED").unlink()
    disk.turn(after=6)
    assert not disk.intake.status().up
    disk.write("MOUNTED", b"")
    disk.turn(after=31)
    assert disk.intake.status().up


@pytest.mark.parametrize("watch", WatchMode)
def test_a_root_that_goes_and_comes_is_scanned(make: Callable[..., DiskIntake], watch: WatchMode) -> None:
    disk = make(watch=watch)
    disk.turn()
    os.mkdir(disk.drop.with_name("new"))  # first, for it must not get the number of the other one
    disk.drop.rmdir()
    disk.turn(after=6)
    assert not disk.intake.status().up
    disk.drop.with_name("new").rename(disk.drop)
    disk.write("a.csv")
    disk.turn(after=31)
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]
    assert disk.intake.status().up


def test_a_file_whose_event_is_only_on_its_way_does_not_count_as_missed_by_the_watch(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path)
    disk.turn()
    disk.write("announced.csv")
    disk.write("missed.csv")
    disk.intake.inbox.put(b"announced.csv")
    disk.intake._scan()
    assert disk.told.missed == [0, 1]
    disk.close()


@pytest.mark.parametrize("sub", ["", "sub/"])
def test_a_server_that_goes_away_while_a_directory_is_read_is_trouble_of_that_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sub: str
) -> None:
    class Torn:
        """A listing that ends in an error, as FUSE's does when its server is gone."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __enter__(self) -> Iterator[Any]:
            return self.read()

        def __exit__(self, *_: object) -> None:
            self.real.close()

        def read(self) -> Iterator[Any]:
            yield from self.real
            raise OSError(5, "Input/output error")

    disk = DiskIntake(tmp_path, recursive=True)
    disk.write(f"{sub}a.csv")
    disk.turn()
    real = os.scandir
    inner = os.stat(disk.drop / sub).st_ino

    def scandir(where: Any) -> Any:
        listing = real(where)
        return Torn(listing) if isinstance(where, int) and os.fstat(where).st_ino == inner else listing

    monkeypatch.setattr(os, "scandir", scandir)
    disk.intake.inbox.rescan()
    disk.turn()
    if sub:
        assert disk.intake.status().ignored == {"a directory that cannot be read": 1}
    else:
        assert disk.intake.status().problem is not None
    monkeypatch.undo()
    disk.clock.advance(120.0)
    disk.settle()
    assert disk.entered() == [f"{sub}a.csv"]
    disk.close()


def waiting_to_be_entered(base: Path) -> DiskIntake:
    """Return an intake that has found a file by a scan, and then one that is complete at once and waits for it."""
    disk = DiskIntake(base)
    disk.turn()
    disk.write("early.csv")
    disk.intake._scan()
    disk.arrive("late.csv", renamed=True)
    disk.turn()
    return disk


def test_a_file_that_is_complete_but_not_entered_yet_is_no_news_to_the_next_scan(tmp_path: Path) -> None:
    disk = waiting_to_be_entered(tmp_path)
    assert disk.entered() == []
    assert "it is complete. It waits for the files that were found before it" in " ".join(
        disk.why("late.csv").sentences
    )
    disk.scan()
    assert disk.told.missed == [0, 1, 0]
    disk.settle()
    assert disk.entered() == ["early.csv", "late.csv"]
    disk.close()


def test_a_file_that_changes_while_it_waits_to_be_entered_has_to_settle_again(tmp_path: Path) -> None:
    disk = waiting_to_be_entered(tmp_path)
    disk.turn(after=SETTLE - 1)
    disk.arrive("late.csv", b"id\n1\n2\n")
    disk.turn(after=1)
    assert disk.entered() == ["early.csv"]
    disk.settle()
    assert [(one.display_path, one.fingerprint.size) for one in disk.deliveries()] == [
        ("early.csv", 5),
        ("late.csv", 7),
    ]
    disk.close()
