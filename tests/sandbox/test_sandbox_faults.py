"""Fault rules: how they are read, which requests they meet, and what the client then sees."""

import time
from typing import Any

import httpx
import pytest

from pmwatch.sandbox import Fault
from sandbox.sandbox_client import SandboxClient, s3_error

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("PUT 503", Fault()),
        ("PUT 503 x3", Fault(times=3)),
        (
            "get 429 x* retry-after=5 path=presignedurl",
            Fault("GET", 429, times=None, retry_after="5", path_contains="presignedurl"),
        ),
        ("PUT 500 after close", Fault(status=500, when="after", close=True)),
        ("PUT 0 mid", Fault(status=0, when="mid")),
        ("* 400 code=RequestTimeout delay=0.5", Fault("*", 400, code="RequestTimeout", delay=0.5)),
    ],
)
def test_rules_as_text(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PUT",
        "PUT x3",
        "PUT 200",
        "PUT 503 x0",
        "PUT 503 sometimes",
        "PUT 503 delay=-1",
        "PUT 503 delay=x",
        "PUT 503 k=v",
    ],
)
def test_rules_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"fault|must|is no number"):
        Fault.parse(text)


def test_a_rule_is_used_up(client: SandboxClient) -> None:
    client.server.faults.add("PUT 503 x2")
    url = client.presign()
    assert [client.put(url).status_code for _ in range(3)] == [503, 503, 200]
    assert client.server.faults.pending() == []


def test_rules_apply_in_order_to_the_requests_they_match(client: SandboxClient) -> None:
    faults = client.server.faults
    faults.add(Fault(status=500, path_contains="nothing-like-it"))
    faults.add(Fault(method="GET", status=429, retry_after=7, path_contains="presignedurl"))
    faults.add(Fault(status=403))
    refused = client.ask_presign()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert refused.json()["message"]
    assert s3_error(client.put(client.presign())) == (403, "AccessDenied")
    assert [fault["status"] for fault in faults.pending()] == [500]
    faults.clear()
    assert faults.pending() == []


def test_for_ever(client: SandboxClient) -> None:
    client.server.faults.add(Fault(times=None))
    url = client.presign()
    assert {client.put(url).status_code for _ in range(5)} == {503}


def test_before_stores_nothing(client: SandboxClient) -> None:
    client.server.faults.add(Fault(status=503, retry_after=3))
    response = client.put(client.presign(), bytes(8 * MIB))
    assert s3_error(response) == (503, "SlowDown")
    assert response.headers["retry-after"] == "3"
    assert client.server.objects() == []


def test_another_code_and_another_body(client: SandboxClient) -> None:
    client.server.faults.add(Fault(status=400, code="RequestTimeout"))
    client.server.faults.add(Fault(status=502, body="<h1>Bad gateway</h1>"))
    url = client.presign()
    assert s3_error(client.put(url)) == (400, "RequestTimeout")
    odd = client.put(url)
    assert (odd.status_code, odd.text, odd.headers["content-type"]) == (502, "<h1>Bad gateway</h1>", "text/html")


@pytest.mark.parametrize("size", [0, 10, 2 * MIB])
def test_after_stores_and_answers_an_error(client: SandboxClient, size: int) -> None:
    client.server.faults.add(Fault(status=500, when="after"))
    assert s3_error(client.put(client.presign(), bytes(size))) == (500, "InternalError")
    assert [record.size for record in client.server.objects()] == [size]


@pytest.mark.parametrize("size", [0, 10, 2 * MIB])
def test_after_and_close_loses_the_answer(client: SandboxClient, size: int) -> None:
    client.server.faults.add(Fault(when="after", close=True))
    url = client.presign()
    with pytest.raises(httpx.TransportError):
        client.put(url, bytes(size))
    assert [record.size for record in client.server.objects()] == [size]
    assert s3_error(client.put(url, bytes(size), if_none_match="*")) == (412, "PreconditionFailed")


@pytest.mark.parametrize("fault", [Fault(close=True), Fault(when="mid"), Fault(status=0, when="mid")])
@pytest.mark.parametrize("size", [0, 1, 10, 4 * MIB])
def test_a_cut_connection_stores_nothing(client: SandboxClient, fault: Fault, size: int) -> None:
    client.server.faults.add(fault)
    url = client.presign()
    with pytest.raises(httpx.TransportError):
        client.put(url, bytes(size))
    assert client.server.objects() == []
    assert client.server.requests()[-1].status == 0
    assert client.put(url, bytes(size)).status_code == 200


def test_a_cut_presign(client: SandboxClient) -> None:
    client.server.faults.add(Fault(method="GET", when="mid"))
    with pytest.raises(httpx.TransportError):
        client.ask_presign()


def test_a_cut_call_with_a_body(client: SandboxClient) -> None:
    client.server.faults.add(Fault(method="POST", when="mid"))
    with pytest.raises(httpx.TransportError):
        client.call("POST", "/datasets", json={"displayName": "x" * 1000})
    assert len(client.tenant["datasets"]) == 1


def test_only_slow(client: SandboxClient) -> None:
    client.server.faults.add(Fault(status=0, delay=0.05))
    url = client.presign()
    started = time.monotonic()
    assert client.put(url).status_code == 200
    assert time.monotonic() - started >= 0.05


def test_rules_over_http(client: SandboxClient, http: httpx.Client) -> None:
    url = f"{client.server.base_url}/sandbox/faults"
    rule = {"method": "PUT", "status": 503, "times": 1, "retry_after": 2}
    assert http.post(url, json=rule).status_code == 201
    assert http.post(url, json="GET 500 x2").status_code == 201
    assert [fault["times"] for fault in http.get(url).json()["faults"]] == [1, 2]
    assert client.ask_presign().status_code == 500
    assert http.delete(url).json() == {"faults": []}
    assert client.ask_presign().status_code == 200


@pytest.mark.parametrize(
    "rule",
    [
        [],
        1,
        {"colour": "red"},
        {"status": "x"},
        {"status": 200},
        {"when": "never"},
        "PUT",
        {"times": "x"},
        {"method": 1},
        {"path_contains": None},
        {"body": 3},
        {"delay": "1"},
    ],
)
def test_bad_rules_over_http(client: SandboxClient, http: httpx.Client, rule: Any) -> None:
    response = http.post(f"{client.server.base_url}/sandbox/faults", json=rule)
    assert response.status_code == 400
    assert response.json()["message"]


@pytest.mark.parametrize("path", ["/", "/sandbox/health", "/sandbox/objects", "/sandbox/faults"])
def test_control_pages_never_fail(client: SandboxClient, http: httpx.Client, path: str) -> None:
    client.server.faults.add(Fault(method="*", times=None))
    assert http.get(f"{client.server.base_url}{path}").status_code == 200
    assert client.server.requests() == []
