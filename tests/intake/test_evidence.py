"""Evidence from the kernel, with real files and real writers."""

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pmwatch.intake.evidence import Answer, no_writer, quietens_leases, renamed_into_place
from support.services import missing


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quietens_leases()
    assert signal.getsignal(signal.SIGIO) is signal.SIG_IGN


def test_an_open_writer_is_seen_and_a_closed_file_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"x")
        assert no_writer(os.fsencode(tmp_path), b"a.csv").answer is Answer.NO
    assert no_writer(os.fsencode(tmp_path), b"a.csv").answer is Answer.YES


def test_a_reader_is_no_writer_and_the_lease_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"x")
    with path.open("rb"):
        assert no_writer(os.fsencode(tmp_path), b"a.csv").answer is Answer.YES
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a lease still held would refuse this with EWOULDBLOCK
    os.close(fd)


def test_a_writable_mapping_counts_as_a_writer_after_the_descriptor_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * 4096)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4096):
        os.close(fd)
        assert no_writer(os.fsencode(tmp_path), b"a.csv").answer is Answer.NO
    assert no_writer(os.fsencode(tmp_path), b"a.csv").answer is Answer.YES


ASKS_AS_ANOTHER_USER = """
import os, sys
from pmwatch.intake.evidence import no_writer, quietens_leases
quietens_leases()
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))  # root's capabilities go with its number
evidence = no_writer(b".", b"a.csv")
print(evidence.answer, evidence.sentence, sep="|")
"""
NOBODY = 65534


@pytest.mark.parametrize(
    ("owner", "told"),
    [
        (0, "unknown|its owner is another user, and CAP_LEASE is missing"),
        (NOBODY, "yes|no process on this machine has it open for writing"),
    ],
)
def test_of_a_file_of_another_user_nothing_is_known_without_cap_lease(tmp_path: Path, owner: int, told: str) -> None:
    if os.getuid() != 0:
        missing("a process that may ask as another user", "root")
    path = tmp_path / "a.csv"
    path.write_bytes(b"x")
    path.chmod(0o644)
    os.chown(path, owner, owner)
    tmp_path.chmod(0o755)  # what lies above it is closed to others, and not gone through from inside
    command = [sys.executable, "-c", ASKS_AS_ANOTHER_USER, str(NOBODY)]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (asked.stdout.strip(), asked.stderr) == (told, "")


def test_what_cannot_be_asked_is_unknown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert no_writer(os.fsencode(tmp_path), b"pipe").answer is Answer.UNKNOWN
    assert no_writer(os.fsencode(tmp_path), b"absent").answer is Answer.UNKNOWN


def test_a_rename_proves_completeness_unless_the_mtime_is_1970() -> None:
    assert renamed_into_place(renamed=True, mtime_ns=10**18).answer is Answer.YES
    assert renamed_into_place(renamed=True, mtime_ns=0).answer is Answer.UNKNOWN
    assert renamed_into_place(renamed=False, mtime_ns=10**18).answer is Answer.UNKNOWN
