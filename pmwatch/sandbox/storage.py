"""The object store's web front: a presigned PUT, checked in the order and answered in the words of S3."""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any
from urllib.parse import unquote

from starlette.types import Receive, Scope, Send

from pmwatch.sandbox import sigv4
from pmwatch.sandbox.s3errors import StorageError
from pmwatch.sandbox.state import Sandbox
from pmwatch.sandbox.store import ObjectRecord, Upload, precondition_failed
from pmwatch.sandbox.wire import Answer, answer, header, new_request_id, refuse, storage_error_answer

STORE_PATH = "/sandbox-store"
BUCKET = "pm-uploads"
MAX_OBJECT_BYTES = 5 * 1024**3
_BLOCK_BYTES = 1024 * 1024
_INLINE_BYTES = 128 * 1024  # below this, a change of threads costs more than the work itself

_CONTENT_TYPES = {
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "txt": "text/plain",
    "xes": "application/xml",
    "xls": "application/vnd.ms-excel",
    "xlsb": "application/vnd.ms-excel.sheet.binary.macroEnabled.12",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


def presigned_url(sandbox: Sandbox, origin: str, key: str, *, filename: str, valid_seconds: int | None) -> str:
    """Return the URL that accepts one PUT of `key`, for as long as the options and the caller say."""
    options = sandbox.options
    expires = options.url_expires_seconds or valid_seconds or 3600
    headers = {"content-type": content_type(filename)} if options.sign_content_type else {}
    return sigv4.presign(
        sandbox.credentials,
        "PUT",
        origin=origin,
        path=f"{STORE_PATH}/{BUCKET}/{key}",
        expires_seconds=min(expires, sigv4.MAX_EXPIRES_SECONDS),
        at=sandbox.now(),
        headers=headers,
    )


def content_type(filename: str) -> str:
    """Return the type that is signed for a file of this name, from the table in ProcessMind's API notes."""
    suffix = filename.lower().rpartition(".")[2]
    return _CONTENT_TYPES.get(suffix, "application/octet-stream")


class StorageApp:
    """The ASGI application below `/sandbox-store`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Errors found before the body is read are answered without reading it."""
        try:
            key = self._admit(scope)
        except StorageError as error:
            await refuse(scope, receive, send, storage_error_answer(error))
            return
        try:
            record = await self._receive(scope, receive, key)
        except StorageError as error:
            await answer(send, storage_error_answer(error))
            return
        except ConnectionAbortedError:
            return  # nobody is there to be answered
        headers = {"etag": f'"{record.etag}"', "x-amz-request-id": new_request_id()}
        await answer(send, Answer(200, headers=headers))

    def _admit(self, scope: Scope) -> str:
        """Return the key that the request may write, or raise the first objection to its head."""
        request = _as_received(scope)
        self._check_signature(request)
        key = _key(scope)
        if request.method != "PUT":
            message = "The specified method is not allowed against this resource."
            raise StorageError("MethodNotAllowed", message)
        _check_length(scope)
        _content_md5(scope)
        if _only_if_absent(scope) and self._sandbox.store.exists(key):
            raise precondition_failed()
        return key

    def _check_signature(self, request: sigv4.ReceivedRequest) -> None:
        now = self._sandbox.now()
        query = sigv4.verify(request, self._sandbox.credentials, now=now)
        lifetime = self._sandbox.options.security_token_seconds
        if query.session_token is not None and lifetime is not None and now > query.signed_at + lifetime:
            raise StorageError("ExpiredToken", "The provided token has expired.")

    async def _receive(self, scope: Scope, receive: Receive, key: str) -> ObjectRecord:
        """Store the body; ConnectionAbortedError, and nothing stored, when the client goes away before."""
        upload = self._sandbox.store.begin()
        try:
            await _fill(upload, receive)
            upload.finish()
            expected = _content_md5(scope)
            if expected is not None and expected != upload.md5:
                message = "The Content-MD5 you specified did not match what we received."
                raise StorageError("BadDigest", message)
            return self._sandbox.store.commit(key, upload, only_if_absent=_only_if_absent(scope))
        except ConnectionAbortedError:
            raise
        except OSError as error:
            raise StorageError("InternalError", f"The sandbox's disk: {error.strerror}") from error
        finally:
            upload.discard()


async def _fill(upload: Upload, receive: Receive) -> None:
    """Feed the body to the upload: one block is hashed and written while the next one comes in."""
    busy: Awaitable[Any] | None = None
    try:
        async for block in _blocks(receive):
            if busy is not None:
                await busy
                busy = None
            if len(block) <= _INLINE_BYTES:
                upload.write(block)
                upload.update_md5(block)
            else:
                busy = asyncio.gather(
                    asyncio.to_thread(upload.write, block), asyncio.to_thread(upload.update_md5, block)
                )
    finally:
        if busy is not None:
            await busy


async def _blocks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the body in blocks of about 1 MiB: the server hands it over in small pieces."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        more = message.get("more_body", False)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size >= _BLOCK_BYTES or not more:
            yield b"".join(parts)
            parts, size = [], 0


def _as_received(scope: Scope) -> sigv4.ReceivedRequest:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    return sigv4.ReceivedRequest(
        method=scope["method"],
        raw_path=scope["raw_path"].decode("latin-1"),
        raw_query=scope["query_string"].decode("latin-1"),
        headers=headers,
    )


def _key(scope: Scope) -> str:
    path = unquote(scope["raw_path"].decode("latin-1"), errors="surrogateescape")
    bucket, _, key = path.removeprefix(f"{STORE_PATH}/").partition("/")
    if bucket != BUCKET:
        raise StorageError("NoSuchBucket", "The specified bucket does not exist", {"BucketName": bucket})
    if not key:
        raise StorageError("MethodNotAllowed", "The specified method is not allowed against this resource.")
    return key


def _check_length(scope: Scope) -> None:
    if header(scope, "transfer-encoding") is not None:
        message = "A header you provided implies functionality that is not implemented"
        raise StorageError("NotImplemented", message, {"Header": "Transfer-Encoding"})
    length = header(scope, "content-length")
    if length is None:
        message = "You must provide the Content-Length HTTP header."
        raise StorageError("MissingContentLength", message)
    if int(length) > MAX_OBJECT_BYTES:
        raise StorageError(
            "EntityTooLarge",
            "Your proposed upload exceeds the maximum allowed size",
            {"ProposedSize": length, "MaxSizeAllowed": str(MAX_OBJECT_BYTES)},
        )


def _only_if_absent(scope: Scope) -> bool:
    """Tell whether `If-None-Match: *` was sent. S3 knows no other value for a PUT."""
    value = header(scope, "if-none-match")
    if value is not None and value != "*":
        message = "A header you provided implies functionality that is not implemented"
        raise StorageError("NotImplemented", message, {"Header": "If-None-Match"})
    return value is not None


def _content_md5(scope: Scope) -> bytes | None:
    """Return the digest that Content-MD5 announces, or None; InvalidDigest when it is none."""
    text = header(scope, "content-md5")
    if text is None:
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if not re.fullmatch(b"(?s).{16}", digest):
        raise StorageError("InvalidDigest", "The Content-MD5 you specified was invalid.")
    return digest
