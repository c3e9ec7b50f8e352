"""Provisioning: what a tenant should have, as a plan in TOML, against what it has; only the difference is done.

Nothing is deleted unless asked for, and a second run finds nothing to do.
"""

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pmwatch.errors import DestinationUnknown, PlanError
from pmwatch.formats import MAX_MODEL_BYTES, Broken, read_model
from pmwatch.processmind import Client
from pmwatch.processmind.models import Dataset, Mapping, Process, User
from pmwatch.toml import nearest, trouble

_Name = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetPlan(_Entry):
    """A dataset with its datatables, by name."""

    name: _Name
    datatables: tuple[_Name, ...] = ()


class MappingPlan(_Entry):
    """A mapping of a process to a datatable, written `Dataset/Table`."""

    name: _Name
    datatable: _Name
    color: Annotated[str, Field(pattern=r"^data-[1-8]$")] = "data-1"
    show_by_default: bool = True


class ProcessPlan(_Entry):
    """A process; `bpmn` is the file of its model, relative to the plan."""

    name: _Name
    bpmn: str = ""
    mappings: tuple[MappingPlan, ...] = ()


class UserPlan(_Entry):
    """A user of the tenant, known by e-mail, in whatever case."""

    email: _Name
    first_name: str = ""
    last_name: str = ""
    active: bool = True
    admin: bool = False
    developer: bool = False


class Plan(_Entry):
    """What a tenant should have."""

    datasets: tuple[DatasetPlan, ...] = ()
    processes: tuple[ProcessPlan, ...] = ()
    users: tuple[UserPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: `sign` is + for new, ~ for changed, - for deleted; `what` is for people."""

    sign: str
    what: str
    do: Callable[[], object] = field(repr=False, compare=False)


def load_plan(path: str) -> Plan:
    """Read a plan. Raises PlanError with every problem."""
    raw = _read(path)
    try:
        plan = Plan.model_validate(raw)
    except ValidationError as error:
        raise PlanError([f"{path}: {_problem(raw, one)}" for one in error.errors()]) from None
    problems = list(_problems(plan, os.path.dirname(os.path.abspath(path))))
    if problems:
        raise PlanError([f"{path}: {problem}" for problem in problems])
    return plan


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        return tomllib.loads(text)
    except OSError as error:
        raise PlanError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (UnicodeDecodeError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise PlanError([f"{path}: not valid TOML: {said}"]) from None
    except ValueError as error:
        shown = {key for model in _MODELS.values() for key in model.model_fields}
        said, hint = trouble(text, error, lists=("datasets", "processes", "processes.mappings", "users"), shown=shown)
        raise PlanError([f"{path}: not valid TOML: {said}"], hint=hint) from None


_MODELS: Final[dict[str, type[_Entry]]] = {
    "datasets": DatasetPlan,
    "processes": ProcessPlan,
    "mappings": MappingPlan,
    "users": UserPlan,
}
_ONE: Final = {"datasets": "dataset", "processes": "process", "mappings": "mapping", "users": "user"}


def _problem(raw: Any, detail: ErrorDetails) -> str:
    """Put one pydantic error into plain words: which entry by its name, the key, and what is allowed."""
    where, model = list[str](), cast("type[_Entry]", Plan)
    for part in detail["loc"]:
        if isinstance(raw, dict):
            raw = raw.get(part)
        if isinstance(part, int):
            raw = raw[part] if isinstance(raw, list) else None
            model = _MODELS.get(where[-1], model)
            where[-1] = _named(where[-1], part, raw)
        else:
            where.append(part)
    return f"{': '.join(where)}: {_said(where[-1], tuple(model.model_fields), detail)}"


def _named(kind: str, index: int, entry: Any) -> str:
    """Return how an entry of a list is called: by its name, or else by its place."""
    name = entry.get("name") or entry.get("email") if isinstance(entry, dict) else None
    return f"{_ONE.get(kind, kind)} {name!r}" if isinstance(name, str) else f"{kind}[{index + 1}]"


def _said(key: str, known: Sequence[str], detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key{nearest(key, known) or '; known keys: ' + ', '.join(known)}"
    if kind == "missing":
        return "missing; it is required"
    if kind == "tuple_type" and key in _ONE:
        return f"write one [[{key}]] table for each"
    if kind == "string_pattern_mismatch":
        return f"{value!r}: write one of data-1 to data-8"
    shown = "" if isinstance(value, dict | list) else f"{value!r}: "
    return f"{shown}{detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _problems(plan: Plan, directory: str) -> Iterator[str]:
    for what, names in (
        ("datasets", [one.name for one in plan.datasets]),
        ("processes", [one.name for one in plan.processes]),
        ("users", [one.email.lower() for one in plan.users]),
        *((f"dataset {one.name!r}", list(one.datatables)) for one in plan.datasets),
        *((f"process {one.name!r}", [mapping.name for mapping in one.mappings]) for one in plan.processes),
    ):
        yield from (f"{what}: {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1}))
    for process in plan.processes:
        if process.bpmn and (wrong := _wrong_with(os.path.join(directory, process.bpmn))):
            yield f"process {process.name!r}: bpmn {process.bpmn!r}: {wrong}"
        if process.mappings and not process.bpmn:
            yield f"process {process.name!r}: mappings need a BPMN model; name its file with bpmn"
        for mapping in process.mappings:
            if "/" not in mapping.datatable:
                yield f'process {process.name!r}: mapping {mapping.name!r}: write the datatable as "Dataset/Table"'


def _wrong_with(model: str) -> str:
    """Say what is wrong with the file of a model, which would else come out in the middle of the steps."""
    try:
        with open(model, "rb") as file:
            read_model(file.read(MAX_MODEL_BYTES + 1))
    except FileNotFoundError:
        return "there is no file of that name beside the plan"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except Broken as broken:
        return broken.sentence
    return ""


class Provisioner:
    """Compares a plan with a tenant. Ids of what is created on the way are remembered for the steps after."""

    def __init__(self, client: Client, tenant_id: str, plan: Plan, *, read_model: Callable[[str], str]) -> None:
        self._client = client
        self._tenant = tenant_id
        self._plan = plan
        self._read_model = read_model
        self._tables: dict[str, str] = {}
        self._processes: dict[str, str] = {}

    def steps(self, *, update_models: bool = False, prune: bool = False) -> list[Step]:
        """Return what is to do, in order. Raises the client's errors, and DestinationUnknown for a wrong datatable.

        With `update_models` each BPMN model goes again, for the API does not show the one that is there; with `prune`
        what the plan does not name is deleted, of the kinds that it names.
        """
        steps = [*self._datasets(prune=prune), *self._all_processes(update_models=update_models, prune=prune)]
        return [*steps, *self._users(prune=prune)]

    def _datasets(self, *, prune: bool) -> Iterator[Step]:
        there = [one for one in self._client.datasets(self._tenant) if one.tree_node_type == "Dataset"]
        ids = {one.display_name: one.id for one in there}
        for known in self._client.datatables(self._tenant):
            names = (one.display_name for one in there if one.id == known.dataset_id)
            self._tables[f"{next(names, '')}/{known.display_name}"] = known.id
        for wanted in self._plan.datasets:
            if wanted.name not in ids:
                yield Step("+", f"dataset {wanted.name!r}", partial(self._create_dataset, ids, wanted.name))
            for table in wanted.datatables:
                path = f"{wanted.name}/{table}"
                if path not in self._tables:
                    yield Step(
                        "+",
                        f"datatable {path!r}",
                        partial(self._create_table, ids, wanted.name, table),
                    )
        if prune and self._plan.datasets:
            yield from self._gone(
                there, {one.name for one in self._plan.datasets}, "dataset", self._client.delete_dataset
            )

    def _create_dataset(self, ids: dict[str, str], name: str) -> None:
        ids[name] = self._client.create_dataset(self._tenant, name).id

    def _create_table(self, ids: dict[str, str], dataset: str, name: str) -> None:
        self._tables[f"{dataset}/{name}"] = self._client.create_datatable(self._tenant, ids[dataset], name).id

    def _all_processes(self, *, update_models: bool, prune: bool) -> Iterator[Step]:
        there = [one for one in self._client.processes(self._tenant) if one.tree_node_type == "Process"]
        known = {one.display_name: one for one in there}
        for wanted in self._plan.processes:
            found = known.get(wanted.name)
            self._processes[wanted.name] = found.id if found else ""
            if found is None:
                yield Step("+", f"process {wanted.name!r}", partial(self._create_process, wanted.name))
            if wanted.bpmn and (found is None or not found.designer_model_id or update_models):
                sign = "~" if found is not None and found.designer_model_id else "+"
                yield Step(sign, f"BPMN model of {wanted.name!r}", partial(self._upload_model, wanted))
            yield from self._mappings(wanted, found, prune=prune)
        if prune and self._plan.processes:
            names = {one.name for one in self._plan.processes}
            yield from self._gone(there, names, "process", self._client.delete_process)

    def _create_process(self, name: str) -> None:
        self._processes[name] = self._client.create_process(self._tenant, name).id

    def _upload_model(self, wanted: ProcessPlan) -> None:
        self._client.upload_bpmn(self._tenant, self._processes[wanted.name], self._read_model(wanted.bpmn))

    def _mappings(self, wanted: ProcessPlan, found: Process | None, *, prune: bool) -> Iterator[Step]:
        there = {one.display_name: one for one in self._client.mappings(self._tenant, found.id)} if found else {}
        planned = {f"{one.name}/{table}" for one in self._plan.datasets for table in one.datatables}
        for mapping in wanted.mappings:
            if mapping.datatable not in self._tables and mapping.datatable not in planned:
                raise DestinationUnknown(
                    f"process {wanted.name!r}: mapping {mapping.name!r}: there is no datatable {mapping.datatable!r}",
                    hint="Add it to [[datasets]] of the plan, or correct its name.",
                )
            shown = f"mapping {mapping.name!r} of {wanted.name!r}"
            old = there.get(mapping.name)
            if old is not None and old.data_table_id != self._tables.get(mapping.datatable):
                yield Step("~", shown, partial(self._replace, wanted, mapping, old))
            elif old is None:
                yield Step("+", shown, partial(self._create_mapping, wanted, mapping))
            elif _differs(mapping, old):
                yield Step(
                    "~",
                    shown,
                    partial(self._update_mapping, wanted, mapping, old),
                )
        if prune and found is not None:
            gone = [one for name, one in there.items() if name not in {mapping.name for mapping in wanted.mappings}]
            for one in gone:
                what = f"mapping {one.display_name!r} of {wanted.name!r}"
                yield Step("-", what, partial(self._client.delete_mapping, self._tenant, found.id, one.id))

    def _create_mapping(self, wanted: ProcessPlan, mapping: MappingPlan) -> None:
        self._client.create_mapping(
            self._tenant,
            self._processes[wanted.name],
            self._tables[mapping.datatable],
            display_name=mapping.name,
            color=mapping.color,
            show_by_default=mapping.show_by_default,
        )

    def _update_mapping(self, wanted: ProcessPlan, mapping: MappingPlan, old: Mapping) -> None:
        self._client.update_mapping(
            self._tenant,
            self._processes[wanted.name],
            old.id,
            display_name=mapping.name,
            color=mapping.color,
            show_by_default=mapping.show_by_default,
        )

    def _replace(self, wanted: ProcessPlan, mapping: MappingPlan, old: Mapping) -> None:
        """Point a mapping to another datatable: the API has no way but a new one."""
        self._create_mapping(wanted, mapping)
        self._client.delete_mapping(self._tenant, self._processes[wanted.name], old.id)

    def _users(self, *, prune: bool) -> Iterator[Step]:
        if not self._plan.users:
            return
        there = {one.email.lower(): one for one in self._client.users(self._tenant)}
        for wanted in self._plan.users:
            found = there.get(wanted.email.lower())
            if found is None:
                yield Step("+", f"user {wanted.email}", partial(self._add_user, wanted))
            elif (found.is_active_in_tenant, found.is_admin_in_tenant, found.is_developer_in_tenant) != (
                wanted.active,
                wanted.admin,
                wanted.developer,
            ):
                yield Step("~", f"user {wanted.email}", partial(self._update_user, wanted, found))
        for email, user in there.items() if prune else ():
            if email not in {one.email.lower() for one in self._plan.users}:
                yield Step("-", f"user {user.email}", partial(self._client.remove_user, self._tenant, user.id))

    def _add_user(self, wanted: UserPlan) -> None:
        self._client.add_user(
            self._tenant,
            wanted.email,
            first_name=wanted.first_name,
            last_name=wanted.last_name,
            active=wanted.active,
            admin=wanted.admin,
            developer=wanted.developer,
        )

    def _update_user(self, wanted: UserPlan, found: User) -> None:
        self._client.update_user(
            self._tenant, found.id, active=wanted.active, admin=wanted.admin, developer=wanted.developer
        )

    def _gone(
        self,
        there: Iterable[Dataset | Process],
        names: set[str],
        what: str,
        delete: Callable[[str, str], object],
    ) -> Iterator[Step]:
        for one in there:
            if one.display_name not in names:
                yield Step("-", f"{what} {one.display_name!r}", partial(delete, self._tenant, one.id))


def _differs(wanted: MappingPlan, old: Mapping) -> bool:
    color = old.color.id if old.color is not None else ""
    shown = wanted.show_by_default if old.show_by_default is None else old.show_by_default
    return (color, shown) != (wanted.color, wanted.show_by_default)
