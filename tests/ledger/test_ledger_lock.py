"""One pmwatch for one state directory."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmwatch.errors import LockedError
from pmwatch.ledger import StateLock
from pmwatch.lock import read_holder

HOLD = (
    "import sys; from pmwatch.ledger import StateLock; lock = StateLock(sys.argv[1]); lock.acquire(); "
    "lock.publish(http='127.0.0.1:1'); print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def holder(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lock; it ends with its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(LockedError, match=f"PID {process.pid}") as caught:
            StateLock(str(tmp_path)).acquire()
        assert f"kill {process.pid}" in caught.value.hint
        assert read_holder(str(tmp_path)) == {"pid": process.pid, "http": "127.0.0.1:1"}


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait(60)
    assert (tmp_path / "pmwatch.lock").read_bytes() != b""
    assert read_holder(str(tmp_path)) == {}
    lock = StateLock(str(tmp_path))
    lock.acquire()
    assert read_holder(str(tmp_path)) == {"pid": os.getpid()}
    lock.release()


def test_the_lock_can_be_taken_given_back_and_taken_again(tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path))
    for _ in range(2):
        lock.acquire()
        with pytest.raises(LockedError):
            StateLock(str(tmp_path)).acquire()
        lock.release()
        lock.release()
    assert read_holder(str(tmp_path)) == {}


def test_what_is_published_replaces_what_was(tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path))
    lock.acquire()
    lock.publish(http="127.0.0.1:9108", more="x" * 100)
    lock.publish(http="off")
    assert read_holder(str(tmp_path)) == {"pid": os.getpid(), "http": "off"}
    lock.release()


def test_where_nobody_ever_ran_there_is_no_holder(tmp_path: Path) -> None:
    assert read_holder(str(tmp_path)) == {}
    assert read_holder(str(tmp_path / "absent")) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{", json.dumps("text").encode()])
def test_a_holder_that_published_nonsense_is_a_holder_of_unknown_pid(text: bytes, tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path))
    lock.acquire()
    (tmp_path / "pmwatch.lock").write_bytes(text)
    assert read_holder(str(tmp_path)) == {}
    with pytest.raises(LockedError, match="PID unknown"):
        StateLock(str(tmp_path)).acquire()
    lock.release()


def test_only_its_owner_reads_the_lock(tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path))
    lock.acquire()
    assert stat.S_IMODE((tmp_path / "pmwatch.lock").stat().st_mode) == 0o600
    lock.release()


def test_a_lock_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "pmwatch.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        StateLock(str(tmp_path)).acquire()
    assert not (tmp_path / "elsewhere").exists()


def test_a_command_that_only_asks_who_has_it_never_keeps_a_daemon_from_starting(tmp_path: Path) -> None:
    lock = StateLock(str(tmp_path))
    lock.acquire()
    lock.release()
    stop, asking = threading.Event(), threading.Semaphore(0)

    def ask() -> None:
        asking.release()
        while not stop.is_set():
            read_holder(str(tmp_path))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
            assert asking.acquire(timeout=60)
        for _ in range(300):
            lock.acquire()
            lock.release()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
