"""The web layer by itself: what it refuses, escapes and promises."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from pmwatch.web import server
from pmwatch.web.app import Questions, create_app
from pmwatch.web.server import WebServer


def status() -> dict[str, object]:
    """What the page is asked to show, with ages that hold whenever the test runs."""
    now = time.time()
    return {
        "version": "1",
        "summary": "<b>fine</b>",
        "folders": [
            {
                "name": "<script>alert(1)</script>",
                "path": "/srv/<i>",
                "target": "acme/x",
                "configured": True,
                "up": False,
                "problem": "gone",
                "hint": "mount it",
                "settling": 1,
                "ignored": {"unmapped": 2, "unsupported type": 5},
                "never_settling": [{"path": "<u>slow.csv", "seconds": 7200.0, "waits_for": "its marker"}],
                "states": dict.fromkeys(("queued", "uploading", "uploaded", "done", "held", "failed", "vanished"), 2),
            }
        ],
        "gates": [{"name": "acme", "open": False, "message": "401", "hint": "new key", "closed_seconds": 61.0}],
        "slowed": {"globex": 3},
        "destinations": [{"target": "acme/y", "message": "unknown", "hint": "nearest: x"}],
        "deliveries": [
            {"id": 3, "path": "<img src=x>", "folder": "f", "size": 5, "state": "failed", "outcome": "", "reason": "r",
             "detail": "d", "attempts": 1, "row_count": None, "settled_at": now - 3660}
        ],
        "needs_a_person": [
            {"id": 8, "path": "<em>of last week.csv", "folder": "f", "size": 5, "state": "held", "outcome": "",
             "reason": "torn", "detail": "d", "attempts": 1, "row_count": None, "settled_at": now - 700_000}
        ],
        "blockers": [
            {"id": 7, "path": "<b>first.csv", "folder": "f", "state": "queued", "reason": "rejected", "detail": "400",
             "waiting": 12, "since": now - 7260, "hint": "pmwatch discard 7"}
        ],
    }  # fmt: skip


def unsettled(folder: str) -> dict[str, object]:
    """What one folder has in hand."""
    if folder != "orders":
        raise ValueError(f"there is no folder {folder!r}")
    return {"paths": ["a%FF.csv"], "more": False}


def client(*, wrong: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> httpx.AsyncClient:
    questions = Questions(
        metrics=lambda: b"pmwatch_build_info 1\n",
        health=lambda: wrong,
        ready=lambda: wrong,
        status=status,
        why=lambda path: {"path": path.decode("utf-8", "backslashreplace")},
        unsettled=unsettled,
        history=lambda asked: {"asked": dict(asked)},
    )
    transport = httpx.ASGITransport(app=create_app(questions, allowed_hosts=allowed))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:9108")


async def get(path: str, *, host: str = "localhost:9108", **of_client: tuple[str, ...]) -> httpx.Response:
    async with client(**of_client) as browser:
        return await browser.get(path, headers={"host": host})


def run(path: str, *, host: str = "localhost:9108", **of_client: tuple[str, ...]) -> httpx.Response:
    return asyncio.run(get(path, host=host, **of_client))


def test_the_page_escapes_everything_that_comes_from_outside() -> None:
    page = run("/")
    assert page.status_code == 200
    for text in ("<script>", "<img", "<b>fine", "<i>", "<u>", "<b>first", "<em>of"):
        assert text not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "new key" in page.text
    assert "1m 1s" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_page_tells_who_is_slowed_down() -> None:
    page = run("/").text
    assert "<tr><td>globex<td>It was asked to slow down (429 or 503).<td>3 uploads at a time for now" in page


def test_the_page_tells_what_others_wait_behind_what_never_settles_and_how_old_files_are() -> None:
    page = run("/").text
    assert (
        'first.csv<td>f<td class="n">12\n<td>queued rejected <span class="dim">400</span><br>pmwatch discard 7' in page
    )
    assert 'slow.csv<td>&lt;script&gt;alert(1)&lt;/script&gt;<td>its marker<td class="n">2h' in page
    assert '<td class="n">1h 1m' in page
    assert page.index("Needs a person") < page.index("of last week.csv") < page.index("Latest files")


@pytest.mark.parametrize("host", ["localhost:9108", "127.0.0.1", "[::1]:9108"])
def test_the_commands_of_this_machine_are_answered_whatever_hosts_are_allowed(host: str) -> None:
    assert run("/api/v1/status", host=host, allowed=("pm.example.com",)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/api/v1/why?path=/a"])
def test_strange_hosts_get_421_except_for_probes_and_scrapers(path: str) -> None:
    assert run(path, host="evil.example").status_code == 421
    assert run(path, host="[::1]:9108").status_code == 200
    for open_path in ("/metrics", "/healthz", "/readyz"):
        assert run(open_path, host="10.1.2.3:9108").status_code == 200


def test_probes_say_what_is_wrong() -> None:
    assert run("/healthz", wrong=("thread x makes no turns",)).status_code == 503
    assert "thread x" in run("/readyz", wrong=("thread x makes no turns",)).text


def test_why_wants_an_absolute_path_and_keeps_any_bytes() -> None:
    assert run("/api/v1/why?path=relative").status_code == 400
    assert run("/api/v1/why").status_code == 400
    assert run("/api/v1/why?path=/srv/a%00b").status_code == 400
    for asked, meant in (("a%20b", "a b"), ("a+b", "a b"), ("a%2Bb", "a+b"), ("bad%FF", "bad\\xff"), ("%C3%BC", "ü")):
        assert run(f"/api/v1/why?x=/y&path=/srv/{asked}.csv").json() == {"path": f"/srv/{meant}.csv"}


def test_nothing_can_be_changed_over_http() -> None:
    async def post() -> int:
        async with client() as browser:
            return (await browser.post("/api/v1/status")).status_code

    assert asyncio.run(post()) == 405


def test_the_page_tells_how_many_files_are_left_alone_and_how_many_lie_where_they_cannot_go() -> None:
    assert '<td class="n">7<br><span class="bad">2 unmapped</span>' in run("/").text


def test_what_has_not_settled_is_asked_by_folder() -> None:
    assert run("/api/v1/unsettled?folder=orders").json() == {"paths": ["a%FF.csv"], "more": False}
    assert run("/api/v1/unsettled?folder=odrers").status_code == 404
    assert run("/api/v1/unsettled").status_code == 404


# ---- the server: what strangers may hold --------------------------------------------------------------------------

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Slow:
    """An app whose answer to /slow waits until it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's own
        self.loop = asyncio.get_running_loop()
        if scope["path"] == "/slow":
            self.asked.set()
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def served(slow: Slow) -> Iterator[tuple[str, int]]:
    web = WebServer(host="127.0.0.1", port=0)
    web.start(slow)
    host, _, port = web.address.rpartition(":")
    yield host, int(port)
    web.stop()


def connected(address: tuple[str, int], sent: bytes) -> socket.socket:
    connection = socket.create_connection(address, timeout=30)
    connection.sendall(sent)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes; fails where it never does."""
    received = b""
    try:
        while block := connection.recv(4096):
            received += block
    except ConnectionResetError:
        pass
    connection.close()
    return received


def test_a_request_that_never_becomes_whole_is_not_waited_for(
    served: tuple[str, int], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    answered_late = connected(served, HALF.replace(b"/", b"/slow", 1) + b"Connection: close\r\n\r\n")
    silent = connected(served, b"")
    assert rest_of(connected(served, HALF)) == b""
    assert rest_of(silent) == b""
    assert rest_of(connected(served, HALF + b"\r\n" + HALF)).endswith(b"ok")
    assert rest_of(connected(served, HALF + b"Content-Length: 9\r\n\r\nhalf")).endswith(b"ok")
    assert slow.loop is not None
    slow.loop.call_soon_threadsafe(slow.go.set)
    assert rest_of(answered_late).endswith(b"ok"), "an answer takes its time"


def test_of_too_many_connections_the_oldest_that_asks_nothing_goes(
    served: tuple[str, int], slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    asking = connected(served, HALF.replace(b"/", b"/slow", 1) + b"Connection: close\r\n\r\n")
    assert slow.asked.wait(30)
    oldest, second = connected(served, HALF), connected(served, HALF)
    assert rest_of(connected(served, HALF + b"Connection: close\r\n\r\n")).endswith(b"ok")
    assert rest_of(oldest) == b""
    second.sendall(b"Connection: close\r\n\r\n")
    assert rest_of(second).endswith(b"ok")
    assert slow.loop is not None
    slow.loop.call_soon_threadsafe(slow.go.set)
    assert rest_of(asking).endswith(b"ok")
