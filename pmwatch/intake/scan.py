"""The scanner: the truth about what lies in a folder. Iterative, below directory descriptors, following no link."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pmwatch.errors import FolderDown
from pmwatch.intake.rules import PASSED_BY, Rules
from pmwatch.model import display, file_kind

Problem = Callable[[bytes, str], None]
Enter = Callable[[bytes, tuple[int, int]], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A file that the scan saw: its path below the root and what stat said."""

    path: bytes
    stat: os.stat_result


def root_identity(root: bytes) -> tuple[int, int]:
    """Return device and inode of a folder's root. Raises FolderDown where it is not a readable directory."""
    try:
        with os.scandir(root):
            st = os.stat(root)
    except OSError as error:
        raise _down(root, error) from None
    return st.st_dev, st.st_ino


def require_marker(root: bytes, name: str) -> None:
    """Raise FolderDown unless the file by which a mounted folder is known lies in its root."""
    try:
        os.stat(os.path.join(root, os.fsencode(name)), follow_symlinks=False)
    except FileNotFoundError:
        raise FolderDown(
            f"{display(root)} holds no {name}: is what it lies on mounted?",
            hint=f"Mount it, or create the file {name} there (root_marker).",
        ) from None
    except OSError as error:
        raise _down(root, error) from None


def _down(root: bytes, error: OSError) -> FolderDown:
    hints = {
        errno.ENOENT: "Create it, or mount what it lies on; pmwatch goes on by itself when it is there.",
        errno.EACCES: "Give pmwatch's user read and execute permission on it and on all directories above.",
        errno.ENOTDIR: "It is a file; a folder's path must be a directory.",
        errno.EMFILE: "Too many open files: raise LimitNOFILE.",
    }
    return FolderDown(
        f"{display(root)} cannot be read: {error.strerror}",
        hint=hints.get(error.errno or 0, "Check the disk or mount."),
    )


def _pass_by(_directory: bytes, _identity: tuple[int, int]) -> None:
    """Take no note."""


def scan(
    root: bytes, rules: Rules, *, below: bytes = b"", problem: Problem, enter: Enter = _pass_by
) -> Iterator[Found]:
    """Yield every wanted regular file below `root` (or below its sub-directory `below`).

    `problem` is told of every other one, and of each directory that is passed by, with the reason; `enter` of each
    directory before it is read, with its device and inode. Raises FolderDown where the root cannot be read; a
    sub-directory that cannot be is a problem of its own.
    """
    waiting = [below]
    while waiting:
        directory = waiting.pop()
        for path, entry in _entries(root, directory, problem, enter):
            try:
                if entry.is_dir(follow_symlinks=False):
                    if rules.enters(path):
                        waiting.append(path)
                    elif rules.passes_by(path):
                        problem(path, PASSED_BY)
                    continue
                mapped = rules.map(path)
                if mapped.target is None:
                    problem(path, mapped.reason)
                    continue
                st = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile
            kind = file_kind(st.st_mode)
            if kind:
                problem(path, f"a {kind}, not a regular file")
            else:
                yield Found(path, st)


def _entries(
    root: bytes, directory: bytes, problem: Problem, enter: Enter
) -> Iterator[tuple[bytes, "os.DirEntry[str]"]]:
    """Yield path and entry of what lies in one directory, opened without following a link below the root."""
    fd, prefix = -1, directory + b"/" if directory else b""
    try:
        fd = _open_directory(root, directory)
        st = os.fstat(fd)
        enter(directory, (st.st_dev, st.st_ino))
        with os.scandir(fd) as entries:
            for entry in entries:
                yield prefix + os.fsencode(entry.name), entry
    except OSError as error:  # also in the middle of reading, where a server went away
        if not directory:
            raise _down(root, error) from None
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            problem(directory, f"a directory that cannot be read: {error.strerror}")
    finally:
        if fd >= 0:
            os.close(fd)


def _open_directory(root: bytes, directory: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(root, flags)
    for part in directory.split(b"/") if directory else ():
        try:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd
