"""The web application: the API, the store, the pages for people, and the faults in front of them."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmwatch import __version__
from pmwatch.sandbox.api import OPERATIONS, api_routes
from pmwatch.sandbox.faults import Fault
from pmwatch.sandbox.openapi import openapi
from pmwatch.sandbox.state import Record, Sandbox
from pmwatch.sandbox.storage import STORE_PATH, StorageApp
from pmwatch.sandbox.store import ObjectRecord, RequestRecord
from pmwatch.sandbox.wire import Answer, answer, cut, header, new_request_id, refuse, xml_answer

_SHOWN_OBJECTS = 200


def build_app(sandbox: Sandbox, closing: asyncio.Event) -> Starlette:
    """Return the application; when `closing` is set, no request is delayed any longer."""
    routes = [
        *api_routes(sandbox),
        *_control_routes(sandbox),
        Mount(STORE_PATH, app=StorageApp(sandbox)),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_FaultyFront, sandbox=sandbox, closing=closing)],
        exception_handlers={HTTPException: _error_answer},
    )
    app.router.redirect_slashes = False  # another path is another path
    return app


async def _error_answer(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {**(error.headers or {}), "x-amzn-requestid": new_request_id()}
    return JSONResponse({"message": error.detail}, status_code=error.status_code, headers=headers)


class _FaultyFront:
    """Logs every request to the API and the store, and lets it fail where a rule says so."""

    def __init__(self, app: ASGIApp, *, sandbox: Sandbox, closing: asyncio.Event) -> None:
        self._app = app
        self._sandbox = sandbox
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/" or scope["path"].startswith("/sandbox/"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._sandbox, scope, receive, send)
        fault = self._sandbox.faults.take(scope["method"], scope["path"])
        if fault is None:
            await self._app(scope, receive, exchange.send)
        else:
            await self._fail(fault, exchange)
        exchange.log(0)

    async def _fail(self, fault: Fault, exchange: "_Exchange") -> None:
        scope, receive = exchange.scope, exchange.receive
        await self._pause(fault.delay)
        if fault.when == "mid":
            await self._hand_on_half(scope, receive)
            await exchange.cut()
        elif fault.status == 0 and not fault.close:
            await self._app(scope, receive, exchange.send)
        elif fault.when == "after":
            await self._app(scope, receive, _discard)
            await (exchange.cut() if fault.close else answer(exchange.send, _fault_answer(fault, scope)))
        elif fault.close:
            await exchange.cut()
        else:
            await refuse(scope, receive, exchange.send, _fault_answer(fault, scope))

    async def _hand_on_half(self, scope: Scope, receive: Receive) -> None:
        """Let the application see half of the body at most, and then the end of the connection."""
        left = int(header(scope, "content-length") or 0) // 2

        async def halved() -> Message:
            nonlocal left
            message: Message = {"type": "http.disconnect"} if left <= 0 else await receive()
            left -= len(message.get("body", b""))
            if left > 0 or message["type"] == "http.disconnect":
                return message
            return {**message, "more_body": True}

        if left > 0:
            with contextlib.suppress(ClientDisconnect):
                await self._app(scope, halved, _discard)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), seconds)


class _Exchange:
    """One request and its fate, which is logged once, before the client can see it."""

    def __init__(self, sandbox: Sandbox, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._sandbox = sandbox
        self._send = send
        self._logged = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.log(message["status"])
        await self._send(message)

    async def cut(self) -> None:
        self.log(0)
        await cut(self.scope, self.receive)

    def log(self, status: int) -> None:
        if not self._logged:
            self._logged = True
            record = RequestRecord(self.scope["method"], self.scope["path"], status)
            self._sandbox.log_request(record)


async def _discard(_message: Message) -> None:
    """Throw an answer away."""


def _fault_answer(fault: Fault, scope: Scope) -> Answer:
    """Return the rule's error in the form of the side that was asked: XML of the store, JSON of the API."""
    message = "This error was asked for by a fault rule of the sandbox."
    headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
    if fault.body is not None:
        return Answer(fault.status, fault.body.encode(), {"content-type": "text/html", **headers})
    if scope["path"].startswith(f"{STORE_PATH}/"):
        plain = xml_answer(fault.status, fault.error_code, message)
        return Answer(plain.status, plain.body, {**plain.headers, **headers})
    document = {"message": message, "code": fault.error_code}
    body = json.dumps(document).encode()
    more = {"content-type": "application/json", "x-amzn-requestid": new_request_id()}
    return Answer(fault.status, body, {**more, **headers})


def _control_routes(sandbox: Sandbox) -> list[Route]:
    """Return the routes for people and tests. They ask for no key, and faults never touch them."""
    control = _Control(sandbox)
    return [
        Route("/", control.index),
        Route("/sandbox/health", control.health),
        Route("/sandbox/objects", control.objects),
        Route("/sandbox/openapi.json", control.openapi),
        Route("/sandbox/requests", control.requests),
        Route("/sandbox/faults", control.list_faults, methods=["GET"]),
        Route("/sandbox/faults", control.add_fault, methods=["POST"]),
        Route("/sandbox/faults", control.clear_faults, methods=["DELETE"]),
        Route("/sandbox/tenants/{tenant}/rotate-key", control.rotate_key, methods=["POST"]),
        Route("/sandbox/tenants/{tenant}/revoke-key", control.revoke_key, methods=["POST"]),
    ]


class _Control:
    """The endpoints of `_control_routes`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def index(self, _request: Request) -> Response:
        return HTMLResponse(
            _index_page(self._sandbox.store.records(), self._sandbox.models(), self._sandbox.names()),
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(self, _request: Request) -> Response:
        return JSONResponse(openapi(OPERATIONS, version=__version__))

    async def objects(self, _request: Request) -> Response:
        return JSONResponse({"objects": [record.as_json() for record in self._sandbox.store.records()]})

    async def requests(self, _request: Request) -> Response:
        records = self._sandbox.requests()
        rows = [{"method": record.method, "path": record.path, "status": record.status} for record in records]
        return JSONResponse({"requests": rows})

    async def list_faults(self, _request: Request) -> Response:
        return JSONResponse({"faults": self._sandbox.faults.pending()})

    async def add_fault(self, request: Request) -> Response:
        try:
            fault = _read_fault(await request.json())
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        self._sandbox.faults.add(fault)
        return JSONResponse({"faults": self._sandbox.faults.pending()}, status_code=201)

    async def clear_faults(self, _request: Request) -> Response:
        self._sandbox.faults.clear()
        return JSONResponse({"faults": []})

    async def rotate_key(self, request: Request) -> Response:
        api_key = self._of_tenant(request, self._sandbox.rotate_key)
        return JSONResponse({"api_key": api_key})

    async def revoke_key(self, request: Request) -> Response:
        self._of_tenant(request, self._sandbox.revoke_key)
        return JSONResponse({"success": True})

    def _of_tenant(self, request: Request, action: Callable[[str], Any]) -> Any:
        try:
            return action(request.path_params["tenant"])
        except KeyError as error:
            raise HTTPException(404, "Tenant not found") from error


def _read_fault(value: Any) -> Fault:
    return Fault.parse(value) if isinstance(value, str) else Fault.from_json(value)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>pmwatch sandbox</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
code {{ font-size: 85%; }}
</style></head><body>
<h1>pmwatch sandbox</h1>
<p>A local ProcessMind with its own object store. {count} object(s) arrived; the latest come first.</p>
<table><thead><tr><th>received</th><th>file</th><th>to</th><th>bytes</th><th>puts</th><th>SHA-256</th></tr>
</thead><tbody>
{rows}
</tbody></table>
<p>{model_count} process(es) with a BPMN model.</p>
<table><thead><tr><th>received</th><th>process</th><th>tenant</th><th>characters</th></tr></thead><tbody>
{models}
</tbody></table></body></html>
"""


def _index_page(records: list[ObjectRecord], models: list[tuple[str, Record]], names: Mapping[str, str]) -> str:
    latest = records[: -_SHOWN_OBJECTS - 1 : -1]
    return _PAGE.format(
        count=len(records),
        rows="\n".join(_index_row(one, names.get(one.datatable_id, "(deleted)")) for one in latest),
        model_count=len(models),
        models="\n".join(_model_row(tenant, process) for tenant, process in models[-_SHOWN_OBJECTS:]),
    )


def _model_row(tenant: str, process: Record) -> str:
    return (
        f"<tr><td>{escape(process['updatedAt'])}</td><td>{escape(process['displayName'])}</td>"
        f"<td>{escape(tenant)}</td><td class=n>{len(process['bpmn'])}</td></tr>"
    )


def _index_row(record: ObjectRecord, to: str) -> str:
    name = record.filename or "(no name given)"
    shown = "".join(char if char.isprintable() else "\ufffd" for char in name)
    return (
        f"<tr><td>{escape(record.received_at)}</td><td>{escape(shown)}</td><td>{escape(to)}</td>"
        f"<td class=n>{record.size}</td>"
        f"<td class=n>{record.put_count}</td>"
        f"<td><code>{escape(record.sha256[:16])}</code></td></tr>"
    )
