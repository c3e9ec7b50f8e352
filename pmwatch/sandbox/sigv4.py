"""AWS Signature Version 4 in the query string: sign a URL, and verify a request made with one.

Source: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)" in the Amazon S3 API
reference. Pure functions: the time is an argument, in seconds since the epoch.
"""

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from pmwatch.sandbox.s3errors import StorageError

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "s3"
MAX_EXPIRES_SECONDS = 7 * 24 * 3600
MAX_SKEW_SECONDS = 15 * 60
REQUIRED = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)
_DATE_FORMAT = "%Y%m%dT%H%M%SZ"

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs the URLs. A session token, if there is one, is part of each URL, as with temporary keys."""

    access_key_id: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came in: the path and query still encoded, the header names in any case."""

    method: str
    raw_path: str
    raw_query: str
    headers: Pairs


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """The signing parameters of a URL, parsed and found well-formed."""

    access_key_id: str
    scope: str
    signed_at: float
    expires_seconds: int
    signed_headers: tuple[str, ...]
    signature: str
    session_token: str | None
    unsigned_pairs: Pairs

    @property
    def expires_at(self) -> float:
        """When the URL stops being valid, in seconds since the epoch."""
        return self.signed_at + self.expires_seconds


def presign(
    credentials: Credentials,
    method: str,
    *,
    origin: str,
    path: str,
    expires_seconds: int,
    at: float,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Return the presigned URL for `path` (not encoded) below `origin` (`scheme://host[:port]`).

    `headers` are signed besides `host`; who uses the URL must send them with the same values.
    """
    host = origin.partition("://")[2]
    signed = {"host": host, **{name.lower(): value for name, value in (headers or {}).items()}}
    stamp = _format_date(at)
    scope = _scope(stamp, credentials.region)
    names = sorted(signed)
    pairs = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{credentials.access_key_id}/{scope}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(expires_seconds)),
        ("X-Amz-SignedHeaders", ";".join(names)),
    ]
    if credentials.session_token is not None:
        pairs.append(("X-Amz-Security-Token", credentials.session_token))
    canonical = _canonical_request(method, path.encode(), pairs, names, signed)
    signature = _sign(credentials, stamp, scope, canonical)
    query = "&".join(f"{_encode(name)}={_encode(value)}" for name, value in pairs)
    return f"{origin}{quote(path, safe='/~')}?{query}&X-Amz-Signature={signature}"


def verify(request: ReceivedRequest, credentials: Credentials, *, now: float) -> SignedQuery:
    """Raise `StorageError` unless the request is signed, valid at `now`, and unchanged since it was signed.

    Checked in S3's order: the form of the parameters, the key, the times, the headers, the signature.
    """
    query = parse_query(request)
    _check_credentials(query, credentials)
    _check_times(query, now)
    _check_unsigned_headers(query, request.headers)
    _check_signature(query, request, credentials)
    return query


def parse_query(request: ReceivedRequest) -> SignedQuery:
    """Return the signing parameters of the request; StorageError when they are absent or malformed."""
    pairs = _decode_query(request.raw_query)
    values = _unique_parameters(pairs)
    if not values:
        raise StorageError("AccessDenied", "Access Denied")
    if any(name.lower() == "authorization" for name, _ in request.headers):
        raise StorageError("InvalidArgument", "Only one auth mechanism allowed")
    missing = [name for name in REQUIRED if not values.get(name)]
    if missing:
        raise _malformed(f"These query parameters are required and missing: {', '.join(missing)}")
    if values["X-Amz-Algorithm"] != ALGORITHM:
        raise _malformed(f"X-Amz-Algorithm only supports {ALGORITHM}")
    access_key_id, scope = _parse_credential(values["X-Amz-Credential"], values["X-Amz-Date"])
    return SignedQuery(
        access_key_id=access_key_id,
        scope=scope,
        signed_at=_parse_date(values["X-Amz-Date"]),
        expires_seconds=_parse_expires(values["X-Amz-Expires"]),
        signed_headers=tuple(values["X-Amz-SignedHeaders"].lower().split(";")),
        signature=values["X-Amz-Signature"],
        session_token=values.get("X-Amz-Security-Token"),
        unsigned_pairs=[pair for pair in pairs if pair[0] != "X-Amz-Signature"],
    )


def _check_credentials(query: SignedQuery, credentials: Credentials) -> None:
    if query.access_key_id != credentials.access_key_id:
        raise StorageError(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
            {"AWSAccessKeyId": query.access_key_id},
        )
    region = query.scope.split("/")[1]
    if region != credentials.region:
        raise _malformed(f"The region in X-Amz-Credential is wrong; expecting {credentials.region!r}")
    if query.session_token != credentials.session_token:
        raise StorageError("InvalidToken", "The provided token is malformed or otherwise invalid.")


def _check_times(query: SignedQuery, now: float) -> None:
    if query.signed_at > now + MAX_SKEW_SECONDS:
        raise StorageError(
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            {
                "RequestTime": _format_date(query.signed_at),
                "ServerTime": _iso(now),
                "MaxAllowedSkewMilliseconds": str(MAX_SKEW_SECONDS * 1000),
            },
        )
    if now > query.expires_at:
        raise StorageError(
            "AccessDenied",
            "Request has expired",
            {
                "X-Amz-Expires": str(query.expires_seconds),
                "Expires": _iso(query.expires_at),
                "ServerTime": _iso(now),
            },
        )


def _check_unsigned_headers(query: SignedQuery, headers: Pairs) -> None:
    names = {name.lower() for name, _ in headers if name.lower().startswith("x-amz-")}
    unsigned = sorted(names.difference(query.signed_headers))
    if unsigned:
        raise StorageError(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            {"HeadersNotSigned": ", ".join(unsigned)},
        )


def _check_signature(query: SignedQuery, request: ReceivedRequest, credentials: Credentials) -> None:
    stamp = _format_date(query.signed_at)
    canonical = _canonical_request(
        request.method,
        unquote_to_bytes(request.raw_path),
        query.unsigned_pairs,
        query.signed_headers,
        _header_values(request.headers),
    )
    expected = _sign(credentials, stamp, query.scope, canonical)
    if not hmac.compare_digest(expected.encode(), query.signature.encode()):
        raise StorageError(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
            {
                "AWSAccessKeyId": query.access_key_id,
                "StringToSign": _string_to_sign(stamp, query.scope, canonical),
                "SignatureProvided": query.signature,
                "CanonicalRequest": canonical,
            },
        )


def _canonical_request(method: str, path: bytes, pairs: Pairs, names: Iterable[str], headers: Mapping[str, str]) -> str:
    """Build the text that is signed. A signed header that was not sent counts as empty."""
    names = list(names)
    query = sorted((_encode(name), _encode(value)) for name, value in pairs)
    lines = [
        method,
        quote(path, safe="/~"),
        "&".join(f"{name}={value}" for name, value in query),
        *(f"{name}:{headers.get(name, '')}" for name in names),
        "",
        ";".join(names),
        "UNSIGNED-PAYLOAD",
    ]
    return "\n".join(lines)


def _string_to_sign(stamp: str, scope: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"


def _sign(credentials: Credentials, stamp: str, scope: str, canonical: str) -> str:
    key = _signing_key(credentials.secret_key, scope)
    return _hmac(key, _string_to_sign(stamp, scope, canonical)).hex()


@lru_cache(maxsize=8)  # one key serves a whole day, and deriving it costs as much as a signature
def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _scope(stamp: str, region: str) -> str:
    return f"{stamp[:8]}/{region}/{SERVICE}/aws4_request"


def _header_values(headers: Pairs) -> dict[str, str]:
    """Return canonical header values: trimmed, inner blanks collapsed, repeats joined by commas."""
    values: dict[str, str] = {}
    for name, value in headers:
        text = " ".join(value.split())
        known = values.get(name.lower())
        values[name.lower()] = text if known is None else f"{known},{text}"
    return values


def _decode_query(raw_query: str) -> list[tuple[str, str]]:
    parts = (part.partition("=") for part in raw_query.split("&") if part)
    return [(_decode(name), _decode(value)) for name, _, value in parts]


def _unique_parameters(pairs: Pairs) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pairs:
        if name.startswith("X-Amz-") and values.setdefault(name, value) != value:
            raise _malformed(f"{name} is given more than once")
    return values


def _parse_credential(text: str, stamp: str) -> tuple[str, str]:
    parts = text.split("/")
    if len(parts) != len(("key", "date", "region", "service", "terminator")):
        raise _malformed("X-Amz-Credential must have the form KEY/YYYYMMDD/REGION/SERVICE/aws4_request")
    access_key_id, date, _region, service, terminator = parts
    if date != stamp[:8]:
        raise _malformed("The date in X-Amz-Credential is not the date in X-Amz-Date")
    if (service, terminator) != (SERVICE, "aws4_request"):
        raise _malformed(f"X-Amz-Credential must end in {SERVICE}/aws4_request")
    return access_key_id, "/".join(parts[1:])


def _parse_date(text: str) -> float:
    if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", text):
        raise _malformed("X-Amz-Date must be in the ISO 8601 basic format YYYYMMDDTHHMMSSZ")
    try:
        return float(calendar.timegm(time.strptime(text, _DATE_FORMAT)))
    except ValueError:
        raise _malformed("X-Amz-Date is not a date") from None


def _parse_expires(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise _malformed("X-Amz-Expires should be a number that is not negative")
    if int(text) > MAX_EXPIRES_SECONDS:
        raise _malformed(f"X-Amz-Expires must be at most a week ({MAX_EXPIRES_SECONDS} seconds)")
    return int(text)


def _malformed(message: str) -> StorageError:
    return StorageError("AuthorizationQueryParametersError", message)


def _encode(text: str) -> str:
    return quote(text, safe="~", errors="surrogateescape")


def _decode(text: str) -> str:
    return unquote_to_bytes(text).decode(errors="surrogateescape")


def _format_date(at: float) -> str:
    return time.strftime(_DATE_FORMAT, time.gmtime(at))


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
