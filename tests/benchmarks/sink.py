"""A discarding ProcessMind: presigned URLs at itself, and PUTs that are read and thrown away, as fast as it can.

It computes nothing over the bytes. The MD5 that belongs into an ETag is told beforehand (`POST /control`), so the
client's check of it is real and the sink costs next to nothing. Threads and raw sockets: one thread a connection.

    PYTHONPATH=tests python -m benchmarks.sink --tls          # prints its URL and CA file as JSON, until killed
    PYTHONPATH=tests python -m benchmarks.sink --measure      # its own limit, without any client of HTTP
"""

import argparse
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import trustme

from pmwatch.sandbox.sigv4 import Credentials, presign

TENANT: Final = "tenant-1"
DATASET: Final = "dataset-1"
DATATABLE_PREFIX: Final = "table-"  # any number may follow
DATATABLE: Final = f"{DATATABLE_PREFIX}1"
API_KEY: Final = "benchmark-key"
READ_BYTES: Final = 1024 * 1024
_MAX_HEAD_BYTES: Final = 65536
_BURST_SECONDS: Final = 0.01


@dataclass(slots=True)
class Pace:
    """A token bucket over all connections: `bytes_per_second` of bodies are read, 0 for as fast as possible."""

    bytes_per_second: float = 0.0
    _paid_until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait_for(self, count: int) -> None:
        """Sleep until `count` more bytes are within the rate."""
        if not self.bytes_per_second:
            return
        with self._lock:
            now = time.monotonic()
            self._paid_until = max(now, self._paid_until) + count / self.bytes_per_second
            ahead = self._paid_until - now
        if ahead > _BURST_SECONDS:
            time.sleep(ahead - _BURST_SECONDS / 2)


@dataclass(slots=True)
class State:
    """What all connections share: the MD5 of each expected file, the pace, and what came.

    `first_byte_at` is when the first byte of each file's body was read, by a clock that all processes share.
    """

    origin: str = ""
    md5_of: dict[str, str] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    round_trip_seconds: float = 0.0
    s3: dict[str, str] = field(default_factory=dict)
    presigned: int = 0
    puts: int = 0
    put_bytes: int = 0
    first_byte_at: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def presigned_url(self, filename: str) -> str:
        """Return a URL at the sink itself, in the form of Amazon's, or at an S3 server."""
        with self.lock:
            self.presigned += 1
            number = self.presigned
        if self.s3:
            return presign(
                Credentials(self.s3["access_key_id"], self.s3["secret_key"]),
                "PUT",
                origin=self.s3["origin"],
                path=f"/{self.s3['bucket']}/{number}/{quote(filename, safe='')}",
                expires_seconds=3600,
                at=time.time(),
            )
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
        return f"{self.origin}/uploads/{quote(filename, safe='')}?{query}&X-Amz-Signature={'0' * 64}"

    def came(self, count: int) -> None:
        """Count one whole object."""
        with self.lock:
            self.puts += 1
            self.put_bytes += count

    def control(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Take over what is `wanted` and return the counters before it.

        `md5` by file name, `bytes_per_second` of bodies, `round_trip_seconds`, `reset` for the counters, `first_bytes`
        to have `first_byte_at` in the answer, and `s3` (origin, bucket, access_key_id, secret_key) to sign for that.
        """
        with self.lock:
            counters: dict[str, Any] = {"presigned": self.presigned, "puts": self.puts, "bytes": self.put_bytes}
            if wanted.get("first_bytes"):
                counters["first_byte_at"] = dict(self.first_byte_at)
            if wanted.get("reset"):
                self.presigned = self.puts = self.put_bytes = 0
                self.first_byte_at = {}
            self.md5_of.update(wanted.get("md5", {}))
        self.s3 = wanted.get("s3", self.s3)
        if "bytes_per_second" in wanted:
            self.pace.bytes_per_second = float(wanted["bytes_per_second"])
        self.round_trip_seconds = float(wanted.get("round_trip_seconds", self.round_trip_seconds))
        return counters


class Hangup(Exception):
    """The client closed the connection."""


class Connection:
    """One client's connection: requests one after the other, until it hangs up."""

    def __init__(self, sock: socket.socket, state: State) -> None:
        self._sock = sock
        self._state = state
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._rest = b""

    def serve(self) -> None:
        while True:
            method, target, headers = self._head()
            length = int(headers.get("content-length", "0"))
            if "transfer-encoding" in headers:
                self._answer(501, b"<Error><Code>NotImplemented</Code></Error>")
                return
            if headers.get("expect", "").lower() == "100-continue":
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if method == "PUT":
                self._put(target, length)
            else:
                self._api(target, self._body(length))

    def _head(self) -> tuple[str, str, dict[str, str]]:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = self._sock.recv(_MAX_HEAD_BYTES)
            if not more or len(data) > _MAX_HEAD_BYTES:
                raise Hangup
            data += more
        self._rest = data[end + 4 :]
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        return method, target, {name.strip().lower(): value.strip() for name, _, value in pairs}

    def _body(self, length: int) -> bytes:
        body = bytearray(self._rest[:length])
        self._rest = self._rest[length:]
        while len(body) < length:
            more = self._sock.recv(length - len(body))
            if not more:
                raise Hangup
            body += more
        return bytes(body)

    def _put(self, target: str, length: int) -> None:
        name = unquote(urlsplit(target).path.rpartition("/")[2])
        left = length - len(self._rest)
        if self._rest:
            self._state.first_byte_at[name] = time.monotonic()
        self._rest = b""
        recv_into, view, pace = self._sock.recv_into, self._view, self._state.pace
        while left > 0:
            count = recv_into(view[:left] if left < READ_BYTES else view)
            if not count:
                raise Hangup
            if left == length:
                self._state.first_byte_at[name] = time.monotonic()
            left -= count
            pace.wait_for(count)
        self._state.came(length)
        self._answer(200, b"", etag=self._state.md5_of.get(name, "not-an-md5"))

    def _api(self, target: str, body: bytes) -> None:
        parts = urlsplit(target)
        if parts.path == "/control":
            self._json(self._state.control(json.loads(body or b"{}")))
        elif parts.path.startswith(f"/tenant/{TENANT}/datatable/{DATATABLE_PREFIX}"):
            filename = parse_qs(parts.query).get("filename", ["unnamed"])[0]
            self._json({"PreSignedUploadUrl": self._state.presigned_url(filename)})
        elif parts.path == f"/tenant/{TENANT}/datatables":
            tables = [f"{DATATABLE_PREFIX}{number}" for number in range(1, 33)]
            self._json([{"id": one, "displayName": one, "datasetId": DATASET} for one in tables])
        else:
            self._answer(404, b"{}")

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode())

    def _answer(self, status: int, body: bytes, *, etag: str = "") -> None:
        time.sleep(self._state.round_trip_seconds)
        head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        head += f'ETag: "{etag}"\r\n' if etag else ""
        self._sock.sendall(head.encode() + b"\r\n" + body)


def server_context(directory: str) -> tuple[ssl.SSLContext, str]:
    """Return a context with a fresh certificate for 127.0.0.1, and the file of the CA that signed it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    ca_file = os.path.join(directory, "ca.pem")
    authority.cert_pem.write_to_path(ca_file)
    return context, ca_file


def serve(listener: socket.socket, state: State, context: ssl.SSLContext | None) -> None:
    """Accept for ever, one thread for each connection."""
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_converse, args=(sock, state, context), daemon=True).start()


def _converse(sock: socket.socket, state: State, context: ssl.SSLContext | None) -> None:
    time.sleep(state.round_trip_seconds * (2 if context else 1))  # of TCP's handshake, and of TLS 1.3's
    try:
        with context.wrap_socket(sock, server_side=True) if context else sock as wrapped:
            Connection(wrapped, state).serve()
    except (Hangup, OSError, ValueError):
        sock.close()


def client_context(ca_file: str) -> ssl.SSLContext:
    """Return a context that trusts the sink."""
    return ssl.create_default_context(cafile=ca_file)


def raw_put_seconds(origin: str, ca_file: str, size: int) -> float:
    """Send `size` zeros in one PUT from a bare socket and return the seconds: what the sink itself can take."""
    parts = urlsplit(origin)
    assert parts.hostname is not None and parts.port is not None  # noqa: PT018
    with socket.create_connection((parts.hostname, parts.port)) as plain:
        sock = plain
        if parts.scheme == "https":
            sock = client_context(ca_file).wrap_socket(plain, server_hostname=parts.hostname)
        zeros = memoryview(bytes(READ_BYTES))
        started = time.monotonic()
        sock.sendall(f"PUT /uploads/zeros HTTP/1.1\r\nHost: sink\r\nContent-Length: {size}\r\n\r\n".encode())
        left = size
        while left > 0:
            sock.sendall(zeros[: min(left, READ_BYTES)])
            left -= READ_BYTES
        if b" 200 " not in sock.recv(4096):
            raise RuntimeError("the sink did not answer 200")
        seconds = time.monotonic() - started
        sock.close()
        return seconds


def start(*, tls: bool, port: int, directory: str) -> tuple[State, str, Callable[[], None]]:
    """Listen; return the state, the CA file (empty without TLS) and what serves for ever."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    context, ca_file = server_context(directory) if tls else (None, "")
    state = State(origin=f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}")
    return state, ca_file, lambda: serve(listener, state, context)


def _measure(directory: str, size: int) -> None:
    """Print the limit of a sink in a process of its own, plain and over TLS."""
    from benchmarks.bench import Sink, median, rate

    for tls in (False, True):
        with Sink(tls=tls, directory=directory) as sink:
            seconds = median([raw_put_seconds(sink.origin, sink.ca_file, size) for _ in range(5)])
        print(f"raw {'TLS' if tls else 'plain'} client into the sink: {rate(size, seconds):,.0f} MB/s (median of 5)")


def main() -> int:
    """Serve until killed, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--tls", action="store_true", help="serve https, with a fresh CA")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where the CA file is written")
    parser.add_argument("--measure", action="store_true", help="measure its own limit and exit")
    parser.add_argument("--size", type=int, default=1 << 30, help="bytes to send with --measure")
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory() as directory:
            _measure(directory, options.size)
        return 0
    state, ca_file, serve_forever = start(tls=options.tls, port=options.port, directory=options.directory)
    print(json.dumps({"origin": state.origin, "ca_file": ca_file}), flush=True)
    serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
