"""Runs the real daemon as a process, and waits for what it does instead of sleeping."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pmwatch.errors import LedgerError
from pmwatch.ledger import Ledger
from pmwatch.model import Delivery
from pmwatch.sandbox import ObjectRecord, SandboxServer

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
_pause = threading.Event()


def wait_for(what: str, probe: Callable[[], T | None], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Return the first true answer of `probe`; fail with `what` was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        _pause.wait(0.02)


def folder_toml(name: str, path: Path, *, tenant: str = "demo", datatable: str = "", **options: str) -> str:
    """Return a `[[folders]]` entry; options are written as TOML values."""
    lines = [f'name = "{name}"', f'path = "{path}"', f'tenant = "{tenant}"']
    lines += [f'datatable = "{datatable}"'] if datatable else []
    lines += [f"{key} = {value}" for key, value in options.items()]
    return "\n".join(("[[folders]]", *lines, ""))


class Daemon:
    """One `pmwatch run` with a configuration, state and log of its own below `root`."""

    def __init__(self, root: Path, *, base_url: str, tenants: Mapping[str, tuple[str, str]], folders: str = "") -> None:
        """Prepare; `tenants` are (id, key) by name."""
        self.root = root
        self.config = root / "config.toml"
        self.state = root / "state"
        self.log = root / "pmwatch.log"
        self.base_url = base_url
        self.tenants = dict(tenants)
        self.folders = folders
        self.extra = ""
        self.defaults = 'settle = "300ms"\nrescan_interval = "2s"'
        self.process: subprocess.Popen[bytes] | None = None
        self.notifications: list[str] = []
        for name, (_, key) in self.tenants.items():
            (root / f"key-{name}").write_text(key)

    @classmethod
    def for_sandbox(cls, root: Path, server: SandboxServer, folders: str = "") -> Self:
        """Prepare a daemon that knows every tenant of a sandbox."""
        tenants = {tenant["name"]: (tenant["id"], tenant["api_key"]) for tenant in server.tenants}
        return cls(root, base_url=server.base_url, tenants=tenants, folders=folders)

    def write_config(self) -> None:
        """Write the configuration file."""
        tenants = "".join(
            f'[[tenants]]\nname = "{name}"\nid = "{id_}"\napi_key_file = "{self.root}/key-{name}"\n'
            for name, (id_, _) in self.tenants.items()
        )
        self.config.write_text(
            f'[api]\nbase_url = "{self.base_url}"\n[state]\ndir = "{self.state}"\n[http]\nlisten = "127.0.0.1:0"\n'
            f'[delivery]\nretry_first = "100ms"\n{self.extra}\n[defaults]\n{self.defaults}\n{tenants}{self.folders}'
        )

    def start(self, *arguments: str, wait: bool = True, env: Mapping[str, str] | None = None) -> "Daemon":
        """Start the process, and wait for READY unless told not to."""
        if not self.config.exists():
            self.write_config()
        address = str(self.root / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            Path(address).unlink(missing_ok=True)
            listener.bind(address)
            listener.settimeout(0.5)
            self.notifications.clear()  # those of a process before
            deadline = time.monotonic() + PATIENCE_SECONDS
            command = [sys.executable, "-m", "pmwatch", "run", "--config", str(self.config), *arguments]
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command, stderr=log, env={**os.environ, "NOTIFY_SOCKET": address, **(env or {})}
                )
            while wait and not any("READY=1" in text for text in self.notifications):
                self.notifications.append(self._receive(listener, deadline))
        return self

    def _receive(self, listener: socket.socket, deadline: float) -> str:
        """Return the next notification; fail at once where the process has ended."""
        while True:
            try:
                return listener.recv(4096).decode()
            except TimeoutError:
                ended = self.process is None or self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"never READY:\n{self.log_text()}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def pid(self) -> int:
        """The PID of the running process."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Stop with SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill with SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def log_text(self) -> str:
        """Return everything logged so far."""
        return self.log.read_text() if self.log.exists() else ""

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one kind."""
        lines = (json.loads(line) for line in self.log_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def wait_event(self, event: str, *, count: int = 1) -> list[dict[str, Any]]:
        """Wait until a kind of log line was written `count` times."""
        try:
            return wait_for(f"{count} times {event!r}", lambda: self._enough(event, count))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.post_mortem()}") from None

    def post_mortem(self) -> str:
        """Return the ledger's rows and the log, with what every thread is doing at its end."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGUSR1)
            _pause.wait(1)
        return f"{self.deliveries()}\n{self.log_text()[-20000:]}"

    def _enough(self, event: str, count: int) -> list[dict[str, Any]] | None:
        found = self.events(event)
        return found if len(found) >= count else None

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run another pmwatch command with the daemon's configuration, without a terminal."""
        line = [sys.executable, "-m", "pmwatch", *words, "--config", str(self.config)]
        return subprocess.run(line, capture_output=True, text=True, check=False, input="")

    @property
    def address(self) -> str:
        """The address of the status page."""
        text = (self.state / "pmwatch.lock").read_text()
        return f"http://{json.loads(text)['http']}"

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> str:
        """Return what the daemon answers over HTTP. Raises urllib's HTTPError."""
        request = urllib.request.Request(self.address + path, headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, **labels: str) -> float | None:
        """Return one sample, or None where there is none."""
        wanted = set(labels.items())
        for line in self.get("/metrics").splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name and wanted <= set(re.findall(r'(\w+)="([^"]*)"', match[2] or "")):
                return float(match[3])
        return None

    def deliveries(self) -> list[Delivery]:
        """Return the ledger's rows, oldest first."""
        if not (self.state / "ledger.db").exists():
            return []
        try:
            ledger = Ledger.open(str(self.state), read_only=True)
        except LedgerError as error:
            if error.message.endswith(" is empty"):  # killed before it was filled
                return []
            raise
        with ledger:
            return sorted(ledger.list(limit=100_000), key=lambda delivery: delivery.id)

    def wait_done(self, count: int, *, seconds: float = PATIENCE_SECONDS) -> list[Delivery]:
        """Wait until `count` deliveries are done."""

        def done() -> list[Delivery] | None:
            found = [delivery for delivery in self.deliveries() if delivery.state == "done"]
            return found if len(found) >= count else None

        try:
            return wait_for(f"{count} deliveries done", done, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.post_mortem()}") from None


def stored(server: SandboxServer) -> dict[str, bytes]:
    """Return what the sandbox holds, by file name; fails where a name arrived twice or was put twice."""
    records: list[ObjectRecord] = server.objects()
    names = [record.filename for record in records]
    assert len(names) == len(set(names)), f"sent twice: {sorted(names)}"
    assert all(record.put_count == 1 for record in records), records
    return {record.filename: server.object_path(record).read_bytes() for record in records}


def table_id(server: SandboxServer, name: str = "Orders", *, tenant: int = 0) -> str:
    """Return the id of one of the sandbox's datatables."""
    tables = [table for dataset in server.tenants[tenant]["datasets"] for table in dataset["datatables"]]
    return next(table["id"] for table in tables if table["name"] == name)
