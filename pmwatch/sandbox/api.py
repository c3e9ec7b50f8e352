"""ProcessMind's API, as far as the sandbox plays it: one row of `OPERATIONS` per operation.

Paths, queries and shapes follow the vendor's public API reference. An operation is a function from a `Call`
to what becomes JSON; to add one, write the function and its row.
"""

import asyncio
import re
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pmwatch.sandbox import people, processes
from pmwatch.sandbox.calls import NAME, PARENT, Call, Field, Operation
from pmwatch.sandbox.sigv4 import MAX_EXPIRES_SECONDS
from pmwatch.sandbox.state import Dataset, Datatable, Sandbox, Tenant
from pmwatch.sandbox.storage import MAX_OBJECT_BYTES, presigned_url

_UPLOAD_FIELDS = ("datasetid", "filename", "filesize", "filelastmodified")
_NODE_TYPES = ("Dataset", "TreeGroup")


async def get_tenant(call: Call) -> dict[str, Any]:
    """`getTenant`."""
    tenant = call.tenant
    return {"id": tenant.id, "displayName": tenant.name, "shortName": tenant.short_name, "createdAt": tenant.created_at}


async def update_tenant(call: Call) -> dict[str, Any]:
    """`updateTenant`."""
    body = await call.body()
    with call.sandbox.changing():
        call.tenant.name = body["displayName"]
    return await get_tenant(call)


async def get_tenant_statistics(call: Call) -> dict[str, Any]:
    """`getTenantStatistics`."""
    tables = [datatable for dataset in call.tenant.datasets for datatable in dataset.datatables]
    rows = [(await _datatable_json(call.sandbox, datatable))["rowCount"] or 0 for datatable in tables]
    return {
        "datasetCount": len(call.tenant.datasets),
        "datatableCount": len(tables),
        "rowCount": sum(rows),
        "processCount": len(call.tenant.processes),
        "userCount": len(call.tenant.users),
    }


async def get_datasets(call: Call) -> list[dict[str, Any]]:
    """`getDatasets`."""
    return [_dataset_json(dataset) for dataset in call.tenant.datasets]


async def create_dataset(call: Call) -> dict[str, Any]:
    """`createDataset`."""
    body = await call.body()
    dataset = call.sandbox.add_dataset(
        call.tenant, body["displayName"], tree_parent_id=body["treeParentId"], tree_node_type=body["treeNodeType"]
    )
    return _dataset_json(dataset)


async def get_dataset(call: Call) -> dict[str, Any]:
    """`getDataset`."""
    dataset = call.dataset()
    tables = [await _datatable_json(call.sandbox, datatable) for datatable in dataset.datatables]
    return {**_dataset_json(dataset), "datatables": tables}


async def delete_dataset(call: Call) -> dict[str, Any]:
    """`deleteDataset`."""
    call.sandbox.delete_dataset(call.tenant, call.dataset())
    return {"success": True}


async def create_datatable(call: Call) -> dict[str, Any]:
    """`createDatatable`."""
    dataset = call.dataset()
    if dataset.tree_node_type != "Dataset":
        raise HTTPException(400, "A tree group holds no datatables")
    datatable = call.sandbox.add_datatable(dataset, (await call.body())["displayName"])
    return {**await _datatable_json(call.sandbox, datatable), "datasetId": dataset.id}


async def get_datatables(call: Call) -> list[dict[str, Any]]:
    """`getDatatables`."""
    return [
        {**await _datatable_json(call.sandbox, datatable), "datasetId": dataset.id}
        for dataset in call.tenant.datasets
        for datatable in dataset.datatables
    ]


async def get_datatable(call: Call) -> dict[str, Any]:
    """`getDatatable`."""
    dataset, datatable = call.datatable()
    return {**await _datatable_json(call.sandbox, datatable), "datasetId": dataset.id}


async def get_presigned_upload_url(call: Call) -> dict[str, str]:
    """`getPresignedUploadUrl`, in its current form and in the older one without a query."""
    dataset, datatable = call.datatable()
    filename = _checked_filename(call.request, dataset)
    key = call.sandbox.store.grant(call.tenant.id, datatable.id, filename)
    origin = f"{call.request.url.scheme}://{call.request.headers['host']}"
    valid = _valid_seconds(call.request)
    url = presigned_url(call.sandbox, origin, key, filename=filename, valid_seconds=valid)
    return {"PreSignedUploadUrl": url}


_T: Final = "/tenant/{tenant}"
_NUMBER: Final = {"type": "string", "pattern": "^[0-9]{1,18}$"}
_PRESIGN_QUERY: Final = {
    "datasetid": {"type": "string"},
    "filename": {"type": "string"},
    "filesize": _NUMBER,
    "filelastmodified": _NUMBER,
    "validforseconds": _NUMBER,
}
_NEW_DATASET: Final = {
    "displayName": NAME,
    "treeParentId": PARENT,
    "treeNodeType": Field(choices=_NODE_TYPES, default="Dataset"),
}
_PRESIGN: Final = f"{_T}/datatable/{{datatable}}/uploads/presignedurl"
OPERATIONS: Final = (
    Operation("getTenant", "GET", _T, get_tenant),
    Operation("updateTenant", "PUT", _T, update_tenant, body={"displayName": NAME}),
    Operation("getTenantStatistics", "GET", f"{_T}/statistics", get_tenant_statistics),
    Operation("getDatasets", "GET", f"{_T}/datasets", get_datasets),
    Operation("createDataset", "POST", f"{_T}/datasets", create_dataset, 201, _NEW_DATASET),
    Operation("getDataset", "GET", f"{_T}/datasets/{{dataset}}", get_dataset),
    Operation("deleteDataset", "DELETE", f"{_T}/datasets/{{dataset}}", delete_dataset),
    Operation(
        "createDatatable", "POST", f"{_T}/datasets/{{dataset}}/datatables", create_datatable, 201, {"displayName": NAME}
    ),
    Operation("getDatatables", "GET", f"{_T}/datatables", get_datatables),
    Operation("getDatatable", "GET", f"{_T}/datatable/{{datatable}}", get_datatable),
    Operation("getPresignedUploadUrl", "GET", _PRESIGN, get_presigned_upload_url, query=_PRESIGN_QUERY),
    *people.OPERATIONS,
    *processes.OPERATIONS,
)


def api_routes(sandbox: Sandbox) -> list[Route]:
    """Return one route per operation."""
    return [_route(sandbox, operation) for operation in OPERATIONS]


def _route(sandbox: Sandbox, operation: Operation) -> Route:
    async def endpoint(request: Request) -> Response:
        tenant = _authorise(sandbox, request)
        value = await operation.handler(Call(sandbox, tenant, request, operation.body))
        return JSONResponse(value, status_code=operation.status)

    return Route(operation.path, endpoint, methods=[operation.method])


def _authorise(sandbox: Sandbox, request: Request) -> Tenant:
    """Return the tenant of the path, or raise HTTPException 401, 403 or 404."""
    api_key = request.headers.get("x-api-key")
    owner = sandbox.tenant_of_key(api_key) if api_key else None
    if owner is None:
        message = "The API key is not valid" if api_key else "The header x-api-key is missing"
        raise HTTPException(401, message)
    tenant = sandbox.tenant(request.path_params["tenant"])
    if tenant is None:
        raise HTTPException(404, "Tenant not found")
    if tenant is not owner:
        raise HTTPException(403, "The API key belongs to another tenant")
    return tenant


def _checked_filename(request: Request, dataset: Dataset) -> str:
    """Return the file name of a presign call, empty for the older form; HTTPException 400 for a bad query."""
    query = request.query_params
    given = [name for name in _UPLOAD_FIELDS if name in query]
    if not given:
        return ""
    for name in _UPLOAD_FIELDS:
        if not query.get(name):
            raise HTTPException(400, f"{name} is required")
    if query["datasetid"] != dataset.id:
        raise HTTPException(400, "datasetid is not the dataset of this datatable")
    if _whole_number(request, "filesize") > MAX_OBJECT_BYTES:
        raise HTTPException(400, f"filesize must be at most {MAX_OBJECT_BYTES}")
    _whole_number(request, "filelastmodified")
    return query["filename"]


def _valid_seconds(request: Request) -> int | None:
    if "validforseconds" not in request.query_params:
        return None
    seconds = _whole_number(request, "validforseconds")
    if seconds < 1:
        raise HTTPException(400, "validforseconds must be at least 1")
    return min(seconds, MAX_EXPIRES_SECONDS)


def _whole_number(request: Request, name: str) -> int:
    text = request.query_params[name]
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise HTTPException(400, f"{name} must be a whole number")
    return int(text)


def _dataset_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "displayName": dataset.name,
        "treeNodeType": dataset.tree_node_type,
        "treeParentId": dataset.tree_parent_id,
        "createdAt": dataset.created_at,
        "datatableCount": len(dataset.datatables),
    }


async def _datatable_json(sandbox: Sandbox, datatable: Datatable) -> dict[str, Any]:
    rows = await asyncio.to_thread(sandbox.store.row_count, datatable.id)
    return {"id": datatable.id, "displayName": datatable.name, "rowCount": rows}
