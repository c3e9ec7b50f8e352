"""Every operation of the API: the client, the commands and the sandbox name the same ones, and each works."""

import doctest
import inspect
import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from pmwatch import Client
from pmwatch.cli import main
from pmwatch.cli.api import COMMANDS
from pmwatch.errors import (
    DestinationUnknown,
    KeyRejected,
    PmwatchError,
    Refused,
    Rejected,
    RemoteError,
    ServerFault,
    SourceChanged,
)
from pmwatch.processmind.models import Answer, Process
from pmwatch.sandbox import SandboxServer, TenantSeed
from pmwatch.sandbox.api import OPERATIONS as PLAYED
from processmind.operations import OPERATIONS, Row
from support.remotes import ScriptedServer, answer

BPMN = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL" targetNamespace="x"><process id="p"/>'
    "</definitions>"
)
FILES = {"upload_file": "uploadFile", "upload_bpmn_file": "uploadBpmnFile"}  # operations of more than one request
NAMES = [row.name for row in OPERATIONS]
METHODS = ("GET", "POST", "PUT", "DELETE")
REFERENCE = Path(__file__).parent / "reference.md"


def row_of(name: str) -> Row:
    return next(row for row in OPERATIONS if row.name == name)


# ---- the three places name the same ------------------------------------------------------------------------------


def test_the_sandbox_plays_every_operation_and_no_other() -> None:
    assert {(one.name, one.method, one.path) for one in PLAYED} == {
        (row.name, row.method, row.path) for row in OPERATIONS
    }


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.fields], ids=lambda row: row.name)
def test_the_sandbox_takes_the_fields_that_the_reference_names(row: Row) -> None:
    played = next(one for one in PLAYED if one.name == row.name)
    assert set(row.fields) <= set(played.body)


def test_the_client_has_a_method_for_every_operation_and_no_other() -> None:
    public = {
        name
        for name, value in inspect.getmembers(Client, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }
    assert public == {row.client for row in OPERATIONS} | FILES.keys()
    assert all(f"`{name}`" in (getattr(Client, method).__doc__ or "") for method, name in FILES.items())
    for row in OPERATIONS:
        assert f"`{row.name}`" in (getattr(Client, row.client).__doc__ or ""), "the docstring names the operation"


def test_there_is_a_command_for_every_operation_and_no_other() -> None:
    made = {f"{group} {verb}": method for group, verbs in COMMANDS.items() for verb, method in verbs.items()}
    assert made == {row.command: row.client for row in OPERATIONS}


def rows_of_the_reference() -> Iterator[tuple[str, str, str, str]]:
    """Yield the vendor's name, method, path and what is said of body or query, for every operation of the reference."""
    for line in REFERENCE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or not cells[0].startswith(METHODS):
            continue
        methods, first, *more = re.fullmatch(r"([A-Z, ]+) `([^`]+)`(?:, `([^`]+)`)?", cells[0]).groups()  # type: ignore[union-attr]
        paths = [path if path.startswith("/tenant/") else f"/tenant/{{t}}{path}" for path in (first, *more) if path]
        asked = [(method, path) for path in paths for method in methods.split(", ")]
        names = [name for name in cells[2].split(", ") if name not in FILES.values()]
        for name, (method, path) in zip(names, asked, strict=True):
            yield name, method, path, cells[1]


def test_the_table_is_the_vendor_s() -> None:
    def shape(path: str) -> str:
        return re.sub(r"\{\w+\}", "{}", path)

    reference = list(rows_of_the_reference())
    assert {(name, method, shape(path)) for name, method, path, _ in reference} == {
        (row.name, row.method, shape(row.path)) for row in OPERATIONS
    }
    assert len(reference) == len(OPERATIONS) == 33
    said = {name: body for name, _, _, body in reference}
    for row in OPERATIONS:
        unsaid = [field for field in row.fields if f"`{field}`" not in said[row.name]]
        assert not unsaid, (row.name, unsaid)
    for played in PLAYED:
        assert all(f"`{name}`" in said[played.name] for name in (*played.query, *played.body)), played.name
    assert set(FILES.values()) <= set(re.findall(r"\w+", REFERENCE.read_text()))


# ---- each works, over HTTP -----------------------------------------------------------------------------------------


@dataclass
class World:
    """A sandbox with one of everything in it."""

    server: SandboxServer
    client: Client
    tenant: str
    arguments: dict[str, tuple[list[Any], dict[str, Any]]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    seeds = [TenantSeed("acme", {"Sales": ("Orders",)}), TenantSeed("globex", {})]
    server = SandboxServer(tmp_path / "sandbox", tenants=seeds)
    server.start()
    tenant = server.tenants[0]
    id_, client = tenant["id"], Client(tenant["api_key"], base_url=server.base_url)
    dataset = tenant["datasets"][0]
    table = dataset["datatables"][0]["id"]
    process = client.create_process(id_, "Order to cash").id
    client.upload_bpmn(id_, process, BPMN)
    mapping = client.create_mapping(id_, process, table, display_name="Orders").id
    user = client.add_user(id_, "ann@example.com", first_name="Ann").id
    presign = {"dataset_id": dataset["id"], "filename": "a.csv", "size": 3, "mtime_ms": 5}
    arguments: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "updateTenant": ([], {"display_name": "Acme"}),
        "addTenantUser": (["bob@example.com"], {"first_name": "Bob", "admin": True, "send_invitation": False}),
        "updateTenantUser": ([user], {"developer": True}),
        "removeTenantUser": ([user], {}),
        "createProcess": (["Purchase to pay"], {"parent_id": None}),
        "getProcess": ([process], {}),
        "updateProcess": ([process], {"display_name": "O2C"}),
        "deleteProcess": ([process], {}),
        "uploadBpmn": ([process, BPMN], {}),
        "getProcessMappings": ([process], {}),
        "createProcessMapping": ([process, table], {"display_name": "More", "color": "data-8"}),
        "updateProcessMapping": ([process, mapping], {"display_name": "Less", "color": "data-2"}),
        "deleteProcessMapping": ([process, mapping], {}),
        "createDataset": (["New"], {"group": True}),
        "getDataset": ([dataset["id"]], {}),
        "deleteDataset": ([dataset["id"]], {}),
        "createDatatable": ([dataset["id"], "Items"], {}),
        "getDatatable": ([table], {}),
        "getPresignedUploadUrl": ([table], presign),
        "createOrganizationTenant": (["initech"], {"display_name": "Initech"}),
        "deleteOrganizationTenant": ([server.tenants[1]["id"]], {}),
        "updateOrganizationUser": ([user], {"admin": True}),
        "removeOrganizationUser": ([user], {}),
    }
    yield World(server, client, id_, arguments)
    client.close()
    server.stop()


@pytest.mark.parametrize("name", NAMES)
def test_the_operation_works_and_asks_as_the_reference_says(world: World, name: str) -> None:
    row = row_of(name)
    given, named = world.arguments.get(name, ([], {}))
    found = getattr(world.client, row.client)(world.tenant, *given, **named)
    asked = world.server.requests()[-1]
    assert asked.method == row.method
    assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", row.path), asked.path)
    assert 200 <= asked.status < 300
    assert isinstance(found, str | list | BaseModel)


EXAMPLES = {test.name: test for test in doctest.DocTestFinder().find(Client, "Client", globs={}) if test.examples}


@pytest.mark.parametrize(
    "name", ["Client", *(f"Client.{row.client}" for row in OPERATIONS), *map("Client.{}".format, FILES)]
)
def test_the_example_of_the_documentation_works(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders.csv").write_text("case,activity,timestamp\n")
    (tmp_path / "order-to-cash.bpmn").write_text(BPMN)
    monkeypatch.chdir(tmp_path)
    tenant = world.server.tenants[0]
    dataset, process = tenant["datasets"][0], world.client.processes(world.tenant)[0].id
    EXAMPLES[name].globs = {
        "Client": partial(Client, base_url=world.server.base_url),
        "client": world.client,
        "api_key": tenant["api_key"],
        "tenant_id": tenant["id"],
        "target_id": world.server.tenants[1]["id"],
        "dataset_id": dataset["id"],
        "datatable_id": dataset["datatables"][0]["id"],
        "process_id": process,
        "mapping_id": world.client.mappings(world.tenant, process)[0].id,
        "user_id": world.client.users(world.tenant)[0].id,
        "bpmn_xml": BPMN,
    }
    told = io.StringIO()
    assert doctest.DocTestRunner().run(EXAMPLES[name], out=told.write).failed == 0, told.getvalue()


def test_what_an_update_does_not_name_stays_as_it_is(world: World) -> None:
    client, tenant = world.client, world.tenant
    group, process = client.create_process(tenant, "Sales", group=True).id, client.processes(tenant)[0].id
    client.update_process(tenant, process, parent_id=group)
    renamed = client.update_process(tenant, process, display_name="O2C")
    assert (renamed.display_name, renamed.tree_parent_id) == ("O2C", group)
    assert client.update_process(tenant, process, parent_id="").tree_parent_id is None
    [mapping] = client.mappings(tenant, process)
    client.update_mapping(tenant, process, mapping.id, color="data-3", show_by_default=False)
    named = client.update_mapping(tenant, process, mapping.id, display_name="Less")
    assert named.color is not None
    assert (named.display_name, named.color.id, named.show_by_default) == ("Less", "data-3", False)
    [user] = client.users(tenant)
    client.update_user(tenant, user.id, admin=True, active=False)
    changed = client.update_user(tenant, user.id, developer=True)
    assert (changed.is_active_in_tenant, changed.is_admin_in_tenant, changed.is_developer_in_tenant) == (
        False,
        True,
        True,
    )
    client.update_organization_user(tenant, user.id, active=False)
    member = client.update_organization_user(tenant, user.id, admin=True)
    assert (member.is_active_in_organization, member.is_admin_in_organization) == (False, True)
    with pytest.raises(DestinationUnknown, match="there is no mapping 'none'"):
        client.update_mapping(tenant, process, "none", color="data-1")


def test_a_url_for_a_named_file_finds_the_dataset_by_itself(world: World) -> None:
    table = world.client.datatables(world.tenant)[0].id
    assert "/a.csv?" in world.client.presigned_upload_url(world.tenant, table, filename="a.csv", size=3)
    says_nothing = answer(200, b'{"id": "dt-2"}')
    datasets = answer(200, b'[{"id": "d1"}, {"id": "d2"}]')
    tables = [answer(200, b'{"id": "d", "datatables": [{"id": "dt-%d"}]}' % number) for number in (1, 2)]
    url = answer(200, b'{"PreSignedUploadUrl": "https://s3.amazonaws.com/x"}')
    with ScriptedServer(says_nothing, datasets, *tables, url) as server, Client("k", base_url=server.url) as client:
        client.presigned_upload_url("t", "dt-2", filename="a.csv", size=3)
        assert "datasetid=d2&" in server.requests[-1].target
        server.script(says_nothing, answer(200, b"[]"))
        with pytest.raises(DestinationUnknown, match="no dataset of the tenant has"):
            client.presigned_upload_url("t", "dt-2", filename="a.csv", size=3)


def test_what_was_changed_is_what_is_read_again(world: World) -> None:
    client, tenant = world.client, world.tenant
    client.update_tenant(tenant, display_name="Acme & Söhne")
    assert client.tenant(tenant).display_name == "Acme & Söhne"
    [user] = client.users(tenant)
    client.update_user(tenant, user.id, admin=True, active=False)
    [changed] = client.users(tenant)
    assert (changed.is_admin_in_tenant, changed.is_active_in_tenant) == (True, False)
    assert [one.email for one in client.organization_users(tenant)] == ["ann@example.com"]
    [process] = client.processes(tenant)
    assert process.designer_model_id
    [mapping] = client.mappings(tenant, process.id)
    client.update_mapping(tenant, process.id, mapping.id, display_name="x", color="data-5", show_by_default=False)
    [mapping] = client.mappings(tenant, process.id)
    assert mapping.color is not None
    assert (mapping.display_name, mapping.color.id, mapping.show_by_default) == ("x", "data-5", False)
    client.remove_organization_user(tenant, user.id)
    assert client.users(tenant) == []
    created = client.create_organization_tenant(tenant, "initech", display_name="Initech")
    assert created.id in {one.id for one in client.organization_tenants(tenant)}
    client.delete_organization_tenant(tenant, created.id)
    assert created.id not in {one.id for one in client.organization_tenants(tenant)}
    client.delete_process(tenant, process.id)
    assert client.processes(tenant) == []
    assert client.tenant_statistics(tenant).model_dump()["processCount"] == 0


def test_a_user_s_id_is_sent_only_where_one_is_chosen(world: World) -> None:
    assert world.client.add_user(world.tenant, "eve@example.com", user_id="u-17").id == "u-17"
    with ScriptedServer(answer(201)) as server, Client("k", base_url=server.url) as client:
        assert client.add_user("t", "eve@example.com").id == ""  # it is the service's choice what to answer
        [asked] = server.requests
    assert "id" not in json.loads(asked.body)


def test_what_the_service_would_refuse_is_refused_with_its_message(world: World) -> None:
    client, tenant = world.client, world.tenant
    table = client.datatables(tenant)[0].id
    bare = client.create_process(tenant, "bare").id
    group = client.create_process(tenant, "group", group=True).id
    user = client.users(tenant)[0]
    [ready, *_] = client.processes(tenant)
    refused: list[Callable[[], object]] = [
        lambda: client.create_mapping(tenant, bare, table, display_name="x"),
        lambda: client.create_mapping(tenant, ready.id, table, display_name="x", color="data-9"),
        lambda: client.create_mapping(tenant, ready.id, "no-table", display_name="x"),
        lambda: client.upload_bpmn(tenant, bare, "<html/>"),
        lambda: client.upload_bpmn(tenant, bare, "not XML"),
        lambda: client.upload_bpmn(tenant, bare, '<!DOCTYPE a [<!ENTITY b "c">]>' + BPMN.partition("?>")[2]),
        lambda: client.upload_bpmn(tenant, group, BPMN),
        lambda: client.create_process(tenant, "  "),
        lambda: client.add_user(tenant, "nobody"),
        lambda: client.add_user(tenant, user.email),
        lambda: client.delete_organization_tenant(tenant, tenant),
    ]
    for attempt in refused:
        with pytest.raises(Rejected) as caught:
            attempt()
        assert caught.value.message.count(": ") >= 1, "it says why"
        assert caught.value.hint
    for missing in (
        lambda: client.process(tenant, "none"),
        lambda: client.update_mapping(tenant, bare, "none", display_name="x"),
        lambda: client.update_user(tenant, "none"),
    ):
        with pytest.raises(DestinationUnknown):
            missing()
    with pytest.raises(KeyRejected):
        client.users(world.server.tenants[1]["id"])


def test_an_older_form_of_asking_for_a_url_works_as_well(world: World) -> None:
    table = world.client.datatables(world.tenant)[0].id
    for of_a_file in ({"size": 7}, {"mtime_ms": 1}, {"dataset_id": "d"}):
        with pytest.raises(ValueError, match="name it with `filename`"):
            world.client.presigned_upload_url(world.tenant, table, **of_a_file)
    with pytest.raises(ValueError, match="`filename` needs `size`"):
        world.client.presigned_upload_url(world.tenant, table, filename="a.csv")
    url = world.client.presigned_upload_url(world.tenant, table)
    assert httpx.put(url, content=b"case,activity\n").status_code == 200


@pytest.mark.parametrize("id_", ["a/b", "..", ".", "a?b#c", "%2e%2e/x", "ä b"])
def test_an_id_never_changes_the_path(id_: str) -> None:
    with ScriptedServer(answer(200, b'{"id": "x"}')) as server, Client("k", base_url=server.url) as client:
        client.delete_mapping("t", id_, id_)
        [asked] = server.requests
    assert re.fullmatch(r"/tenant/t/processes/[^/?#]+/mappings/[^/?#]+", asked.target)
    assert "/../" not in asked.target


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(10**400), float("inf"), float("nan"), "\ud800"])
    | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.sampled_from(["id", "rowCount", "message", "data"]), below),
    max_leaves=20,
)


@given(
    said=JSON, cut=st.floats(0, 1), status=st.sampled_from([200, 200, 200, 404, 500]), row=st.sampled_from(OPERATIONS)
)
def test_no_answer_whatever_is_more_than_one_clear_error(said: Any, cut: float, status: int, row: Row) -> None:
    whole = json.dumps(said).encode()
    needed = inspect.signature(getattr(Client, row.client)).parameters.values()
    words = [one.name for one in needed if one.default is one.empty and one.name not in ("self", "tenant_id")]
    with (
        ScriptedServer(answer(status, whole[: round(cut * len(whole))])) as server,
        Client("k", base_url=server.url, retries=False) as client,
    ):
        try:
            answered = getattr(client, row.client)("t", **dict.fromkeys(words, "x"))
        except RemoteError as error:
            answered = error.message
    assert answered or isinstance(answered, list)
    assert isinstance(answered, str | list | BaseModel)


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(10).randbytes(10_000_000),
        b"[" * 10_000_000,
        b'{"a":' * 2_000_000,
        b"9" * 10_000_000,
        b"[" + b"{}," * 3_000_000 + b"{}]",
    ],
    ids=["bytes", "lists", "objects", "number", "many"],
)
@pytest.mark.parametrize("status", [200, 500])
def test_ten_megabytes_of_garbage_are_one_clear_error(garbage: bytes, status: int) -> None:
    with (
        ScriptedServer(answer(status, garbage)) as server,
        Client("k", base_url=server.url, retries=False) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.processes("t")
    assert len(caught.value.message) < 1000


def test_an_empty_id_is_no_id() -> None:
    with ScriptedServer() as server, Client("k", base_url=server.url) as client:
        for ask in (
            lambda: client.delete_dataset("t", ""),
            lambda: client.processes(""),
            lambda: client.remove_user("t", ""),
            lambda: client.add_user("t", "eve@example.com", user_id=""),
            lambda: client.create_mapping("t", "p", "", display_name="x"),
        ):
            with pytest.raises(DestinationUnknown, match="an id is empty") as caught:
                ask()
            assert caught.value.hint
        assert server.requests == []


def test_reading_is_tried_again_and_writing_never_is() -> None:
    naps: list[float] = []
    server = ScriptedServer(answer(503), answer(500), answer(200, b"[]"))
    with server, Client("k", base_url=server.url, sleep=naps.append) as client:
        assert client.processes("t") == []
        assert len(server.requests) == 3
        assert len(naps) == 2
        server.script(answer(503))
        with pytest.raises(PmwatchError):
            client.create_process("t", "x")
        assert len(server.requests) == 4
        server.script(answer(429, headers={"Retry-After": "3000"}))
        with pytest.raises(PmwatchError):
            client.processes("t")
        assert len(naps) == 2, "nobody waits that long for an answer"


@pytest.mark.parametrize("said", [b"", b"null", b'"OK"', b"{}", b"OK", b"[]", b'{"message": "done"}'])
def test_what_was_written_is_written_however_little_the_answer_says(said: bytes) -> None:
    with ScriptedServer(answer(200, said)) as server, Client("k", base_url=server.url) as client:
        assert client.delete_process("t", "p").success
        assert client.update_process("t", "p", display_name="x", parent_id="").id == ""
        assert client.update_tenant("t", display_name="x").id == ""


def test_a_path_with_a_slash_too_many_is_another_path(world: World) -> None:
    key = {"x-api-key": world.server.tenants[0]["api_key"]}
    assert httpx.get(f"{world.server.base_url}/tenant/{world.tenant}/", headers=key).status_code == 404


def test_new_fields_of_the_service_are_kept() -> None:
    assert Process.model_validate({"id": "p", "somethingNew": {"deep": [1]}}).model_dump()["somethingNew"] == {
        "deep": [1]
    }
    assert all(one.model_config["extra"] == "allow" for one in Answer.__subclasses__())


# ---- the commands ------------------------------------------------------------------------------------------------


def pmwatch_api(world: World, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    key = world.server.tenants[0]["api_key"]
    env = {**os.environ, "PMWATCH_API_KEY": key, "PMWATCH_API_BASE_URL": world.server.base_url}
    line = [sys.executable, "-m", "pmwatch", "api", *words, "--tenant", world.tenant]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env, input=stdin)


def words_of(given: list[Any], named: dict[str, Any]) -> list[str]:
    """Return the arguments of a method as those of its command."""
    words = [str(one) for one in given]
    for name, value in named.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_the_operation_works(
    world: World, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_of(name)
    given, named = world.arguments.get(name, ([], {}))
    (tmp_path / "model.bpmn").write_text(BPMN)
    words = words_of([str(tmp_path / "model.bpmn") if one == BPMN else one for one in given], named)
    words += ["--yes"] if row.method == "DELETE" else []
    monkeypatch.setenv("PMWATCH_API_KEY", world.server.tenants[0]["api_key"])
    monkeypatch.setenv("PMWATCH_API_BASE_URL", world.server.base_url)
    monkeypatch.setattr(
        "sys.argv", ["pmwatch", "api", *row.command.split(), *words, "--json", "--tenant", world.tenant]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    assert isinstance(json.loads(told.out), list | dict | str)
    asked = world.server.requests()[-1]
    assert (asked.method, asked.status // 100) == (row.method, 2)
    assert re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", row.path), asked.path)


def test_commands_read_write_ask_before_deleting_and_show_what_they_would_send(world: World, tmp_path: Path) -> None:
    created = pmwatch_api(world, "process", "create", "Claims", "--json")
    assert created.returncode == 0, created.stderr
    process = json.loads(created.stdout)["id"]
    model = tmp_path / "claims.bpmn"
    model.write_text(BPMN)
    assert "success: true" in pmwatch_api(world, "process", "upload-bpmn", process, str(model)).stdout
    assert "success: true" in pmwatch_api(world, "process", "upload-bpmn", process, "-", stdin=BPMN).stdout
    listed = pmwatch_api(world, "process", "list").stdout
    assert "Claims" in listed
    assert "Order to cash" in listed
    dry = json.loads(pmwatch_api(world, "process", "delete", process, "--dry-run").stdout)
    assert dry == {"method": "DELETE", "path": f"/tenant/{world.tenant}/processes/{process}", "query": {}, "body": None}
    asked = pmwatch_api(world, "process", "delete", process)
    assert asked.returncode == 1
    assert process in asked.stderr
    assert len(world.client.processes(world.tenant)) == 2
    assert pmwatch_api(world, "process", "delete", process, "--yes").returncode == 0
    assert len(world.client.processes(world.tenant)) == 1
    dry = json.loads(pmwatch_api(world, "process", "delete", "../x", "--dry-run").stdout)
    assert dry["path"] == f"/tenant/{world.tenant}/processes/..%2Fx", "as it would be sent"
    wrong = pmwatch_api(world, "process", "get", "none")
    assert wrong.returncode == 1
    assert "Process not found" in wrong.stderr
    assert "hint:" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_commands_take_tenant_and_key_from_the_configuration(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    keys = [
        f'[[tenants]]\nname = "{one["name"]}"\nid = "{one["id"]}"\napi_key = "{one["api_key"]}"\n'
        for one in world.server.tenants
    ]
    folder = f'[[folders]]\nname = "f"\npath = "{tmp_path}/drop"\ntenant = "acme"\ndatatable = "x"\n'
    config.write_text(f'[api]\nbase_url = "{world.server.base_url}"\n' + "".join(keys) + folder)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pmwatch", "api", *words, "--config", str(config)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    assert "Sales" in run("dataset", "list", "--tenant", "acme").stdout
    assert run("dataset", "list", "--tenant", "globex").stdout == "none\n"
    several = run("dataset", "list")
    assert several.returncode == 1
    assert "acme, globex" in several.stderr
    assert run("dataset", "list", "--tenant", "nobody").returncode == 1
    monkeypatch.setenv("PMWATCH_API_KEY", "of somebody else")
    monkeypatch.setenv("PMWATCH_API_BASE_URL", world.server.base_url)
    assert "Sales" in run("dataset", "list", "--tenant", "acme").stdout, "a configuration that is named comes first"
    assert "answered 401" in run("dataset", "list", "--tenant", world.tenant + "x").stderr
    config.unlink()
    assert run("dataset", "list", "--tenant", "acme").returncode == 78


# ---- the sandbox's own description -------------------------------------------------------------------------------


def test_the_openapi_document_describes_every_operation_its_parameters_and_bodies(world: World) -> None:
    document = httpx.get(f"{world.server.base_url}/sandbox/openapi.json").json()
    described = {
        (one["operationId"], method.upper(), path)
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }
    assert described == {(row.name, row.method, row.path) for row in OPERATIONS}
    for row in OPERATIONS:
        one = document["paths"][row.path][row.method.lower()]
        in_path = [parameter["name"] for parameter in one["parameters"] if parameter["in"] == "path"]
        assert in_path == re.findall(r"\{(\w+)\}", row.path)
        if row.fields:
            assert set(row.fields) <= set(one["requestBody"]["content"]["application/json"]["schema"]["properties"])
    assert document["components"]["securitySchemes"]["key"]["name"] == "x-api-key"


WRONG: list[Any] = [
    None,
    0,
    True,
    "",
    " ",
    [],
    {},
    {"id": None},
    {"id": "data-9"},
    "x" * 10_000,
    "\u0000\ud7ff",
    "\ud800",
    -1.5,
]


@pytest.mark.parametrize("name", [row.name for row in OPERATIONS if row.fields])
def test_no_body_whatever_makes_the_sandbox_fail_or_answer_what_it_does_not_describe(world: World, name: str) -> None:
    row = row_of(name)
    document = httpx.get(f"{world.server.base_url}/sandbox/openapi.json").json()
    statuses = {int(status) for status in document["paths"][row.path][row.method.lower()]["responses"]}
    ids = {"tenant": world.tenant, "process": "p", "mapping": "m", "dataset": "d", "datatable": "t", "target": "x"}
    key = {"x-api-key": world.server.tenants[0]["api_key"]}
    with httpx.Client(base_url=world.server.base_url, headers=key) as http:
        path = row.path.format(**ids)
        bodies: list[Any] = [{field: value} for field in row.fields for value in WRONG]
        bodies += [dict.fromkeys(row.fields, value) for value in WRONG] + WRONG
        for body in bodies:
            raw = json.dumps(body).encode()  # half a surrogate pair as its escape
            assert http.request(row.method, path, content=raw).status_code in statuses, body
        for raw in (b"", b"{", b"\xff", b"[" * 5000, b'{"displayName": 1e999}'):
            assert http.request(row.method, path, content=raw).status_code in statuses, raw


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[tuple[SandboxServer, Client]]:
    with (
        SandboxServer(tmp_path / "sandbox") as server,
        Client(server.tenants[0]["api_key"], base_url=server.base_url) as client,
    ):
        yield server, client


@pytest.mark.parametrize("size", [0, 5, 3_000_000])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_goes_byte_for_byte(
    at_home: tuple[SandboxServer, Client], tmp_path: Path, size: int, *, named: bool
) -> None:
    server, client = at_home
    tenant = server.tenants[0]
    dataset = tenant["datasets"][0]
    path = tmp_path / "Größe & more.csv"
    path.write_bytes(os.urandom(size))
    receipt = client.upload_file(
        tenant["id"], dataset["datatables"][0]["id"], path, dataset_id=dataset["id"] if named else ""
    )
    (record,) = server.objects()
    assert (record.filename, server.object_path(record).read_bytes()) == (path.name, path.read_bytes())
    assert receipt.md5 == record.etag


def test_a_file_that_changes_meanwhile_or_goes_to_another_host_is_not_confirmed(
    at_home: tuple[SandboxServer, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = at_home
    tenant = server.tenants[0]
    table = tenant["datasets"][0]["datatables"][0]["id"]
    path = tmp_path / "a.csv"
    path.write_bytes(b"id\n1\n")
    presign = client.presigned_upload_url

    def changing(*given: Any, **more: Any) -> str:
        path.write_bytes(b"id\n2\n")
        os.utime(path, ns=(1, 1))
        return presign(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(client, "presigned_upload_url", changing)
        with pytest.raises(SourceChanged):
            client.upload_file(tenant["id"], table, path)
        patch.setattr(client, "presigned_upload_url", lambda *_, **__: "https://elsewhere.example/x?y")
        with pytest.raises(ServerFault, match="not an allowed upload host"):
            client.upload_file(tenant["id"], table, path)
    assert server.objects() == []


def test_a_model_s_file_is_decoded_and_checked(at_home: tuple[SandboxServer, Client], tmp_path: Path) -> None:
    server, client = at_home
    tenant = server.tenants[0]["id"]
    process = client.create_process(tenant, "Claims").id
    path = tmp_path / "claims.bpmn"
    path.write_bytes(BPMN.replace("UTF-8", "UTF-16").encode("utf-16"))
    assert client.upload_bpmn_file(tenant, process, path).success
    assert [one["bpmn"] for _, one in server.sandbox.models()] == [BPMN]
    path.write_text("<html/>")
    with pytest.raises(Refused, match=r"no BPMN 2\.0 model"):
        client.upload_bpmn_file(tenant, process, path)
