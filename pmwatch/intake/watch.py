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


Identity = tuple[int, int]
"""Device and inode of a directory: what the kernel watches, whatever its path becomes."""


class Watch:
    """The watched directories of one folder, and the way of their events into its inbox.

    The intake calls `watch` for each directory before it reads it, at every scan: what a lost event or a limit left
    unwatched is watched from the next scan on. watchdog calls `on_event`, `on_watch_deleted` and
    `on_queue_overflow` from its reading thread; nothing in them may raise, or every folder would go blind.
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
        self._identities: dict[WatchDescriptor, Identity] = {}
        self._wds: dict[Identity, WatchDescriptor] = {}
        self._root_wd: WatchDescriptor | None = None
        self._closed = False
        self._complete = True

    def arm(self, identity: Identity) -> None:
        """Watch the root. Raises FolderDown, naming the limit reached."""
        try:
            with self._lock:
                self._root_wd = self._add(b"", identity)
        except OSError as error:
            self.close()
            raise explain(error, self._root) from None
        if self._root_wd is None:
            self.close()
            message = f"{display(self._root)} cannot be watched"
            raise FolderDown(message, hint="Check its permissions.", reason="unwatchable")

    def watch(self, path: bytes, identity: Identity) -> None:
        """Watch the directory `path` below the root, unless it is. Raises FolderDown at a limit of the kernel."""
        with self._lock:
            wd = self._wds.get(identity)
            if wd is not None:
                self._paths[wd] = path  # it may have been moved
                return
            if self._closed:
                return
            try:
                self._add(path, identity)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENOMEM):
                    raise explain(error, self._root, what="as a whole") from None
                # gone meanwhile, or no directory any more

    def _add(self, path: bytes, identity: Identity) -> WatchDescriptor | None:
        """Watch one directory below the root; None where that is not allowed."""
        wd = self._fd.add_callback(os.path.join(self._root, path) if path else self._root, _MASK, self, self._id)
        if wd == -1:  # watchdog's way to report EACCES
            self._fd.remove_callbacks([(wd, self._id)])
            return None
        self._paths[wd], self._identities[wd], self._wds[identity] = path, identity, wd
        return wd

    def _drop(self, wd: WatchDescriptor) -> None:
        if self._paths.pop(wd, None) is not None:
            self._wds.pop(self._identities.pop(wd), None)

    @property
    def alive(self) -> bool:
        """Tell whether the root is still watched and somebody reads the events."""
        return not self._closed and self._root_wd in self._paths and self._fd.is_alive()

    @property
    def complete(self) -> bool:
        """Tell whether no event was lost: the kernel may have dropped one that a directory came, went or was moved."""
        return self._complete

    def __len__(self) -> int:
        return len(self._paths)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            self._closed = True
            self._give_back(list(self._paths))

    def _give_back(self, wds: list[WatchDescriptor]) -> None:
        for wd in wds:
            self._drop(wd)
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
            with self._lock:
                below = path + b"/"
                self._give_back([wd for wd, known in self._paths.items() if known == path or known.startswith(below)])
        else:
            self._inbox.put_directory(path)

    def _lost(self, wd: WatchDescriptor) -> None:
        if wd == self._root_wd:
            self._root_wd = None
            self._inbox.rescan()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The kernel dropped a watch: its directory is gone, or unmounted."""
        with self._lock:
            self._drop(wd)
        self._lost(wd)

    def on_queue_overflow(self) -> None:
        """The kernel dropped events: a new watch and a scan find what they were about."""
        self._complete = False
        self._inbox.rescan()


class Watcher:
    """The process's inotify instance, opened when the first folder is watched, and again should its reader die."""

    def __init__(self) -> None:
        self._fd: InotifyFD | None = None
        self._lock = threading.Lock()
        self._watches: list[Watch] = []

    def watch(
        self, root: bytes, identity: Identity, *, inbox: Inbox, enters: Callable[[bytes], bool], deep: bool
    ) -> Watch:
        """Return a watch of a folder's root; the scan adds what lies below. Raises FolderDown."""
        with self._lock:
            try:
                watch = Watch(self._reader(), root, inbox=inbox, enters=enters, deep=deep)
            except OSError as error:
                raise explain(error, root) from None
        watch.arm(identity)
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


def explain(error: OSError, root: bytes, *, what: str = "") -> FolderDown:
    """Put an inotify error into plain words: ENOSPC has nothing to do with a disk (inotify_add_watch(2))."""
    cannot = f"{display(root)} cannot be watched {what}".rstrip()
    limits = {
        errno.ENOSPC: ("max_user_watches", "watched directories"),
        errno.EMFILE: ("max_user_instances", "inotify instances"),
    }
    if error.errno in limits:
        name, of_what = limits[error.errno]
        return FolderDown(
            f"{cannot}: the kernel's limit of {of_what} is reached",
            hint=f"Raise fs.inotify.{name} (now {_sysctl(name)}) with sysctl; meanwhile the folder is scanned.",
            reason="inotify_limit",
        )
    message = f"{cannot}: {error.strerror}"
    return FolderDown(message, hint="Meanwhile the folder is scanned.", reason="unwatchable")


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
