"""`pmwatch health` and the container's health check: well, ill, silent, not there, whatever the proxy."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pmwatch.errors import Unhealthy
from pmwatch.health import ask_health, main, reachable
from pmwatch.lock import StateLock


class Probed(BaseHTTPRequestHandler):
    """Is well, and not ready."""

    def do_GET(self) -> None:
        self.send_response({"/healthz": 200, "/readyz": 503}[self.path])
        self.end_headers()
        self.wfile.write(b"ok\n" if self.path == "/healthz" else b"folder orders is not watched yet\n")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[StateLock]:
    held = StateLock(str(tmp_path))
    held.acquire()
    yield held
    held.release()


@pytest.fixture
def served(lock: StateLock) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Probed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    lock.publish(http=f"127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_well_and_not_ready(served: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ask_health(str(tmp_path)) == "ok"
    with pytest.raises(Unhealthy, match="503: folder orders is not watched yet"):
        ask_health(str(tmp_path), ready=True)


def test_nobody_runs(tmp_path: Path) -> None:
    with pytest.raises(Unhealthy, match="no pmwatch runs") as told:
        ask_health(str(tmp_path))
    assert "pmwatch run" in told.value.hint


def test_who_may_not_see_it_is_not_told_that_nobody_runs(
    lock: StateLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # root may see everything
        patch.setattr(os, "open", refused)
        with pytest.raises(Unhealthy, match="this user may not see") as told:
            ask_health(str(tmp_path))
    assert "root" in told.value.hint


def test_http_is_off(lock: StateLock, tmp_path: Path) -> None:
    with pytest.raises(Unhealthy, match="does not answer HTTP") as told:
        ask_health(str(tmp_path))
    assert "listen" in told.value.hint


def test_nobody_answers(lock: StateLock, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    lock.publish(http=f"127.0.0.1:{port}")
    with pytest.raises(Unhealthy, match=r"does not answer: .*refused"):
        ask_health(str(tmp_path))


def test_the_module_alone_is_the_container_s_health_check(served: None, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "pmwatch.health"]
    environment = {"PMWATCH_STATE_DIR": str(tmp_path)}
    well = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (well.returncode, well.stdout, well.stderr) == (0, "ok\n", "")


def test_what_is_ill_exits_1_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "hint: Start it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("listened", "reached"),
    [("0.0.0.0:9108", "127.0.0.1:9108"), ("[::]:1", "[::1]:1"), ("10.0.0.7:2", "10.0.0.7:2")],
)
def test_where_to_reach_what_listens_everywhere(listened: str, reached: str) -> None:
    assert reachable(listened) == reached
