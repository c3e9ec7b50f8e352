"""What the API and the store share on the wire: answers before the body was read, and cut connections."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope, Send

from pmwatch.sandbox.s3errors import StorageError, error_xml

_LINGER_BYTES = 4 * 1024 * 1024
_LINGER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def storage_error_answer(error: StorageError) -> Answer:
    """Return the S3 answer for a refusal."""
    return xml_answer(error.status, error.code, error.message, error.details)


def xml_answer(status: int, code: str, message: str, details: Mapping[str, str] | None = None) -> Answer:
    """Return an S3 error answer with any status."""
    request_id = new_request_id()
    headers = {"content-type": "application/xml", "x-amz-request-id": request_id}
    return Answer(status, error_xml(code, message, request_id, details), headers)


def new_request_id() -> str:
    """Return an id in the form of S3's: 16 upper-case hexadecimal digits."""
    return os.urandom(8).hex().upper()


async def answer(send: Send, what: Answer) -> None:
    """Answer a request whose body was read."""
    await send(_start(what, {}))
    await send({"type": "http.response.body", "body": what.body})


async def refuse(scope: Scope, receive: Receive, send: Send, what: Answer) -> None:
    """Answer a request whose body was not read, and close the connection, as S3 does.

    The answer goes out at once. Then a little of the body is read and thrown away, because closing a socket
    with unread bytes makes the kernel send a reset, and a reset can overtake the answer.
    """
    if not has_body(scope):
        await answer(send, what)
        return
    await send(_start(what, {"connection": "close"}))
    await send({"type": "http.response.body", "body": what.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            await _swallow(receive, _LINGER_BYTES)
    await send({"type": "http.response.body", "body": b""})


def has_body(scope: Scope) -> bool:
    """Tell whether the request announces a body."""
    length = header(scope, "content-length")
    return header(scope, "transfer-encoding") is not None or (length is not None and length != "0")


def header(scope: Scope, name: str) -> str | None:
    """Return the value of the first header with this (lower-case) name, or None."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)


async def cut(scope: Scope, receive: Receive) -> None:
    """Drop the connection without an answer, and return when it is gone."""
    scope["state"]["abort"]()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _swallow(receive: Receive, limit: int) -> None:
    while limit > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        limit -= len(message["body"])


def _start(what: Answer, more: Mapping[str, str]) -> Message:
    headers = {**what.headers, "content-length": str(len(what.body)), **more}
    encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": what.status, "headers": encoded}
