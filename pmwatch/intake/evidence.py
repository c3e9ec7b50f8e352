"""Evidence that a file is complete. Each piece answers yes, no or unknown, with a sentence for people."""

import fcntl
import functools
import os
import re
import signal
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pmwatch.errors import SourceError
from pmwatch.files import look, open_regular
from pmwatch.filesystems import NETWORK_FILE_SYSTEMS, file_system_type
from pmwatch.model import display

_EPOCH_SLACK_NS: Final = 24 * 3600 * 1_000_000_000
_SHOWN_NAMES: Final = 3


class Answer(StrEnum):
    """What a piece of evidence says to "is it complete?"."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence."""

    answer: Answer
    sentence: str


def quietens_leases() -> None:
    """Ignore SIGIO, which the kernel sends to the holder of a broken lease and which kills by default.

    Must be called from the main thread, once.
    """
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def no_writer(root: bytes, path: bytes) -> Evidence:
    """Ask the kernel for a read lease: it is refused while any local process has the file open for writing.

    Taken and given back in one step, for a held lease stalls the writer (fcntl(2), "Leases"). Unknown for
    files of another owner without CAP_LEASE, and where other machines may write.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return Evidence(Answer.UNKNOWN, "this system has no leases")
    try:
        fd = open_regular(root, path)
    except SourceError as error:
        return Evidence(Answer.UNKNOWN, error.message)
    try:
        kind = _file_system_type(os.path.join(root, os.path.dirname(path)), os.fstat(fd).st_dev)
        if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse"):
            return Evidence(Answer.UNKNOWN, f"on {kind} writers on other machines cannot be seen")
        return _lease(fd)
    finally:
        os.close(fd)


@functools.lru_cache(maxsize=1024)
def _file_system_type(directory: bytes, _device: int) -> str:
    """Return the type of the file system of a directory, read once for as long as the device is the same."""
    return file_system_type(directory)


def _lease(fd: int) -> Evidence:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return Evidence(Answer.NO, "a process on this machine has it open for writing")
    except PermissionError:
        return Evidence(Answer.UNKNOWN, "its owner is another user, and CAP_LEASE is missing")
    except OSError as error:
        return Evidence(Answer.UNKNOWN, f"no lease to be had here ({error.strerror})")
    return Evidence(Answer.YES, "no process on this machine has it open for writing")


def renamed_into_place(*, renamed: bool, mtime_ns: int) -> Evidence:
    """Judge an arrival: a rename brings a whole file, unless its mtime is 1970, as rsync leaves a torn one."""
    if not renamed:
        return Evidence(Answer.UNKNOWN, "it was not seen being renamed into place")
    if mtime_ns < _EPOCH_SLACK_NS:
        return Evidence(Answer.UNKNOWN, "it was renamed into place with an mtime of 1970, as a broken-off rsync does")
    return Evidence(Answer.YES, "it was renamed into place")


def unchanged(*, seconds: float, settle_seconds: float) -> Evidence:
    """Judge two looks, `seconds` apart by the monotonic clock, that saw the same."""
    return _unchanged(long_enough=seconds >= settle_seconds, settle_seconds=settle_seconds)


@functools.lru_cache(maxsize=1024)  # one object for all the files that wait
def _unchanged(*, long_enough: bool, settle_seconds: float) -> Evidence:
    if not long_enough:
        return Evidence(Answer.NO, f"a second look, unchanged for {settle_seconds:g} s")
    return Evidence(Answer.YES, f"it is unchanged for {settle_seconds:g} s")


def marker_of(path: bytes, template: str) -> bytes:
    """Return the path of a file's own marker."""
    directory, name = os.path.split(os.fsdecode(path))
    values = {"{name}": name, "{stem}": os.path.splitext(name)[0]}
    marker = re.sub(r"\{(?:name|stem)\}", lambda match: values[match[0]], template)
    return os.fsencode(os.path.join(directory, marker))


def marked(root: bytes, path: bytes, template: str, *, ctime_ns: int) -> Evidence:
    """Look for a file's own marker, which must not be older than the file's last change (`ctime_ns`)."""
    marker = marker_of(path, template)
    st = look(root, marker)
    shown = display(os.path.basename(marker))
    if st is None:
        return Evidence(Answer.NO, f"its marker {shown}")
    if st.st_ctime_ns < ctime_ns:
        return Evidence(Answer.NO, f"a new marker: {shown} is older than its last change")
    return Evidence(Answer.YES, f"its marker {shown} is there")


def batch_marked(marker: str, *, newest_ns: int | None, ctime_ns: int) -> Evidence:
    """Judge a file of a batch by the ctime (ns) of the newest marker beside it; None where there is none."""
    if newest_ns is None:
        return Evidence(Answer.NO, f"the {marker} of its batch")
    if ctime_ns > newest_ns:
        return Evidence(Answer.NO, f"a new {marker} of its batch")
    return Evidence(Answer.YES, f"the {marker} of its batch is there")


def batch_listed(manifest: bytes, *, listed: Collection[bytes], here: Container[bytes]) -> Evidence:
    """Judge a batch by its manifest: whether all that it lists is `here`, and complete."""
    missing = [name for name in listed if name not in here]
    if missing:
        count = f"{len(missing)} of {len(listed)}"
        return Evidence(Answer.NO, f"the rest of {display(manifest)}: {count} not here, {shown_names(missing)}")
    return Evidence(Answer.YES, f"all that {display(manifest)} lists is here")


def shown_names(paths: Iterable[bytes]) -> str:
    """Return the first few names for people, and how many more there are."""
    names = [display(os.path.basename(path)) for path in paths]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
