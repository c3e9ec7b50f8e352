"""The API: its shapes, and what it refuses."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from pmwatch.sandbox import SandboxServer, TenantSeed
from sandbox.sandbox_client import SandboxClient

GIB = 1024**3


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def message(response: httpx.Response) -> str:
    text = response.json()["message"]
    assert isinstance(text, str)
    return text


def test_tenant(client: SandboxClient) -> None:
    answer = client.call("GET", "").json()
    assert (answer["id"], answer["displayName"]) == (client.tenant["id"], "demo")


def test_the_default_tenant_has_a_dataset_with_three_datatables(client: SandboxClient) -> None:
    (dataset,) = client.call("GET", "/datasets").json()
    node = {"treeNodeType", "treeParentId"}
    assert dataset.keys() == {"id", "displayName", "createdAt", "datatableCount"} | node
    assert (dataset["displayName"], dataset["datatableCount"]) == ("Order to cash", 3)
    single = client.call("GET", f"/datasets/{dataset['id']}").json()
    assert [table["displayName"] for table in single["datatables"]] == ["Orders", "Invoices", "Deliveries"]
    assert all(table.keys() == {"id", "displayName", "rowCount"} for table in single["datatables"])


def test_datatables_name_their_dataset(client: SandboxClient) -> None:
    tables = client.call("GET", "/datatables").json()
    assert {table["datasetId"] for table in tables} == {client.dataset_id}
    assert client.call("GET", f"/datatable/{tables[1]['id']}").json() == tables[1]


def test_create_and_delete(client: SandboxClient) -> None:
    body = {"displayName": "P2P", "treeParentId": None, "treeNodeType": "Dataset"}
    created = client.call("POST", "/datasets", json=body)
    assert created.status_code == 201
    path = f"/datasets/{created.json()['id']}"
    table = client.call("POST", f"{path}/datatables", json={"displayName": "Purchases"})
    assert table.status_code == 201
    assert client.call("GET", f"/datatable/{table.json()['id']}").json() == table.json()
    assert client.call("DELETE", path).json() == {"success": True}
    assert client.call("GET", path).status_code == 404
    assert client.call("GET", f"/datatable/{table.json()['id']}").status_code == 404


def test_a_tree_group_holds_no_datatables(client: SandboxClient) -> None:
    group = client.call("POST", "/datasets", json={"displayName": "G", "treeNodeType": "TreeGroup"}).json()
    refused = client.call("POST", f"/datasets/{group['id']}/datatables", json={"displayName": "T"})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"{"},
        {"content": b"\xff"},
        {"json": []},
        {"json": {}},
        {"json": {"displayName": "  "}},
        {"json": {"displayName": 1}},
        {"json": {"displayName": "x", "treeNodeType": "Process"}},
        {"json": {"displayName": "x", "treeParentId": 7}},
    ],
)
def test_bad_bodies(client: SandboxClient, options: dict[str, Any]) -> None:
    response = client.call("POST", "/datasets", **options)
    assert response.status_code == 400
    assert message(response)


def test_a_key_is_needed(client: SandboxClient, http: httpx.Client) -> None:
    assert client.call("GET", "", key="wrong").status_code == 401
    bare = http.get(f"{client.server.base_url}/tenant/{client.tenant['id']}")
    assert bare.status_code == 401
    assert "x-api-key" in message(bare)


def test_the_key_of_another_tenant_is_forbidden(tmp_path: Path, http: httpx.Client) -> None:
    with SandboxServer(tmp_path, tenants=[TenantSeed("one"), TenantSeed("two", api_key="two-key")]) as server:
        response = SandboxClient(server, http).call("GET", "", key="two-key")
    assert response.status_code == 403
    assert message(response)


def test_unknown_ids(client: SandboxClient, http: httpx.Client) -> None:
    assert message(client.call("GET", "/datasets/none")) == "Dataset not found"
    assert message(client.call("GET", "/datatable/none")) == "Datatable not found"
    assert client.call("GET", "/datatable/none/uploads/presignedurl").status_code == 404
    headers = {"x-api-key": client.tenant["api_key"]}
    response = http.get(f"{client.server.base_url}/tenant/none", headers=headers)
    assert (response.status_code, message(response)) == (404, "Tenant not found")


def test_unknown_paths_and_methods_are_answered_in_json(client: SandboxClient) -> None:
    assert message(client.call("GET", "/nothing/here"))
    response = client.call("PATCH", "/datasets")
    assert response.status_code == 405
    assert message(response)


def test_a_presigned_url(client: SandboxClient) -> None:
    url = client.presign(filename="Aufträge 2026/07.CSV")
    assert url.startswith(f"{client.server.base_url}/sandbox-store/pm-uploads/{client.tenant['id']}/")
    assert urlsplit(url).path.endswith("/Auftr_ge_2026_07.CSV")
    query = query_of(url)
    assert query["X-Amz-Expires"] == "3600"
    assert query["X-Amz-SignedHeaders"] == "host"
    assert "/us-east-1/s3/aws4_request" in query["X-Amz-Credential"]


def test_every_presign_is_another_object(client: SandboxClient) -> None:
    assert urlsplit(client.presign()).path != urlsplit(client.presign()).path


def test_the_older_form_has_no_query(client: SandboxClient) -> None:
    response = client.call("GET", f"/datatable/{client.datatable_id}/uploads/presignedurl")
    url = response.json()["PreSignedUploadUrl"]
    assert urlsplit(url).path.endswith("/upload")
    assert client.put(url).status_code == 200
    assert client.server.objects()[0].filename == ""


@pytest.mark.parametrize(("asked", "given"), [(1, "1"), (604800, "604800"), (2592000, "604800")])
def test_validity_is_a_week_at_most(client: SandboxClient, asked: int, given: str) -> None:
    assert query_of(client.presign(validforseconds=asked))["X-Amz-Expires"] == given


def test_the_server_may_decide_the_validity(tmp_path: Path, http: httpx.Client) -> None:
    with SandboxServer(tmp_path, url_expires_seconds=2) as server:
        url = SandboxClient(server, http).presign(validforseconds=3600)
    assert query_of(url)["X-Amz-Expires"] == "2"


@pytest.mark.parametrize(
    "params",
    [
        {"datasetid": "another"},
        {"datasetid": ""},
        {"filename": ""},
        {"filesize": 5 * GIB + 1},
        {"filesize": -1},
        {"filesize": "1e3"},
        {"filesize": "9" * 5000},
        {"filelastmodified": "today"},
        {"validforseconds": 0},
        {"validforseconds": "week"},
    ],
)
def test_bad_presign_queries(client: SandboxClient, params: dict[str, Any]) -> None:
    response = client.ask_presign(**params)
    assert response.status_code == 400
    assert message(response)


def test_exactly_five_gib_may_be_asked_for(client: SandboxClient) -> None:
    assert client.ask_presign(filesize=5 * GIB).status_code == 200


@pytest.mark.parametrize(
    ("filename", "body", "rows"),
    [
        ("a.csv", b"h\n1\n2\n", 2),
        ("a.TSV", b"h\n1\n2", 2),
        ("a.txt", b"h\r\n1\r\n", 1),
        ("a.csv", b"h\n", 0),
        ("a.csv", b"", 0),
        ("a.xlsx", b"\n\n\n", 0),
    ],
)
def test_row_count(client: SandboxClient, filename: str, body: bytes, rows: int) -> None:
    client.upload(body, filename=filename)
    assert client.call("GET", f"/datatable/{client.datatable_id}").json()["rowCount"] == rows


def test_row_count_is_of_all_files_and_of_the_last_put(client: SandboxClient) -> None:
    client.upload(b"h\n1\n")
    url = client.upload(b"h\n1\n2\n3\n")
    client.put(url, b"h\n1\n2\n")
    assert client.call("GET", f"/datatable/{client.datatable_id}").json()["rowCount"] == 3


def test_rotating_and_revoking_keys(client: SandboxClient) -> None:
    sandbox, tenant = client.server.sandbox, client.tenant
    rotated = sandbox.rotate_key(tenant["id"])
    assert rotated == client.tenant["api_key"]
    assert client.call("GET", "", key=tenant["api_key"]).status_code == 401
    assert client.call("GET", "").status_code == 200
    sandbox.revoke_key(tenant["id"])
    assert client.tenant["api_key"] == ""
    assert client.call("GET", "", key=rotated).status_code == 401


def test_rotating_and_revoking_keys_over_http(client: SandboxClient, http: httpx.Client) -> None:
    base = f"{client.server.base_url}/sandbox/tenants"
    rotated = http.post(f"{base}/{client.tenant['id']}/rotate-key").json()["api_key"]
    assert client.call("GET", "", key=rotated).status_code == 200
    assert http.post(f"{base}/{client.tenant['id']}/revoke-key").json() == {"success": True}
    assert client.call("GET", "", key=rotated).status_code == 401
    assert http.post(f"{base}/none/rotate-key").status_code == 404
