"""The web layer by itself: what it refuses, escapes and promises."""

import time

import httpx
import pytest

from pmwatch.web.app import Questions, create_app


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
                "up": False,
                "problem": "gone",
                "hint": "mount it",
                "settling": 1,
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


def client(*, wrong: tuple[str, ...] = ()) -> httpx.AsyncClient:
    questions = Questions(
        metrics=lambda: b"pmwatch_build_info 1\n",
        health=lambda: wrong,
        ready=lambda: wrong,
        status=status,
        why=lambda path: {"path": path.decode("utf-8", "backslashreplace")},
        history=lambda asked: {"asked": dict(asked)},
    )
    transport = httpx.ASGITransport(app=create_app(questions, allowed_hosts=("localhost", "[::1]")))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:9108")


async def get(path: str, *, host: str = "localhost:9108", wrong: tuple[str, ...] = ()) -> httpx.Response:
    async with client(wrong=wrong) as browser:
        return await browser.get(path, headers={"host": host})


def run(path: str, *, host: str = "localhost:9108", wrong: tuple[str, ...] = ()) -> httpx.Response:
    import asyncio

    return asyncio.run(get(path, host=host, wrong=wrong))


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
    import asyncio

    async def post() -> int:
        async with client() as browser:
            return (await browser.post("/api/v1/status")).status_code

    assert asyncio.run(post()) == 405
