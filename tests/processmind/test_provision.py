"""`pmwatch apply`: what a plan names and the tenant lacks is created, once; nothing is deleted unless asked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmwatch import Client
from pmwatch.errors import DestinationUnknown, PlanError
from pmwatch.provision import Provisioner, load_plan
from pmwatch.sandbox import Fault, SandboxServer, TenantSeed

PLAN = """
[[datasets]]
name = "Sales"
datatables = ["Orders", "Items"]
[[datasets]]
name = "Purchasing"
datatables = ["Orders"]
[[processes]]
name = "Order to cash"
bpmn = "o2c.bpmn"
[[processes.mappings]]
name = "Orders"
datatable = "Sales/Orders"
color = "data-3"
[[processes.mappings]]
name = "Bought"
datatable = "Purchasing/Orders"
show_by_default = false
[[users]]
email = "ann@example.com"
admin = true
"""
BPMN = '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"/>'
ALL = [
    "+ datatable 'Sales/Items'",
    "+ dataset 'Purchasing'",
    "+ datatable 'Purchasing/Orders'",
    "+ process 'Order to cash'",
    "+ BPMN model of 'Order to cash'",
    "+ mapping 'Orders' of 'Order to cash'",
    "+ mapping 'Bought' of 'Order to cash'",
    "+ user ann@example.com",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SandboxServer]:
    server = SandboxServer(tmp_path / "sandbox", tenants=[TenantSeed("acme", {"Sales": ("Orders",)})])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "o2c.bpmn").write_text(BPMN)
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def apply(server: SandboxServer, plan: Path, *words: str) -> subprocess.CompletedProcess[str]:
    tenant = server.tenants[0]
    env = {**os.environ, "PMWATCH_API_KEY": tenant["api_key"], "PMWATCH_API_BASE_URL": server.base_url}
    line = [sys.executable, "-m", "pmwatch", "apply", str(plan), "--tenant", tenant["id"], *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env, input="")


def test_a_plan_is_shown_done_and_found_done(server: SandboxServer, plan: Path) -> None:
    shown = apply(server, plan, "--dry-run")
    assert (shown.returncode, shown.stdout.splitlines()) == (0, ALL)
    unanswered = apply(server, plan)
    assert unanswered.returncode == 1
    assert "Do these 8 steps?" in unanswered.stderr
    assert apply(server, plan, "--json").returncode == 2, "who asks for JSON is not asked, and has to say so"
    assert {request.method for request in server.requests()} == {"GET"}, "nothing was changed"
    done = apply(server, plan, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8 of 8 done"
    again = apply(server, plan, "--yes")
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")
    tenant = server.tenants[0]
    with Client(tenant["api_key"], base_url=server.base_url) as client:
        [process] = client.processes(tenant["id"])
        tables = {table.id: table.display_name for table in client.datatables(tenant["id"])}
        mappings = {one.display_name: one for one in client.mappings(tenant["id"], process.id)}
        assert {name: tables[one.data_table_id] for name, one in mappings.items()} == {
            "Orders": "Orders",
            "Bought": "Orders",
        }
        assert mappings["Orders"].data_table_id != mappings["Bought"].data_table_id
        assert mappings["Bought"].show_by_default is False


def test_what_differs_is_changed_and_only_prune_deletes(server: SandboxServer, plan: Path) -> None:
    assert apply(server, plan, "--yes").returncode == 0
    tenant = server.tenants[0]
    with Client(tenant["api_key"], base_url=server.base_url) as client:
        [process] = client.processes(tenant["id"])
        [user] = client.users(tenant["id"])
        client.update_user(tenant["id"], user.id, admin=False)
        client.add_user(tenant["id"], "bob@example.com")
        client.create_process(tenant["id"], "Another")
        table = next(one.id for one in client.datatables(tenant["id"]) if one.display_name == "Items")
        bought = next(one for one in client.mappings(tenant["id"], process.id) if one.display_name == "Bought")
        client.delete_mapping(tenant["id"], process.id, bought.id)
        client.create_mapping(tenant["id"], process.id, table, display_name="Bought")
        client.create_mapping(tenant["id"], process.id, table, display_name="More")
        orders = next(one for one in client.mappings(tenant["id"], process.id) if one.display_name == "Orders")
        client.update_mapping(tenant["id"], process.id, orders.id, display_name="Orders", color="data-8")
    changed = apply(server, plan, "--yes", "--json", "--update-models")
    assert [(one["sign"], one["what"], one["done"]) for one in json.loads(changed.stdout)["steps"]] == [
        ("~", "BPMN model of 'Order to cash'", True),
        ("~", "mapping 'Orders' of 'Order to cash'", True),
        ("~", "mapping 'Bought' of 'Order to cash'", True),
        ("~", "user ann@example.com", True),
    ]
    plan.write_text(plan.read_text().replace("ann@example.com", "Ann@Example.com"))
    assert apply(server, plan, "--yes").stdout == "nothing to do\n"
    pruned = apply(server, plan, "--prune", "--yes")
    assert pruned.stdout.splitlines()[:-1] == [
        "- mapping 'More' of 'Order to cash'",
        "- process 'Another'",
        "- user bob@example.com",
    ]
    assert apply(server, plan, "--prune", "--yes").stdout == "nothing to do\n"


def test_what_breaks_off_in_the_middle_is_told_and_goes_on_the_next_time(server: SandboxServer, plan: Path) -> None:
    server.faults.add(Fault(method="POST", status=503, path_contains="mappings", times=1))
    broken = apply(server, plan, "--yes")
    assert broken.returncode == 1
    assert "5 of 8 done" in broken.stdout
    assert "503" in broken.stderr
    assert apply(server, plan, "--yes").stdout.splitlines()[-1] == "3 of 3 done"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[datasets]]\nname = 1", "datasets[1]: name: 1: input should be a valid string"),
        ("[[dataset]]\nname = 'x'", 'dataset: unknown key; did you mean "datasets"?'),
        ("[[datasets]]\nname = 'x'\n[[datasets]]\nname = 'x'", "'x' is there twice"),
        ("[[users]]\nemail = 'a@x'\n[[users]]\nemail = 'A@x'", "'a@x' is there twice"),
        ("[[processes]]\nname = 'x'\nbpmn = 'none.bpmn'", "there is no file of that name"),
        ("[[processes]]\nname = 'x'\n[[processes.mappings]]\nname = 'm'\ndatatable = 'a/b'", "need a BPMN model"),
        (
            "[[processes]]\nname = 'x'\n[[processes.mappings]]\nname = 'm'\ndatatable = 'b'\ncolor = 'red'",
            "process 'x': mapping 'm': color: 'red': write one of data-1 to data-8",
        ),
        (
            "[[users]]\nemail = 'a@x'\nfist_name = 'A'",
            "user 'a@x': fist_name: unknown key; did you mean \"first_name\"?",
        ),
        ("[[users]]\nfirst_name = 'A'", "users[1]: email: missing; it is required"),
        ("[users]\nemail = 'a@x'", "users: write one [[users]] table for each"),
        ("[[processes]]\nname = 'x'\nbpmn = 'plan.toml'", "bpmn 'plan.toml': line 1: it is not well-formed"),
        ("not TOML", "not valid TOML"),
    ],
)
def test_a_wrong_plan_is_refused_before_anybody_is_asked(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_plan(str(path))
    assert said in "\n".join(caught.value.problems)


def test_a_group_of_datasets_is_never_pruned(server: SandboxServer, plan: Path) -> None:
    tenant = server.tenants[0]
    with Client(tenant["api_key"], base_url=server.base_url) as client:
        client.create_dataset(tenant["id"], "Finance", group=True)
    assert "Finance" not in apply(server, plan, "--prune", "--dry-run").stdout


def test_a_mapping_to_a_datatable_that_neither_plan_nor_tenant_has_is_refused(
    server: SandboxServer, plan: Path
) -> None:
    plan.write_text(PLAN.replace("Purchasing/Orders", "Purchasing/Ordres"))
    tenant = server.tenants[0]
    with (
        Client(tenant["api_key"], base_url=server.base_url) as client,
        pytest.raises(DestinationUnknown, match="Ordres"),
    ):
        Provisioner(client, tenant["id"], load_plan(str(plan)), read_model=str).steps()
