"""The API client against the sandbox: each operation, and what goes over the wire."""

import string
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch import Client
from pmwatch.errors import DestinationUnknown, KeyRejected, PmwatchError, ServerFault
from pmwatch.processmind import Http
from pmwatch.processmind.client import _segment
from pmwatch.sandbox import SandboxServer
from support.remotes import ScriptedServer, answer


def client_of(sandbox: SandboxServer) -> Client:
    return Client(sandbox.tenants[0]["api_key"], base_url=sandbox.base_url)


def test_every_reading_operation(sandbox: SandboxServer) -> None:
    tenant = sandbox.tenants[0]
    dataset = tenant["datasets"][0]
    table = dataset["datatables"][0]
    with client_of(sandbox) as client:
        assert client.tenant(tenant["id"]).display_name == tenant["name"]
        assert [found.id for found in client.datasets(tenant["id"])] == [one["id"] for one in tenant["datasets"]]
        found = client.dataset(tenant["id"], dataset["id"])
        assert [one.id for one in found.datatables] == [one["id"] for one in dataset["datatables"]]
        tables = client.datatables(tenant["id"])
        assert {one.id: one.dataset_id for one in tables}[table["id"]] == dataset["id"]
        assert client.datatable(tenant["id"], table["id"]).display_name == table["name"]


def test_creating(sandbox: SandboxServer) -> None:
    tenant = sandbox.tenants[0]["id"]
    with client_of(sandbox) as client:
        dataset = client.create_dataset(tenant, "Größe & Co")
        table = client.create_datatable(tenant, dataset.id, "Bestellungen/2026")
        assert client.dataset(tenant, dataset.id).datatables[0].id == table.id
        assert client.datatable(tenant, table.id).display_name == "Bestellungen/2026"


def test_the_presign_call_sends_what_the_reference_says() -> None:
    url = "https://s3.amazonaws.com/bucket/key?X-Amz-Signature=1"
    with ScriptedServer(answer(200, f'{{"PreSignedUploadUrl": "{url}"}}'.encode())) as server:
        with Client("key-1", base_url=server.url) as client:
            got = client.presigned_upload_url(
                "t", "dt", dataset_id="d", filename="a b&c=ü%41.csv", size=7, mtime_ms=1234, valid_seconds=3600
            )
        request = server.requests[0]
    assert got == url
    path, _, query = request.target.partition("?")
    assert (request.method, path) == ("GET", "/tenant/t/datatable/dt/uploads/presignedurl")
    pairs = dict(pair.split("=") for pair in query.replace("+", "%20").split("&"))
    assert {name: unquote(value) for name, value in pairs.items()} == {
        "datasetid": "d",
        "filename": "a b&c=ü%41.csv",
        "filesize": "7",
        "filelastmodified": "1234",
        "validforseconds": "3600",
    }
    assert request.headers["x-api-key"] == "key-1"


@pytest.mark.parametrize(
    "body",
    [b'{"PreSignedUploadUrl": ""}', b'{"PreSignedUploadUrl": null}', b'{"PreSignedUploadUrl": 5}', b"{}", b"[]"],
)
def test_a_presign_answer_without_a_url(body: bytes) -> None:
    with ScriptedServer(answer(200, body)) as server, Client("k", base_url=server.url) as client:
        with pytest.raises(ServerFault) as caught:
            client.presigned_upload_url("t", "dt", dataset_id="d", filename="f", size=1, mtime_ms=1)
        assert caught.value.reason == "bad_answer"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'[{"id": "1", "displayName": "A"}]', ["A"]),
        (b'{"datasets": [{"id": "1", "displayName": "A"}]}', ["A"]),
        (b'{"count": 1, "items": [{"id": 1, "displayName": "A", "brandNew": {"x": []}}]}', ["A"]),
        (b"[]", []),
    ],
)
def test_lists_come_bare_or_wrapped_and_with_fields_that_are_new(body: bytes, names: list[str]) -> None:
    with ScriptedServer(answer(200, body)) as server, Client("k", base_url=server.url) as client:
        assert [dataset.display_name for dataset in client.datasets("t")] == names


AWKWARD_IDS = [
    "a/b",
    "..",
    ".",
    "a/../b",
    "?x=1",
    "#frag",
    "%2e%2e",
    "a%2fb",
    "a\\b",
    "//evil.test/",
    "ü",
    " ",
    "a;b",
    "@",
]


@pytest.mark.parametrize("awkward", AWKWARD_IDS)
def test_an_id_never_changes_the_path(awkward: str) -> None:
    with ScriptedServer(answer(200, b'{"id": "x"}')) as server, Client("k", base_url=server.url) as client:
        client.datatable("tenant-1", awkward)
        client.tenant(awkward)
        sent = [request.target for request in server.requests]
    first, second = (target.split("/") for target in sent)
    assert first[:4] == ["", "tenant", "tenant-1", "datatable"]
    assert len(first) == 5
    assert unquote(first[4]) == awkward
    assert second[:2] == ["", "tenant"]
    assert len(second) == 3
    assert unquote(second[2]) == awkward


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_segment_is_one_segment(text: str) -> None:
    segment = _segment(text)
    assert unquote(segment) == text
    assert set(segment) <= set(string.ascii_letters + string.digits + "_.-~%")
    assert segment not in {".", ".."}
    assert urlsplit(f"https://host/a/{segment}/b").path == f"/a/{segment}/b"


def test_a_wrong_key_and_an_unknown_table(sandbox: SandboxServer) -> None:
    tenant = sandbox.tenants[0]["id"]
    with Client("wrong", base_url=sandbox.base_url) as client, pytest.raises(KeyRejected):
        client.datasets(tenant)
    with client_of(sandbox) as client, pytest.raises(DestinationUnknown):
        client.datatable(tenant, "no-such-table")


def test_a_base_url_with_a_slash_at_the_end(sandbox: SandboxServer) -> None:
    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url + "/") as client:
        assert client.tenant(tenant["id"]).id == tenant["id"]


def test_connections_that_were_given_stay_open(sandbox: SandboxServer) -> None:
    tenant = sandbox.tenants[0]
    http = Http()
    for _ in range(2):
        with Client(tenant["api_key"], base_url=sandbox.base_url, http=http) as client:
            client.tenant(tenant["id"])
    http.close()


def test_a_base_url_that_is_none(tmp_path: Path) -> None:
    for url in ("http://[::1", "ftp://127.0.0.1", "no url"):
        with Client("k", base_url=url, retries=False) as client, pytest.raises(PmwatchError):
            client.tenant("t")
