"""The sandbox as a running server: in a thread, for tests and the demo; until a signal, for the command."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pmwatch.sandbox.app import build_app
from pmwatch.sandbox.faults import Fault, Faults
from pmwatch.sandbox.state import (
    Sandbox,
    StorageOptions,
    TenantInfo,
    TenantSeed,
    is_known,
    write_private_json,
)
from pmwatch.sandbox.store import ObjectRecord, RequestRecord
from pmwatch.threads import Mailbox

_THREAD_NAME = "pmwatch-sandbox"
_TICKS_PER_SECOND = 10  # what uvicorn counts in
_STOP_SECONDS = 5.0  # a request ends at once when its connection is cut; this is for a disk that hangs
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared with, never bound to


class _Protocol(H11Protocol):
    """HTTP/1.1, with a way to drop the connection, which ASGI does not have: `scope["state"]["abort"]`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}


class _Server(uvicorn.Server):
    """Says when it serves, and does not wait for slow clients when it stops."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._ready = ready
        self._closing = closing
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._ready.set()

    async def main_loop(self) -> None:
        """Turn once a second, for the date header, and at once when told to stop."""
        turns = 0
        while not await self.on_tick(turns * _TICKS_PER_SECOND):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 1)
            turns += 1

    def stop(self) -> None:
        """Make the server end; harmless when it has ended already. Safe to call from any thread."""
        self.should_exit = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._closing.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut every connection and wait for what was going on. Takes the place of uvicorn's polite waiting."""
        self._closing.set()
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_STOP_SECONDS)
        await asyncio.sleep(0)  # the turn in which aborted transports close their sockets


class SandboxServer:
    """A sandbox that serves in a thread of its own between `start` and `stop`, or as a context manager.

    It can be started again after a stop, on the same port. With port 0 the first start picks a free one.
    `url_expires_seconds` overrides what callers ask for. `now` is the wall clock in seconds since the epoch.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tenants: Sequence[TenantSeed] | None = None,
        ssl_certfile: str | os.PathLike[str] | None = None,
        ssl_keyfile: str | os.PathLike[str] | None = None,
        url_expires_seconds: int | None = None,
        sign_content_type: bool = False,
        security_token: str | None = None,
        security_token_seconds: int | None = None,
        faults: Iterable[Fault | str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        options = StorageOptions(
            url_expires_seconds=url_expires_seconds,
            sign_content_type=sign_content_type,
            security_token=security_token,
            security_token_seconds=security_token_seconds,
        )
        self.sandbox = Sandbox(Path(state_dir), tenants=tenants, options=options, now=now)
        for fault in faults:
            self.sandbox.faults.add(fault)
        self._host = host
        self._port = port
        self._ssl_certfile = ssl_certfile
        self._ssl_keyfile = ssl_keyfile
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """The URL of the API, without a slash at the end."""
        scheme = "https" if self._ssl_certfile else "http"
        host = _WILDCARDS.get(self._host, self._host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def tenants(self) -> list[TenantInfo]:
        """The tenants, with keys, datasets and datatables, as in the ready file."""
        return self.sandbox.tenants()

    @property
    def faults(self) -> Faults:
        """The fault rules."""
        return self.sandbox.faults

    def objects(self) -> list[ObjectRecord]:
        """Return what is stored, in the order of first arrival."""
        return self.sandbox.store.records()

    def object_path(self, record: ObjectRecord) -> Path:
        """Return the file with the bytes of a stored object."""
        return self.sandbox.store.path(record)

    def requests(self) -> list[RequestRecord]:
        """Return the latest requests to the API and the store, oldest first; control calls are left out."""
        return self.sandbox.requests()

    def start(self) -> None:
        """Serve. Returns when connections are accepted; OSError when the address cannot be had."""
        if self._thread is not None:
            return
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        closing = asyncio.Event()
        self._server = _Server(self._config(closing), ready, closing)
        self._failure = None
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener, ready), name=_THREAD_NAME, daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            failure = self._failure
            self.stop()
            raise RuntimeError("the sandbox did not start") from failure

    def stop(self) -> None:
        """Stop serving: running requests are cut, the port is free again, the thread has ended."""
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join()
        self._server = None
        self._thread = None
        self.sandbox.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server's thread has ended by itself; tell whether it has."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def ready_document(self) -> dict[str, Any]:
        """Return what the ready file says: where to connect, and with which keys."""
        return {"base_url": self.base_url, "tenants": self.tenants}

    def _config(self, closing: asyncio.Event) -> uvicorn.Config:
        return uvicorn.Config(
            build_app(self.sandbox, closing),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=60,
            ssl_certfile=self._ssl_certfile,
            ssl_keyfile=self._ssl_keyfile,
        )

    def _run(self, server: _Server, listener: socket.socket, ready: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(server.serve(sockets=[listener]))
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits in start()
            self._failure = error
        finally:
            listener.close()
            ready.set()


def serve(  # noqa: PLR0917  where, what, and whom to tell: the command passes them in this order
    listen_host: str,
    listen_port: int,
    state_dir: Path,
    ready_file: Path | None,
    faults: Iterable[str],
    on_ready: Callable[[SandboxServer], None],
    *,
    tenants: int = 1,
) -> None:
    """Serve until SIGTERM or SIGINT; call it from the main thread.

    Once connections are accepted, `ready_file` is written atomically (mode 0600), then `on_ready` is called.
    `tenants` is how many a new state directory gets.
    A ready file from an earlier run is removed first. ValueError for a fault that cannot be read, OSError for
    an address that cannot be had.
    """
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    rules = [Fault.parse(text) for text in faults]
    seeds = None if is_known(state_dir) else _demo_tenants(tenants)
    server = SandboxServer(state_dir, host=listen_host, port=listen_port, tenants=seeds, faults=rules)
    mailbox = Mailbox()
    with mailbox.receiving(signal.SIGTERM, signal.SIGINT), server:
        if ready_file is not None:
            write_private_json(ready_file, server.ready_document())
        on_ready(server)
        mailbox.take()


def _demo_tenants(count: int) -> list[TenantSeed]:
    return [TenantSeed("demo" if number == 1 else f"demo-{number}") for number in range(1, count + 1)]


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket for the first address of `host`; asyncio does the listening."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
