"""The HTTP seam: one connection pool, and the one place where httpx errors become pmwatch's."""

import email.utils
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import httpx

from pmwatch.errors import AnswerLost, ConfigError, PmwatchError, RemoteError, ServerFault, Unreachable

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""The largest answer that is read; anything longer is an error, not a reason to run out of memory."""

_ADDRESS: Final = "Write it with its scheme, such as https://api.processmind.com."
_LONGEST_WAIT_SECONDS: Final = 3600.0
_LONGEST_ID: Final = 200
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")  # no proxy leads there
_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, for a whole API answer, and without any progress of an upload, or for its whole answer."""

    connect: float = 10.0
    answer: float = 60.0
    stall: float = 60.0

    def for_api(self) -> dict[str, float | None]:
        """Return the limits of one API call, as httpx takes them."""
        return httpx.Timeout(self.answer, connect=self.connect, pool=self.answer).as_dict()

    def for_upload(self) -> dict[str, float | None]:
        """Return the limits of one PUT: each write must make progress, and the answer come as a whole."""
        return httpx.Timeout(self.stall, connect=self.connect, pool=self.stall).as_dict()


class _Punctual(httpcore.NetworkStream):
    """A connection on which the seconds of a read are those of a whole answer, head and body.

    httpx counts them anew at every byte, so that an answer in drops would never end. An answer begins with the first
    read after a write. (Sending a request has no such limit: a large file on a slow line takes its time.)
    """

    def __init__(self, plain: httpcore.NetworkStream, now: Callable[[], float]) -> None:
        self._plain = plain
        self._now = now
        self._since: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what came; ReadTimeout where the answer's time is over."""
        if timeout is None:
            return self._plain.read(max_bytes)
        self._since = self._now() if self._since is None else self._since
        left = self._since + timeout - self._now()
        if left <= 0:
            raise httpcore.ReadTimeout("the answer comes in drops")
        return self._plain.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send; what is read next is another answer."""
        self._since = None
        self._plain.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._plain.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the same with TLS; Python counts the seconds of a handshake as a whole by itself."""
        return _Punctual(self._plain.start_tls(ssl_context, server_hostname, timeout), self._now)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore wants to know of the connection."""
        return self._plain.get_extra_info(info)


class _PunctualBackend(httpcore.SyncBackend):
    """Makes connections that are `_Punctual`."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect."""
        plain = super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Punctual(plain, time.monotonic)


def _make_punctual(client: httpx.Client) -> None:
    """Let every connection of a client, through a proxy or not, keep the time of a whole answer."""
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001  httpx has no setting for it
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _PunctualBackend()  # noqa: SLF001  as above


class Http:
    """The connections to the API and the storage. `clock_skew_seconds` is theirs minus ours, by `Date`.

    As many requests as threads want go at a time, each over a small pool of its own that the next one takes over: a
    pool for all would look at every idle connection, twice a request.

    `client_cert` is a certificate's file (PEM) and its key's, empty where it is in the same one. Without `proxy` the
    environment's is used (HTTPS_PROXY, NO_PROXY). Raises OSError where a file cannot be read.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        ca_file: str = "",
        client_cert: tuple[str, str] | None = None,
        proxy: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.clock_skew_seconds = 0.0
        self._now = now
        context = ssl.create_default_context(cafile=ca_file or None)
        if client_cert is not None:
            context.load_cert_chain(client_cert[0], client_cert[1] or None)
        self._context = context
        self._proxy = proxy
        self._clients: list[httpx.Client] = []
        self._idle = deque([self._open()])  # here, for it raises where a proxy's address is none

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _open(self) -> httpx.Client:
        client = httpx.Client(
            verify=self._context,
            proxy=self._proxy or None,
            mounts=dict.fromkeys(_LOOPBACK) if self._proxy else None,
        )
        _make_punctual(client)
        self._clients.append(client)
        return client

    def build(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: Mapping[str, float | None],
        content: bytes | Iterable[bytes] = b"",
    ) -> httpx.Request:
        """Return a request for `send`, whose target is `url` byte for byte: a presigned URL signs it as it stands.

        Raises ServerFault where `url` is none.
        """
        try:
            parts = urlsplit(url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            origin = _origin(f"{parts.scheme}://{parts.netloc}/")
            request = httpx.Request(
                method,
                origin,
                headers={"user-agent": "pmwatch", **headers},
                content=content,
                extensions={"timeout": timeout},
            )
            request.url = _ExactURL(origin, target.encode("ascii", "replace"))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
            raise ServerFault("the address is not a valid URL", hint=_ADDRESS, reason="bad_url") from None
        return request

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send, read the answer (at most `MAX_ANSWER_BYTES`) and note the server's clock.

        Raises Unreachable where nothing was sent, AnswerLost where nobody knows, ServerFault for garbage.
        Errors that a request body raises itself come through as they are.
        """
        place = request.url.host
        try:
            client = self._idle.pop()  # the one used last, whose connections are warm
        except IndexError:
            client = self._open()
        try:
            # What Client.send would add (cookies, redirects, authentication, hooks) costs as much as a disk write.
            response = client._transport_for_url(request.url).handle_request(request)  # noqa: SLF001
            response.request = request
            try:
                self._read(response)
            finally:
                response.close()
        except PmwatchError:
            raise
        except httpx.HTTPError as error:
            raise _translate(error, place) from None
        except (httpx.InvalidURL, httpx.StreamError, ssl.SSLError, ValueError) as error:
            raise AnswerLost(f"{place}: {type(error).__name__} while talking to it") from None
        finally:
            self._idle.append(client)
        self._note_clock(response)
        return response

    def _read(self, response: httpx.Response) -> None:
        """Read the answer's body, as far as any real one is long."""
        content = bytearray()
        assert isinstance(response.stream, httpx.SyncByteStream)
        # Nothing encoded was asked for; where it comes all the same, httpx decodes it, at some cost.
        for chunk in response.iter_bytes() if "content-encoding" in response.headers else response.stream:
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise ServerFault(f"{response.request.url.host}: the answer is longer than any real one")
        response._content = bytes(content)  # noqa: SLF001  what response.read() does, with a limit

    def _note_clock(self, response: httpx.Response) -> None:
        theirs = http_date(response.headers.get("date", ""))
        if theirs is None:
            return
        skew = theirs - self._now()
        self.clock_skew_seconds = 0.0 if abs(skew) <= 2 else skew


def open_http(timeouts: Timeouts, *, ca_file: str, client_cert_file: str, client_key_file: str, proxy: str) -> Http:
    """Return the connections that a configuration asks for. Raises ConfigError where a file is not as it should be."""
    files = {"ca_file": ca_file, "client_cert_file": client_cert_file, "client_key_file": client_key_file}
    for key, path in files.items():
        try:
            with open(path or os.devnull, "rb"):
                pass
        except OSError as error:
            raise ConfigError([f"api: {key}: {path!r} cannot be read: {error.strerror}"]) from None
    cert = (client_cert_file, client_key_file) if client_cert_file else None
    try:
        return Http(timeouts=timeouts, ca_file=ca_file, client_cert=cert, proxy=proxy)
    except OSError:
        wrong = "ca_file" if cert is None else "ca_file, client_cert_file, client_key_file"
        why = "no certificate (PEM), or the key is another certificate's, or needs a password"
        raise ConfigError([f"api: {wrong}: {why}"]) from None


def http_date(text: str) -> float | None:
    """Return a date of an HTTP header in epoch seconds; None where it is none."""
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else float(email.utils.mktime_tz(parsed))
    except (IndexError, OverflowError, ValueError):
        return None


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a `Retry-After` header, at most an hour; None where it says nothing, or what is past.

    Its date is compared with the `Date` of the same answer where there is one: clocks may differ.
    """
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT_SECONDS)
    until = http_date(text)
    now = http_date(response.headers.get("date", "")) or time.time()
    return min(until - now, _LONGEST_WAIT_SECONDS) if until is not None and until > now else None


def request_id(response: httpx.Response) -> str:
    """Return the id by which the other side finds this request in its logs."""
    headers = ("x-amz-request-id", "x-amzn-requestid", "x-request-id")
    return printable(next((response.headers[name] for name in headers if name in response.headers), ""), _LONGEST_ID)


def printable(text: str, longest: int) -> str:
    """Return the beginning of what somebody else said, which can do nothing to a terminal or a log."""
    return "".join(character if character.isprintable() else " " for character in text)[:longest]


class _ExactURL(httpx.URL):
    """An address whose path and query go out byte for byte.

    httpx's extension `target` would do the same, but a proxy gets it as well, in place of the host to connect to.
    """

    def __init__(self, origin: httpx.URL, target: bytes) -> None:
        super().__init__(origin)
        self._target = target

    @property
    def raw_path(self) -> bytes:
        """Return what stands between method and version."""
        return self._target


@lru_cache(maxsize=64)
def _origin(url: str) -> httpx.URL:
    """Return scheme, host and port for httpx, whose reading of an address costs as much as a disk write."""
    return httpx.URL(url)


def _translate(error: httpx.HTTPError, place: str) -> RemoteError:
    """Put an httpx error into plain words; its own text may hold a presigned URL and is never used."""
    if isinstance(error, httpx.ConnectTimeout):
        return Unreachable(f"{place}: no connection in time", hint="Is a firewall or proxy in between?")
    if isinstance(error, _UNSENT):
        return _no_connection(error, place)
    if isinstance(error, httpx.UnsupportedProtocol):
        return ServerFault("the address of the API is not an http or https one", hint=_ADDRESS, reason="bad_url")
    if isinstance(error, httpx.DecodingError):
        return ServerFault(f"{place}: the answer cannot be decoded")
    if isinstance(error, httpx.TimeoutException):
        return AnswerLost(
            f"{place}: no progress in time", hint=f"The network or the server is stuck. {AnswerLost.hint}"
        )
    return AnswerLost(f"{place}: the connection broke before the answer came")


def _no_connection(error: httpx.HTTPError, place: str) -> Unreachable:
    """Name the cause of a failed connection: the lower exceptions' types and numbers tell it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message or "it does not verify"
            return Unreachable(
                f"{place}: its TLS certificate is not accepted: {why}",
                hint="For a private CA set [api] ca_file; otherwise somebody may be in between.",
                reason="tls",
            )
        if isinstance(cause, ssl.SSLError):
            return Unreachable(f"{place}: TLS failed", hint="Is it an https server?", reason="tls")
        if isinstance(cause, ConnectionRefusedError):
            return Unreachable(f"{place}: connection refused", hint="Is the server running, and the port right?")
        cause = cause.__cause__ or cause.__context__
    hint = "Check the name, DNS and the network; pmwatch goes on by itself when it answers."
    return Unreachable(f"{place}: cannot connect", hint=hint)
