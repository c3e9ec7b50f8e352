"""What happens to a source after its upload: archive or delete, and only if it still is that version.

State first, then files: the ledger says `uploaded` before anything here runs, and every step may be repeated.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Final

from pmwatch.errors import DisposeError, SourceVanished
from pmwatch.files import is_regular, look, parent_directory, sync_directory
from pmwatch.model import AfterUpload, Delivery, Fingerprint, Folder, display

_CHUNK_BYTES: Final = 1024 * 1024
Beat = Callable[[], None]


def _no_beat() -> None:
    """Nobody watches over this thread's turns."""


def dispose(delivery: Delivery, folder: Folder, *, beat: Beat = _no_beat) -> tuple[bytes, bool]:
    """Archive or delete the source as the folder says; return where it lies now, and whether it stayed in place.

    A source that is gone or has become a newer version is left alone. Raises DisposeError; safe to repeat.
    """
    root, path = source_of(delivery, folder)
    try:
        if folder.after_upload is AfterUpload.KEEP:
            return delivery.location, not delivery.location
        if folder.after_upload is AfterUpload.DELETE:
            return b"", not _delete(root, path, delivery)
        location = move_into(root, path, _archive_directory(delivery, folder), version=delivery.fingerprint, beat=beat)
        return location, not location and look(root, path) is not None
    except SourceVanished:
        return b"", False
    except OSError as error:
        raise _dispose_error(delivery, folder, error) from None


def _archive_directory(delivery: Delivery, folder: Folder) -> bytes:
    """Return the dated directory; the date is that of the upload, so that a repetition finds the same one."""
    day = time.strftime("%Y/%m/%d", time.gmtime(delivery.uploaded_at or delivery.settled_at)).encode()
    return os.path.join(folder.archive_dir, day, os.path.dirname(delivery.path))


def source_of(delivery: Delivery, folder: Folder) -> tuple[bytes, bytes]:
    """Return directory and path of the source: in the folder, or where pmwatch itself moved it."""
    if delivery.location:
        return os.path.dirname(delivery.location), os.path.basename(delivery.location)
    return folder.root, delivery.path


def _delete(root: bytes, path: bytes, delivery: Delivery) -> bool:
    """Delete the source if it still is the version that was uploaded; tell whether it is gone."""
    with parent_directory(root, path) as (directory, name):
        hidden = _take(directory, name, delivery.fingerprint)
        if hidden is None:
            return False
        os.unlink(hidden, dir_fd=directory)
        os.fsync(directory)
    return True


def _take(directory: int, name: bytes, version: Fingerprint) -> bytes | None:
    """Rename a file to a hidden name of ours, which nobody replaces, and only then see whether it is `version`.

    Any other version is put back, and None returned: between a check and an unlink by name a new file could
    come to stand there. A hidden name left over by a crash is taken up again. Raises SourceVanished.
    """
    hidden = b".pmwatch-%d" % version.inode
    left_over = _exists(hidden, directory)
    if left_over is not None and _is_version(left_over, version):
        return hidden
    try:
        os.rename(name, hidden, src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        raise SourceVanished("the source is gone") from None
    if _is_version(os.stat(hidden, dir_fd=directory, follow_symlinks=False), version):
        return hidden
    with suppress(FileExistsError):  # an even newer file stands there: this one was replaced like any other
        os.link(hidden, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    os.unlink(hidden, dir_fd=directory)
    return None


def _exists(name: bytes, directory: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_version(st: os.stat_result, version: Fingerprint) -> bool:
    return is_regular(st) and Fingerprint.of(st).same_content_as(version)


def _dispose_error(delivery: Delivery, folder: Folder, error: OSError) -> DisposeError:
    deleting = folder.after_upload is AfterUpload.DELETE
    where = "its directory" if deleting else display(folder.archive_dir)
    return DisposeError(
        f"{delivery.display_path} is uploaded, but cannot be {'deleted' if deleting else 'archived'}: {error.strerror}",
        hint=f"Give pmwatch's user write access to {where}; it is tried again by itself.",
    )


def move_into(
    root: bytes, path: bytes, target_directory: bytes, *, version: Fingerprint, beat: Beat = _no_beat
) -> bytes:
    """Move `path` below `root` into a directory of ours under a free name; return its new absolute path.

    Empty where it is no longer `version`, which then stays. Atomic; on another file system it is copied, synced,
    verified by SHA-256 and only then removed. Raises SourceVanished where it is gone, OSError.
    """
    os.makedirs(target_directory, mode=0o750, exist_ok=True)
    target, moved_before = _free_target(target_directory, os.path.basename(path), version)
    with parent_directory(root, path) as (directory, name):
        if moved_before and not _exists(name, directory):
            return target
        hidden = _take(directory, name, version)
        if hidden is None:
            return b""
        try:
            os.rename(hidden, target, src_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(hidden, directory, target, beat)
            sync_directory(target_directory)
            os.unlink(hidden, dir_fd=directory)
        sync_directory(target_directory)
        os.fsync(directory)
    return target


def _free_target(directory: bytes, name: bytes, version: Fingerprint) -> tuple[bytes, bool]:
    """Return the first free name in a directory that only pmwatch fills, or the one where this file lies already."""
    for candidate in _free_names(name):
        target = os.path.join(directory, candidate)
        st = _exists(target)
        if st is None:
            return target, False
        if (st.st_dev, st.st_ino) == (version.device, version.inode) and _is_version(st, version):
            return target, True
    raise AssertionError("names never end")


def _free_names(name: bytes) -> Iterator[bytes]:
    """Yield `orders.csv`, `orders.1.csv`, `orders.2.csv` …, each short enough for a file system (255 bytes)."""
    stem, extension = os.path.splitext(name)
    yield name
    for number in count(1):
        suffix = b".%d" % number + extension
        yield stem[: 255 - len(suffix)] + suffix


def _copy(name: bytes, source: int, target: bytes, beat: Beat) -> None:
    """Copy to another file system under a hidden name, sync, compare, and rename into place."""
    hidden = os.path.join(os.path.dirname(target), b".pmwatch-copy")
    inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    outer = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        written = _copy_bytes(inner, outer, beat)
        st = os.fstat(inner)
        os.utime(outer, ns=(st.st_atime_ns, st.st_mtime_ns))
        os.fsync(outer)
        if _sha256(outer, beat) != written:
            raise OSError(errno.EIO, "the copy differs from the original")
        os.rename(hidden, target)
    finally:
        os.close(outer)
        os.close(inner)


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
    """Move a failed source into quarantine, with `NAME.error.json` beside it; return its new path.

    `facts` say what happened and what to do. Empty where the source is gone or no longer that version.
    Raises DisposeError.
    """
    if delivery.location:
        return delivery.location
    directory = os.path.join(folder.quarantine_dir, os.path.dirname(delivery.path))
    try:
        target = move_into(folder.root, delivery.path, directory, version=delivery.fingerprint, beat=beat)
        if target:
            base = os.path.basename(target)[: 255 - len(b".error.json")]
            _write_json(os.path.join(os.path.dirname(target), base + b".error.json"), facts)
    except SourceVanished:
        return b""
    except OSError as error:
        raise DisposeError(
            f"{delivery.display_path} cannot be moved to quarantine: {error.strerror}",
            hint=f"Give pmwatch's user write access to {display(folder.quarantine_dir)}.",
        ) from None
    return target


def _write_json(path: bytes, facts: dict[str, Any]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(facts, file, indent=2)
        file.write("\n")
