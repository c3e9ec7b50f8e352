"""What happens to a source after its upload: archive or delete, and only if it still is that version.

State first, then files: the ledger says `uploaded` before anything here runs, and every step may be repeated.

A move of one file is a generator that hands out each directory which has to be on the disk before it goes on. So the
moves of many files take their steps side by side, and a directory is synced once for all of them.
"""

import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final, TypeVar

from pmwatch.errors import DisposeError, Interrupted, PmwatchError, SourceUnreadable, SourceVanished
from pmwatch.failpoints import reached
from pmwatch.files import is_regular, look, parent_directory, sync_directory
from pmwatch.model import AfterUpload, Delivery, Fingerprint, Folder, Quarantine, display

_CHUNK_BYTES: Final = 1024 * 1024
NOTE_SUFFIX: Final = b".error.json"
"""What the name of the note ends with that lies beside a failed file in quarantine."""

_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
Beat = Callable[[], None]
T = TypeVar("T")
Move = Generator[int | bytes, None, T]
"""Steps that hand out a directory (descriptor or path) each time that it has to be on the disk before the next one."""


def _no_beat() -> None:
    """Nobody watches over this thread's turns."""


def dispose_all(
    uploaded: Sequence[tuple[Delivery, Folder]], *, beat: Beat = _no_beat
) -> list[tuple[bytes, bool] | DisposeError]:
    """Archive or delete sources as their folders say; return where each lies now, and whether it stayed in place.

    Or the error that prevented it. A source that is gone or has become a newer version is left alone. Safe to repeat.
    """
    ends = _together([_dispose(delivery, folder, beat) for delivery, folder in uploaded])
    for end in ends:
        if isinstance(end, Exception) and not isinstance(end, DisposeError):
            raise end
    return ends  # type: ignore[return-value]  # no other error is left


def _dispose(delivery: Delivery, folder: Folder, beat: Beat) -> Move[tuple[bytes, bool]]:
    root, path = source_of(delivery, folder)
    try:
        if folder.after_upload is AfterUpload.KEEP or is_archived(delivery, folder):
            return delivery.location, not delivery.location
        if folder.after_upload is AfterUpload.DELETE:
            return b"", not (yield from _delete(root, path, delivery))
        location = yield from _move_into(root, path, _archive_directory(delivery, folder), delivery, beat)
        return location, not location and look(root, path) is not None
    except SourceVanished:
        return b"", False
    except SourceUnreadable as error:
        raise _dispose_error(delivery, folder, error.message) from None
    except OSError as error:
        raise _dispose_error(delivery, folder, error.strerror or "") from None


def _together(moves: Sequence[Move[T]]) -> list[T | Exception]:
    """Take the steps of all moves side by side; return how each ended."""
    ends: dict[int, T | Exception] = {}
    troubles: dict[int, OSError] = {}
    while len(ends) < len(moves):
        wanted: dict[int, int | bytes] = {}
        for number, move in enumerate(moves):
            if number in ends:
                continue
            try:
                wanted[number] = move.throw(troubles[number]) if number in troubles else next(move)
            except StopIteration as end:
                ends[number] = end.value
            except (OSError, PmwatchError) as error:
                ends[number] = error
        troubles = _sync_all(wanted)
    return [ends[number] for number in range(len(moves))]


def _alone(move: Move[T]) -> T:
    (end,) = _together([move])
    if isinstance(end, Exception):
        raise end
    return end


def _sync_all(wanted: dict[int, int | bytes]) -> dict[int, OSError]:
    """Sync each directory that is wanted, once; return whose failed."""
    same: dict[object, list[int]] = {}
    for number, directory in wanted.items():
        same.setdefault(_identity(directory), []).append(number)
    troubles: dict[int, OSError] = {}
    for numbers in same.values():
        directory = wanted[numbers[0]]
        try:
            os.fsync(directory) if isinstance(directory, int) else sync_directory(directory)
        except OSError as error:
            troubles |= dict.fromkeys(numbers, error)
    return troubles


def _identity(directory: int | bytes) -> object:
    if isinstance(directory, bytes):
        return directory
    st = os.fstat(directory)
    return st.st_dev, st.st_ino


def _archive_directory(delivery: Delivery, folder: Folder) -> bytes:
    """Return the dated directory; the date is that of the upload, so that a repetition finds the same one."""
    day = time.strftime("%Y/%m/%d", time.gmtime(delivery.uploaded_at or delivery.settled_at)).encode()
    return os.path.join(folder.archive_dir, day, os.path.dirname(delivery.path))


def is_archived(delivery: Delivery, folder: Folder) -> bool:
    """Tell whether the source lies in the archive already, from which it was sent once more."""
    return delivery.location.startswith(folder.archive_dir + b"/")


def source_of(delivery: Delivery, folder: Folder) -> tuple[bytes, bytes]:
    """Return directory and path of the source: in the folder, or where pmwatch itself moved it."""
    if delivery.location:
        return os.path.dirname(delivery.location), os.path.basename(delivery.location)
    return folder.root, delivery.path


def _delete(root: bytes, path: bytes, delivery: Delivery) -> Move[bool]:
    """Delete the source if it still is the version that was uploaded; tell whether it is gone."""
    with parent_directory(root, path) as (directory, name):
        hidden = _take(directory, name, delivery)
        if hidden is None:
            return False
        os.unlink(hidden, dir_fd=directory)
        yield directory
    return True


def _take(directory: int, name: bytes, delivery: Delivery) -> bytes | None:
    """Rename a file to a hidden name of ours, which nobody replaces, and only then see whether it is that version.

    Any other version is put back, and None returned: between a check and an unlink by name a new file could
    come to stand there. A hidden name left over by a crash is taken up again. Raises SourceVanished.
    """
    hidden = _hidden_name(delivery)
    if _is_version(directory, hidden, delivery):
        return hidden
    if not _is_version(directory, name, delivery):
        if _exists(name, directory) is None:
            raise SourceVanished("the source is gone")
        return None
    os.rename(name, hidden, src_dir_fd=directory, dst_dir_fd=directory)
    if _is_version(directory, hidden, delivery):
        return hidden
    if not _put_back(directory, hidden, name):  # an even newer file stands there: this one was replaced like any other
        os.unlink(hidden, dir_fd=directory)
    return None


def _hidden_name(delivery: Delivery) -> bytes:
    return b".pmwatch-%d" % delivery.fingerprint.inode


def _put_back(directory: int, hidden: bytes, name: bytes) -> bool:
    """Give a hidden file its name again, unless another one has it; tell whether it was free."""
    try:
        os.link(hidden, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:  # hard links are not for directories, and not on every file system
        os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
    else:
        os.unlink(hidden, dir_fd=directory)
    return True


def _exists(name: bytes, directory: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_version(directory: int, name: bytes, delivery: Delivery) -> bool:
    """Tell whether a name holds the version that was delivered: the same inode, or another one with the same bytes."""
    version, st = delivery.fingerprint, _exists(name, directory)
    if st is None or not is_regular(st) or not Fingerprint.of(st).same_content_as(version):
        return False
    return st.st_ino == version.inode or _hash_of(directory, name) == delivery.sha256


def _hash_of(directory: int | None, name: bytes) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        return _sha256(fd, _no_beat).hex()
    finally:
        os.close(fd)


def _dispose_error(delivery: Delivery, folder: Folder, why: str) -> DisposeError:
    deleting = folder.after_upload is AfterUpload.DELETE
    where = "its directory" if deleting else display(folder.archive_dir)
    return DisposeError(
        f"{delivery.display_path} is uploaded, but cannot be {'deleted' if deleting else 'archived'}: {why}",
        hint=f"Give pmwatch's user write access to {where}; it is tried again by itself.",
    )


def _move_into(root: bytes, path: bytes, target_directory: bytes, delivery: Delivery, beat: Beat) -> Move[bytes]:
    """Move `path` below `root` into a directory of ours under a free name; return its new absolute path.

    Empty where it is no longer the version that was delivered, which then stays. Atomic; on another file system it
    is copied, synced, verified by SHA-256 and only then removed. Raises SourceVanished where it is gone, OSError.
    """
    _make_directories(target_directory)
    earlier = _moved_before(target_directory, os.path.basename(path), delivery.fingerprint)
    with parent_directory(root, path) as (directory, name):
        if earlier:  # and where a crash or a disk's trouble left it a name here as well, that one goes
            with suppress(SourceVanished):
                hidden = _take(directory, name, delivery)
                if hidden is not None:
                    os.unlink(hidden, dir_fd=directory)
                    yield directory
            return earlier
        try:
            hidden = _take(directory, name, delivery)
        except SourceVanished:
            copy = _copied_before(target_directory, name, delivery)
            if copy:
                return copy
            raise
        if hidden is None:
            return b""
        try:
            reached("during_archive_rename")
            target = yield from _place(hidden, directory, target_directory, name, delivery=delivery, beat=beat)
        except (OSError, Interrupted):
            with suppress(OSError):  # the first trouble is the one to tell
                _put_back(directory, hidden, name)
            raise
        yield directory
    return target


def _moved_before(directory: bytes, name: bytes, version: Fingerprint) -> bytes:
    """Return where this very file lies already, in a directory that only pmwatch fills; empty where it does not."""
    for target, st in _namesakes(directory, name):
        if (st.st_dev, st.st_ino) == (version.device, version.inode) and Fingerprint.of(st).same_content_as(version):
            return target
    return b""


def _namesakes(directory: bytes, name: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the files that have this name in a directory of ours, or one made of it, until a name is free."""
    for candidate in _free_names(name):
        target = os.path.join(directory, candidate)
        st = _exists(target)
        if st is None:
            return
        yield target, st


def _copied_before(directory: bytes, name: bytes, delivery: Delivery) -> bytes:
    """Return where the copy lies that replaced a source on another file system; empty where there is none.

    The copy has another inode, and the source's size and time; its bytes are compared where their hash is known.
    """
    version = delivery.fingerprint
    for target, st in _namesakes(directory, name):
        if not is_regular(st) or st.st_dev == version.device or not Fingerprint.of(st).same_content_as(version):
            continue
        if not delivery.sha256 or _hash_of(None, target) == delivery.sha256:
            return target
    return b""


def find_again(delivery: Delivery, folder: Folder) -> bytes | None:
    """Look for a source that a move into quarantine, broken off by a crash, has taken from its place.

    Return where it lies; empty where it has its own name again, None where it is not to be found.
    """
    if delivery.location:
        return None
    with suppress(OSError, PmwatchError):
        with parent_directory(folder.root, delivery.path) as (directory, name):
            hidden = _hidden_name(delivery)
            if _is_version(directory, hidden, delivery) and _put_back(directory, hidden, name):
                return b""
        aside = os.path.join(folder.quarantine_dir, os.path.dirname(delivery.path))
        name = os.path.basename(delivery.path)
        return _moved_before(aside, name, delivery.fingerprint) or _copied_before(aside, name, delivery) or None
    return None


def _place(
    hidden: bytes, source: int, target_directory: bytes, name: bytes, *, delivery: Delivery, beat: Beat
) -> Move[bytes]:
    """Move a hidden file below a free name of the target directory, and return that, once it is on the disk."""
    try:
        target = _link_free(hidden, source, target_directory, name)
    except OSError as error:
        if error.errno in _NO_LINKS:
            target = _reserve(target_directory, name)
            _rename_over(hidden, source, target)
            yield target_directory
            return target
        if error.errno != errno.EXDEV:
            raise
        target = _copy(hidden, source, target_directory, name, delivery=delivery, beat=beat)
        sync_directory(target_directory)  # at once: a crash may leave a second copy, but of one file only
        reached("between_copy_and_unlink")
    else:
        yield target_directory
    os.unlink(hidden, dir_fd=source)
    return target


def _link_free(hidden: bytes, source: int | None, directory: bytes, name: bytes) -> bytes:
    """Give a file a second name, the first that is free in a directory: at no time is there a name without its content.

    Raises OSError where hard links are not to be had.
    """
    for candidate in _free_names(name):
        target = os.path.join(directory, candidate)
        with suppress(FileExistsError):
            os.link(hidden, target, src_dir_fd=source, follow_symlinks=False)
            return target
    raise AssertionError("names never end")


def _rename_over(hidden: bytes, source: int, target: bytes) -> None:
    try:
        os.rename(hidden, target, src_dir_fd=source)
    except BaseException:
        os.unlink(target)
        raise


def _reserve(directory: bytes, name: bytes) -> bytes:
    """Create an empty file under the first free name, so that no other thread takes the name meanwhile."""
    for candidate in _free_names(name):
        target = os.path.join(directory, candidate)
        with suppress(FileExistsError):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return target
    raise AssertionError("names never end")


def _make_directories(path: bytes) -> None:
    """Make a directory and those above it, each readable for the group; os.makedirs gives the mode to the last only."""
    if os.path.isdir(path):
        return
    _make_directories(os.path.dirname(path))
    with suppress(FileExistsError):
        os.mkdir(path, mode=0o750)


def _free_names(name: bytes) -> Iterator[bytes]:
    """Yield `orders.csv`, `orders.1.csv`, `orders.2.csv` …, each short enough for a file system (255 bytes)."""
    stem, extension = os.path.splitext(name)
    yield name
    for number in count(1):
        suffix = b".%d" % number + extension
        yield stem[: 255 - len(suffix)] + suffix


def _copy(name: bytes, source: int, directory: bytes, wanted: bytes, *, delivery: Delivery, beat: Beat) -> bytes:
    """Copy to another file system under a hidden name, sync, compare, and only then give it the first free name.

    The hidden name is always the same for a delivery, so that a repetition replaces what a crash left of it.
    """
    hidden = os.path.join(directory, b".pmwatch-copy-%d-%d" % (delivery.id, delivery.fingerprint.inode))
    inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    outer = -1
    try:
        _remove(hidden)
        outer = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        digest = _copy_bytes(inner, outer, beat)
        st = os.fstat(inner)
        os.utime(outer, ns=(st.st_atime_ns, st.st_mtime_ns))
        os.fsync(outer)
        _check_copy(outer, digest, beat)
        try:
            return _link_free(hidden, None, directory, wanted)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            target = _reserve(directory, wanted)
            os.rename(hidden, target)
            return target
    finally:
        _remove(hidden)
        if outer >= 0:
            os.close(outer)
        os.close(inner)


def _check_copy(fd: int, digest: bytes, beat: Beat) -> None:
    if _sha256(fd, beat) != digest:
        raise OSError(errno.EIO, "the copy differs from the original")


def _copy_bytes(inner: int, outer: int, beat: Beat) -> bytes:
    digest = hashlib.sha256()
    while chunk := os.read(inner, _CHUNK_BYTES):
        beat()
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(outer, view) :]
    return digest.digest()


def _sha256(fd: int, beat: Beat) -> bytes:
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _CHUNK_BYTES, offset):
        beat()
        digest.update(chunk)
        offset += len(chunk)
    return digest.digest()


def quarantine(delivery: Delivery, folder: Folder, *, facts: dict[str, Any], beat: Beat = _no_beat) -> bytes:
    """Put a failed source aside, with `NAME.error.json` beside it; return its new path where it was moved.

    Where the folder says `link` it stays in its place and has a hard link aside, or only the JSON on another file
    system. `facts` say what happened and what to do. Empty also where the source is gone or no longer that version.
    Raises DisposeError.
    """
    if delivery.location:
        return delivery.location
    directory = os.path.join(folder.quarantine_dir, os.path.dirname(delivery.path))
    try:
        if folder.quarantine is Quarantine.LINK:
            _link_aside(delivery, folder)
            _write_json(error_file(_linked(delivery, folder)), facts)
            return b""
        target = _alone(_move_into(folder.root, delivery.path, directory, delivery, beat))
        if target:
            _write_json(error_file(target), facts)
    except SourceVanished:
        return b""
    except (OSError, SourceUnreadable) as error:
        why = error.strerror if isinstance(error, OSError) else error.message
        raise DisposeError(
            f"{delivery.display_path} cannot be put into quarantine: {why}",
            hint=f"Give pmwatch's user write access to {display(folder.quarantine_dir)}.",
        ) from None
    return target


def clear_quarantine(delivery: Delivery, folder: Folder) -> None:
    """Remove what quarantine says of a delivery that has arrived after all. Raises OSError."""
    if delivery.location.startswith(folder.quarantine_dir + b"/"):
        _remove(error_file(delivery.location))
    elif folder.quarantine is Quarantine.LINK and not delivery.location:
        linked = _linked(delivery, folder)
        _remove(error_file(linked))
        st = _exists(linked)
        if st is not None and st.st_ino == delivery.fingerprint.inode:
            os.unlink(linked)


def _linked(delivery: Delivery, folder: Folder) -> bytes:
    return os.path.join(folder.quarantine_dir, delivery.path)


def _link_aside(delivery: Delivery, folder: Folder) -> None:
    """Give a failed source a second name in quarantine, in place of an older version's; not across file systems."""
    target = _linked(delivery, folder)
    _make_directories(os.path.dirname(target))
    with parent_directory(folder.root, delivery.path) as (directory, name):
        if not _is_version(directory, name, delivery):
            raise SourceVanished("the source is gone")
        hidden = os.path.join(os.path.dirname(target), b".pmwatch-link-" + secrets.token_hex(8).encode())
        try:
            os.link(name, hidden, src_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                return
            raise
    os.rename(hidden, target)
    _remove(hidden)  # rename(2) does nothing where both names are one file already
    sync_directory(os.path.dirname(target))


def error_file(path: bytes) -> bytes:
    """Return where the note lies that tells about a file in quarantine, beside it."""
    name = os.path.basename(path)[: 255 - len(NOTE_SUFFIX)] + NOTE_SUFFIX
    return os.path.join(os.path.dirname(path), name)


def _remove(path: bytes) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def _write_json(path: bytes, facts: dict[str, Any]) -> None:
    """Write facts for people, whole or not at all; a note that is there already is replaced."""
    part = os.path.join(os.path.dirname(path), b".%d.error.part" % threading.get_ident())
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(facts, file, indent=2)
        file.write("\n")
    os.replace(part, path)
