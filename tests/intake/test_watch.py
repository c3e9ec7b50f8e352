"""The watcher on the real kernel: each kind of arrival becomes a hint."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

from pmwatch.errors import FolderDown
from pmwatch.intake.inbox import Hints, Inbox
from pmwatch.intake.rules import Rules
from pmwatch.intake.scan import root_identity, scan
from pmwatch.intake.watch import Watch, Watcher, explain
from support.folders import make_folder


class Seen:
    """Collects the hints of one watched folder."""

    def __init__(self, watcher: Watcher, root: Path, *, deep: bool = False) -> None:
        self.inbox = Inbox()
        self.paths: dict[bytes, bool] = {}
        self.directories: set[bytes] = set()
        self.rescan = False
        self.root = os.fsencode(root)
        self.rules = Rules(make_folder(root, recursive=deep))
        self.watch = watcher.watch(
            self.root, root_identity(self.root), inbox=self.inbox, enters=self.rules.enters, deep=deep
        )

    def until(self, probe: Callable[["Seen"], bool]) -> None:
        """Take hints until `probe` holds."""
        for _ in range(100):
            if probe(self):
                return
            self._add(self.inbox.take(0.1))
        raise AssertionError((self.paths, self.directories, self.rescan))

    def _add(self, hints: Hints) -> None:
        self.paths.update(hints.paths)
        self.directories |= hints.directories
        for directory in hints.directories:
            for _ in scan(self.root, self.rules, below=directory, problem=lambda *_: None, enter=self.watch.watch):
                pass
        self.rescan |= hints.rescan


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()
    assert "inotify" not in {thread.name for thread in threading.enumerate()}


def test_each_way_of_arriving_becomes_a_hint_and_only_a_rename_says_so(watcher: Watcher, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    seen = Seen(watcher, root)
    (root / "written.csv").write_bytes(b"x")
    (outside / "moved.csv").write_bytes(b"x")
    (outside / "moved.csv").rename(root / "moved.csv")
    os.link(root / "written.csv", root / "linked.csv")
    seen.until(lambda s: len(s.paths) == 3)
    assert seen.paths == {b"written.csv": False, b"moved.csv": True, b"linked.csv": False}


def test_a_file_moved_out_delays_no_later_event(watcher: Watcher, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old.csv").write_bytes(b"x")
    seen = Seen(watcher, root)
    (root / "old.csv").rename(tmp_path / "archived.csv")
    (root / "new.csv").write_bytes(b"x")
    seen.until(lambda s: b"new.csv" in s.paths)
    assert b"old.csv" not in seen.paths


def test_new_and_moved_in_directories_are_watched_and_scanned(watcher: Watcher, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    root.mkdir()
    seen = Seen(watcher, root, deep=True)
    (tmp_path / "tree").rename(root / "tree")
    (root / "made").mkdir()
    seen.until(lambda s: s.directories >= {b"tree", b"made"})
    assert watcher.count() == 4
    (root / "tree" / "deep" / "a.csv").write_bytes(b"x")
    (root / "made" / "b.csv").write_bytes(b"x")
    seen.until(lambda s: {b"tree/deep/a.csv", b"made/b.csv"} <= set(s.paths))
    (root / "tree").rename(root / "renamed")
    seen.until(lambda s: b"renamed" in s.directories)
    (root / "renamed" / "deep" / "c.csv").write_bytes(b"x")
    seen.until(lambda s: b"renamed/deep/c.csv" in s.paths)
    assert watcher.count() == 4


def test_a_deleted_root_ends_the_watch_and_asks_for_a_scan(watcher: Watcher, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    seen = Seen(watcher, root)
    assert seen.watch.alive
    root.rmdir()
    seen.until(lambda s: s.rescan)
    assert not seen.watch.alive


def test_an_overflow_of_the_kernels_queue_asks_every_folder_for_a_scan(watcher: Watcher, tmp_path: Path) -> None:
    seen = Seen(watcher, tmp_path)
    reader = watcher._fd
    assert reader is not None
    overflow = InotifyEvent(WatchDescriptor(-1), Mask(InotifyConstants.IN_Q_OVERFLOW), 0, b"")
    reader.handle_event(overflow)  # what the kernel sends after 16,384 unread events
    seen.until(lambda s: s.rescan)


def test_an_error_in_the_handler_asks_for_a_scan_and_kills_no_thread(tmp_path: Path) -> None:
    inbox = Inbox()

    def broken(_: bytes) -> bool:
        raise RuntimeError

    reader = InotifyFD()
    watch = Watch(reader, os.fsencode(tmp_path), inbox=inbox, enters=broken, deep=True)
    wd = watch._add(b"", root_identity(os.fsencode(tmp_path)))
    assert wd is not None
    mask = Mask(InotifyConstants.IN_CREATE | InotifyConstants.IN_ISDIR)
    watch.on_event(InotifyEvent(wd, mask, 0, b"new"))
    assert inbox.take(0).rescan
    watch.close()
    reader.close()
    reader._close_resources()


def test_a_full_inbox_becomes_a_scan() -> None:
    inbox = Inbox(limit=2)
    for number in range(3):
        inbox.put(b"%d" % number)
    hints = inbox.take(0)
    assert hints.rescan
    assert len(hints.paths) == 2
    assert inbox.take(0) == Hints()


@pytest.mark.parametrize(
    ("number", "sysctl"), [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances")]
)
def test_inotify_limits_are_named_with_their_sysctl_and_value(number: int, sysctl: str) -> None:
    problem = explain(OSError(number, os.strerror(number)), b"/srv/drop")
    assert isinstance(problem, FolderDown)
    assert f"fs.inotify.{sysctl}" in problem.hint
    with open(f"/proc/sys/fs/inotify/{sysctl}", encoding="ascii") as file:
        assert file.read().strip() in problem.hint
    assert "space left" not in problem.message
