"""Which file system a path lies on, as the kernel tells it."""

import os
from pathlib import Path

import pytest

from pmwatch.filesystems import NETWORK_FILE_SYSTEMS, file_system_type, mounts_below

# Lines as proc_pid_mountinfo(5) describes them: optional fields end with " - ", then type, source and options.
MOUNTINFO = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /srv rw,relatime shared:2 master:1 - xfs /dev/sdb1 rw
31 30 0:31 / /srv/drop rw - nfs4 server:/export rw
32 22 0:32 / /mnt/with\040blank rw - cifs //server/share rw
33 22 0:33 / /mnt/back\134slash rw - fuse.sshfs host:/ rw
34 22 0:34 / /mnt/twice rw - ext4 /dev/sdc1 rw
35 34 0:35 / /mnt/twice rw - 9p share rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path) -> str:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    return str(path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/etc", "ext4"),
        (b"/", "ext4"),
        (b"/srv", "xfs"),
        (b"/srv/other/file", "xfs"),
        (b"/srv/drop", "nfs4"),
        (b"/srv/drop/acme/file.csv", "nfs4"),
        (b"/srv/dropped", "xfs"),
        (b"/srvdrop", "ext4"),
        (b"/mnt/with blank/x", "cifs"),
        (b"/mnt/back\\slash/x", "fuse.sshfs"),
        (b"/mnt/twice/x", "9p"),
    ],
)
def test_the_innermost_and_latest_mount_decides(path: bytes, kind: str, mountinfo: str) -> None:
    assert file_system_type(path, mountinfo=mountinfo) == kind


@pytest.mark.parametrize(
    ("path", "below"),
    [
        (b"/srv", {b"drop": "nfs4"}),
        (b"/srv/drop", {}),
        (b"/srv/dro", {}),
        (b"/mnt", {b"with blank": "cifs", b"back\\slash": "fuse.sshfs", b"twice": "9p"}),
    ],
)
def test_what_is_mounted_below_a_directory(path: bytes, below: dict[bytes, str], mountinfo: str) -> None:
    assert mounts_below(path, mountinfo=mountinfo) == below


def test_where_the_kernel_does_not_tell_nothing_is_mounted_below(tmp_path: Path) -> None:
    assert mounts_below(b"/", mountinfo=str(tmp_path / "none")) == {}


def test_a_symbolic_link_is_followed_to_where_the_files_are(mountinfo: str, tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("/srv/drop")
    assert file_system_type(os.fsencode(tmp_path / "state"), mountinfo=mountinfo) == "nfs4"


def test_where_the_kernel_does_not_tell_it_is_unknown(tmp_path: Path) -> None:
    assert file_system_type(b"/", mountinfo=str(tmp_path / "none")) == ""


def test_the_kernel_tells_of_this_machine_too() -> None:
    assert file_system_type(b"/proc/self") == "proc"
    assert file_system_type(b"/") not in {"", "proc"}


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs"])
def test_what_comes_over_the_network_is_known(kind: str) -> None:
    assert kind in NETWORK_FILE_SYSTEMS


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs"])
def test_local_disks_are_no_network(kind: str) -> None:
    assert kind not in NETWORK_FILE_SYSTEMS
