"""Remote ends that misbehave on purpose: a scripted HTTP server, and a fake at the worker's seam."""

import hashlib
import socket
import ssl
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Self

from pmwatch.errors import AlreadyThere
from pmwatch.model import Delivery, Destination, Fingerprint, Target
from pmwatch.processmind import Receipt
from pmwatch.processmind.storage import OpenBody

CRLF = b"\r\n"
_pause = threading.Event()


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came over the wire; `target` is the part between method and version."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Script:
    """What the server does with one request: read so much of the body (None: all), send these bytes, and hang up.

    `reset` hangs up with a TCP reset; `hold` waits until the other side hangs up; `drip` goes on with these bytes, one
    at a time and without end, until then.
    """

    answer: bytes = b""
    read_body: int | None = None
    reset: bool = False
    hold: bool = False
    drip: bytes = b""


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole HTTP answer."""
    fields = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
    head = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def xml_error(code: str, message: str) -> bytes:
    """Return an error document of S3."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


class ScriptedServer:
    """Serves one connection after the other on loopback; each request gets the next script, the last one for ever.

    A `greeting` is sent at once instead, without reading anything.
    """

    def __init__(self, *scripts: Script | bytes, tls: ssl.SSLContext | None = None, greeting: bytes = b"") -> None:
        self.requests: list[Received] = []
        self._scripts = [Script(one) if isinstance(one, bytes) else one for one in scripts]
        self._tls = tls
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="scripted-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accept
        self._thread.join()
        self._listener.close()

    @property
    def url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def script(self, *scripts: Script | bytes) -> None:
        """Replace what is still to come."""
        self._scripts[:] = [Script(one) if isinstance(one, bytes) else one for one in scripts]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                try:
                    self._converse(connection)
                except OSError:
                    continue  # the other side hung up, as it may

    def _converse(self, plain: socket.socket) -> None:
        connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
        with connection:
            if self._greeting:
                connection.sendall(self._greeting)
                return
            head = b""
            while CRLF * 2 not in head:
                more = connection.recv(65536)
                if not more:
                    return
                head += more
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            self.requests.append(_read(connection, head, script.read_body))
            connection.sendall(script.answer)
            while script.hold and connection.recv(65536):
                pass
            for byte in cycle(script.drip):
                connection.sendall(bytes([byte]))
                _pause.wait(0.01)
            if script.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read(connection: socket.socket, start: bytes, limit: int | None) -> Received:
    head, _, body = start.partition(CRLF * 2)
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = int(headers.get("content-length", "0"))
    wanted = wanted if limit is None else min(wanted, limit)
    pieces, left = [body], wanted - len(body)
    while left > 0 and (more := connection.recv(min(left, 1 << 20))):
        pieces.append(more)
        left -= len(more)
    return Received(method, target, headers, b"".join(pieces))


def refused_url() -> str:
    """Return a URL on loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def everything_printed(error: BaseException) -> str:
    """Return all that a log or a terminal could show of an error: its attributes and its traceback with its causes."""
    seen = [str(error), repr(error), "".join(traceback.format_exception(error))]
    seen += [repr(value) for value in vars(error).values()]
    return "\n".join(seen)


@dataclass
class Clock:
    """A clock that moves when told to. Seconds since the epoch."""

    at: float

    def __call__(self) -> float:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += seconds


@dataclass
class FakeRemote:
    """A remote end in memory, at the worker's seam; hooks make it fail. `stored` is what each URL holds."""

    presigned: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    puts: list[tuple[str, bool]] = field(default_factory=list)
    on_presign: Callable[[], None] = lambda: None
    on_put: Callable[[bytes], None] = lambda _: None
    receipt_of: Callable[[bytes], Receipt] = lambda data: Receipt(_md5(data), _md5(data), "request-1")
    expires_seconds: int = 3600
    signed_at: str = "20260101T000000Z"
    rows: dict[str, int] = field(default_factory=dict)

    def create(self, target: Target) -> None:
        """There is nothing that does not exist."""

    def resolve(self, target: Target) -> Destination:
        return Destination(target.tenant, "dataset-1", target.datatable or target.process)

    def presign(self, delivery: Delivery, source: Fingerprint, *, valid_seconds: int | None = None) -> str:  # noqa: ARG002  the seam's own arguments
        self.on_presign()
        number, valid = len(self.presigned) + 1, valid_seconds or self.expires_seconds
        url = f"https://storage.test/{number}?X-Amz-Date={self.signed_at}&X-Amz-Expires={valid}"
        self.presigned.append(url)
        return url

    def put(self, url: str, open_body: OpenBody, *, size: int, filename: str, only_if_absent: bool) -> Receipt:  # noqa: ARG002  as above
        self.puts.append((url, only_if_absent))
        if only_if_absent and url in self.stored:
            raise AlreadyThere("the storage answered 412", status=412)
        data = b"".join(open_body()) if size else b""
        self.on_put(data)
        self.stored[url] = data
        return self.receipt_of(data)

    def put_model(self, delivery: Delivery, text: str) -> None:
        self.stored[delivery.target.process] = text.encode()

    def row_count(self, delivery: Delivery) -> int | None:
        return self.rows.get(str(delivery.target))


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
