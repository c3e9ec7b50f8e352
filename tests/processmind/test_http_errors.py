"""Everything that can go wrong on the wire becomes one clear error, and no error holds a secret."""

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from pmwatch import Client
from pmwatch.errors import (
    AlreadyThere,
    AnswerLost,
    ChecksumMismatch,
    Decision,
    DestinationUnknown,
    KeyRejected,
    PmwatchError,
    Rejected,
    RemoteError,
    ServerFault,
    SourceChanged,
    Throttled,
    Unreachable,
    UrlExpired,
)
from pmwatch.processmind import Http, Receipt, Storage, Timeouts
from pmwatch.processmind.http import MAX_ANSWER_BYTES
from support.remotes import Script, ScriptedServer, answer, everything_printed, refused_url, xml_error

MIB = 1024 * 1024
KEY = "canary-key-5f1d"
SIGNATURE = "canary5igna7ure"
QUERY = f"X-Amz-Date=29990101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={SIGNATURE}"


@pytest.fixture
def http() -> Iterator[Http]:
    made = Http(timeouts=Timeouts(connect=5, answer=5, stall=5))
    yield made
    made.close()


def ask(http: Http, url: str) -> Any:
    return Client(KEY, base_url=url, http=http, retries=False).datasets("tenant-1")


def put(http: Http, url: str, data: bytes = b"id\n1\n", **options: Any) -> Receipt:
    storage = Storage(http, allow_loopback=True, **options)
    chunks = [data[start : start + MIB] for start in range(0, len(data), MIB)]
    return storage.put(f"{url}/bucket/key.csv?{QUERY}", lambda: iter(chunks), size=len(data), filename="key.csv")


def clean(error: BaseException) -> None:
    printed = everything_printed(error)
    for secret in (KEY, SIGNATURE, "X-Amz-"):
        assert secret not in printed
    assert not isinstance(error, PmwatchError) or error.hint


# ---- the API ------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
SAYS = json.dumps({"message": "because of <this>\x1b[31m"}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "decision"),
    [
        (400, Rejected, Decision.FAIL),
        (401, KeyRejected, Decision.GATE),
        (403, KeyRejected, Decision.GATE),
        (404, DestinationUnknown, Decision.RETRY),
        (408, ServerFault, Decision.GATE),
        (409, Rejected, Decision.FAIL),
        (425, ServerFault, Decision.GATE),
        (429, Throttled, Decision.GATE),
        (500, ServerFault, Decision.GATE),
        (502, ServerFault, Decision.GATE),
        (503, Throttled, Decision.GATE),
        (301, ServerFault, Decision.GATE),
        (304, ServerFault, Decision.GATE),
        (307, ServerFault, Decision.GATE),
    ],
)
@pytest.mark.parametrize(
    "body", [SAYS, b"", b"<html><h1>Oops</h1>", b'{"message": 5}', b'["a"]', b'{"mess', b"\xff\xfe"]
)
def test_statuses_of_the_api(http: Http, status: int, kind: type[RemoteError], decision: Decision, body: bytes) -> None:
    headers = {"Location": "http://127.0.0.1:1/elsewhere", "x-amzn-requestid": "request-7"}
    with ScriptedServer(answer(status, b"" if status == 304 else body, headers)) as server:
        with pytest.raises(RemoteError) as caught:
            ask(http, server.url)
        assert len(server.requests) == 1
    error = caught.value
    assert type(error) is kind
    assert error.decision is decision
    assert error.status == status
    assert error.request_id == "request-7"
    assert str(status) in error.message
    assert ("because of <this> [31m" in error.message) == (body == SAYS and status != 304)
    assert "<h1>" not in error.message
    clean(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 12 "}, 12.0),
        ({"Retry-After": "9" * 400}, 3600.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "Thu, 01 Jan 1998 00:00:00 GMT"}, None),
        ({"Retry-After": "Sat, 01 Jan 2000 00:01:30 GMT", "Date": "Sat, 01 Jan 2000 00:00:00 GMT"}, 90.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(http: Http, status: int, header: Mapping[str, str], seconds: float | None) -> None:
    with ScriptedServer(answer(status, SAYS, header)) as server:
        with pytest.raises(Throttled) as of_api:
            ask(http, server.url)
        with pytest.raises(Throttled) as of_storage:
            put(http, server.url)
    assert of_api.value.retry_after == of_storage.value.retry_after == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"<html>a proxy's page</html>",
        b'[{"id": "1"',
        b"[[[[" * 200000,
        b"\x00\x01",
        b"NaN and more",
        b'"a string"',
        b"5",
        b"null",
        b"true",
        b'[{"name": "no id"}]',
        b'[{"id": {"deep": 1}}]',
        b'[["id"]]',
        b'[{"id": "1", "displayName": ["a"]}]',
        b'[{"id": "1", "datatables": 7}]',
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_a_good_status_with_a_bad_body(http: Http, body: bytes) -> None:
    with ScriptedServer(answer(200, body)) as server, pytest.raises(ServerFault) as caught:
        ask(http, server.url)
    assert caught.value.reason == "bad_answer"
    assert caught.value.status == 200
    clean(caught.value)


def test_a_request_s_id_is_told_harmlessly(http: Http) -> None:
    for status in (200, 404):
        answered = answer(status, b"{}", {"x-request-id": f"\x1b[2J\x9b{KEY if status == 404 else 'r'}" + "7" * 5000})
        with ScriptedServer(answered) as server, pytest.raises(RemoteError) as caught:
            ask(http, server.url)
        assert caught.value.sentence.startswith(caught.value.message)
        assert f"(request id {caught.value.request_id})" in caught.value.sentence
        assert caught.value.request_id.isprintable()
        assert len(caught.value.request_id) < 300
        clean(caught.value)


def test_an_answer_without_end_is_not_kept(http: Http) -> None:
    with ScriptedServer(answer(200, b" " * (17 * MIB))) as server, pytest.raises(ServerFault) as caught:
        ask(http, server.url)
    assert "longer" in caught.value.message
    assert MAX_ANSWER_BYTES == 16 * MIB


def test_a_broken_compression(http: Http) -> None:
    no_gzip = answer(200, b"no gzip", {"Content-Encoding": "gzip"})
    with ScriptedServer(no_gzip) as server, pytest.raises(ServerFault) as caught:
        ask(http, server.url)
    clean(caught.value)


# ---- the connection -----------------------------------------------------------------------------------------


def test_connection_refused(http: Http) -> None:
    for call in (ask, put):
        with pytest.raises(Unreachable) as caught:
            call(http, refused_url())
        assert "connection refused" in caught.value.message
        assert caught.value.hint
        clean(caught.value)


def test_a_name_that_does_not_resolve(http: Http) -> None:
    with pytest.raises(Unreachable) as caught:
        ask(http, "http://nonexistent.invalid")
    assert caught.value.message.startswith("nonexistent.invalid: ")
    assert "DNS" in caught.value.hint
    clean(caught.value)


def tls_server(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_a_certificate_that_nobody_vouches_for(http: Http) -> None:
    with ScriptedServer(answer(200, b"[]"), tls=tls_server(trustme.CA(), "127.0.0.1")) as server:
        for call in (ask, put):
            with pytest.raises(Unreachable) as caught:
                call(http, server.url)
            assert caught.value.reason == "tls"
            assert "certificate" in caught.value.message
            assert "ca_file" in caught.value.hint
            clean(caught.value)
        assert server.requests == []


def test_a_certificate_for_another_name(http: Http, tmp_path_factory: pytest.TempPathFactory) -> None:
    authority = trustme.CA()
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    trusting = Http(ca_file=str(ca_file))
    with ScriptedServer(answer(200, b"[]"), tls=tls_server(authority, "other.test")) as server:
        with pytest.raises(Unreachable) as caught:
            ask(trusting, server.url)
        assert caught.value.reason == "tls"
    with ScriptedServer(answer(200, b"[]"), tls=tls_server(authority, "127.0.0.1")) as server:
        assert ask(trusting, server.url) == []
    trusting.close()


def test_a_plain_server_behind_an_https_url(http: Http) -> None:
    with ScriptedServer(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server, pytest.raises(Unreachable) as caught:
        ask(http, server.url.replace("http:", "https:"))
    assert caught.value.reason == "tls"


BREAKS = {
    "garbage": Script(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
    "nothing": Script(),
    "reset": Script(reset=True),
    "before-the-body": Script(reset=True, read_body=0),
    "in-the-head": Script(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "in-the-body": Script(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]"),
    "in-a-chunk": Script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[]"),
    "two-lengths": Script(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n[]"),
    "endless-head": Script(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 300_000),
}


@pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS)
def test_a_connection_that_breaks(http: Http, script: Script) -> None:
    with ScriptedServer(script) as server:
        with pytest.raises(Unreachable) as of_api:  # reading again harms nothing
            ask(http, server.url)
        with pytest.raises(AnswerLost) as of_put:  # but a PUT may have arrived
            put(http, server.url, b"x" * (3 * MIB))
        with pytest.raises(AnswerLost):  # and so may a POST
            Client(KEY, base_url=server.url, http=http, retries=False).create_dataset("t", "d")
    assert of_put.value.decision is Decision.RETRY
    clean(of_api.value)
    clean(of_put.value)


def test_a_redirect_to_nonsense_is_no_address_to_send_to(http: Http) -> None:
    with ScriptedServer(Script(answer(307, headers={"Location": "http://[::1"}))) as server:
        with pytest.raises(ServerFault) as of_api:
            ask(http, server.url)
        with pytest.raises(ServerFault) as of_put:
            put(http, server.url)
    assert "answered 307" in of_api.value.message
    assert of_put.value.reason == "bad_url"


def test_a_server_that_says_nothing() -> None:
    http = Http(timeouts=Timeouts(connect=5, answer=0.05, stall=0.05))
    with ScriptedServer(Script(hold=True)) as server, pytest.raises(AnswerLost) as caught:
        put(http, server.url)
    assert "no progress" in caught.value.message
    http.close()


DROPS = {
    "a head": Script(b"HTTP/1.1 200 OK\r\nX-Slow: ", drip=b"x"),
    "heads": Script(drip=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": Script(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", drip=b" "),
    "chunks": Script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", drip=b"1\r\n \r\n"),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("script", DROPS.values(), ids=DROPS)
def test_an_answer_in_drops_without_end_is_given_up(script: Script, tmp_path: Path, *, tls: bool) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    http = Http(timeouts=Timeouts(connect=5, answer=0.1, stall=0.1), ca_file=str(tmp_path / "ca.pem"))
    with ScriptedServer(script, tls=tls_server(authority, "127.0.0.1") if tls else None) as server:
        with pytest.raises(Unreachable) as of_api:
            ask(http, server.url)
        with pytest.raises(AnswerLost) as of_put:
            put(http, server.url)
    assert "no progress" in of_api.value.message
    assert "no progress" in of_put.value.message
    http.close()


def test_the_next_request_goes_through_after_each_break(http: Http) -> None:
    for script in BREAKS.values():
        with ScriptedServer(script, answer(200, b"[]")) as server:
            with pytest.raises(Unreachable):
                ask(http, server.url)
            assert ask(http, server.url) == []


# ---- the clock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        ("Sat, 01 Jan 2000 01:00:00 GMT", 3600.0),
        ("Sat, 01 Jan 2000 00:00:02 GMT", 0.0),
        ("rubbish", 0.0),
        ("", 0.0),
        ("Fri, 31 Dec 1999 23:59:00 GMT", -60.0),
        ("Sat, 01 Jan 99999999 00:00:00 GMT", 0.0),
    ],
)
def test_the_servers_clock_is_noted(date: str, skew: float) -> None:
    http = Http(now=lambda: 946684800.0)
    with ScriptedServer(answer(200, b"[]", {"Date": date})) as server:
        ask(http, server.url)
    assert http.clock_skew_seconds == pytest.approx(skew)
    http.close()


# ---- the storage --------------------------------------------------------------------------------------------

EXPIRED = xml_error("AccessDenied", "Request has expired")


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (301, xml_error("PermanentRedirect", "elsewhere"), ServerFault, "PermanentRedirect"),
        (302, b"", ServerFault, ""),
        (308, b"", ServerFault, ""),
        (202, b"", ServerFault, ""),
        (206, b"", ServerFault, ""),
        (400, EXPIRED, UrlExpired, "AccessDenied"),
        (403, EXPIRED, UrlExpired, "AccessDenied"),
        (400, xml_error("ExpiredToken", "The provided token has expired."), UrlExpired, "ExpiredToken"),
        (403, xml_error("AccessDenied", "Access Denied"), ServerFault, "AccessDenied"),
        (403, xml_error("InvalidAccessKeyId", "unknown"), ServerFault, "InvalidAccessKeyId"),
        (403, xml_error("SignatureDoesNotMatch", "no"), Rejected, "SignatureDoesNotMatch"),
        (403, xml_error("RequestTimeTooSkewed", "clock"), ServerFault, "RequestTimeTooSkewed"),
        (400, xml_error("BadDigest", "md5"), RemoteError, "BadDigest"),
        (400, xml_error("RequestTimeout", "slow"), RemoteError, "RequestTimeout"),
        (409, xml_error("ConditionalRequestConflict", "at once"), RemoteError, "ConditionalRequestConflict"),
        (404, xml_error("NoSuchBucket", "gone"), ServerFault, "NoSuchBucket"),
        (412, xml_error("PreconditionFailed", "there"), AlreadyThere, "PreconditionFailed"),
        (500, xml_error("InternalError", "oops"), ServerFault, "InternalError"),
        (503, xml_error("SlowDown", "less"), Throttled, "SlowDown"),
        (503, b"<html>busy", Throttled, ""),
        (400, b"<Error><Code>Broken", Rejected, ""),
        (403, b"", ServerFault, ""),
        (403, b"\xff\xfe\x00<Code>AccessDenied</Code>", ServerFault, "AccessDenied"),
        (403, b"<Code>" + b"x" * 200 + b"</Code><Message>" + b"m" * 5000, ServerFault, ""),
        (403, b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><Code>&a;</Code>", ServerFault, ""),
    ],
)
def test_answers_of_the_storage(http: Http, status: int, body: bytes, kind: type[RemoteError], code: str) -> None:
    headers = {"Retry-After": "9", "x-amz-request-id": "R1", "Location": "/other"}
    with ScriptedServer(answer(status, body, headers)) as server:
        with pytest.raises(RemoteError) as caught:
            put(http, server.url)
        assert len(server.requests) == 1
    error = caught.value
    assert (type(error), error.status, error.code, error.request_id) == (kind, status, code, "R1")
    assert error.retry_after == 9.0
    assert len(error.message) < 500
    clean(error)


@pytest.mark.parametrize("status", [200, 201, 204])
def test_what_counts_as_success(http: Http, status: int) -> None:
    etag = "D41D8CD98F00B204E9800998ECF8427E"
    with ScriptedServer(answer(status, headers={"ETag": f'"{etag}"'})) as server:
        assert put(http, server.url) == Receipt(etag, etag.lower(), "")


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e-2"'},
        {"ETag": 'W/"d41d8cd98f00b204e9800998ecf8427e"'},
        {"ETag": "nonsense"},
        {},
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "x-amz-server-side-encryption": "aws:kms"},
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "x-amz-server-side-encryption": "aws:kms:dsse"},
        {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
)
def test_an_etag_that_is_no_md5_is_not_compared(http: Http, headers: Mapping[str, str]) -> None:
    with ScriptedServer(answer(200, headers=headers)) as server:
        assert put(http, server.url).md5 == ""


def test_only_what_the_url_signs_is_sent(http: Http) -> None:
    with ScriptedServer(answer(200)) as server:
        put(http, server.url)
        request = server.requests[0]
    assert request.target == f"/bucket/key.csv?{QUERY}"
    assert request.body == b"id\n1\n"
    assert set(request.headers) == {"host", "user-agent", "content-length"}


def test_a_307_is_followed_to_an_allowed_host_with_a_fresh_body(http: Http) -> None:
    data = os.urandom(2 * MIB)
    opened = []

    def body() -> Iterator[bytes]:
        opened.append(1)
        return iter((data[:MIB], data[MIB:]))

    with ScriptedServer(answer(200)) as second:
        there = {"Location": f"{second.url}/moved?{QUERY}"}
        with ScriptedServer(answer(307, xml_error("TemporaryRedirect", "there"), there)) as first:
            Storage(http, allow_loopback=True).put(
                f"{first.url}/bucket/key.csv?{QUERY}", body, size=len(data), filename="key.csv"
            )
        assert [request.target for request in second.requests] == [f"/moved?{QUERY}"]
        assert second.requests[0].body == data
    assert len(opened) == 2


@pytest.mark.parametrize(
    "location",
    ["https://evil.test/x", "http://169.254.169.254/latest", "file:///etc/passwd", "//evil.test/x"],
)
def test_a_307_to_another_host_is_refused(http: Http, location: str) -> None:
    with ScriptedServer(answer(307, headers={"Location": f"{location}?{QUERY}"})) as server:
        with pytest.raises(ServerFault) as caught:
            put(http, server.url)
        assert len(server.requests) == 1
    assert caught.value.reason == "bad_url"
    clean(caught.value)


def test_redirects_in_a_circle_end(http: Http) -> None:
    with ScriptedServer(answer(307, headers={"Location": "/again"})) as server:
        with pytest.raises(ServerFault) as caught:
            put(http, server.url)
        assert len(server.requests) < 10
    clean(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"), [(EXPIRED, UrlExpired), (xml_error("SignatureDoesNotMatch", "no"), Rejected)]
)
def test_a_refusal_in_the_middle_of_a_large_body_is_understood(
    http: Http, body: bytes, kind: type[RemoteError]
) -> None:
    early = Script(answer(403, body), read_body=64 * 1024)
    with ScriptedServer(early) as server, pytest.raises(RemoteError) as caught:
        put(http, server.url, b"x" * (32 * MIB))
    assert type(caught.value) is kind


def test_a_body_of_another_length_is_the_sources_fault(http: Http) -> None:
    storage = Storage(http, allow_loopback=True)
    with ScriptedServer(answer(200)) as server:
        for size in (4, 6, MIB):
            with pytest.raises(SourceChanged):
                storage.put(f"{server.url}/k?{QUERY}", lambda: iter([b"id\n1\n"]), size=size, filename="k.csv")


# ---- where bytes may go -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "s3.amazonaws.com",
        "bucket.s3.amazonaws.com",
        "bucket.with.dots.s3.amazonaws.com",
        "s3.eu-west-1.amazonaws.com",
        "s3-eu-west-1.amazonaws.com",
        "bucket.s3.eu-west-1.amazonaws.com",
        "bucket.s3.us-gov-west-1.amazonaws.com",
        "s3.dualstack.eu-central-1.amazonaws.com",
        "bucket.s3.dualstack.ap-southeast-2.amazonaws.com",
        "BUCKET.S3.AMAZONAWS.COM",
        "s3.amazonaws.com:443",
    ],
)
def test_hosts_of_s3_are_allowed(http: Http, host: str) -> None:
    Storage(http).check_url(f"https://{host}/key?{QUERY}")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://s3.amazonaws.com/key",
        "http://s3.amazonaws.com/key",
        "//s3.amazonaws.com/key",
        "s3.amazonaws.com/key",
        "https:///key",
        "",
        "https://evil.amazonaws.com.example/key",
        "https://bucket.s3.amazonaws.com.evil.test/key",
        "https://x.amazonaws.com/key",
        "https://amazonaws.com/key",
        "https://s3.evil.amazonaws.com/key",
        "https://bucket.s3.evil-name.amazonaws.com/key",
        "https://evils3.amazonaws.com/key",
        "https://execute-api.eu-west-1.amazonaws.com/key",
        "https://ec2-1-2-3-4.eu-west-1.compute.amazonaws.com/key",
        "https://s3-website-eu-west-1.amazonaws.com/key",
        "https://s3.amazonaws.com@evil.test/key",
        "https://evil.test\\@s3.amazonaws.com/key",
        "https://user:pass@s3.amazonaws.com/key",
        "https://evil.test#@s3.amazonaws.com/key",
        "https://evil.test?.s3.amazonaws.com/key",
        "https://s3.amazonaws.com./key",
        "https://s3\uff0eamazonaws.com/key",
        "https://127.0.0.1/key",
        "http://127.0.0.1/key",
        "https://localhost/key",
        "https://[::1]/key",
        "https://[::1/key",
        "https://s3.amazonaws.com:x/key",
    ],
)
def test_other_urls_are_refused(http: Http, url: str) -> None:
    with pytest.raises(ServerFault) as caught:
        Storage(http).check_url(f"{url}?{QUERY}")
    assert caught.value.reason == "bad_url"
    clean(caught.value)


def test_a_refused_url_gets_no_connection(http: Http) -> None:
    with ScriptedServer(answer(200)) as server, pytest.raises(ServerFault):
        Storage(http).put(f"{server.url}/k?{QUERY}", lambda: iter([b"x"]), size=1, filename="k.csv")
    assert server.requests == []


def test_a_list_of_hosts_replaces_amazons(http: Http) -> None:
    storage = Storage(http, allowed_hosts=["minio.example.com", "*.store.example.com"])
    for host in ("minio.example.com", "MINIO.example.com", "a.store.example.com", "a.b.store.example.com"):
        storage.check_url(f"https://{host}/key")
    for host in ("s3.amazonaws.com", "x.minio.example.com", "store.example.com", "evilstore.example.com"):
        with pytest.raises(ServerFault):
            storage.check_url(f"https://{host}/key")


@pytest.mark.parametrize("host", ["127.0.0.1:9", "127.8.9.1", "localhost:80", "[::1]:8080", "LOCALHOST"])
def test_this_machine_is_allowed_on_demand(http: Http, host: str) -> None:
    Storage(http, allow_loopback=True).check_url(f"http://{host}/key")
    with pytest.raises(ServerFault):
        Storage(http).check_url(f"http://{host}/key")


@pytest.mark.parametrize("host", ["127.1", "0.0.0.0", "localhost.evil.test", "127.0.0.1.evil.test", "10.0.0.1"])
def test_what_is_not_this_machine(http: Http, host: str) -> None:
    with pytest.raises(ServerFault):
        Storage(http, allow_loopback=True).check_url(f"http://{host}/key")


_PARTS = st.sampled_from(
    [
        "https",
        "http",
        "://",
        ":",
        "//",
        "/",
        "\\",
        "@",
        "?",
        "#",
        "s3.amazonaws.com",
        "evil.test",
        "127.0.0.1",
        ".",
        "%2e",
        "%40",
        "[",
        "]",
        "::1",
        " ",
        "\t",
        "\n",
        "\x00",
        "\uff0f",
        "\u2100",
        "bucket",
        ":443",
        ":x",
        ";",
        "&",
    ]
)


@given(st.lists(_PARTS, min_size=1, max_size=9).map("".join))
def test_what_is_checked_is_what_is_connected_to(url: str) -> None:
    # Two parsers look at a URL: ours decides, httpx's connects. They must agree on every URL that passes.
    storage = Storage(_NO_HTTP)
    for candidate in (url, "https://" + url):
        try:
            storage.check_url(candidate)
            request = httpx.Request("PUT", candidate)
        except (ServerFault, httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError):
            continue
        assert request.url.scheme == "https"
        assert request.url.host == "s3.amazonaws.com" or request.url.host.endswith(".s3.amazonaws.com")
        assert "authorization" not in request.headers
        assert not request.url.userinfo


_NO_HTTP: Any = None


# ---- secrets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_server_that_repeats_the_key(http: Http, status: int) -> None:
    body = json.dumps({"message": f"The key {KEY!r} ({KEY}) is not valid"}).encode()
    with ScriptedServer(answer(status, body)) as server, pytest.raises(PmwatchError) as caught:
        ask(http, server.url)
    assert "is not valid" in str(caught.value)
    clean(caught.value)


@pytest.mark.parametrize("status", [400, 403, 412, 500, 503])
def test_a_storage_that_repeats_the_url(http: Http, status: int) -> None:
    body = xml_error("AccessDenied", f"No: https://bucket.s3.amazonaws.com/key?{QUERY.replace('&', '&amp;')} is not it")
    with ScriptedServer(answer(status, body)) as server, pytest.raises(RemoteError) as caught:
        put(http, server.url)
    assert "is not it" in str(caught.value)
    clean(caught.value)


def test_a_key_that_cannot_be_sent(http: Http) -> None:
    for key in ("canary\u00fc5f1d", "canary\n5f1d"):
        with pytest.raises(PmwatchError) as caught:
            Client(key, base_url=refused_url(), http=http, retries=False).tenant("t")
        assert "canary" not in everything_printed(caught.value)


def test_an_error_says_nothing_of_its_cause() -> None:
    # `from None` at the boundary: a lower exception's text may hold a URL.
    assert ChecksumMismatch("x").__cause__ is None
    http = Http(timeouts=Timeouts(connect=5, answer=5, stall=5))
    with pytest.raises(Unreachable) as caught:
        put(http, refused_url())
    error: BaseException | None = caught.value
    assert error is not None
    assert error.__cause__ is None
    assert error.__suppress_context__
    http.close()
