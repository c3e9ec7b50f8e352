"""Programs that make the requests of ProcessMind's published examples, with the same fields, work on the sandbox."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from pmwatch import Client
from pmwatch.sandbox import SandboxServer
from processmind.operations import OPERATIONS
from support.remotes import ScriptedServer, answer
from support.services import require_tool

SCRIPTS = Path(__file__).parent / "vendor"
BPMN = """<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"
  targetNamespace="x" name="a \\ b"/>
"""
CONTENT = b"case,activity,timestamp\n1,order,2026-01-01\n2,order,2026-01-02\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Aufträge 2026 & more.csv"
    path.write_bytes(CONTENT)
    return path


def run(words: list[str], server: SandboxServer, file: Path, more: dict[str, str] | None = None) -> str:
    tenant = server.tenants[0]
    dataset = tenant["datasets"][0]
    model = file.parent / "model.bpmn"
    model.write_text(BPMN)
    variables = {
        "BASE_URL": server.base_url,
        "API_KEY": tenant["api_key"],
        "TENANT_ID": tenant["id"],
        "DATASET_ID": dataset["id"],
        "DATATABLE_ID": dataset["datatables"][0]["id"],
        "FILE": str(file),
        "MODEL": str(model),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        words, env={**os.environ, **variables, **(more or {})}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def arrived(server: SandboxServer, file: Path) -> bool:
    (record,) = server.objects()
    return record.filename == file.name and server.object_path(record).read_bytes() == CONTENT


def words_of(script: str) -> list[str]:
    if script.endswith(".py"):
        return [sys.executable, str(SCRIPTS / script)]
    require_tool("curl", "the Debian package curl")
    return [require_tool("sh", "the Debian package dash"), str(SCRIPTS / script)]


CALLS = ("createProcess", "uploadBpmn", "createProcessMapping", "addTenantUser")


@pytest.mark.parametrize("script", ["calls.sh", "calls.py"])
def test_the_shell_and_the_python_example_upload_and_make_a_process_with_its_model_a_mapping_and_a_user(
    sandbox: SandboxServer, file: Path, script: str
) -> None:
    told = [json.loads(line) for line in run(words_of(script), sandbox, file).splitlines()]
    assert arrived(sandbox, file)
    process, uploaded, mapping, user = told
    assert uploaded == {"success": True}
    tenant = sandbox.tenants[0]
    with Client(tenant["api_key"], base_url=sandbox.base_url) as client:
        [there] = client.processes(tenant["id"])
        assert (there.id, there.display_name) == (process["id"], "Order to cash")
        assert there.designer_model_id
        assert [one.id for one in client.mappings(tenant["id"], there.id)] == [mapping["id"]]
        assert [(one.id, one.email) for one in client.users(tenant["id"])] == [(user["id"], "ada@example.com")]


@pytest.mark.parametrize("script", ["calls.sh", "calls.py"])
def test_the_examples_send_what_the_reference_names(sandbox: SandboxServer, file: Path, script: str) -> None:
    with ScriptedServer() as server:
        url = json.dumps({"PreSignedUploadUrl": f"{server.url}/bucket/key?X-Amz-Signature=1"}).encode()
        server.script(answer(200, url), answer(200), answer(200, b'{"id": "p-1"}'))
        run(words_of(script), sandbox, file, {"BASE_URL": server.url})
        presign, put, *calls = server.requests
    asked = parse_qs(urlsplit(presign.target).query)
    assert set(asked) == {"datasetid", "filename", "filesize", "filelastmodified"}
    assert (asked["filename"], asked["filesize"]) == ([file.name], [str(len(CONTENT))])
    assert (put.method, put.body) == ("PUT", CONTENT)
    assert not {"content-type", "x-api-key"} & {name.lower() for name in put.headers}
    rows = {row.name: row for row in OPERATIONS}
    for name, sent in zip(CALLS, calls, strict=True):
        assert sent.method == rows[name].method
        assert set(json.loads(sent.body)) == set(rows[name].fields)
    assert json.loads(calls[1].body) == {"bpmnXml": BPMN}


def test_every_function_of_the_javascript_library_works(sandbox: SandboxServer, file: Path) -> None:
    node = require_tool("node", "the Debian package nodejs")
    told = [json.loads(line) for line in run([node, str(SCRIPTS / "library.mjs")], sandbox, file).splitlines()]
    assert {one["name"] for one in told} == {row.name for row in OPERATIONS} | {"uploadFile", "uploadBpmnFile"}
    assert arrived(sandbox, file)
    last = {one["name"]: one["answer"] for one in told}
    assert last["getDatatable"]["rowCount"] == 2
    assert last["getProcess"]["designerModelId"]
    assert [one["color"] for one in last["getProcessMappings"]] == [{"id": "data-2"}]
    assert [one["email"] for one in last["getTenantUsers"]] == ["ada@example.com", "bob@example.com"]
    assert [one["displayName"] for one in last["getOrganizationTenants"]] == ["Renamed", "Acme Europe"]
    assert all(one["answer"] == {"success": True} for one in told if one["name"].startswith(("delete", "remove")))
