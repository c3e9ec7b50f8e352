"""What every operation of the sandbox's API is made of: a call that was let in, and the fields of its body."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from pmwatch.sandbox.state import Dataset, Datatable, Record, Sandbox, Tenant

_KINDS: Final[dict[str, type]] = {"string": str, "boolean": bool, "object": dict}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a JSON body; `choices` are all that a text may be, a text that is required may not be blank."""

    kind: str = "string"
    required: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None

    def schema(self) -> dict[str, Any]:
        """Return it as a JSON schema."""
        schema: dict[str, Any] = {"type": self.kind if self.required else [self.kind, "null"]}
        if self.choices:
            schema["enum"] = [*self.choices, *(() if self.required else (None,))]
        elif self.required and self.kind == "string":
            schema |= {"minLength": 1, "pattern": r"\S"}
        return schema


NAME: Final = Field(required=True)
TEXT: Final = Field()
PARENT: Final = Field()


def flag(*, default: bool) -> Field:
    """Return a field that is true or false."""
    return Field("boolean", default=default)


@dataclass(frozen=True, slots=True)
class Call:
    """One authorised call; `fields` are those that the operation's body may have."""

    sandbox: Sandbox
    tenant: Tenant
    request: Request
    fields: Mapping[str, Field] = field(default_factory=dict)

    async def body(self) -> dict[str, Any]:
        """Return the fields of the JSON object that was sent, with defaults; HTTPException 400 for what is wrong."""
        try:
            value = await self.request.json()
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "The body is not JSON") from error
        if not isinstance(value, dict):
            raise HTTPException(400, "The body must be a JSON object")
        return {name: self._field(name, spec, value) for name, spec in self.fields.items()}

    def _field(self, name: str, spec: Field, value: dict[str, Any]) -> Any:
        given = value.get(name)
        if given is None:
            if spec.required:
                raise HTTPException(400, f"{name} is required")
            return spec.default
        if not isinstance(given, _KINDS[spec.kind]):
            raise HTTPException(400, f"{name} must be a {spec.kind}")
        if spec.choices and given not in spec.choices:
            raise HTTPException(400, f"{name} must be one of {', '.join(spec.choices)}")
        if spec.required and isinstance(given, str) and not given.strip():
            raise HTTPException(400, f"{name} is required")
        return given

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

    def process(self) -> Record:
        """Return the process that the path names; HTTPException 404 when there is none."""
        return self.one_of(self.tenant.processes, self.request.path_params["process"], "Process")

    @staticmethod
    def one_of(records: list[Record], id_: str, what: str) -> Record:
        """Return the record with this id; HTTPException 404 when there is none."""
        found = next((record for record in records if record["id"] == id_), None)
        if found is None:
            raise HTTPException(404, f"{what} not found")
        return found


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the API's table: `name` is the vendor's, `body` its fields, `query` what may stand after the `?`."""

    name: str
    method: str
    path: str
    handler: Handler
    status: int = 200
    body: Mapping[str, Field] = field(default_factory=dict)
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
