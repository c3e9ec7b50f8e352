"""The errors of the object store: S3's codes and HTTP statuses, as the S3 API reference lists them."""

from collections.abc import Mapping
from xml.sax.saxutils import escape

STATUS_OF = {
    "AccessDenied": 403,
    "AuthorizationQueryParametersError": 400,
    "BadDigest": 400,
    "EntityTooLarge": 400,
    "ExpiredToken": 400,
    "IncompleteBody": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidDigest": 400,
    "InvalidToken": 400,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
}


class StorageError(Exception):
    """A refusal of the object store: S3's `code`, a message, and further elements of the XML answer."""

    def __init__(self, code: str, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})

    @property
    def status(self) -> int:
        """The HTTP status that S3 answers with this code."""
        return STATUS_OF[self.code]


def error_xml(code: str, message: str, request_id: str, details: Mapping[str, str] | None = None) -> bytes:
    """Return the XML body of an S3 error answer, UTF-8 encoded."""
    elements = {"Code": code, "Message": message, **(details or {}), "RequestId": request_id}
    inner = "".join(f"<{name}>{escape(_printable(text))}</{name}>" for name, text in elements.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode(errors="replace")


def _printable(text: str) -> str:
    """Replace what XML 1.0 cannot hold: a request decides some of these texts."""
    return "".join(char if char >= " " or char in "\t\n" else "\ufffd" for char in text)
