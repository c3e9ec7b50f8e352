"""ProcessMind's API, as far as the sandbox plays it: one row of `OPERATIONS` per operation.

Paths, queries and shapes follow the vendor's public API reference. An operation is a function from a `Call`
to what becomes JSON; to add one, write the function and its row.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pmwatch.sandbox.sigv4 import MAX_EXPIRES_SECONDS
from pmwatch.sandbox.state import Dataset, Datatable, Sandbox, Tenant
from pmwatch.sandbox.storage import MAX_OBJECT_BYTES, presigned_url

_UPLOAD_FIELDS = ("datasetid", "filename", "filesize", "filelastmodified")
_NODE_TYPES = ("Dataset", "TreeGroup")


@dataclass(frozen=True, slots=True)
class Call:
    """One authorised call."""

    sandbox: Sandbox
    tenant: Tenant
    request: Request

    async def body(self) -> dict[str, Any]:
        """Return the JSON object that was sent; HTTPException 400 when it is none."""
        try:
            value = await self.request.json()
        except ValueError as error:
            raise HTTPException(400, "The body is not JSON") from error
        if not isinstance(value, dict):
            raise HTTPException(400, "The body must be a JSON object")
        return value

    def dataset(self) -> Dataset:
        """Return the dataset that the path names; HTTPException 404 when there is none."""
        dataset = self.tenant.dataset(self.request.path_params["dataset"])
        if dataset is None:
            raise HTTPException(404, "Dataset not found")
        return dataset

    def datatable(self) -> tuple[Dataset, Datatable]:
        """Return the datatable that the path names and its dataset; HTTPException 404 when there is none."""
        found = self.tenant.datatable(self.request.path_params["datatable"])
        if found is None:
            raise HTTPException(404, "Datatable not found")
        return found


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the API's table."""

    method: str
    path: str
    handler: Handler
    status: int = 200


async def get_tenant(call: Call) -> dict[str, Any]:
    """`getTenant`."""
    tenant = call.tenant
    return {"id": tenant.id, "displayName": tenant.name, "createdAt": tenant.created_at}


async def get_datasets(call: Call) -> list[dict[str, Any]]:
    """`getDatasets`."""
    return [_dataset_json(dataset) for dataset in call.tenant.datasets]


async def create_dataset(call: Call) -> dict[str, Any]:
    """`createDataset`."""
    body = await call.body()
    node_type = body.get("treeNodeType", "Dataset")
    if node_type not in _NODE_TYPES:
        raise HTTPException(400, f"treeNodeType must be one of {', '.join(_NODE_TYPES)}")
    parent = body.get("treeParentId")
    if parent is not None and not isinstance(parent, str):
        raise HTTPException(400, "treeParentId must be a string")
    dataset = call.sandbox.add_dataset(
        call.tenant, _display_name(body), tree_parent_id=parent, tree_node_type=node_type
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
    datatable = call.sandbox.add_datatable(dataset, _display_name(await call.body()))
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


OPERATIONS = (
    Operation("GET", "/tenant/{tenant}", get_tenant),
    Operation("GET", "/tenant/{tenant}/datasets", get_datasets),
    Operation("POST", "/tenant/{tenant}/datasets", create_dataset, status=201),
    Operation("GET", "/tenant/{tenant}/datasets/{dataset}", get_dataset),
    Operation("DELETE", "/tenant/{tenant}/datasets/{dataset}", delete_dataset),
    Operation("POST", "/tenant/{tenant}/datasets/{dataset}/datatables", create_datatable, status=201),
    Operation("GET", "/tenant/{tenant}/datatables", get_datatables),
    Operation("GET", "/tenant/{tenant}/datatable/{datatable}", get_datatable),
    Operation("GET", "/tenant/{tenant}/datatable/{datatable}/uploads/presignedurl", get_presigned_upload_url),
)


def api_routes(sandbox: Sandbox) -> list[Route]:
    """Return one route per operation."""
    return [_route(sandbox, operation) for operation in OPERATIONS]


def _route(sandbox: Sandbox, operation: Operation) -> Route:
    async def endpoint(request: Request) -> Response:
        tenant = _authorise(sandbox, request)
        value = await operation.handler(Call(sandbox, tenant, request))
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


def _display_name(body: dict[str, Any]) -> str:
    name = body.get("displayName")
    if not isinstance(name, str) or not name.strip():
        raise HTTPException(400, "displayName is required")
    return name


def _dataset_json(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "displayName": dataset.name,
        "createdAt": dataset.created_at,
        "datatableCount": len(dataset.datatables),
    }


async def _datatable_json(sandbox: Sandbox, datatable: Datatable) -> dict[str, Any]:
    rows = await asyncio.to_thread(sandbox.store.row_count, datatable.id)
    return {"id": datatable.id, "displayName": datatable.name, "rowCount": rows}
