"""Logging: structlog to standard error, JSON when it is not a terminal, secrets redacted at one choke point."""

import io
import logging
import re
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED: Final = "[redacted]"
_SECRET_FIELDS: Final = frozenset({"api_key", "x-api-key", "presigned_url", "authorization", "url"})
_URL_QUERY: Final = re.compile(r"(https?://[^\s\"'<>?]*)\?[^\s\"'<>]*")
_SIGNATURE: Final = re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+")
_known_secrets: Final[set[str]] = set()
_SHORTEST_SECRET: Final = 6


def register_secret(secret: str) -> None:
    """Make every later log line show `[redacted]` in place of `secret` (an API key)."""
    if len(secret) >= _SHORTEST_SECRET:
        _known_secrets.add(secret)


def redact(text: str) -> str:
    """Return `text` without known API keys, URL queries and S3 signatures."""
    for secret in tuple(_known_secrets):
        text = text.replace(secret, REDACTED)
    if "?" in text:
        text = _URL_QUERY.sub(rf"\1?{REDACTED}", text)
    return _SIGNATURE.sub(rf"\1{REDACTED}", text) if "=" in text else text


def redact_value(value: Any) -> Any:
    """Return a JSON-like value with every string in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, dict):
        return {
            redact_value(key): REDACTED if str(key).lower() in _SECRET_FIELDS and entry else redact_value(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(repr(value))  # as the renderer would show it: an exception's text may hold anything


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    redacted: EventDict = redact_value(dict(event))
    return redacted


def configure(*, level: str = "info", style: str = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for the process. `style` is `auto`, `json` or `text`; auto means text on a terminal."""
    output = _unbuffered(stream or sys.stderr)
    as_json = style == "json" or (style == "auto" and not output.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=True)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=output.isatty(), sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(output),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(level)


def _unbuffered(stream: TextIO) -> TextIO:
    """Return a stream to the same file that keeps nothing back: what a full disk refused would be tried at exit."""
    try:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


class _Lines:
    """Writes lines. One that cannot be written is dropped: a full disk under the log is no reason to send no files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        with self._lock, suppress(OSError, ValueError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


def _route_standard_logging(level: str) -> None:
    """Send what libraries log through the same processors; httpx would log whole URLs at INFO."""
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(level.upper())
    quiet: Iterable[str] = ("httpx", "httpcore", "watchdog", "uvicorn.error", "uvicorn.access", "asyncio")
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)  # structlog knows only these
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit are no reason to end a library's thread
            message = str(record.msg)
        logger.log(level, message, library=record.name, exc_info=record.exc_info)
