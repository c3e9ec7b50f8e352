"""The presigned PUT: exactly the given bytes to an allowed host, and S3's errors in plain words.

Sources: Amazon S3 API reference, "PutObject" and "Error responses"; "Authenticating requests: using query parameters".
"""

import calendar
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final
from urllib.parse import SplitResult, parse_qs, urljoin, urlsplit

import httpx

from pmwatch.errors import (
    AlreadyThere,
    PmwatchError,
    Rejected,
    RemoteError,
    ServerFault,
    SourceChanged,
    Throttled,
    UrlExpired,
)
from pmwatch.model import MAX_PUT_BYTES
from pmwatch.processmind.http import Http, printable, request_id, retry_after

CONTENT_TYPES: Final = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".txt": "text/plain",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xls": "application/vnd.ms-excel",
    ".xlsb": "application/vnd.ms-excel.sheet.binary.macroEnabled.12",
    ".xes": "application/xml",
}
"""Sent only where the URL signs `content-type`: the URL names the header, not its value."""

FALLBACK_CONTENT_TYPE: Final = "application/octet-stream"
_S3_HOST: Final = re.compile(r"(?:[a-z0-9.-]+\.)?s3(?:\.dualstack)?(?:[.-][a-z]{2}(?:-[a-z]+)+-\d)?\.amazonaws\.com")
_SUCCESS: Final = (200, 201, 204)
_MAX_REDIRECTS: Final = 3
_MD5_ETAG: Final = re.compile(r'"?([0-9a-fA-F]{32})"?')

OpenBody = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the storage confirmed. `md5` is the ETag where it is the MD5 of the object, else empty."""

    etag: str
    md5: str
    request_id: str


class Storage:
    """Puts bytes where presigned URLs point, if they point to an allowed host.

    `allowed_hosts` are names, or `*.name` for all below it; empty means Amazon S3's own. Hosts of this machine
    are allowed, over plain http too, where `allow_loopback` says so.
    """

    def __init__(self, http: Http, *, allowed_hosts: Sequence[str] = (), allow_loopback: bool = False) -> None:
        self._http = http
        self._allowed = tuple(host.lower() for host in allowed_hosts)
        self._allow_loopback = allow_loopback

    def check_url(self, url: str) -> None:
        """Raise ServerFault where this URL must not get any bytes: another host or scheme than allowed."""
        parts = _split(url)
        host = (parts.hostname or "").lower()
        loopback = self._allow_loopback and is_loopback_host(host)
        if parts.username is not None or parts.password is not None:
            raise _bad_url("the presigned URL holds a user name")
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
            raise _bad_url(f"the presigned URL is not https ({parts.scheme or 'no scheme'})")
        if not loopback and not self._is_allowed(host):
            raise _bad_url(f"the presigned URL points to {host}, which is not an allowed upload host")

    def _is_allowed(self, host: str) -> bool:
        if not self._allowed:
            return _S3_HOST.fullmatch(host) is not None
        return any(
            host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])) for allowed in self._allowed
        )

    def put(self, url: str, open_body: OpenBody, *, size: int, filename: str, only_if_absent: bool = False) -> Receipt:
        """PUT `size` bytes from a fresh body. Returns the receipt of exactly these bytes.

        `only_if_absent` sends `If-None-Match: *`, so that a lost answer can be repeated: AlreadyThere says that
        the first one arrived. Raises RemoteError's children; errors of the body come through as they are.
        """
        if size > MAX_PUT_BYTES:
            raise Rejected(
                f"{size} bytes are more than one PUT takes (5 GiB)",
                hint="Split the export.",
                reason="too_large",
            )
        content_type = self._content_type(url, filename)
        try:
            return self._put(url, open_body, size, content_type, only_if_absent)
        except ServerFault as error:
            if error.status != 501 or not only_if_absent:
                raise
            return self._put(url, open_body, size, content_type, only_if_absent=False)  # no conditional writes there
        except Rejected as error:
            if error.code != "SignatureDoesNotMatch" or content_type in ("", FALLBACK_CONTENT_TYPE):
                raise
            return self._put(url, open_body, size, FALLBACK_CONTENT_TYPE, only_if_absent)

    def _content_type(self, url: str, filename: str) -> str:
        if "content-type" not in signed_headers(url):
            return ""
        return CONTENT_TYPES.get(os.path.splitext(filename)[1].lower(), FALLBACK_CONTENT_TYPE)

    def _put(self, url: str, open_body: OpenBody, size: int, content_type: str, only_if_absent: bool) -> Receipt:  # noqa: FBT001
        headers = {"content-length": str(size)}
        if content_type:
            headers["content-type"] = content_type
        if only_if_absent:
            headers["if-none-match"] = "*"
        for _ in range(_MAX_REDIRECTS):
            self.check_url(url)
            response = self._send(url, open_body, size, headers)
            if response.status_code != 307:
                return _receipt(response, url)
            try:
                url = urljoin(url, response.headers.get("location", ""))
            except ValueError:
                raise _bad_url("the storage redirects to what is not a valid URL") from None
        raise ServerFault("the storage redirects without end")

    def _send(self, url: str, open_body: OpenBody, size: int, headers: dict[str, str]) -> httpx.Response:
        body = _exactly(size, open_body()) if size else iter(())
        first = next(body, b"")  # trouble of the source shows here, before a request is begun
        request = self._http.build(
            "PUT",
            url,
            content=chain((first,), body) if size else b"",
            headers=headers,
            timeout=self._http.timeouts.for_upload(),
        )
        return self._http.send(request)


def _exactly(size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass a body on, and raise SourceChanged where it is not `size` bytes long."""
    left = size
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise SourceChanged("the file is not as long as it was when its upload began")


def _bad_url(message: str) -> ServerFault:
    return ServerFault(
        message,
        hint="If this is your own storage, name its host in [api] allowed_upload_hosts.",
        reason="bad_url",
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ServerFault("the presigned URL is not a valid URL", reason="bad_url") from None
    return parts


def is_loopback_host(host: str) -> bool:
    """Tell whether a host of a URL is this machine."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(?:\.\d{1,3}){3}", host) is not None


def url_host(url: str) -> str:
    """Return host (and port, where it is not the scheme's own) of a URL: the name of its gate."""
    return str(_split(url).netloc.rpartition("@")[2])


def signed_headers(url: str) -> frozenset[str]:
    """Return the headers that a presigned URL signs."""
    return frozenset(_query(url, "X-Amz-SignedHeaders").lower().split(";"))


def url_expiry(url: str) -> float | None:
    """Return when (epoch seconds) a URL expires: `X-Amz-Date` + `X-Amz-Expires`; None where it does not say."""
    try:
        signed_at = calendar.timegm(time.strptime(_query(url, "X-Amz-Date"), "%Y%m%dT%H%M%SZ"))
        return signed_at + float(_query(url, "X-Amz-Expires"))
    except ValueError:
        return None


def _query(url: str, name: str) -> str:
    values = parse_qs(_split(url).query)
    return next((found[0] for key, found in values.items() if key.lower() == name.lower()), "")


def _receipt(response: httpx.Response, url: str) -> Receipt:
    if response.status_code not in _SUCCESS:
        raise s3_error(response, url)
    etag = response.headers.get("etag", "")
    encrypted = response.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    encrypted = encrypted or "x-amz-server-side-encryption-customer-algorithm" in response.headers
    match = None if encrypted else _MD5_ETAG.fullmatch(etag)
    return Receipt(etag.strip('"'), match[1].lower() if match else "", request_id(response))


_EXPIRED_CODES: Final = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken")
_THROTTLE_CODES: Final = ("SlowDown", "RequestLimitExceeded", "ServiceUnavailable", "ThrottlingException")
_AGAIN_CODES: Final = ("BadDigest", "RequestTimeout", "IncompleteBody", "InternalError", "OperationAborted")
_DESTINATION_CODES: Final = (  # of the bucket and of who signed the URL: no other file would fare better
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "NoSuchBucket",
)
_QUERY: Final = re.compile(r"\S*(?:X-Amz-|AWSAccessKeyId=|Signature=)\S*", re.IGNORECASE)  # part of a presigned URL
_HINTS: Final = {
    "SignatureDoesNotMatch": "The URL was changed on the way, or a proxy changes headers. The URL signs: {signed}.",
    "RequestTimeTooSkewed": "The clocks differ too much: check NTP on this machine.",
    "EntityTooLarge": "S3 takes at most 5 GiB in one PUT; split the export.",
    "AccessDenied": "The storage refuses what ProcessMind has signed; ask ProcessMind's support with the request id.",
    "InvalidAccessKeyId": "ProcessMind signs with a key that its storage does not know; ask its support.",
    "NoSuchBucket": "ProcessMind's storage is not set up; ask its support with the request id.",
}


def s3_error(response: httpx.Response, url: str) -> PmwatchError:
    """Return the error that an unsuccessful answer of the storage means; its XML code decides."""
    status, code, said = response.status_code, *_xml_error(response)
    kind = _error_class(status, code, said, url)
    text = f"the storage answered {status}" + (f" {code}" if code else "") + (f": {said}" if said else "")
    return kind(
        text,
        hint=_HINTS.get(code, "").format(signed=", ".join(sorted(signed_headers(url)))),
        status=status,
        code=code,
        request_id=request_id(response),
        retry_after=retry_after(response),
    )


def _error_class(status: int, code: str, said: str, url: str) -> type[RemoteError]:
    if status == 412:
        return AlreadyThere
    if code in _EXPIRED_CODES or (status in (400, 403) and ("expired" in said.lower() or _has_expired(url))):
        return UrlExpired
    if status in (401, 403, 407) and not code:
        return ServerFault  # no S3 said this: a proxy in between refuses, whatever the file
    if status in (429, 503) or code in _THROTTLE_CODES:
        return Throttled
    if code == "RequestTimeTooSkewed" or code in _DESTINATION_CODES or status >= 500 or status < 400:
        return ServerFault
    return RemoteError if code in _AGAIN_CODES or status in (408, 409) else Rejected


def _has_expired(url: str) -> bool:
    expiry = url_expiry(url)
    return expiry is not None and expiry < time.time()


def _xml_error(response: httpx.Response) -> tuple[str, str]:
    """Return code and message of S3's XML error, by pattern: the body is untrusted and may be anything."""
    text = response.content[:65536].decode("utf-8", "replace")
    code = re.search(r"<Code>\s*([A-Za-z0-9._-]{1,80})\s*</Code>", text)
    said = re.search(r"<Message>([^<]{0,300})", text)
    message = printable(said[1], len(said[1])) if said else ""
    return (code[1] if code else ""), _QUERY.sub("(left out)", message)
