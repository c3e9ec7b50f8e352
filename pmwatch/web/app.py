"""The ASGI app. It knows nothing of the service but the callables it is given, and changes nothing."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pmwatch.model import format_duration, format_size

_LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")  # of this machine's own commands; no name of a stranger's
_OPEN_PATHS: Final = ("/metrics", "/healthz", "/readyz")  # probes and scrapers come with any Host
_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Questions:
    """What the web layer may ask the service. `health` and `ready` return what is wrong, empty for nothing."""

    metrics: Callable[[], bytes]
    health: Callable[[], Sequence[str]]
    ready: Callable[[], Sequence[str]]
    status: Callable[[], Mapping[str, Any]]
    why: Callable[[bytes], Mapping[str, Any]]
    unsettled: Callable[[str], Mapping[str, Any]]
    history: Callable[[Mapping[str, str]], Mapping[str, Any]]


def create_app(questions: Questions, *, allowed_hosts: Sequence[str]) -> ASGIApp:
    """Return the app; all but metrics and health answers to loopback and `allowed_hosts` only (DNS rebinding)."""
    page = _page()

    async def metrics(_: Request) -> Response:
        body = await run_in_threadpool(questions.metrics)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(_: Request) -> Response:
        return JSONResponse(dict(await run_in_threadpool(questions.status)))

    async def why(request: Request) -> Response:
        path = _asked_path(request.scope["query_string"])
        if not path.startswith(b"/") or b"\0" in path:
            return JSONResponse({"error": "give the absolute path of a file as ?path="}, status_code=400)
        return JSONResponse(dict(await run_in_threadpool(questions.why, path)))

    async def unsettled(request: Request) -> Response:
        try:
            folder = request.query_params.get("folder", "")
            return JSONResponse(dict(await run_in_threadpool(questions.unsettled, folder)))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=404)

    async def history(request: Request) -> Response:
        try:
            return JSONResponse(dict(await run_in_threadpool(questions.history, dict(request.query_params))))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    async def index(_: Request) -> Response:
        return HTMLResponse(page.render(status=await run_in_threadpool(questions.status)))

    routes = [
        Route("/", index),
        Route("/metrics", metrics),
        Route("/healthz", _probe(questions.health)),
        Route("/readyz", _probe(questions.ready)),
        Route("/api/v1/status", status),
        Route("/api/v1/why", why),
        Route("/api/v1/unsettled", unsettled),
        Route("/api/v1/history", history),
    ]
    return _Guard(Starlette(routes=routes), {*_LOOPBACK_HOSTS, *(host.lower() for host in allowed_hosts)})


def _asked_path(query: bytes) -> bytes:
    """Return the `path` of a query string, percent-encoded as bytes there: a file's name need not be UTF-8."""
    pairs = (part.partition(b"=") for part in query.split(b"&"))
    return next((unquote_to_bytes(value.replace(b"+", b" ")) for name, _, value in pairs if name == b"path"), b"")


def _probe(ask: Callable[[], Sequence[str]]) -> Callable[[Request], Awaitable[Response]]:
    async def probe(_: Request) -> Response:
        wrong = await run_in_threadpool(ask)
        return PlainTextResponse("\n".join(wrong or ("ok",)) + "\n", status_code=503 if wrong else 200)

    return probe


def _page() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pmwatch.web"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["size"] = format_size
    environment.filters["duration"] = format_duration
    environment.filters["age"] = lambda at: format_duration(time.time() - at)
    return environment.get_template("status.html")


class _Guard:
    """Refuses strange hosts and adds the headers that keep a page from being framed or run."""

    def __init__(self, app: ASGIApp, hosts: set[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._welcome(scope):
            answer = PlainTextResponse("this Host is not in [http] allowed_hosts\n", status_code=421)
            await answer(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _welcome(self, scope: Scope) -> bool:
        if scope["path"] in _OPEN_PATHS or "*" in self._hosts:
            return True
        host = next((value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"), "")
        without_port = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return host in self._hosts or without_port in self._hosts
