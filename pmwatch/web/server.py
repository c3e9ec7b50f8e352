"""uvicorn in a thread of its own: it must never take signals, and never hold up a shutdown."""

import asyncio
import socket
import threading
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pmwatch.errors import PmwatchError

REQUEST_SECONDS = 10.0  # until a request is there, from the connection or the answer before it
MOST_CONNECTIONS = 256  # whoever leaves them open, there are descriptors for uploads
_STOP_SECONDS: Final = 5.0


class _Protocol(H11Protocol):
    """HTTP/1.1 that bounds what strangers hold: who asks nothing in time goes, the oldest first of too many."""

    due: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.due.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.due.cancel()
        self._expect_request()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether it has asked nothing, or got its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_request(self) -> None:
        self.due = self.loop.call_later(REQUEST_SECONDS, self._too_late)

    def _too_late(self) -> None:
        if self.idle:
            self.transport.close()

    def _make_room(self) -> None:
        all_ = [one for one in self.connections if isinstance(one, _Protocol) and not one.transport.is_closing()]
        if len(all_) > MOST_CONNECTIONS:
            min((one for one in all_ if one.idle), key=lambda one: one.due.when()).transport.abort()


class WebServer:
    """Serves an app on a socket that is bound at once, so that a taken port is an error before anything starts."""

    def __init__(self, *, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """The address it listens on, `HOST:PORT`; the port is the real one where 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self, app: ASGIApp) -> None:
        """Serve `app`, in a thread."""
        config = uvicorn.Config(
            app,
            http=_Protocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        arguments = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=arguments, name="http", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Tell whether it serves."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_SECONDS)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # who comes before the server runs waits instead of being refused
    except OSError as error:
        listener.close()
        raise PmwatchError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="Another program uses that port; set [http] listen, or --listen, to a free one.",
            reason="listen",
        ) from None
    return listener
