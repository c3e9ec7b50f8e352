"""One folder's watch on the real kernel: whatever is lost or refused, it is whole again after the next scan."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pmwatch.errors import FolderDown
from pmwatch.intake import folder as folder_module
from pmwatch.intake.watch import Watcher
from support.daemon import wait_for
from support.intakes import DiskIntake
from support.services import missing, require_tool

TESTS = Path(__file__).parents[1]
SETTLE = 5.0


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()
    assert "inotify" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def make(tmp_path: Path, watcher: Watcher) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(**changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, watcher=watcher, **{"recursive": True} | changes))
        return made[-1]

    yield build
    for one in made:
        one.close()


def lose_events(watcher: Watcher, disk: DiskIntake, change: Callable[[], object]) -> None:
    """Let `change` happen while the kernel's queue of events is full."""
    reader = watcher._fd
    assert reader is not None
    busy = disk.drop / ".busy"
    busy.write_bytes(b"")
    other = busy.with_name(".busy2")
    with reader._lock:  # it reads nothing
        for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2):
            os.rename(busy, other)  # two events
            os.rename(other, busy)
        change()
    inbox = disk.intake.inbox
    wait_for("the overflow", lambda: inbox._hints.rescan)


def announced(disk: DiskIntake, name: str) -> None:
    """Write a file, and wait for its event."""
    disk.write(name)
    wait_for(f"an event of {name}", lambda: disk.intake.inbox.holds(os.fsencode(name)))


def test_a_directory_whose_event_was_lost_is_watched_after_the_next_scan(
    make: Callable[..., DiskIntake], watcher: Watcher
) -> None:
    disk = make()
    disk.turn()
    lose_events(watcher, disk, lambda: disk.write("new/deep/a.csv"))
    disk.settle()
    assert disk.entered() == ["new/deep/a.csv"]
    assert watcher.count() == 3
    announced(disk, "new/deep/b.csv")


def test_a_directory_that_was_moved_unseen_is_watched_under_its_new_name(
    make: Callable[..., DiskIntake], watcher: Watcher
) -> None:
    disk = make()
    disk.write("old/sub/a.csv")
    disk.settle()
    lose_events(watcher, disk, lambda: os.rename(disk.drop / "old", disk.drop / "new"))
    disk.settle()
    announced(disk, "new/sub/b.csv")
    assert watcher.count() == 3


def test_a_directory_that_was_moved_away_unseen_is_watched_no_more(
    make: Callable[..., DiskIntake], watcher: Watcher
) -> None:
    disk = make()
    disk.write("old/sub/a.csv")
    disk.settle()
    assert watcher.count() == 3
    lose_events(watcher, disk, lambda: os.rename(disk.drop / "old", disk.drop.parent / "elsewhere"))
    disk.settle()
    assert watcher.count() == 1


def test_a_directory_that_is_made_anew_is_watched_although_it_has_the_same_number(
    make: Callable[..., DiskIntake], watcher: Watcher
) -> None:
    disk = make()

    def renew() -> None:
        (disk.drop / "sub").rmdir()
        (disk.drop / "sub").mkdir()

    (disk.drop / "sub").mkdir()
    disk.turn()
    for lost in (False, True):
        if lost:
            lose_events(watcher, disk, renew)
        else:
            renew()
            wait_for("its event", lambda: disk.intake.inbox._hints.directories)
        disk.turn()
        assert watcher.count() == 2
        announced(disk, f"sub/{lost}.csv")
        disk.settle()
        (disk.drop / "sub" / f"{lost}.csv").unlink()


def test_a_reader_that_died_is_replaced_and_the_folder_watched_again(
    make: Callable[..., DiskIntake], watcher: Watcher
) -> None:
    disk = make()
    (disk.drop / "sub").mkdir()
    disk.turn()
    reader = watcher._fd
    assert reader is not None
    reader.stop()
    reader.join(5)
    assert not disk.intake.status().up
    disk.write("sub/unseen.csv")
    disk.turn(after=SETTLE)
    assert disk.intake.status().up
    announced(disk, "sub/seen.csv")
    disk.settle()
    assert sorted(disk.entered()) == ["sub/seen.csv", "sub/unseen.csv"]


def test_where_there_are_too_few_watches_the_folder_is_scanned_and_says_which_limit_to_raise(tmp_path: Path) -> None:
    unshare = require_tool("unshare", "the Debian package util-linux")
    namespace = [unshare, "--user", "--map-root-user"]
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        missing("a user namespace", "a kernel that lets this user make one")
    command = [*namespace, sys.executable, "-P", "-m", "support.few_watches", str(tmp_path), "2"]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, check=True, capture_output=True)
    few, scanned, enough, seen = [json.loads(line) for line in run.stdout.splitlines()]
    assert (few["up"], few["watched"]) == (False, 2)
    assert few["message"].endswith("cannot be watched as a whole: the kernel's limit of watched directories is reached")
    limit = Path("/proc/sys/fs/inotify/max_user_watches").read_text().strip()
    assert (
        few["hint"] == f"Raise fs.inotify.max_user_watches (now {limit}) with sysctl; meanwhile the folder is scanned."
    )
    assert sorted(few["entered"]) == ["a/first.csv", "b/first.csv", "c/first.csv"]
    assert not scanned["up"]
    assert scanned["told"] == few["told"]  # once, however often it is scanned
    assert scanned["scans"] > few["scans"]
    assert len(scanned["entered"]) == 6
    assert (enough["up"], enough["watched"], enough["message"]) == (True, 4, "")
    assert seen["entered"][-1] == "c/third.csv"


# ---- how often it is tried and scanned ------------------------------------------------------------------------


def test_a_root_that_cannot_be_watched_is_tried_again_ever_more_seldom_and_scanned_meanwhile(
    make: Callable[..., DiskIntake], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    disk = make()

    def refuse(*_: Any, **__: Any) -> None:
        tried.append(disk.clock())
        raise FolderDown("no watch is left", hint="", reason="inotify_limit")

    monkeypatch.setattr(disk.watcher, "watch", refuse)
    disk.write("a.csv")
    for _ in range(200):
        disk.turn(after=0.5)
    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert waits[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert disk.told.problems == ["no watch is left"]
    assert disk.told.scans >= 8
    assert disk.entered() == ["a.csv"]
    monkeypatch.undo()
    disk.turn(after=30)
    assert disk.told.problems == ["no watch is left", ""]
    assert disk.intake.status().up


def test_a_watch_that_misses_files_has_its_folder_scanned_ever_more_often_and_then_less_again(tmp_path: Path) -> None:
    disk = DiskIntake(tmp_path, rescan_seconds=320.0)
    try:
        disk.turn()
        waits = []
        for number in range(9):
            if number < 5:
                disk.write(f"{number}.csv", b"%d" % number)
            scans, started = disk.told.scans, disk.clock()
            while disk.told.scans == scans:
                disk.turn(after=5)
            waits.append(disk.clock() - started)
        assert waits == [320, 160, 80, 40, 20, 20, 40, 80, 160]
        assert disk.told.missed[1:] == [1] * 5 + [0] * 4
    finally:
        disk.close()


def test_a_mount_without_events_below_a_watched_root_is_polled(
    make: Callable[..., DiskIntake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "mounts_below", lambda _: {b"far": "nfs4", b".hidden": "cifs", b"tmp": "tmpfs"})
    disk = make(poll_seconds=10.0)
    disk.turn()
    status = disk.intake.status()
    assert (status.up, status.watching, status.polled) == (True, True, "nfs4 at far has no events")
    disk.turn(after=10)
    assert disk.told.scans == 2
    monkeypatch.setattr(folder_module, "mounts_below", lambda _: {})
    disk.turn(after=10)
    assert disk.intake.status().polled == ""
    disk.turn(after=10)
    assert disk.told.scans == 3
