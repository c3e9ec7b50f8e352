"""The object store, over real sockets: what it keeps, and each of S3's refusals."""

import base64
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from pmwatch.sandbox import SandboxServer, sigv4
from pmwatch.sandbox.storage import BUCKET, STORE_PATH
from sandbox.sandbox_client import NOW, Clock, SandboxClient, read_all, read_until, s3_error

MIB = 1024 * 1024


def content_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def incoming(client: SandboxClient) -> list[Path]:
    return list((client.server.sandbox.store.path(client.server.objects()[0]).parents[1] / "incoming").iterdir())


def test_what_is_stored(client: SandboxClient) -> None:
    body = b"h\n1\n"
    response = client.put(client.presign(filename="Aufträge <1>.csv"), body)
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["etag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert len(response.headers["x-amz-request-id"]) == 16
    (record,) = client.server.objects()
    assert record.filename == "Aufträge <1>.csv"
    assert (record.tenant_id, record.datatable_id) == (client.tenant["id"], client.datatable_id)
    assert (record.size, record.put_count) == (4, 1)
    assert record.sha256 == hashlib.sha256(body).hexdigest()
    assert record.received_at == "2027-01-15T08:00:00+00:00"
    assert client.server.object_path(record).read_bytes() == body


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, MIB, 5 * MIB + 17])
def test_every_size_arrives_whole(client: SandboxClient, size: int) -> None:
    body = os.urandom(size)
    client.upload(body, filename="a.xlsx")
    (record,) = client.server.objects()
    assert (record.size, record.sha256) == (size, hashlib.sha256(body).hexdigest())
    assert record.etag == hashlib.md5(body).hexdigest()
    assert client.server.object_path(record).read_bytes() == body
    assert incoming(client) == []


def test_a_second_put_replaces_the_object(client: SandboxClient) -> None:
    url = client.upload(b"first")
    client.upload(b"other")
    assert client.put(url, b"second").status_code == 200
    replaced, other = client.server.objects()
    assert (replaced.put_count, other.put_count) == (2, 1)
    assert client.server.object_path(replaced).read_bytes() == b"second"


def test_many_at_once(client: SandboxClient) -> None:
    bodies = [os.urandom(300_000) for _ in range(8)]
    threads = [threading.Thread(target=client.upload, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = {record.sha256 for record in client.server.objects()}
    assert stored == {hashlib.sha256(body).hexdigest() for body in bodies}


def test_tampered_urls(client: SandboxClient) -> None:
    url = client.presign()
    for old, new in (
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
        ("/orders.csv", "/orders2.csv"),
        ("X-Amz-Expires=3600", "X-Amz-Expires=7200"),
        ("?X-Amz", "?tagging&X-Amz"),
        ("127.0.0.1", "localhost"),
    ):
        assert old in url
        assert s3_error(client.put(url.replace(old, new))) == (403, "SignatureDoesNotMatch")
    assert client.server.objects() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_another_method_is_another_signature(client: SandboxClient, http: httpx.Client, method: str) -> None:
    response = http.request(method, client.presign())
    assert response.status_code == 403
    assert method == "HEAD" or s3_error(response) == (403, "SignatureDoesNotMatch")


def test_the_refusal_shows_what_was_signed(client: SandboxClient) -> None:
    text = client.put(client.presign() + "0").text
    assert "<StringToSign>AWS4-HMAC-SHA256\n" in text
    assert "<CanonicalRequest>PUT\n/sandbox-store/" in text


def test_unknown_access_key(client: SandboxClient) -> None:
    url = client.presign().replace("Credential=SANDBOX", "Credential=SANDBOY")
    assert s3_error(client.put(url)) == (403, "InvalidAccessKeyId")


def test_expired(client: SandboxClient, clock: Clock) -> None:
    url = client.presign(validforseconds=60)
    clock.time += 60
    assert client.put(url).status_code == 200
    clock.time += 1
    response = client.put(url)
    assert s3_error(response) == (403, "AccessDenied")
    assert "<Message>Request has expired</Message>" in response.text


def test_signed_in_the_future(client: SandboxClient, clock: Clock) -> None:
    url = client.presign()
    clock.time -= 901
    assert s3_error(client.put(url)) == (403, "RequestTimeTooSkewed")


def test_malformed_parameters(client: SandboxClient) -> None:
    url = client.presign()
    assert s3_error(client.put(url.replace("X-Amz-Date", "X-Amz-Day"))) == (400, "AuthorizationQueryParametersError")
    too_long = url.replace("X-Amz-Expires=3600", "X-Amz-Expires=604801")
    assert s3_error(client.put(too_long)) == (400, "AuthorizationQueryParametersError")


def test_no_signature_at_all(client: SandboxClient) -> None:
    assert s3_error(client.put(client.presign().partition("?")[0])) == (403, "AccessDenied")


def test_two_kinds_of_authorization(client: SandboxClient) -> None:
    assert s3_error(client.put(client.presign(), authorization="Bearer x")) == (400, "InvalidArgument")


def test_unsigned_amz_headers(client: SandboxClient) -> None:
    response = client.put(client.presign(), x_amz_checksum_sha256="x")
    assert s3_error(response) == (403, "AccessDenied")
    assert "<HeadersNotSigned>x-amz-checksum-sha256</HeadersNotSigned>" in response.text


def test_other_unsigned_headers_are_fine(client: SandboxClient) -> None:
    assert client.put(client.presign(), content_type="text/csv", x_other="1").status_code == 200


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("a.CSV", "text/csv"),
        ("a.tsv", "text/tab-separated-values"),
        ("a.xes", "application/xml"),
        ("a.dat", "application/octet-stream"),
    ],
)
def test_signed_content_type(tmp_path: Path, http: httpx.Client, filename: str, content_type: str) -> None:
    with SandboxServer(tmp_path, sign_content_type=True) as server:
        client = SandboxClient(server, http)
        url = client.presign(filename=filename)
        assert "X-Amz-SignedHeaders=content-type%3Bhost&" in url
        assert s3_error(client.put(url)) == (403, "SignatureDoesNotMatch")
        assert s3_error(client.put(url, content_type="text/html")) == (403, "SignatureDoesNotMatch")
        assert client.put(url, content_type=content_type).status_code == 200


def test_session_tokens_end_before_their_urls(tmp_path: Path, http: httpx.Client, clock: Clock) -> None:
    with SandboxServer(tmp_path, now=clock, security_token="to/ken", security_token_seconds=30) as server:
        client = SandboxClient(server, http)
        url = client.presign()
        assert "X-Amz-Security-Token=to%2Fken&" in url
        assert s3_error(client.put(url.replace("to%2Fken", "token"))) == (400, "InvalidToken")
        assert client.put(url).status_code == 200
        clock.time += 31
        assert s3_error(client.put(url)) == (400, "ExpiredToken")


def test_chunked_bodies_are_not_implemented(client: SandboxClient, http: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a,b\n"

    assert s3_error(http.put(client.presign(), content=pieces())) == (501, "NotImplemented")
    assert client.server.objects() == []


def test_a_length_is_needed(client: SandboxClient) -> None:
    parts = urlsplit(client.presign())
    connection = HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.putrequest("PUT", f"{parts.path}?{parts.query}")
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 411
        assert b"<Code>MissingContentLength</Code>" in response.read()
    finally:
        connection.close()


def test_more_than_five_gib_is_refused_before_it_is_sent(client: SandboxClient) -> None:
    with client.open_put(client.presign(), 5 * 1024**3 + 1, "Expect: 100-continue") as connection:
        answer = read_until(connection, b"</Error>")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"<Code>EntityTooLarge</Code>" in answer


def test_a_refusal_does_not_wait_for_the_body(client: SandboxClient) -> None:
    with client.open_put(client.presign() + "0", 5 * 1024**3) as connection:
        answer = read_until(connection, b"</Error>")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in answer.lower()


def test_a_refusal_reaches_who_sends_first(client: SandboxClient) -> None:
    assert s3_error(client.put(client.presign() + "0", bytes(8 * MIB))) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("digest", ["", "x", "AAAA", "d41d8cd98f00b204e9800998ecf8427e"])
def test_malformed_content_md5(client: SandboxClient, digest: str) -> None:
    assert s3_error(client.put(client.presign(), content_md5=digest)) == (400, "InvalidDigest")


def test_content_md5(client: SandboxClient) -> None:
    url = client.presign()
    assert s3_error(client.put(url, b"one", content_md5=content_md5(b"two"))) == (400, "BadDigest")
    assert client.server.objects() == []
    assert client.put(url, b"one", content_md5=content_md5(b"one")).status_code == 200


@pytest.mark.parametrize("sent", [0, 10, 3 * MIB])
def test_a_body_cut_short_leaves_nothing(client: SandboxClient, sent: int) -> None:
    client.upload(b"h\n")
    with client.open_put(client.presign(), 4 * MIB, "Expect: 100-continue") as connection:
        read_until(connection, b"100 Continue\r\n\r\n")
        connection.sendall(bytes(sent))
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    client.server.stop()
    assert len(client.server.objects()) == 1
    assert incoming(client) == []
    assert client.server.requests()[-1].status == 0


def test_if_none_match(client: SandboxClient) -> None:
    url = client.presign()
    assert client.put(url, b"one", if_none_match="*").status_code == 200
    assert s3_error(client.put(url, b"two", if_none_match="*")) == (412, "PreconditionFailed")
    assert s3_error(client.put(url, b"two", if_none_match='"x"')) == (501, "NotImplemented")
    (record,) = client.server.objects()
    assert (record.put_count, record.size) == (1, 3)
    assert client.server.object_path(record).read_bytes() == b"one"


def test_if_none_match_is_decided_when_the_body_is_complete(client: SandboxClient) -> None:
    url = client.presign()
    headers = ("If-None-Match: *", "Expect: 100-continue", "Connection: close")
    with client.open_put(url, 4, *headers) as connection:
        read_until(connection, b"100 Continue\r\n\r\n")
        assert client.put(url, b"fast", if_none_match="*").status_code == 200
        connection.sendall(b"slow")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 412 ")
    (record,) = client.server.objects()
    assert client.server.object_path(record).read_bytes() == b"fast"
    assert incoming(client) == []


def test_a_url_that_expires_while_the_body_comes_in_still_works(client: SandboxClient, clock: Clock) -> None:
    with client.open_put(client.presign(), 4, "Expect: 100-continue", "Connection: close") as connection:
        read_until(connection, b"100 Continue\r\n\r\n")
        clock.time += 24 * 3600
        connection.sendall(b"slow")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def signed(client: SandboxClient, method: str, path: str) -> str:
    return sigv4.presign(
        client.server.sandbox.credentials,
        method,
        origin=client.server.base_url,
        path=path,
        expires_seconds=60,
        at=NOW,
    )


def test_a_bucket_that_does_not_exist(client: SandboxClient) -> None:
    assert s3_error(client.put(signed(client, "PUT", f"{STORE_PATH}/other/key"))) == (404, "NoSuchBucket")


def test_only_put_is_offered(client: SandboxClient, http: httpx.Client) -> None:
    url = signed(client, "GET", f"{STORE_PATH}/{BUCKET}/key")
    assert s3_error(http.get(url)) == (405, "MethodNotAllowed")
    assert s3_error(client.put(signed(client, "PUT", f"{STORE_PATH}/{BUCKET}/"))) == (405, "MethodNotAllowed")


def test_keys_that_need_escapes(client: SandboxClient) -> None:
    assert client.put(signed(client, "PUT", f"{STORE_PATH}/{BUCKET}/a b+ü%20/x~&=")).status_code == 200
    assert client.server.objects()[0].key == "a b+ü%20/x~&="


def test_a_broken_disk_is_an_internal_error(client: SandboxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    url = client.presign()
    with monkeypatch.context() as patch:
        patch.setattr("pmwatch.sandbox.store.os.replace", full)
        assert s3_error(client.put(url)) == (500, "InternalError")
    assert client.server.objects() == []
    assert client.put(url).status_code == 200
    assert incoming(client) == []
