"""The sandbox keeps to its own OpenAPI document, whatever is thrown at it: schemathesis makes the requests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pmwatch import Client
from pmwatch.sandbox import SandboxServer, TenantSeed
from pmwatch.sandbox.api import OPERATIONS
from pmwatch.sandbox.shapes import ANSWERS

KEY = "key-of-the-sandbox"
KEYS = st.sampled_from([*[KEY] * 16, "wrong", None])
SCALE = int(os.environ.get("PMWATCH_TEST_SCALE", "1"))
POSITIVE = schemathesis.GenerationMode.POSITIVE
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODEL = '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"/>'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SandboxServer]:
    with SandboxServer(tmp_path / "state", tenants=[TenantSeed("demo", api_key=KEY), TenantSeed("other")]) as running:
        yield running


def document_of(server: SandboxServer) -> dict[str, Any]:
    found = httpx.get(f"{server.base_url}/sandbox/openapi.json", trust_env=False).json()
    assert isinstance(found, dict)
    return found


def ids_of(server: SandboxServer) -> dict[str, str]:
    """Make one of everything, so that calls get further than 404; return the ids by the paths' names."""
    tenant = server.tenants[0]
    table = tenant["datasets"][0]["datatables"][0]["id"]
    with Client(KEY, base_url=server.base_url) as client:
        process = client.create_process(tenant["id"], "Claims").id
        client.upload_bpmn(tenant["id"], process, MODEL)
        mapping = client.create_mapping(tenant["id"], process, table, display_name="Claims").id
        user = client.add_user(tenant["id"], "ann@example.com").id
        target = client.create_organization_tenant(tenant["id"], short_name="eu", display_name="Europe").id
    return {
        "tenant": tenant["id"],
        "dataset": tenant["datasets"][0]["id"],
        "datatable": table,
        "process": process,
        "mapping": mapping,
        "target": target,
        "userId": user,
        "tenantId": tenant["id"],
        "dataTableId": table,
    }


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=str)
@pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
def test_no_answer_is_undocumented(name: str, mode: schemathesis.GenerationMode, server: SandboxServer) -> None:
    ids = ids_of(server)
    other = [server.tenants[1]["id"], "none", "ä%2f..", " "]
    paths = st.fixed_dictionaries({key: st.sampled_from([*[id_] * 24, *other]) for key, id_ in ids.items()})
    operation = schemathesis.openapi.from_dict(document_of(server)).find_operation_by_id(name)

    @settings(
        max_examples=20 * SCALE,
        derandomize=SCALE == 1,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), drawn=paths, key=KEYS)
    def ask(case: Any, drawn: dict[str, str], key: str | None) -> None:
        case.path_parameters = {one: drawn[one] for one in case.path_parameters}
        if mode is POSITIVE and isinstance(case.body, dict):
            case.body.update({one: ids[one] for one in case.body if one in ids})
        response = case.call(base_url=server.base_url, headers={} if key is None else {"x-api-key": key})
        case.validate_response(response, checks=CHECKS)

    ask()


def test_the_document_names_every_operation_with_its_answers(server: SandboxServer) -> None:
    document = document_of(server)
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    names = {one["operationId"] for one in operations}
    assert names == {one.name for one in OPERATIONS} == ANSWERS.keys()
    for one in operations:
        assert one["summary"]
        assert {"401", "403", "404"} <= one["responses"].keys()
    assert document["components"]["securitySchemes"]["key"]["name"] == "x-api-key"
