"""Opening and stating files that strangers write: below a directory descriptor, following no link."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pmwatch.errors import SourceUnreadable, SourceVanished
from pmwatch.model import display, file_kind

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block the open
_GONE: Final = (FileNotFoundError, NotADirectoryError)


@contextmanager
def parent_directory(root: bytes, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a descriptor of the directory that holds `path` below `root`, and the last name.

    No component below the root may be a symbolic link. Raises SourceVanished or SourceUnreadable.
    """
    *directories, name = path.split(b"/")
    fd = _open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None, path)
    try:
        for directory in directories:
            inner = _open(directory, _DIRECTORY, fd, path)
            os.close(fd)
            fd = inner
        yield fd, name
    finally:
        os.close(fd)


def open_regular(root: bytes, path: bytes) -> int:
    """Return a descriptor for reading of the regular file `path` below `root`.

    Raises SourceVanished where it is gone, SourceUnreadable where it is no regular file or may not be read.
    """
    with parent_directory(root, path) as (directory, name):
        fd = _open(name, _FILE, directory, path)
    try:
        _require_regular(fd, path)
        os.set_blocking(fd, True)
    except SourceUnreadable:
        os.close(fd)
        raise
    return fd


def _require_regular(fd: int, path: bytes) -> None:
    kind = file_kind(stat_of(fd).st_mode)
    if kind:
        raise SourceUnreadable(f"{display(path)} is a {kind}, not a regular file")


def stat_of(fd: int) -> os.stat_result:
    """Return what an open file is. Raises SourceUnreadable, as where a file server removed it (ESTALE)."""
    try:
        return os.fstat(fd)
    except OSError as error:
        raise SourceUnreadable(f"reading failed: {error.strerror}", hint="Check the disk or mount.") from None


def look(root: bytes, path: bytes) -> os.stat_result | None:
    """Return what lies at `path` below `root`, following no link; None where nothing (readable) does."""
    try:
        with parent_directory(root, path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (SourceVanished, SourceUnreadable, *_GONE):
        return None
    except OSError:
        return None


def is_directory(root: bytes, path: bytes) -> bool:
    """Tell whether a directory lies at `path` below `root`, and no link to one."""
    st = look(root, path)
    return st is not None and stat.S_ISDIR(st.st_mode)


def why_unseen(root: bytes, path: bytes) -> str:
    """Say why nobody can tell what lies at `path` below `root`; empty where that is known, were it nothing."""
    try:
        with parent_directory(root, path) as (directory, name):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (SourceVanished, *_GONE):
        return ""
    except SourceUnreadable as error:
        return error.message
    except OSError as error:
        return error.strerror or ""
    return ""


def _open(name: bytes, flags: int, directory: int | None, path: bytes) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        raise SourceVanished(f"{display(path)} is gone") from None
    except NotADirectoryError:
        raise SourceVanished(f"{display(path)} is gone: a directory above it is none any more") from None
    except PermissionError:
        raise SourceUnreadable(
            f"{display(path)} may not be read",
            hint="Give pmwatch's user read access to it and to its directory.",
        ) from None
    except OSError as error:
        raise SourceUnreadable(f"{display(path)} cannot be opened: {error.strerror}") from None


def is_away(root: bytes, path: bytes, device: int, *, marker: str = "") -> bool:
    """Tell whether a file that is not there may lie on a file system that is not mounted now.

    It did when `device` was noted, but numbers change with a reboot or a new mount. So another number alone tells
    nothing: away is what lay below an empty directory that nothing is mounted on, or below a root without its `marker`.
    """
    if marker:
        return look(root, os.fsencode(marker)) is None
    try:
        directory = _deepest(root, path)
        here = os.stat(directory).st_dev
        if here == device or here != os.stat(os.path.join(directory, b"..")).st_dev:
            return False
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _deepest(root: bytes, path: bytes) -> bytes:
    """Return the deepest directory on the way from the root to `path` that is there."""
    below = os.path.dirname(path)
    while below:
        if is_directory(root, below):
            return os.path.join(root, below)
        below = os.path.dirname(below)
    return root


def is_regular(st: os.stat_result) -> bool:
    """Tell whether a stat result is of a regular file."""
    return stat.S_ISREG(st.st_mode)


def sync_directory(directory: bytes) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give_to_owner(file: str | int, directory: str) -> None:
    """Give a file (path or descriptor) that root made to the owner of the directory: the account of the service."""
    if os.geteuid() == 0:
        owner = os.stat(directory)
        os.chown(file, owner.st_uid, owner.st_gid)
