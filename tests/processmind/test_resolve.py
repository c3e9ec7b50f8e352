"""From names to ids: against the sandbox, and against answers that the reference leaves open."""

import json
from pathlib import Path
from typing import Any

import pytest

from pmwatch import Client
from pmwatch.errors import DestinationUnknown
from pmwatch.model import Destination, Target
from pmwatch.processmind import resolve
from pmwatch.sandbox import SandboxServer, TenantSeed
from support.remotes import ScriptedServer, answer

DATASETS = {"Order to cash": ("Orders", "Invoices"), "Purchasing": ("Orders", "Größe"), "Empty": ()}


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with SandboxServer(tmp_path / "sandbox", tenants=[TenantSeed("acme", DATASETS)]) as running:
        yield running


def resolved(server: SandboxServer, datatable: str, dataset: str = "") -> Destination:
    tenant = server.tenants[0]
    with Client(tenant["api_key"], base_url=server.base_url) as client:
        return resolve(client, tenant["id"], Target("acme", datatable, dataset))


def ids(server: SandboxServer, dataset: str, table: str) -> Destination:
    tenant = server.tenants[0]
    found = next(one for one in tenant["datasets"] if one["name"] == dataset)
    return Destination(
        tenant["id"], found["id"], next(one["id"] for one in found["datatables"] if one["name"] == table)
    )


def test_by_every_kind_of_name(server: SandboxServer) -> None:
    orders = ids(server, "Order to cash", "Orders")
    for datatable, dataset in [
        (orders.datatable_id, ""),
        (orders.datatable_id, orders.dataset_id),
        (orders.datatable_id, "Order to cash"),
        ("Order to cash/Orders", ""),
        (f"{orders.dataset_id}/Orders", ""),
        ("Orders", "Order to cash"),
        ("Orders", orders.dataset_id),
    ]:
        assert resolved(server, datatable, dataset) == orders
    assert resolved(server, "Invoices") == ids(server, "Order to cash", "Invoices")
    assert resolved(server, "Purchasing/Größe") == ids(server, "Purchasing", "Größe")


def test_a_name_that_is_not_unique_lists_the_choices(server: SandboxServer) -> None:
    with pytest.raises(DestinationUnknown) as caught:
        resolved(server, "Orders")
    for dataset in ("Order to cash", "Purchasing"):
        assert ids(server, dataset, "Orders").datatable_id in caught.value.message
    assert "id" in caught.value.hint
    assert not caught.value.of_file


def test_an_unknown_name_suggests_the_nearest(server: SandboxServer) -> None:
    with pytest.raises(DestinationUnknown) as caught:
        resolved(server, "Order to cash/Order")
    assert "Order to cash/Orders" in caught.value.hint
    with pytest.raises(DestinationUnknown):
        resolved(server, "Empty/Orders")
    with pytest.raises(DestinationUnknown):
        resolved(server, "Orders", "Empty")


def test_a_tenant_without_tables(tmp_path: Path) -> None:
    empty = SandboxServer(tmp_path / "sandbox", tenants=[TenantSeed("acme", {})])
    with empty as server, pytest.raises(DestinationUnknown) as caught:
        resolved(server, "Orders")
    assert "no datatables" in caught.value.hint


def test_names_are_not_patterns(server: SandboxServer) -> None:
    for name in ("", "/", "orders", "*", "../Orders"):
        with pytest.raises(DestinationUnknown):
            resolved(server, name)


# The reference does not show whether the list of all tables names their dataset, nor whether the list of
# datasets holds their tables: both must work without.


def scripted(*documents: object) -> ScriptedServer:
    return ScriptedServer(*(answer(200, json.dumps(document).encode()) for document in documents))


def asked(server: ScriptedServer, target: Target) -> Destination:
    with Client("k", base_url=server.url) as client:
        return resolve(client, "t", target)


TABLES = [{"id": "dt-1", "displayName": "Orders"}]
LISTED = [{"id": "ds-1", "displayName": "Sales"}]
WHOLE = {"id": "ds-1", "displayName": "Sales", "datatables": TABLES}


@pytest.mark.parametrize("dataset", ["", "Sales", "ds-1", "renamed since"])
def test_a_table_id_whose_dataset_the_list_does_not_say(dataset: str) -> None:
    # The dataset's name must never be sent where the API wants its id.
    with scripted(TABLES, LISTED, WHOLE) as server:
        assert asked(server, Target("acme", "dt-1", dataset)) == Destination("t", "ds-1", "dt-1")


def test_datasets_that_bring_their_tables_are_not_asked_for_again() -> None:
    with scripted(TABLES, [WHOLE]) as server:
        assert asked(server, Target("acme", "Sales/Orders")) == Destination("t", "ds-1", "dt-1")
        assert len(server.requests) == 2


@pytest.mark.parametrize("spelling", ["datasetId", "dataSetId"])
def test_both_spellings_of_the_datasets_id(spelling: str) -> None:
    with scripted([{**TABLES[0], spelling: "ds-9"}]) as server:
        assert asked(server, Target("acme", "dt-1")) == Destination("t", "ds-9", "dt-1")


def test_an_id_wins_over_an_equal_name() -> None:
    tables = [{"id": "dt-1", "displayName": "dt-2"}, {"id": "dt-2", "displayName": "other"}]
    with scripted(tables, [{"id": "ds-1", "displayName": "Sales", "datatables": tables}]) as server:
        assert asked(server, Target("acme", "dt-2")) == Destination("t", "ds-1", "dt-2")
