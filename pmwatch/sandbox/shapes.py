"""What the sandbox's operations answer, as JSON schemas: for its OpenAPI document, and checked against it in tests."""

from collections.abc import Mapping
from typing import Any, Final

Schema = dict[str, Any]

_TYPES: Final = {"s": "string", "i": "integer", "b": "boolean", "s?": ["string", "null"], "i?": ["integer", "null"]}


def _record(fields: str, **more: Schema) -> Schema:
    """Return the schema of an object: `fields` are `name:type` with the types above, all of them always there."""
    pairs = [field.split(":") for field in fields.split()]
    properties = {name: {"type": _TYPES[kind]} for name, kind in pairs} | more
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


_SUCCESS: Final = {"type": "object", "properties": {"success": {"const": True}}, "required": ["success"]}
_TENANT: Final = _record("id:s displayName:s shortName:s createdAt:s")
_DATATABLE: Final = _record("id:s displayName:s rowCount:i?")
_PLACED_DATATABLE: Final = _record("id:s displayName:s rowCount:i? datasetId:s")
_DATASET_FIELDS: Final = "id:s displayName:s treeNodeType:s treeParentId:s? createdAt:s datatableCount:i"
_DATASET: Final = _record(_DATASET_FIELDS)
_PROCESS: Final = _record(
    "id:s displayName:s treeNodeType:s treeParentId:s? designerModelId:s? createdAt:s updatedAt:s"
)
_COLOR: Final = {"type": "object", "properties": {"id": {"type": "string", "pattern": "^data-[1-8]$"}}}
_MAPPING: Final = _record("id:s dataTableId:s displayName:s showByDefault:b", color=_COLOR)
_PERSON: Final = "id:s email:s firstName:s? lastName:s?"
_USER: Final = _record(f"{_PERSON} isActiveInTenant:b isAdminInTenant:b isDeveloperInTenant:b")
_MEMBER: Final = _record(f"{_PERSON} isActiveInOrganization:b isAdminInOrganization:b")

ANSWERS: Final[Mapping[str, Schema]] = {
    "getTenant": _TENANT,
    "updateTenant": _TENANT,
    "getTenantStatistics": {"type": "object", "additionalProperties": {"type": "integer"}},
    "getTenantUsers": _list(_USER),
    "addTenantUser": _USER,
    "updateTenantUser": _USER,
    "removeTenantUser": _SUCCESS,
    "getDatasets": _list(_DATASET),
    "createDataset": _DATASET,
    "getDataset": _record(_DATASET_FIELDS, datatables=_list(_DATATABLE)),
    "deleteDataset": _SUCCESS,
    "createDatatable": _PLACED_DATATABLE,
    "getDatatables": _list(_PLACED_DATATABLE),
    "getDatatable": _PLACED_DATATABLE,
    "getPresignedUploadUrl": _record("PreSignedUploadUrl:s"),
    "getProcesses": _list(_PROCESS),
    "createProcess": _PROCESS,
    "getProcess": _PROCESS,
    "updateProcess": _PROCESS,
    "deleteProcess": _SUCCESS,
    "uploadBpmn": _SUCCESS,
    "getProcessMappings": _list(_MAPPING),
    "createProcessMapping": _MAPPING,
    "updateProcessMapping": _MAPPING,
    "deleteProcessMapping": _SUCCESS,
    "getOrganization": _record("id:s displayName:s"),
    "getOrganizationStatistics": {"type": "object", "additionalProperties": {"type": "integer"}},
    "getOrganizationTenants": _list(_TENANT),
    "createOrganizationTenant": _TENANT,
    "deleteOrganizationTenant": _SUCCESS,
    "getOrganizationUsers": _list(_MEMBER),
    "updateOrganizationUser": _MEMBER,
    "removeOrganizationUser": _SUCCESS,
}
"""By the operation's name."""
