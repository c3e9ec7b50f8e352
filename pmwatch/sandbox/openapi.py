"""The OpenAPI document of the sandbox, made of the same rows that serve it."""

import re
from collections.abc import Iterable
from typing import Any, Final

from pmwatch.sandbox.calls import Operation
from pmwatch.sandbox.shapes import ANSWERS

_MESSAGE: Final = {
    "description": "What is wrong",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
        }
    },
}


def openapi(operations: Iterable[Operation], *, version: str) -> dict[str, Any]:
    """Return the document (OpenAPI 3.1)."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ProcessMind, as pmwatch's sandbox plays it", "version": version},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}},
        "security": [{"key": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    statuses = ["401", "403", "404", *(("400", "409") if operation.body or operation.query else ())]
    if operation.method == "DELETE":
        statuses.append("400")
    text = (operation.handler.__doc__ or "").strip()
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": text,
        "parameters": [
            _parameter("path", name, {"type": "string"}) for name in re.findall(r"\{(\w+)\}", operation.path)
        ]
        + [_parameter("query", name, schema) for name, schema in operation.query.items()],
        "responses": {
            str(operation.status): {
                "description": "Done",
                "content": {"application/json": {"schema": ANSWERS[operation.name]}},
            },
            **dict.fromkeys(sorted(set(statuses)), _MESSAGE),
        },
    }
    if operation.body:
        schema = {
            "type": "object",
            "properties": {name: one.schema() for name, one in operation.body.items()},
            "required": [name for name, one in operation.body.items() if one.required],
        }
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _parameter(place: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}
