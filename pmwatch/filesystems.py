"""Which file system a path lies on, from /proc/self/mountinfo (proc(5))."""

import os
import re
from collections.abc import Iterator
from typing import Final

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.rclone",
    }
)
"""File systems on which SQLite's locks and shared memory do not hold (sqlite.org, "Write-Ahead Logging")."""


def has_events(kind: str) -> bool:
    """Tell whether inotify sees all that happens on a file system of this type, such as `ext4`.

    Not where other machines or a user's program write as well (inotify(7), "Limitations and caveats").
    """
    return kind not in NETWORK_FILE_SYSTEMS and not kind.startswith("fuse.") and kind not in _SHARED_WITH_A_HOST


_SHARED_WITH_A_HOST: Final = frozenset({"fuse", "vboxsf", "prl_fs", "vmhgfs", "virtiofs", "drvfs"})


def file_system_type(path: bytes, *, mountinfo: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system under `path`, such as `ext4`; empty where it cannot be told."""
    real = os.path.realpath(path)
    best, kind = b"", ""
    for mount, its_kind in _mounts(mountinfo):
        inside = real == mount or real.startswith(mount.rstrip(b"/") + b"/")
        if inside and len(mount) >= len(best):  # of two mounts on one place the later one is seen
            best, kind = mount, its_kind
    return kind


def mounts_below(path: bytes, *, mountinfo: str = "/proc/self/mountinfo") -> dict[bytes, str]:
    """Return the types of the file systems that are mounted below `path`, by their paths relative to it."""
    top = os.path.realpath(path).rstrip(b"/") + b"/"
    return {mount[len(top) :]: kind for mount, kind in _mounts(mountinfo) if mount.startswith(top) and mount != top}


def _mounts(mountinfo: str) -> Iterator[tuple[bytes, str]]:
    """Yield where each file system is mounted, and its type; nothing where that cannot be read."""
    try:
        with open(mountinfo, "rb") as lines:
            for line in lines:
                fields, _, rest = line.partition(b" - ")
                yield _unescape(fields.split(b" ")[4]), rest.split(b" ")[0].decode()
    except OSError:
        return


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    return re.sub(rb"\\(\d{3})", lambda match: bytes([int(match[1], 8)]), field)
