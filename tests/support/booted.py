"""A real systemd as PID 1, over a copy-on-write view of this machine: for root, where systemd-nspawn is."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

import pmwatch
from support.services import require_tool

_BOOT_SECONDS = 60.0
_LOGIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
_PACKAGE = "the Debian package systemd-container"
PROGRAM = "/opt/pmwatch/bin/pmwatch"


class Booted:
    """The booted machine. It has pmwatch in /opt/pmwatch, and loopback for all its network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.root = directory / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        nspawn = require_tool("systemd-nspawn", _PACKAGE)
        if os.geteuid() != 0:
            pytest.skip("only root can boot a systemd of its own")
        python = "/usr/bin/python3"
        if version_of(python) != f"{sys.version_info.major}.{sys.version_info.minor}":
            pytest.skip(f"{python} is not the version that runs the tests, whose packages it has to load")
        self._directory.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(self._directory))
        try:
            self._prepare(python)
            site = Path(pytest.__file__).parents[1]
            words = [nspawn, "-q", "-D", str(self.root), "--register=no", "--keep-unit", "--private-network"]
            words += ["--console=pipe", f"--bind-ro={site}:/opt/pmwatch/site"]
            words += [f"--bind-ro={Path(pmwatch.__file__).parents[1]}:/opt/pmwatch/source"]
            with (self._directory / "nspawn.log").open("wb") as log:
                self._nspawn = subprocess.Popen(
                    [*words, "-b", "systemd.unit=basic.target"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._await_boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _prepare(self, python: str) -> None:
        for name in ("upper", "work", "root"):
            (self._directory / name).mkdir()
        layers = f"lowerdir=/,upperdir={self._directory}/upper,workdir={self._directory}/work"
        _run("mount", "-t", "overlay", "-o", layers, "overlay", str(self.root))
        (self.root / "etc/machine-id").unlink(missing_ok=True)
        (self.root / "etc/machine-id").touch()
        base = self.root / "opt/pmwatch"
        _run("rm", "-rf", str(base))
        _run(python, "-m", "venv", "--without-pip", str(base))
        for name in ("site", "source"):
            (base / name).mkdir()
        [packages] = base.glob("lib/python*/site-packages")
        (packages / "mounted.pth").write_text("/opt/pmwatch/source\n/opt/pmwatch/site\n")
        program = self.root / PROGRAM.lstrip("/")
        program.write_text("#!/opt/pmwatch/bin/python3\nfrom pmwatch.cli import main\nmain()\n")
        program.chmod(0o755)

    def _await_boot(self) -> None:
        assert self._nspawn is not None
        deadline = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < deadline:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            self._leader = int(children[0]) if children else 0
            state = self.run("systemctl", "is-system-running").stdout.strip() if self._leader else ""
            if state in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise AssertionError((self._directory / "nspawn.log").read_text())

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._nspawn is not None:
            self._nspawn.terminate()
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        for path in (self.root, self._directory):
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)

    def run(self, *words: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, with the environment of a fresh login there."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *words]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=120, env=_LOGIN)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def wait_for(self, what: str, found: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until something is so inside."""
        deadline = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < deadline, (
                f"never: {what}\n{self.run('journalctl', '-n', '40', '--no-pager').stdout}"
            )
            time.sleep(0.1)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit, check=True).stdout.strip()

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file inside, as root."""
        self.run(
            "sh",
            "-c",
            f'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0" && chmod {mode:o} "$0"',
            path,
            text,
            check=True,
        )


def version_of(python: str) -> str:
    """Return the version of a Python that can make virtual environments, else nothing."""
    try:
        words = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")
