"""A folder on a file system without events, really mounted: sshfs over the test's own sshd."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from support.daemon import Daemon, folder_toml, stored, table_id, wait_for
from support.services import missing, require_tool
from support.sshd import HOST, Sshd, running_sshd


@contextmanager
def mounted(server: Sshd, remote: Path, at: Path) -> Iterator[None]:
    """Mount a directory of the server; it comes back by itself when the server does."""
    sshfs, unmount = require_tool("sshfs", "sshfs"), require_tool("fusermount3", "fuse3")
    if not os.access("/dev/fuse", os.W_OK):
        missing("/dev/fuse", "the fuse module of the kernel, and the right to use it")
    options = "reconnect,ServerAliveInterval=1,ServerAliveCountMax=2,dir_cache=no"
    done = subprocess.run(
        [sshfs, "-F", server.config, "-o", options, f"{HOST}:{remote}", at], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"a FUSE mount ({done.stderr.strip()})", "fuse3, in a container with the right to mount")
    try:
        yield
    finally:
        subprocess.run([unmount, "-u", "-z", at], check=False)


@pytest.fixture
def server_side(tmp_path: Path) -> Path:
    path = tmp_path / "server"
    path.mkdir()
    return path


def sessions_of(config: Path) -> list[int]:
    """Return the processes of this sshd, the listening one and one for each connection."""
    found = subprocess.run(["pgrep", "-f", f"sshd.*{config}"], capture_output=True, text=True, check=False).stdout
    listening = [int(pid) for pid in found.split()]
    children = [
        int(pid)
        for parent in listening
        for pid in subprocess.run(
            ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False
        ).stdout.split()
    ]
    return [*listening, *children]


def test_files_that_others_write_are_polled_and_the_watch_goes_on_after_the_server_died_and_came_back(
    tmp_path: Path, sandbox: SandboxServer, drop: Path, server_side: Path
) -> None:
    require_tool("pgrep", "procps")
    ssh = tmp_path / "ssh"
    ssh.mkdir()
    folder = folder_toml("orders", drop, datatable=table_id(sandbox), poll_interval='"500ms"')
    daemon = Daemon.for_sandbox(tmp_path, sandbox, folder)
    with running_sshd(ssh) as server, mounted(server, server_side, drop), daemon:
        (server_side / "before.csv").write_text("case,activity\n1,before\n")
        daemon.start()
        for number in range(20):
            (server_side / f"{number}.csv").write_text(f"case,activity\n1,{number}\n")
        daemon.wait_done(21)
        status = daemon.get("/api/v1/status")
        assert "fuse.sshfs has no events" in status
        assert "fuse.sshfs has no events" in daemon.get("/")

        for pid in sessions_of(ssh / "sshd_config"):
            os.kill(pid, signal.SIGKILL)
        (server_side / "while-away.csv").write_text("case,activity\n1,away\n")
        wait_for("the folder is down", lambda: daemon.events("folder down"))
        again = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", ssh / "sshd_config"], stderr=subprocess.DEVNULL)
        try:
            daemon.wait_event("folder up")
            (server_side / "after.csv").write_text("case,activity\n1,after\n")
            daemon.wait_done(23)
            assert daemon.metric("pmwatch_watch_up", folder="orders") == 1
        finally:
            again.terminate()
            again.wait()
        names = {"before.csv", "while-away.csv", "after.csv", *(f"{number}.csv" for number in range(20))}
        assert set(stored(sandbox)) == names
        assert {one.state for one in daemon.deliveries()} == {"done"}, "nothing counted as vanished"
