"""What the benchmarks share: the sink and the daemon as processes, files to send, clocks, and medians."""

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit

from benchmarks.sink import API_KEY, DATATABLE_PREFIX, TENANT, client_context
from pmwatch.ledger import Ledger
from pmwatch.model import State

MB: Final = 1_000_000
_POLL_SECONDS: Final = 0.005
_POLL_MANY_SECONDS: Final = 0.05  # where many files take seconds, asking often would cost them
_TESTS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def size_of(text: str) -> int:
    """Read a size such as `1G` (1024³) or `5GB` (1000³)."""
    match = re.fullmatch(r"(\d+)(?:iB)?([A-Za-z]*?)(?:iB)?", text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"not a size: {text!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def rate(size: int, seconds: float) -> float:
    """Return MB (10^6 bytes) a second."""
    return size / MB / seconds


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def clean_environment() -> dict[str, str]:
    """Return the environment without proxies and foreign CA bundles, with the path of these programs."""
    unwanted = re.compile(r"(?i).*_proxy$|curl_ca_bundle$|ssl_cert_|pmwatch_")
    kept = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
    return kept | {"PYTHONPATH": _TESTS}


@contextlib.contextmanager
def scratch(directory: str) -> Iterator[str]:
    """Yield a directory for one benchmark that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="pmwatch-bench-", dir=directory or None) as path:
        yield path


class Sink:
    """The sink in a process of its own."""

    def __init__(self, *, directory: str, tls: bool = True) -> None:
        command = [sys.executable, "-m", "benchmarks.sink", "--directory", directory, *(["--tls"] if tls else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment())
        assert self._process.stdout is not None
        facts = json.loads(self._process.stdout.readline())
        self.origin: str = facts["origin"]
        self.ca_file: str = facts["ca_file"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def control(self, **wanted: Any) -> dict[str, int]:
        """Tell the sink what to expect; return its counters."""
        parts = urlsplit(self.origin)
        body = json.dumps(wanted).encode()
        head = f"POST /control HTTP/1.1\r\nHost: sink\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        plain = socket.create_connection((str(parts.hostname), int(parts.port or 0)))
        context = client_context(self.ca_file) if self.ca_file else None
        with context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain as sock:
            sock.sendall(head + body)
            answer = sock.recv(65536)
        counters: dict[str, int] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return counters

    def expect(self, files: dict[str, str]) -> None:
        """Announce the MD5 of each file name, and start counting anew."""
        self.control(md5=files, reset=True)

    def require(self, *, puts: int, size: int) -> None:
        """Raise unless exactly so many objects and bytes came since `expect`."""
        counters = self.control()
        if (counters["puts"], counters["bytes"]) != (puts, size):
            raise RuntimeError(f"the sink got {counters}, expected {puts} objects of {size} bytes together")


CONFIG: Final = """
[api]
base_url = "{origin}"
ca_file = "{ca_file}"
[state]
dir = "{state}"
[http]
listen = "127.0.0.1:0"
[log]
format = "json"
[delivery]
max_parallel = {max_parallel}
[[tenants]]
name = "bench"
id = "{tenant}"
api_key = "{api_key}"
"""

FOLDER: Final = """
[[folders]]
name = "drop-{number}"
path = "{path}"
tenant = "bench"
datatable = "{datatable}"
after_upload = "{after_upload}"
order = "{order}"
"""


class Daemon:
    """`python -m pmwatch run` over an empty drop folder and a fresh ledger below `directory`."""

    after_upload = "keep"

    def __init__(
        self, sink: Sink, directory: str, *, order: str = "arrival", max_parallel: int = 4, tables: int = 1
    ) -> None:
        self.drops = [os.path.join(directory, f"drop-{number}") for number in range(1, tables + 1)]
        self.staging = os.path.join(directory, "staging")
        self._state = os.path.join(directory, "state")
        for path in (*self.drops, self.staging, self._state):
            os.makedirs(path)
        text = CONFIG.format(
            origin=sink.origin,
            ca_file=sink.ca_file,
            state=self._state,
            tenant=TENANT,
            api_key=API_KEY,
            max_parallel=max_parallel,
        )
        for number, path in enumerate(self.drops, start=1):
            table = f"{DATATABLE_PREFIX}{number}"
            text += FOLDER.format(
                number=number, path=path, datatable=table, order=order, after_upload=self.after_upload
            )
        self._config = os.path.join(directory, "pmwatch.toml")
        with open(self._config, "w") as file:
            file.write(text)
        self._log_path = os.path.join(directory, "pmwatch.log")
        self._log: IO[bytes] = open(self._log_path, "wb")  # noqa: SIM115  closed in __exit__
        self._process = self._start()
        self.pid = self._process.pid
        self._wait_until_ready()
        self._ledger = Ledger.open(self._state, read_only=True)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, *self.prefix(), "-m", "pmwatch", "run", "--config", self._config]
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, env=clean_environment())

    def prefix(self) -> list[str]:
        """Return more arguments for the interpreter; a profiler may override this."""
        return []

    def _wait_until_ready(self) -> None:
        while b'"ready"' not in self.log():
            if self._process.poll() is not None:
                raise RuntimeError(f"pmwatch ended: {self.log().decode()}")
            time.sleep(_POLL_SECONDS)
        time.sleep(0.3)  # its first scan

    def log(self) -> bytes:
        """Return what it has logged."""
        with open(self._log_path, "rb") as file:
            return file.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ledger.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._log.close()
        if error is not None:
            sys.stderr.write(self.log().decode()[-4000:])

    def rename_into_place(self, names: Sequence[str]) -> None:
        """Let files appear in the drop folders in turn, whole, as a careful writer does."""
        for number, name in enumerate(names):
            os.rename(os.path.join(self.staging, name), os.path.join(self.drops[number % len(self.drops)], name))

    def wait_until_done(self, count: int, *, timeout: float = 600.0) -> None:
        """Wait until the ledger has `count` deliveries done. Raises where one fails or time runs out."""
        deadline = time.monotonic() + timeout
        while self._ledger.total(State.DONE) < count:
            if time.monotonic() > deadline or self._ledger.total(State.FAILED, State.HELD):
                raise RuntimeError(f"not all done: {self._ledger.counts()}")
            time.sleep(_POLL_SECONDS if count == 1 else _POLL_MANY_SECONDS)

    def require_verified(self, count: int) -> None:
        """Raise unless the storage's ETag confirmed so many uploads. The log follows the ledger by a moment."""
        deadline = time.monotonic() + 5
        while (found := self.log().count(b'"etag_verified": true')) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the ETag was verified for {found} of {count} files")
            time.sleep(_POLL_SECONDS)

    def cpu_seconds(self) -> float:
        """Return the CPU seconds (user and system) that it has used."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_rss_bytes(self) -> int:
        """Return the most memory that it ever had resident (`VmHWM`)."""
        with open(f"/proc/{self.pid}/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took."""

    seconds: float
    cpu_seconds: float


def run(command: Sequence[str]) -> Cost:
    """Run a program to its end; return wall and CPU seconds of it and all its children."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=clean_environment())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime)


def write_random(path: str, size: int) -> str:
    """Write a file of random bytes and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "wb") as file:
        for start in range(0, size, MB):
            chunk = os.urandom(min(MB, size - start))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def machine() -> str:
    """Return one line about this machine."""
    return f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, {ssl_version()}"


def ssl_version() -> str:
    """Return the version of OpenSSL that pmwatch uses."""
    import ssl

    return ssl.OPENSSL_VERSION
