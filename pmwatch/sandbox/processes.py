"""Processes, their BPMN models and their mappings."""

import uuid
from typing import Any, Final
from xml.parsers import expat

from starlette.exceptions import HTTPException

from pmwatch.sandbox.calls import NAME, PARENT, Call, Field, Operation, flag
from pmwatch.sandbox.state import Record

_BPMN: Final = "http://www.omg.org/spec/BPMN/20100524/MODEL"
_COLORS: Final = tuple(f"data-{number}" for number in range(1, 9))
_PROCESSES: Final = "/tenant/{tenant}/processes"
_PROCESS: Final = f"{_PROCESSES}/{{process}}"
_MAPPINGS: Final = f"{_PROCESS}/mappings"
_MAPPING_FIELDS: Final = {
    "displayName": NAME,
    "color": Field("object", default={"id": "data-1"}),
    "showByDefault": flag(default=True),
}


async def get_processes(call: Call) -> list[Record]:
    """`getProcesses`."""
    return [_process_json(process) for process in call.tenant.processes]


async def create_process(call: Call) -> Record:
    """`createProcess`."""
    body = await call.body()
    now = call.sandbox.timestamp()
    process = {"id": str(uuid.uuid4()), **body, "designerModelId": None, "createdAt": now, "updatedAt": now}
    process |= {"bpmn": "", "mappings": []}
    with call.sandbox.changing():
        call.tenant.processes.append(process)
    return _process_json(process)


async def get_process(call: Call) -> Record:
    """`getProcess`."""
    return _process_json(call.process())


async def update_process(call: Call) -> Record:
    """`updateProcess`."""
    process, body = call.process(), await call.body()
    with call.sandbox.changing():
        process.update(body, updatedAt=call.sandbox.timestamp())
    return _process_json(process)


async def delete_process(call: Call) -> dict[str, Any]:
    """`deleteProcess`."""
    process = call.process()
    with call.sandbox.changing():
        call.tenant.processes.remove(process)
    return {"success": True}


async def upload_bpmn(call: Call) -> dict[str, Any]:
    """`uploadBpmn`: refused where the XML is no BPMN 2.0 model."""
    process, body = call.process(), await call.body()
    if process["treeNodeType"] != "Process":
        raise HTTPException(400, "A tree group has no BPMN model")
    if _root_of(body["bpmnXml"]) != f"{_BPMN} definitions":
        raise HTTPException(400, "bpmnXml is not a BPMN 2.0 document")
    with call.sandbox.changing():
        process["bpmn"] = body["bpmnXml"]
        process["designerModelId"] = process["designerModelId"] or str(uuid.uuid4())
        process["updatedAt"] = call.sandbox.timestamp()
    return {"success": True}


async def get_mappings(call: Call) -> list[Record]:
    """`getProcessMappings`."""
    mappings: list[Record] = call.process()["mappings"]
    return mappings


async def create_mapping(call: Call) -> Record:
    """`createProcessMapping`: the process must have its BPMN model, and the datatable must exist."""
    process, body = call.process(), await call.body()
    if not process["bpmn"]:
        raise HTTPException(400, "The process has no BPMN model yet; upload one first")
    if call.tenant.datatable(body["dataTableId"]) is None:
        raise HTTPException(400, "dataTableId is no datatable of this tenant")
    mapping = {"id": str(uuid.uuid4()), **_with_color(body)}
    with call.sandbox.changing():
        process["mappings"].append(mapping)
    return mapping


async def update_mapping(call: Call) -> Record:
    """`updateProcessMapping`."""
    mapping = _mapping(call)
    body = _with_color(await call.body())
    with call.sandbox.changing():
        mapping.update(body)
    return mapping


async def delete_mapping(call: Call) -> dict[str, Any]:
    """`deleteProcessMapping`."""
    mapping = _mapping(call)
    with call.sandbox.changing():
        call.process()["mappings"].remove(mapping)
    return {"success": True}


def _mapping(call: Call) -> Record:
    return call.one_of(call.process()["mappings"], call.request.path_params["mapping"], "Mapping")


def _with_color(body: Record) -> Record:
    if body["color"].get("id") not in _COLORS:
        raise HTTPException(400, f"color.id must be one of {', '.join(_COLORS)}")
    return {**body, "color": {"id": body["color"]["id"]}}


def _process_json(process: Record) -> Record:
    return {name: value for name, value in process.items() if name not in {"bpmn", "mappings"}}


def _root_of(xml: str) -> str:
    """Return namespace and name of an XML document's root, empty where it is none; entities are refused."""
    root: list[str] = []
    parser = expat.ParserCreate(namespace_separator=" ")

    def refuse(*_: object) -> None:
        raise ValueError("entities")

    parser.StartElementHandler = lambda name, _attributes: root.append(name) if not root else None
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(xml.encode("utf-8", "surrogatepass"), True)
    except (expat.ExpatError, ValueError):
        return ""
    return root[0] if root else ""


OPERATIONS: Final = (
    Operation("getProcesses", "GET", _PROCESSES, get_processes),
    Operation(
        "createProcess",
        "POST",
        _PROCESSES,
        create_process,
        201,
        {
            "displayName": NAME,
            "treeParentId": PARENT,
            "treeNodeType": Field(choices=("Process", "TreeGroup"), default="Process"),
        },
    ),
    Operation("getProcess", "GET", _PROCESS, get_process),
    Operation("updateProcess", "PUT", _PROCESS, update_process, 200, {"displayName": NAME, "treeParentId": PARENT}),
    Operation("deleteProcess", "DELETE", _PROCESS, delete_process),
    Operation("uploadBpmn", "PUT", f"{_PROCESS}/bpmn", upload_bpmn, 200, {"bpmnXml": NAME}),
    Operation("getProcessMappings", "GET", _MAPPINGS, get_mappings),
    Operation("createProcessMapping", "POST", _MAPPINGS, create_mapping, 201, {"dataTableId": NAME, **_MAPPING_FIELDS}),
    Operation("updateProcessMapping", "PUT", f"{_MAPPINGS}/{{mapping}}", update_mapping, 200, _MAPPING_FIELDS),
    Operation("deleteProcessMapping", "DELETE", f"{_MAPPINGS}/{{mapping}}", delete_mapping),
)
