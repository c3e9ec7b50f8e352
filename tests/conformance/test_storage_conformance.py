"""The contract of `Storage.put`, held against the sandbox's store and against a real S3 server."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator

import pytest

from pmwatch.errors import AlreadyThere, Interrupted, PmwatchError, Rejected, ServerFault, SourceChanged, UrlExpired
from pmwatch.model import MAX_PUT_BYTES
from pmwatch.processmind import Http, Receipt, Storage
from pmwatch.sandbox import SandboxServer
from support.s3servers import S3Server, Sandbox

MIB = 1024 * 1024
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with SandboxServer(tmp_path_factory.mktemp("sandbox")) as server:
        yield Sandbox(server)


@pytest.fixture(params=["sandbox", pytest.param("seaweedfs", marks=pytest.mark.service("seaweedfs"))])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def storage() -> Iterator[Storage]:
    http = Http()
    yield Storage(http, allow_loopback=True)
    http.close()


def chunks_of(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: (data[start : start + MIB] for start in range(0, len(data), MIB))


def put(
    storage: Storage,
    url: str,
    data: bytes,
    *,
    filename: str = "orders.csv",
    only_if_absent: bool = False,
) -> Receipt:
    return storage.put(url, chunks_of(data), size=len(data), filename=filename, only_if_absent=only_if_absent)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB], ids=lambda size: f"{size / MIB:.6g}MiB")
def test_bytes_arrive_as_they_are(server: S3Server, storage: Storage, size: int) -> None:
    data, url = os.urandom(size), server.plain_url("orders.csv")
    receipt = put(storage, url, data)
    assert server.stored(url) == data
    assert receipt.md5 == hashlib.md5(data).hexdigest()
    assert receipt.etag == receipt.md5
    assert receipt.request_id


def test_every_byte_value_arrives(server: S3Server, storage: Storage) -> None:
    data, url = bytes(range(256)) * 3, server.plain_url("orders.xlsx")
    put(storage, url, data, filename="orders.xlsx")
    assert server.stored(url) == data


@pytest.mark.parametrize(
    ("part", "replacement"),
    [("X-Amz-Signature=", "0" * 8), ("X-Amz-Expires=", "36001")],
    ids=["signature", "expiry"],
)
def test_a_url_that_was_changed_is_rejected(server: S3Server, storage: Storage, part: str, replacement: str) -> None:
    url = server.plain_url("orders.csv")
    at = url.index(part) + len(part)
    end = at + (8 if part == "X-Amz-Signature=" else len(url[at:].split("&")[0]))
    changed = url[:at] + replacement + url[end:]
    with pytest.raises(Rejected) as caught:
        put(storage, changed, b"id\n1\n")
    assert caught.value.code == "SignatureDoesNotMatch"
    assert caught.value.status == 403
    assert caught.value.request_id
    assert server.stored(url) is None


def test_a_url_for_another_object_is_rejected(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")
    changed = url.replace("orders.csv?", "orderz.csv?")
    assert changed != url
    with pytest.raises(Rejected) as caught:
        put(storage, changed, b"id\n1\n")
    assert caught.value.code == "SignatureDoesNotMatch"
    assert server.stored(changed) is None


def test_an_expired_url_is_told_from_other_refusals(server: S3Server, storage: Storage) -> None:
    url = server.signed_url("expired.csv", at=time.time() - 7200, expires_seconds=60)
    with pytest.raises(UrlExpired):
        put(storage, url, b"id\n1\n")
    assert server.stored(url) is None


def test_the_answer_for_an_expired_url_alone_decides(
    server: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Our own clock may be slow: what the server says must be enough.
    url = server.signed_url("expired-2.csv", at=time.time() - 7200, expires_seconds=60)
    monkeypatch.setattr("pmwatch.processmind.storage._has_expired", lambda _: False)
    with pytest.raises(UrlExpired):
        put(storage, url, b"id\n1\n")


def test_an_unknown_key_id_is_trouble_of_the_destination(server: S3Server, storage: Storage) -> None:
    url = server.signed_url("stranger.csv", access_key_id="AKSTRANGER")
    with pytest.raises(ServerFault) as caught:
        put(storage, url, b"id\n1\n")
    assert caught.value.code == "InvalidAccessKeyId"
    assert server.stored(url) is None


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("orders.csv", "text/csv"),
        ("ORDERS.CSV", "text/csv"),
        ("orders.tsv", "text/tab-separated-values"),
        ("orders.xlsx", XLSX),
        ("orders.xes", "application/xml"),
        ("orders.unknown", "application/octet-stream"),
        ("orders", "application/octet-stream"),
    ],
)
def test_a_signed_content_type_is_sent_from_the_table(
    server: S3Server, storage: Storage, filename: str, content_type: str
) -> None:
    url = server.signed_url(f"typed/{filename}", headers={"Content-Type": content_type})
    put(storage, url, b"id\n1\n", filename=filename)
    assert server.stored(url) == b"id\n1\n"


def test_a_signed_type_outside_the_table_falls_back_once(server: S3Server, storage: Storage) -> None:
    url = server.signed_url("fallback.csv", headers={"Content-Type": "application/octet-stream"})
    put(storage, url, b"id\n1\n")
    assert server.stored(url) == b"id\n1\n"


def test_a_type_that_cannot_be_guessed_names_the_signed_headers(server: S3Server, storage: Storage) -> None:
    url = server.signed_url("odd.csv", headers={"Content-Type": "application/x-odd"})
    with pytest.raises(Rejected) as caught:
        put(storage, url, b"id\n1\n")
    assert caught.value.code == "SignatureDoesNotMatch"
    assert "content-type, host" in caught.value.hint
    assert server.stored(url) is None


@pytest.mark.parametrize(
    "key",
    [
        "with space/two  blanks.csv",
        "größe/注文.csv",
        "per%cent/%41%2F%00.csv",
        "plus+and=equals&more.csv",
        "quote'(paren)*!~;,:@$.csv",
        "twice//slashed///name.csv",
        "dots/a..b.csv",
        "query?and#hash.csv",
    ],
)
def test_the_url_is_used_byte_for_byte(server: S3Server, storage: Storage, key: str) -> None:
    url = server.signed_url(key)
    put(storage, url, key.encode())
    assert server.stored(url) == key.encode()


def test_a_repeated_put_finds_the_first_one(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")
    put(storage, url, b"id\n1\n")
    with pytest.raises(AlreadyThere) as caught:
        put(storage, url, b"id\n2\n", only_if_absent=True)
    assert caught.value.status == 412
    assert server.stored(url) == b"id\n1\n"
    assert server.writes(url) in (1, None)


def test_a_conditional_put_of_a_new_object_goes_through(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")
    put(storage, url, b"id\n1\n", only_if_absent=True)
    assert server.stored(url) == b"id\n1\n"


def test_a_plain_repetition_writes_the_same_object_again(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")
    assert put(storage, url, b"id\n1\n").etag == put(storage, url, b"id\n1\n").etag
    assert server.stored(url) == b"id\n1\n"
    assert server.writes(url) in (2, None)


class OwnError(Exception):
    """An error of the body itself."""


@pytest.mark.parametrize(
    "error", [SourceChanged("it changed"), Interrupted("stop"), OwnError("no pmwatch error"), OSError(5, "EIO")]
)
@pytest.mark.parametrize("sent", [0, 5 * MIB], ids=["at-once", "midway"])
def test_an_error_of_the_body_comes_through_and_leaves_no_object(
    server: S3Server, storage: Storage, error: Exception, sent: int
) -> None:
    url = server.plain_url("orders.csv")

    def body() -> Iterator[bytes]:
        yield from chunks_of(b"x" * sent)()
        raise error

    with pytest.raises(type(error)) as caught:
        storage.put(url, body, size=9 * MIB, filename="orders.csv")
    assert caught.value is error
    assert server.stored(url) is None
    put(storage, url, b"id\n1\n", only_if_absent=True)  # and the connection pool is fit for the next one
    assert server.stored(url) == b"id\n1\n"


def test_a_body_that_just_ends_early_leaves_no_object(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")
    with pytest.raises(PmwatchError):
        storage.put(url, chunks_of(b"x" * MIB), size=9 * MIB, filename="orders.csv")
    assert server.stored(url) is None


def test_more_than_five_gib_is_refused_before_the_first_byte(server: S3Server, storage: Storage) -> None:
    url = server.plain_url("orders.csv")

    def body() -> Iterator[bytes]:
        raise AssertionError("a byte was asked for")
        yield b""

    with pytest.raises(Rejected) as caught:
        storage.put(url, body, size=MAX_PUT_BYTES + 1, filename="orders.csv")
    assert caught.value.reason == "too_large"
    assert server.stored(url) is None
