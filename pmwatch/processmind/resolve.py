"""From the names in the configuration to the ids of the API."""

import difflib

from pmwatch.errors import DestinationUnknown
from pmwatch.model import Destination, Target
from pmwatch.processmind.client import Client
from pmwatch.processmind.models import Dataset, Datatable


def resolve(client: Client, tenant_id: str, target: Target) -> Destination:
    """Return the ids that `target` stands for. Raises DestinationUnknown, naming what is nearest.

    A process is found by its id, or by its name where that is unique.

    An id always wins over an equal name. `Dataset/Table` names both; a lone table name must be unique.
    """
    if target.process:
        return Destination(tenant_id, "", _process_id(client, tenant_id, target))
    tables = client.datatables(tenant_id)
    exact = next((table for table in tables if table.id == target.datatable), None)
    if exact is not None and exact.dataset_id:
        return Destination(tenant_id, exact.dataset_id, exact.id)
    dataset_name, _, table_name = target.datatable.rpartition("/")
    dataset_name = dataset_name or target.dataset
    candidates = [
        (dataset, table) for dataset in client.datasets(tenant_id) for table in _tables_of(client, tenant_id, dataset)
    ]
    if exact is not None:  # the list of all tables does not say where it is; the datasets do
        candidates = [(dataset, table) for dataset, table in candidates if table.id == exact.id]
        dataset_name = table_name = ""
    found = [
        (dataset, table)
        for dataset, table in candidates
        if dataset_name in ("", dataset.id, dataset.display_name)
        and (target.datatable if not dataset_name else table_name or target.datatable) in (table.id, table.display_name)
    ]
    if len(found) == 1:
        return Destination(tenant_id, found[0][0].id, found[0][1].id)
    raise _unknown(target, candidates, found)


def _process_id(client: Client, tenant_id: str, target: Target) -> str:
    name = target.process
    there = [one for one in client.processes(tenant_id) if one.tree_node_type == "Process"]
    found = [one for one in there if one.id == name] or [one for one in there if one.display_name == name]
    if len(found) == 1:
        return found[0].id
    if found:
        raise DestinationUnknown(
            f"the process {name!r} is not unique: {', '.join(one.id for one in found)}",
            hint="Write the id instead of the name.",
        )
    names = [one.display_name for one in there]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    hint = f"The tenant has: {', '.join(close)}." if close else "The tenant has no processes."
    raise DestinationUnknown(f"there is no process {name!r} in tenant {target.tenant!r}", hint=hint)


def _tables_of(client: Client, tenant_id: str, dataset: Dataset) -> list[Datatable]:
    return dataset.datatables or client.dataset(tenant_id, dataset.id).datatables


def _unknown(
    target: Target, candidates: list[tuple[Dataset, Datatable]], found: list[tuple[Dataset, Datatable]]
) -> DestinationUnknown:
    if found:
        choices = ", ".join(f"{table.id} in {dataset.display_name!r}" for dataset, table in found)
        return DestinationUnknown(
            f"the datatable {target.datatable!r} is not unique: {choices}",
            hint="Write the id instead of the name.",
        )
    names = [f"{dataset.display_name}/{table.display_name}" for dataset, table in candidates]
    close = difflib.get_close_matches(target.datatable, names, n=3, cutoff=0.4) or names[:5]
    hint = f"The tenant has: {', '.join(close)}." if close else "The tenant has no datatables."
    return DestinationUnknown(f"there is no datatable {target.datatable!r} in tenant {target.tenant!r}", hint=hint)
