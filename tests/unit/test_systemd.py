"""sd_notify(3) against real datagram sockets, and how often the watchdog wants to hear."""

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch.systemd import notify, watchdog_interval_seconds


@pytest.fixture(params=["path", "abstract"])
def receiver(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A socket as systemd has it, named in the environment."""
    name = f"pmwatch-{uuid.uuid4()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"\0{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        yield receiver


def test_what_is_told_arrives_in_one_datagram(receiver: socket.socket) -> None:
    assert notify(READY=1, STATUS="watching 3 folders")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=watching 3 folders"


def test_each_call_is_a_datagram_of_its_own(receiver: socket.socket) -> None:
    assert notify(WATCHDOG=1)
    assert notify(STOPPING=1)
    assert [receiver.recv(4096), receiver.recv(4096)] == [b"WATCHDOG=1", b"STOPPING=1"]


def test_a_newline_in_a_status_does_not_become_another_field(receiver: socket.socket) -> None:
    assert notify(STATUS="one\nMAINPID=1")
    assert receiver.recv(4096) == b"STATUS=one MAINPID=1"


def test_any_text_can_be_sent(receiver: socket.socket) -> None:
    assert notify(STATUS="Aufträge \udcff")
    assert receiver.recv(4096) == "STATUS=Aufträge ?".encode()


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1"])
def test_outside_of_systemd_nothing_is_told(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify(READY=1) is False


def test_a_socket_that_is_gone_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify(READY=1) is False


def test_a_message_that_is_too_long_for_a_datagram_does_no_harm(receiver: socket.socket) -> None:
    assert notify(STATUS="x" * 10_000_000) is False


def test_the_watchdog_hears_twice_as_often_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval_seconds() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval_seconds() == 15.0


@pytest.mark.parametrize("microseconds", [None, "", "0", "-5", "soon"])
def test_a_watchdog_that_does_not_ask_hears_nothing(microseconds: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert watchdog_interval_seconds() is None


def test_a_watchdog_that_asks_another_process_hears_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_interval_seconds() is None
