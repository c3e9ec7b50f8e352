"""The bytes of an attempt: exactly one version of the file, hashed on the way, in flat memory."""

import errno
import hashlib
import os
import threading
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.delivery.body import CHUNK_BYTES, Source
from pmwatch.errors import Interrupted, SourceChanged, SourceUnreadable, SourceVanished
from pmwatch.model import Fingerprint

MIB = 1024 * 1024
SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 7]


def opened(path: Path) -> Source:
    return Source(os.fsencode(path.parent), os.fsencode(path.name))


def generator(body: Iterator[bytes]) -> Generator[bytes, None, None]:
    assert isinstance(body, Generator)
    return body


def hash_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hash-")]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_read_and_hashed_is_the_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "orders.csv"
    path.write_bytes(data)
    with opened(path) as source:
        assert b"".join(source.chunks()) == data
        assert source.sha256 == hashlib.sha256(data).hexdigest()
        assert source.md5 == hashlib.md5(data).hexdigest()
        assert source.bytes_read == size
        assert source.fingerprint == Fingerprint.of(path.stat())
        assert source.hash() == hashlib.sha256(data).hexdigest()
    assert hash_threads() == []


def test_each_body_starts_at_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(os.urandom(6 * MIB))
    with opened(path) as source:
        first = generator(source.chunks())
        next(first)
        assert b"".join(source.chunks()) == path.read_bytes()
        first.close()
    assert hash_threads() == []


def test_a_body_that_is_left_midway_has_no_hash(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(os.urandom(9 * MIB))
    with opened(path) as source:
        body = generator(source.chunks())
        for _ in range(9):
            next(body)
        assert source.sha256 == source.md5 == ""
        body.close()
        assert source.sha256 == ""
    assert hash_threads() == []


def write(path: Path, mode: str, data: bytes) -> None:
    with path.open(mode) as file:
        file.write(data)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a byte": lambda path: write(path, "r+b", b"X"),
    "grows": lambda path: write(path, "ab", b"more"),
    "shrinks": lambda path: os.truncate(path, 10),
    "emptied": lambda path: os.truncate(path, 0),
    "rewritten": lambda path: write(path, "wb", b"y" * path.stat().st_size),
    "times": lambda path: os.utime(path, ns=(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
@pytest.mark.parametrize("after", [1, 2])
def test_a_change_is_found_before_the_last_byte_goes(
    tmp_path: Path, change: Callable[[Path], None], size: int, after: int
) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(10**18, 10**18))  # so that any later change has another time, however coarse the clock
    with opened(path) as source:
        body = source.chunks()
        sent = [len(next(body)) for _ in range(after)]
        change(path)
        with pytest.raises(SourceChanged):
            sent.extend(len(chunk) for chunk in body)
        assert sum(sent) < size
        assert source.sha256 == ""
    assert hash_threads() == []


def test_a_replaced_name_does_not_matter_to_an_opened_file(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(b"x" * 3 * MIB)
    with opened(path) as source:
        body = source.chunks()
        start = next(body)
        (tmp_path / "fresh").write_bytes(b"new")
        (tmp_path / "fresh").rename(path)
        assert start + b"".join(body) == b"x" * 3 * MIB


def test_the_check_is_asked_before_each_chunk(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(b"x" * 9 * MIB)
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("stop")

    with opened(path) as source:
        with pytest.raises(Interrupted):
            source.hash(check=check)
        assert source.bytes_read == 3 * CHUNK_BYTES
    assert hash_threads() == []


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(256 * MIB)
    with opened(path) as source:
        tracemalloc.start()
        try:
            for _ in source.chunks():
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * MIB


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "way").symlink_to(tmp_path / "directory")
    (tmp_path / "directory" / "inside").write_bytes(b"x")
    for name in ("directory", "fifo", "link", "way/inside"):
        with pytest.raises((SourceUnreadable, SourceVanished)):
            opened(tmp_path / name) if "/" not in name else Source(os.fsencode(tmp_path), name.encode())
    for name in ("none", "none/deeper", "file/below"):
        with pytest.raises(SourceVanished):
            Source(os.fsencode(tmp_path), name.encode())


def test_a_file_that_its_server_removed_is_trouble_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS answers ESTALE to whoever has it open; it is played here, for that takes two machines."""
    path = tmp_path / "orders.csv"
    path.write_bytes(b"x")
    real, good, descriptors = os.fstat, [0], len(os.listdir("/proc/self/fd"))

    def fstat(fd: int) -> os.stat_result:
        good[0] -= 1
        if good[0] < 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        for good[0] in (0, 1):
            with pytest.raises(SourceUnreadable, match="Stale file handle"):
                opened(path)
        good[0] = 2
        with opened(path) as source, pytest.raises(SourceUnreadable, match="Stale file handle"):
            source.hash()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_no_descriptor_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "deep" / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"deep/er/file", b"deep/er/none", b"deep/fifo", b"deep/er", b"deep/none/file"):
        try:
            with Source(os.fsencode(tmp_path), path) as source:
                source.hash()
        except (SourceUnreadable, SourceVanished):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_any_content_in_any_chunking(tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int) -> None:
    path = tmp_path_factory.mktemp("body") / "orders.csv"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmwatch.delivery.body.CHUNK_BYTES", chunk)
        patch.setattr("pmwatch.delivery.body._INLINE_BYTES", 1000)
        with opened(path) as source:
            chunks = list(source.chunks())
    assert b"".join(chunks) == data
    assert all(0 < len(one) <= chunk for one in chunks)
    assert source.sha256 == hashlib.sha256(data).hexdigest()
