"""Evidence from the kernel, with real files and real writers."""

import mmap
import os
import signal
from pathlib import Path

import pytest

from pmwatch.intake.evidence import Answer, no_writer, quietens_leases, renamed_into_place


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


def test_what_cannot_be_asked_is_unknown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert no_writer(os.fsencode(tmp_path), b"pipe").answer is Answer.UNKNOWN
    assert no_writer(os.fsencode(tmp_path), b"absent").answer is Answer.UNKNOWN


def test_a_rename_proves_completeness_unless_the_mtime_is_1970() -> None:
    assert renamed_into_place(renamed=True, mtime_ns=10**18).answer is Answer.YES
    assert renamed_into_place(renamed=True, mtime_ns=0).answer is Answer.UNKNOWN
    assert renamed_into_place(renamed=False, mtime_ns=10**18).answer is Answer.UNKNOWN
