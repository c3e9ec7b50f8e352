"""Images built and run by podman as root, in a storage of their own, without any registry.

The base image is this machine's Debian: the packages around its Python, as they are installed here.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from support.booted import version_of
from support.services import require_tool

ROOT: Final = Path(__file__).resolve().parents[2]
BASE: Final = "docker.io/library/python:3.12-slim"  # what the Containerfile begins with, so that nothing is pulled
IMAGE: Final = "localhost/pmwatch:0.1.0"
_PACKAGES: Final = ("python3", "python3-venv", "python3-pip-whl", "coreutils", "dash", "base-files", "base-passwd")
_NEEDLESS: Final = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale")
RUN: Final = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=30000:30000", "--network", "host")
_WAIT_SECONDS: Final = 40.0
# Without systemd there is nobody who could run the health check at intervals.
_ENVIRONMENT: Final = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}


class Containers:
    """Builds the Containerfile and runs what comes of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[str] = []

    def __enter__(self) -> Self:
        require_tool("podman", "the Debian package podman")
        require_tool("runc", "the Debian package runc")
        if os.geteuid() != 0:
            pytest.skip("only root can build and run images here")
        if version_of("/usr/bin/python3") != f"{sys.version_info.major}.{sys.version_info.minor}":
            pytest.skip("/usr/bin/python3 is not the version that runs the tests, for which it gets packages")
        self.directory.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(self.directory))
        try:
            with self._fetch_packages() as packages:
                self._import_base()
                assert packages.wait(300) == 0, (self.directory / "pip.log").read_text()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for name in self._started:
            self._podman("rm", "-f", "-t", "0", "-v", name)
        self._await_helpers()
        subprocess.run(["umount", str(self.directory / "storage/overlay")], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(self.directory)], check=False, capture_output=True)

    def _await_helpers(self) -> None:
        """Wait for the processes that clean up after a container: they would set up the storage anew, below."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while any(os.fsencode(self.directory) in line for line in _command_lines()) and time.monotonic() < deadline:
            time.sleep(0.1)

    # ---- building

    def _import_base(self) -> None:
        archive = self.directory / "base.tar"
        with tarfile.open(archive, "w") as tar:
            for source, name in _base_files():
                tar.add(source, name, recursive=False)
            for name in ("passwd", "group"):
                tar.add(f"/usr/share/base-passwd/{name}.master", f"etc/{name}")
            _add_link(tar, "usr/bin/python", "python3")
            _add_pip(tar, self.directory / "pip")
        self._podman("import", str(archive), BASE, check=True)
        archive.unlink()

    def _fetch_packages(self) -> "subprocess.Popen[bytes]":
        """Fetch what the image is made of, with the hashes that the image asks for, meanwhile."""
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
        words += ["--only-binary", ":all:", "-d", str(self.directory / "packages")]
        for name in ("requirements", "build"):
            words += ["-r", str(ROOT / f"deploy/{name}.lock")]
        with (self.directory / "pip.log").open("wb") as log:
            return subprocess.Popen(words, stdout=log, stderr=log)

    def build(self, commands: str, *options: str) -> str:
        """Give commands of a page that build an image, in this tree; return what they wrote.

        What they name of other hosts is here already: the base in the storage, and the packages beside it, which the
        environment lets the builder see.
        """
        pip, conf = self.directory / "pip.conf", self.directory / "containers.conf"
        pip.write_text("[global]\nno-index = true\nfind-links = /packages\n")
        conf.write_text(
            f'[containers]\nvolumes = ["{self.directory}/packages:/packages:ro", "{pip}:/etc/pip.conf:ro"]\n'
        )
        environment = {"CONTAINERS_CONF": str(conf), "BUILDAH_ISOLATION": "chroot"}  # no namespaces of its own here
        environment["BUILDAH_LAYERS"] = "false"  # a layer for each step would only take time
        return self.shell(
            commands.replace("podman build", shlex.join(["podman", "build", *options])), ROOT, environment
        )

    # ---- running

    def start(self, name: str, *words: str, image: str = IMAGE) -> None:
        """Start a container on the network of this machine; `words` are options, `--` and a command."""
        cut = words.index("--") if "--" in words else len(words)
        options, command = words[:cut], words[cut + 1 :]
        self._started.append(name)
        self._podman("run", "-d", "--name", name, *RUN, *options, image, *command, check=True)

    def adopt(self, name: str) -> None:
        """Remove a container at the end that the commands of a page will start."""
        self._started.append(name)

    def exec(self, name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in a running container."""
        return self._podman("exec", name, *words)

    def health(self, name: str) -> bool:
        """Run the image's health check, as the engine does every 30 s."""
        return self._podman("healthcheck", "run", name).returncode == 0

    def stop(self, name: str, *, seconds: int) -> int:
        """Stop a container with its stop signal, and return its exit code."""
        self._podman("stop", "-t", str(seconds), name, check=True)
        return int(self._podman("wait", name, check=True).stdout)

    def log(self, name: str) -> str:
        """Return what a container wrote."""
        done = self._podman("logs", name)
        return done.stdout + done.stderr

    def wait_for(self, what: str, found: Callable[[], bool], *, name: str) -> None:
        """Wait until something is so; fail with the container's log."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not found():
            assert time.monotonic() < deadline, f"never: {what}\n{self.log(name)}"
            time.sleep(0.1)

    def inspect(self, image: str = IMAGE) -> dict[str, Any]:
        """Return what the engine knows of an image."""
        [found] = json.loads(self._podman("image", "inspect", image, check=True).stdout)
        assert isinstance(found, dict)
        return found

    def shell(self, commands: str, directory: Path | None = None, more: Mapping[str, str] | None = None) -> str:
        """Give commands of a page, which say `podman`, in a shell; return what they wrote. They must succeed."""
        bin_ = self.directory / "bin"
        bin_.mkdir(exist_ok=True)
        (bin_ / "podman").write_text(f'#!/bin/sh\nexec {shutil.which("podman")} {shlex.join(self._engine())} "$@"\n')
        (bin_ / "podman").chmod(0o755)
        environment = {**_ENVIRONMENT, "PATH": f"{bin_}:{os.environ['PATH']}", **(more or {})}
        words = ["bash", "-euo", "pipefail", "-c", commands]
        cwd = directory or self.directory
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, env=environment)
        assert done.returncode == 0, (commands, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def _podman(self, *words: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
        line = ["podman", *self._engine(), *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, env=_ENVIRONMENT)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def _engine(self) -> list[str]:
        return [*self._storage(), "--runtime", "runc", "--cgroup-manager=cgroupfs", "--events-backend=file"]

    def _storage(self) -> list[str]:
        base = self.directory
        return ["--root", f"{base}/storage", "--runroot", f"{base}/run", "--storage-driver", "overlay"]


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone meanwhile
            yield path.read_bytes()


def _base_files() -> Iterator[tuple[str, str]]:
    """Yield the files of the base's packages: where they are here, and their name there."""
    seen = set()
    for link in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{link}"):
            yield f"/{link}", link
    for path in _run("dpkg", "-L", *_with_what_they_need(_PACKAGES)).splitlines():
        directory, name = os.path.split(path)
        here = os.path.join(os.path.realpath(directory), name)  # /lib/x is /usr/lib/x
        if name and here not in seen and os.path.lexists(here) and not here.startswith(_NEEDLESS):
            seen.add(here)
            if not (os.path.islink(here) and os.path.dirname(here) == "/"):
                yield here, here[1:]


def _with_what_they_need(packages: Iterable[str]) -> list[str]:
    leave_out = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    told = _run("apt-cache", "depends", "--recurse", "--installed", *leave_out, *packages)
    return sorted({line for line in told.splitlines() if line[:1].isalnum()})


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, target
    tar.addfile(link)


def _add_pip(tar: tarfile.TarFile, directory: Path) -> None:
    """Add pip, which Debian has for virtual environments only; the official Python image has it."""
    [wheel] = Path("/usr/share/python-wheels").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(directory)
    for path in directory.iterdir():
        tar.add(path, f"usr/lib/python3/dist-packages/{path.name}")


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout
