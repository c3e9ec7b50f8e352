"""Locks of a state directory, each of which ends with its process, whatever kills it.

One pmwatch at a time works on the directory; and who sends a file by hand has its delivery locked meanwhile.
"""

import fcntl
import json
import os
import struct
from typing import Any

from pmwatch.errors import LedgerError, LockedError
from pmwatch.files import give_to_owner

_NAME = "pmwatch.lock"
_BY_HAND = "uploads.lock"


class StateLock:
    """Holds `DIR/pmwatch.lock` with flock(2). The file tells who holds it and where it answers HTTP."""

    def __init__(self, state_dir: str) -> None:
        self.path = os.path.join(state_dir, _NAME)
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise LockedError naming the holder's PID."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner(fd, os.path.dirname(self.path))
        while not _try_lock(fd, fcntl.LOCK_EX):
            # A command that only reads who holds it has it shared, for microseconds: that is no other pmwatch.
            if not _try_lock(fd, fcntl.LOCK_SH):
                os.close(fd)
                raise self._locked()
        self._fd = fd
        self.publish()

    def _locked(self) -> LockedError:
        pid = read_holder(os.path.dirname(self.path)).get("pid", "unknown")
        return LockedError(
            f"another pmwatch (PID {pid}) already uses {os.path.dirname(self.path)}",
            hint=f"Stop it (kill {pid}), or give this one a [state] dir of its own.",
        )

    def publish(self, **facts: str) -> None:
        """Write the PID and `facts` (such as `http="127.0.0.1:9108"`) where other commands find them."""
        assert self._fd is not None
        text = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def release(self) -> None:
        """Give the lock back. Does nothing where it is not held."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_holder(state_dir: str) -> dict[str, Any]:
    """Return what the running pmwatch published, or an empty dict where none runs."""
    path = os.path.join(state_dir, _NAME)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        if _try_lock(fd, fcntl.LOCK_SH):
            return {}  # nobody holds it: what stands there is left over
        return _parse(os.pread(fd, 4096, 0))
    finally:
        os.close(fd)


def is_hidden(state_dir: str) -> bool:
    """Tell whether this user may not see who works on a state directory."""
    try:
        os.close(os.open(os.path.join(state_dir, _NAME), os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def is_held(state_dir: str) -> bool:
    """Tell whether a pmwatch works on this state directory."""
    try:
        fd = os.open(os.path.join(state_dir, _NAME), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def lock_by_hand(state_dir: str, id_: int) -> int | None:
    """Lock a delivery that is sent by hand; return the descriptor that holds the lock, None where another has it."""
    path = os.path.join(state_dir, _BY_HAND)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give_to_owner(fd, state_dir)
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", hint="Check the owner of [state] dir.") from None
    try:  # one byte for each delivery; of this descriptor, unlike lockf(3), whose locks are the whole process's
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, id_, 1, 0))
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return None
    return fd


def _parse(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
