"""Programs that make the requests of ProcessMind's published examples, with the same fields, work on the sandbox."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmwatch.sandbox import SandboxServer
from processmind.operations import OPERATIONS
from support.services import require_tool

SCRIPTS = Path(__file__).parent / "vendor"
BPMN = '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL" targetNamespace="x"/>'
CONTENT = b"case,activity,timestamp\n1,order,2026-01-01\n2,order,2026-01-02\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Aufträge 2026 & more.csv"
    path.write_bytes(CONTENT)
    return path


def run(words: list[str], server: SandboxServer, file: Path) -> str:
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
    done = subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def arrived(server: SandboxServer, file: Path) -> bool:
    (record,) = server.objects()
    return record.filename == file.name and server.object_path(record).read_bytes() == CONTENT


def test_the_shell_example_uploads(sandbox: SandboxServer, file: Path) -> None:
    require_tool("curl", "the Debian package curl")
    run([require_tool("sh", "the Debian package dash"), str(SCRIPTS / "upload.sh"), str(file)], sandbox, file)
    assert arrived(sandbox, file)


def test_the_python_example_uploads(sandbox: SandboxServer, file: Path) -> None:
    assert run([sys.executable, str(SCRIPTS / "upload.py"), str(file)], sandbox, file) == "200\n"
    assert arrived(sandbox, file)


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
