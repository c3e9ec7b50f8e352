"""The watcher: hints from inotify, through watchdog's reader of the kernel's queue.

One `Watcher` holds the one inotify instance of the process (128 are shared by all of a user's containers), one
`Watch` the directories of one folder. A watch registers with watchdog's `InotifyFD` itself instead of through
its emitter: that one holds back a file moved out of the folder, and all events after it, for half a second, and
does not tell a rename into place from a creation, nor its handler of an overflow.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from pmwatch.errors import FolderDown
from pmwatch.intake.inbox import Inbox
from pmwatch.model import display

# No IN_MODIFY: a slow writer would fill the queue with it, and two looks find growth anyway.
_MASK: Final = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_DONT_FOLLOW
)


class Watch:
    """The watched directories of one folder, and the way of their events into its inbox.

    watchdog calls `on_event`, `on_watch_deleted` and `on_queue_overflow` from its reading thread; nothing in
    them may raise, or every folder would go blind.
    """

    def __init__(
        self, fd: InotifyFD, root: bytes, *, inbox: Inbox, enters: Callable[[bytes], bool], deep: bool
    ) -> None:
        self._fd = fd
        self._root = root
        self._inbox = inbox
        self._enters = enters
        self._deep = deep
        self._id = CallbackId(id(self))
        self._lock = threading.RLock()
        self._paths: dict[WatchDescriptor, bytes] = {}
        self._root_wd: WatchDescriptor | None = None
        self._closed = False

    def arm(self) -> None:
        """Watch the root, and what lies below it if the folder is deep. Raises FolderDown, naming the limit reached."""
        try:
            with self._lock:
                self._root_wd = self._add(b"")
                self._add_below(b"")
        except OSError as error:
            self.close()
            raise explain(error, self._root) from None
        if self._root_wd is None:
            self.close()
            message = f"{display(self._root)} cannot be watched"
            raise FolderDown(message, hint="Check its permissions.", reason="unwatchable")

    def _add(self, path: bytes) -> WatchDescriptor | None:
        """Watch one directory below the root; None where that is not allowed."""
        wd = self._fd.add_callback(os.path.join(self._root, path) if path else self._root, _MASK, self, self._id)
        if wd == -1:  # watchdog's way to report EACCES
            return None
        self._paths[wd] = path
        return wd

    def _add_below(self, top: bytes) -> None:
        waiting = [top] if self._deep else []
        while waiting:
            directory = waiting.pop()
            for path in self._subdirectories(directory):
                self._try_add(path)
                waiting.append(path)

    def _try_add(self, path: bytes) -> None:
        try:
            self._add(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM):
                raise

    def _subdirectories(self, directory: bytes) -> list[bytes]:
        try:
            with os.scandir(os.path.join(self._root, directory) if directory else self._root) as entries:
                found = [
                    os.path.join(directory, entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)
                ]
        except OSError:
            return []
        return [path for path in found if self._enters(path)]

    @property
    def alive(self) -> bool:
        """Tell whether the root is still watched and somebody reads the events."""
        return not self._closed and self._root_wd in self._paths and self._fd.is_alive()

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._closed = True
            wds, self._paths = list(self._paths), {}
        self._fd.remove_callbacks([(wd, self._id) for wd in wds])

    # ---- called by watchdog's reading thread ------------------------------------------------------------

    def on_event(self, event: InotifyEvent) -> None:
        """Turn an event into a hint."""
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  it must not end the thread; the scan finds what this hint was about
            self._inbox.rescan()

    def _on_event(self, event: InotifyEvent) -> None:
        with self._lock:
            directory = self._paths.get(event.wd)
        if directory is None or self._closed:
            return
        if not event.name:
            if event.is_delete_self or event.is_move_self:
                self._lost(event.wd)
            return
        path = os.path.join(directory, event.name)
        if event.is_directory:
            self._directory_event(event, path)
        elif not event.is_moved_from:
            self._inbox.put(path, renamed=event.is_moved_to)

    def _directory_event(self, event: InotifyEvent, path: bytes) -> None:
        if not self._deep or not self._enters(path):
            return
        if event.is_moved_from:
            self._forget_below(path)
        else:
            with self._lock:
                self._forget_below(path)  # one of this name may have been there before
                self._try_add(path)
                self._add_below(path)
            self._inbox.put_directory(path)

    def _forget_below(self, path: bytes) -> None:
        with self._lock:
            gone = [wd for wd, known in self._paths.items() if known == path or known.startswith(path + b"/")]
            for wd in gone:
                del self._paths[wd]
        self._fd.remove_callbacks([(wd, self._id) for wd in gone])

    def _lost(self, wd: WatchDescriptor) -> None:
        if wd == self._root_wd:
            self._root_wd = None
            self._inbox.rescan()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The kernel dropped a watch: its directory is gone, or unmounted."""
        with self._lock:
            self._paths.pop(wd, None)
        self._lost(wd)

    def on_queue_overflow(self) -> None:
        """The kernel dropped events: the scan finds what they were about."""
        self._inbox.rescan()


class Watcher:
    """The process's inotify instance, opened when the first folder is watched, and again should its reader die."""

    def __init__(self) -> None:
        self._fd: InotifyFD | None = None
        self._lock = threading.Lock()
        self._watches: list[Watch] = []

    def watch(self, root: bytes, *, inbox: Inbox, enters: Callable[[bytes], bool], deep: bool) -> Watch:
        """Return an armed watch of a folder. Raises FolderDown."""
        with self._lock:
            try:
                watch = Watch(self._reader(), root, inbox=inbox, enters=enters, deep=deep)
            except OSError as error:
                raise explain(error, root) from None
        watch.arm()
        with self._lock:
            self._watches = [other for other in self._watches if other.alive] + [watch]
        return watch

    def _reader(self) -> InotifyFD:
        if self._fd is None or not self._fd.is_alive():
            self._fd = InotifyFD()
            self._fd.name = "inotify"
            self._fd.start()
        return self._fd

    def count(self) -> int:
        """Return how many directories are watched."""
        with self._lock:
            return sum(len(watch) for watch in self._watches if watch.alive)

    def close(self) -> None:
        """Stop reading events."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            fd.stop()
            fd.join(5)


def explain(error: OSError, root: bytes) -> FolderDown:
    """Put an inotify error into plain words: ENOSPC has nothing to do with a disk (inotify_add_watch(2))."""
    limits = {
        errno.ENOSPC: ("max_user_watches", "watched directories"),
        errno.EMFILE: ("max_user_instances", "inotify instances"),
    }
    if error.errno in limits:
        name, what = limits[error.errno]
        return FolderDown(
            f"{display(root)} cannot be watched: the kernel's limit of {what} is reached",
            hint=f"Raise fs.inotify.{name} (now {_sysctl(name)}) with sysctl; meanwhile the folder is scanned.",
            reason="inotify_limit",
        )
    message = f"{display(root)} cannot be watched: {error.strerror}"
    return FolderDown(message, hint="Meanwhile the folder is scanned.", reason="unwatchable")


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
