"""The log: JSON where no person reads along, and no secret in it, whatever way it came in."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pmwatch import log
from pmwatch.metrics import Metrics
from pmwatch.reporting import Reporter
from support.folders import make_folder

KEY = "pm-canary-5f2a9c"
URL = (
    "https://bucket.s3.eu-central-1.amazonaws.com/a/orders.csv?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIACANARY%2F20260101&X-Amz-Security-Token=TOKENCANARY&X-Amz-Signature=51GNATURECANARY"
)
SECRETS = (KEY, "AKIACANARY", "TOKENCANARY", "51GNATURECANARY")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "_known_secrets", set())
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def output() -> io.StringIO:
    stream = io.StringIO()
    log.configure(stream=stream)
    return stream


def entry(output: io.StringIO) -> dict[str, Any]:
    """Return the one line that was logged."""
    (line,) = output.getvalue().splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


# ---- form ----------------------------------------------------------------------------------------------------


def test_a_line_is_json_where_no_terminal_is(output: io.StringIO) -> None:
    structlog.get_logger().info("uploaded", folder="orders", size=5, ok=True, at=1.5, none=None)
    said = entry(output)
    assert said.pop("timestamp").endswith("Z")
    assert said == {
        "event": "uploaded",
        "level": "info",
        "folder": "orders",
        "size": 5,
        "ok": True,
        "at": 1.5,
        "none": None,
    }


def test_a_line_is_text_on_a_terminal() -> None:
    stream = Terminal()
    log.configure(stream=stream)
    structlog.get_logger().info("uploaded", folder="orders")
    assert not stream.getvalue().startswith("{")
    assert "uploaded" in stream.getvalue()


@pytest.mark.parametrize(("style", "stream", "is_json"), [("json", Terminal(), True), ("text", io.StringIO(), False)])
def test_the_form_can_be_chosen(style: str, stream: io.StringIO, is_json: bool) -> None:  # noqa: FBT001
    log.configure(style=style, stream=stream)
    structlog.get_logger().info("uploaded")
    assert stream.getvalue().startswith("{") is is_json


def test_text_without_a_terminal_has_no_colours() -> None:
    stream = io.StringIO()
    log.configure(style="text", stream=stream)
    structlog.get_logger().warning("uploaded", folder="orders")
    assert "\x1b" not in stream.getvalue()


def test_less_important_lines_than_asked_for_are_left_out() -> None:
    stream = io.StringIO()
    log.configure(level="warning", stream=stream)
    structlog.get_logger().info("no")
    logging.getLogger("some.library").info("no")
    structlog.get_logger().warning("yes")
    assert entry(stream)["event"] == "yes"


@given(st.text())
def test_a_line_is_one_line_of_ascii_whatever_it_says(text: str) -> None:
    stream = io.StringIO()
    log.configure(style="json", stream=stream)
    structlog.get_logger().info(text, file=text)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().isascii()


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_line_that_cannot_be_written_is_dropped(style: str, tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        log.configure(style=style, stream=full)
        structlog.get_logger().error("no room", exc_info=ValueError("x"))
        logging.getLogger("some.library").warning("no room")
    structlog.get_logger().info("closed")
    with (tmp_path / "log").open("w") as stream:
        log.configure(style=style, stream=stream)
        structlog.get_logger().info("room \ud800 again")
    assert "room" in (tmp_path / "log").read_text()


# ---- secrets ---------------------------------------------------------------------------------------------------


def assert_clean(text: str) -> None:
    assert [secret for secret in SECRETS if secret in text] == []


def test_an_api_key_is_shown_until_it_is_known_and_never_after(output: io.StringIO) -> None:
    structlog.get_logger().info(f"key {KEY}")
    assert KEY in output.getvalue()
    output.truncate(0)
    output.seek(0)
    log.register_secret(KEY)
    structlog.get_logger().info(f"key {KEY}!", header=f"x-api-key: {KEY}")
    assert entry(output)["event"] == "key [redacted]!"
    assert_clean(output.getvalue())


def test_what_is_too_short_to_be_a_key_does_not_blacken_every_line(output: io.StringIO) -> None:
    log.register_secret("")
    log.register_secret("a")
    structlog.get_logger().info("a banana")
    assert entry(output)["event"] == "a banana"


def test_a_presigned_url_is_shown_without_its_query(output: io.StringIO) -> None:
    structlog.get_logger().info(f"PUT {URL} failed")
    assert entry(output)["event"] == ("PUT https://bucket.s3.eu-central-1.amazonaws.com/a/orders.csv?[redacted] failed")


@pytest.mark.parametrize(
    "text", [URL.partition("?")[2], f"/a/orders.csv?{URL.partition('?')[2]}", URL.upper(), repr(URL)]
)
def test_signatures_are_taken_out_of_any_part_of_a_url(text: str) -> None:
    assert_clean(log.redact(text))


@pytest.mark.parametrize("field", ["api_key", "x-api-key", "X-API-Key", "presigned_url", "Authorization", "url"])
def test_a_field_that_is_secret_by_its_name_is_never_shown(field: str, output: io.StringIO) -> None:
    structlog.get_logger().info("request", headers={field: "anything"})
    assert entry(output)["headers"] == {field: "[redacted]"}


@pytest.mark.parametrize(
    "value",
    [
        {"a": [{"b": (URL, KEY)}]},
        {KEY: 1},
        [{KEY}],
        frozenset({URL}),
        KEY.encode(),
        b"\xff" + URL.encode(),
        ValueError(f"{KEY} {URL}"),
        {"error": RuntimeError(KEY)},
        type("Request", (), {"__repr__": lambda _: f"<Request {URL} {KEY}>"})(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_secrets_are_found_inside_of_any_value(value: object, output: io.StringIO) -> None:
    log.register_secret(KEY)
    structlog.get_logger().info("nested", value=value)
    assert "[redacted]" in output.getvalue()
    assert_clean(output.getvalue())


def test_secrets_are_taken_out_of_bound_and_of_context_values(output: io.StringIO) -> None:
    log.register_secret(KEY)
    structlog.contextvars.bind_contextvars(request=URL)
    structlog.get_logger().bind(key=KEY).info("bound")
    assert entry(output)["key"] == "[redacted]"
    assert_clean(output.getvalue())


def fail() -> None:
    raise RuntimeError(f"outer {KEY}") from ValueError(f"inner {URL}")


@pytest.mark.parametrize("style", ["json", "text"])
def test_secrets_are_taken_out_of_a_traceback(style: str) -> None:
    stream = io.StringIO()
    log.configure(style=style, stream=stream)
    log.register_secret(KEY)
    try:
        fail()
    except RuntimeError:
        structlog.get_logger().exception("it broke")
    assert "Traceback" in stream.getvalue()
    assert "inner https://" in stream.getvalue()
    assert_clean(stream.getvalue())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists))
def test_a_value_without_secrets_stays_as_it_is(value: object) -> None:
    assert repr(log.redact_value(value)) == repr(value)


# ---- libraries ---------------------------------------------------------------------------------------------------


def test_libraries_log_through_the_same_door(output: io.StringIO) -> None:
    log.register_secret(KEY)
    logging.getLogger("some.library").warning("got %s from %s", KEY, URL)
    said = entry(output)
    assert (said["level"], said["library"]) == ("warning", "some.library")
    assert_clean(output.getvalue())


def test_what_libraries_say_of_an_exception_is_kept_and_redacted(output: io.StringIO) -> None:
    log.register_secret(KEY)
    try:
        fail()
    except RuntimeError:
        logging.getLogger("some.library").exception("oops")
    assert "RuntimeError: outer [redacted]" in entry(output)["exception"]
    assert_clean(output.getvalue())


@pytest.mark.parametrize("library", ["httpx", "httpcore", "watchdog", "uvicorn.access"])
def test_chatter_of_libraries_that_would_show_urls_is_off(library: str) -> None:
    stream = io.StringIO()
    log.configure(level="debug", stream=stream)
    logging.getLogger(library).info("HTTP Request: PUT %s", URL)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("level", "shown"), [(25, "info"), (35, "warning"), (99, "critical")])
def test_a_level_that_a_library_made_up_is_shown_as_the_one_below(level: int, shown: str, output: io.StringIO) -> None:
    logging.getLogger("some.library").log(level, "odd")
    assert entry(output)["level"] == shown


def test_a_library_whose_arguments_do_not_fit_does_not_end_its_thread() -> None:
    output = io.StringIO()
    log.configure(stream=output)  # here, so that pytest's own handler, which would raise, is off
    logging.getLogger("some.library").warning("%d files", "many")
    assert entry(output)["event"] == "%d files"


def test_unmapped_directories_are_told_of_once_and_not_without_end(tmp_path: Path) -> None:
    stream = io.StringIO()
    log.configure(level="info", style="json", stream=stream)
    reporter = Reporter(Metrics(version="1"), settled=lambda _: None, wake=lambda: None, on_report=lambda _: None)
    folder = make_folder(tmp_path)
    for number in [7, 7, *range(3000)]:
        reporter.unmapped(folder, b"%d/Orders" % number, "unmapped: there is no tenant")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len({line.get("directory") for line in lines}) == len(lines) == 1001
    assert lines[0]["directory"] == f"{tmp_path}/7/Orders"
    assert "pmwatch doctor" in lines[-1]["hint"]
