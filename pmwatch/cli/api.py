"""`pmwatch api GROUP VERB`: every operation of ProcessMind's API. The commands are made of the client's own methods."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args, get_type_hints

import typer
from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from pmwatch.cli import app
from pmwatch.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, console, http_of, print_json, settings_of
from pmwatch.config import Settings
from pmwatch.errors import ConfigError, DestinationUnknown, PmwatchError
from pmwatch.formats import Broken, read_model
from pmwatch.model import Tenant, display
from pmwatch.processmind.client import DEFAULT_BASE_URL, Client, Fields, path_of
from pmwatch.processmind.keys import KeyRing
from pmwatch.processmind.models import Success

KEY_VARIABLE: Final = "PMWATCH_API_KEY"
URL_VARIABLE: Final = "PMWATCH_API_BASE_URL"
TENANT_VARIABLE: Final = "PMWATCH_TENANT"
_PREFERRED: Final = (
    "id",
    "displayName",
    "email",
    "rowCount",
    "datatableCount",
    "color",
    "treeNodeType",
    "dataTableId",
    "datasetId",
    "createdAt",
)
_FOLDED_WIDTH: Final = 32  # a text in a cell may take more than one line from here on

COMMANDS: Final[Mapping[str, Mapping[str, str]]] = {
    "tenant": {"get": "tenant", "update": "update_tenant", "statistics": "tenant_statistics"},
    "user": {"list": "users", "add": "add_user", "update": "update_user", "remove": "remove_user"},
    "dataset": {"list": "datasets", "get": "dataset", "create": "create_dataset", "delete": "delete_dataset"},
    "datatable": {
        "list": "datatables",
        "get": "datatable",
        "create": "create_datatable",
        "upload-url": "presigned_upload_url",
    },
    "process": {
        "list": "processes",
        "get": "process",
        "create": "create_process",
        "update": "update_process",
        "delete": "delete_process",
        "upload-bpmn": "upload_bpmn",
    },
    "mapping": {
        "list": "mappings",
        "create": "create_mapping",
        "update": "update_mapping",
        "delete": "delete_mapping",
    },
    "org": {
        "get": "organization",
        "statistics": "organization_statistics",
        "tenants": "organization_tenants",
        "create-tenant": "create_organization_tenant",
        "delete-tenant": "delete_organization_tenant",
        "users": "organization_users",
        "update-user": "update_organization_user",
        "remove-user": "remove_organization_user",
    },
}
"""The client's method behind each command, by group and verb."""

_GROUPS: Final = {
    "tenant": "The tenant itself.",
    "user": "Users of the tenant.",
    "dataset": "Datasets, which hold datatables.",
    "datatable": "Datatables, which hold the rows of event logs.",
    "process": "Processes and their BPMN models.",
    "mapping": "Mappings, which connect a process with a datatable.",
    "org": "The organisation that the tenant belongs to.",
}
_HELP: Final = {
    "display_name": "The name that people see.",
    "dataset_id": "The dataset's id.",
    "datatable_id": "The datatable's id.",
    "process_id": "The process's id.",
    "mapping_id": "The mapping's id.",
    "user_id": "The user's id.",
    "target_id": "The id of the tenant to delete.",
    "parent_id": 'The id of the group that it goes into; "" is the top of the tree.',
    "group": "Make a group instead, which holds others.",
    "email": "The user's e-mail address.",
    "first_name": "The user's first name.",
    "last_name": "The user's last name.",
    "active": "Whether the user may come in.",
    "admin": "Whether the user may change settings.",
    "developer": "Whether the user may use the API.",
    "send_invitation": "Whether the service writes the user an e-mail.",
    "short_name": "The tenant's name in addresses.",
    "color": "data-1 to data-8.",
    "show_by_default": "Whether it is shown without asking.",
    "bpmn_xml": "The BPMN 2.0 file, or - for standard input.",
    "filename": "The name of the file to upload.",
    "size": "Its size in bytes.",
    "mtime_ms": "Its time of change, in milliseconds since 1970; now where it is not given.",
    "valid_seconds": "How long the URL shall be valid, in seconds.",
}


def _tenant_names(incomplete: str) -> list[str]:
    """Return what the shell may complete: the configuration's tenants."""
    try:
        return [
            one.name for one in settings_of(os.environ.get("PMWATCH_CONFIG")).tenants if one.name.startswith(incomplete)
        ]
    except PmwatchError:
        return []


TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        "-t",
        metavar="NAME|ID",
        envvar=TENANT_VARIABLE,
        help="A tenant of the configuration by name or id, or any id.",
        autocompletion=_tenant_names,
    ),
]
IdsOption = Annotated[bool, typer.Option("--ids", help="Print only ids, one a line.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show the request; nothing is changed.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class _DryRun(Exception):
    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request


class _Recorder(Client):
    """A client that changes nothing: the request with which it would comes out as `_DryRun`."""

    def _call(
        self,
        shape: type[Any],
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str] | None = None,
        body: Fields | None = None,
    ) -> Any:
        if method == "GET":  # how it is now, where only a part is to change
            return super()._call(shape, method, path, query=query, body=body)
        raise _DryRun({"method": method, "path": path_of(path), "query": query or {}, "body": body})


@dataclass(frozen=True, slots=True)
class Access:
    """Whom to ask, with which key and where; the settings where there is a configuration."""

    tenant_id: str
    api_key: str
    base_url: str
    settings: Settings | None = None


def access_of(config: str | None, tenant: str | None) -> Access:
    """Return whom to ask and with which key: of the configuration, or of the environment for any tenant by id.

    A tenant of a configuration that is named is that one's; else the environment's key comes before the default file.
    """
    key, url = os.environ.get(KEY_VARIABLE, ""), os.environ.get(URL_VARIABLE, "")
    if key and tenant:
        known = settings_of(config).tenants if config else []
        if all(tenant not in (one.name, one.id) for one in known):
            return Access(tenant, key, url or DEFAULT_BASE_URL)
    if key and config is None and not os.path.exists(DEFAULT_CONFIG):
        raise typer.BadParameter(
            f"{KEY_VARIABLE} is set, but no tenant is named: give its id with --tenant, or in {TENANT_VARIABLE}"
        )
    try:
        settings = settings_of(config)
    except ConfigError as error:
        if os.path.exists(config or DEFAULT_CONFIG):
            raise
        hint = f"Without a configuration: set {KEY_VARIABLE}, and name the tenant's id with --tenant."
        raise ConfigError(error.problems, hint=hint) from None
    found = [one for one in settings.tenants if tenant in (None, one.name, one.id)]
    if len(found) != 1:
        names = ", ".join(one.name for one in settings.tenants)
        raise DestinationUnknown(
            f"there is no tenant {tenant!r} in the configuration" if tenant else "there are several tenants",
            hint=f"Choose one with --tenant: {names}. Or set {KEY_VARIABLE} for another one.",
        )
    [one] = found
    return Access(one.id, _key_of(one), settings.api.base_url, settings)


def _key_of(tenant: Tenant) -> str:
    return KeyRing([tenant]).key(tenant.name)


def _command(method: str) -> Callable[..., None]:
    """Return a command whose arguments and options are the parameters of a method of the client."""
    call = getattr(Client, method)
    hints = get_type_hints(call)
    own = [one for one in inspect.signature(call).parameters.values() if one.name not in ("self", "tenant_id")]
    writes = not _only_reads(method)
    deletes = method.startswith(("delete_", "remove_"))

    def run(**given: Any) -> None:
        as_json, only_ids = given.pop("json"), given.pop("ids", False)
        dry_run, yes = given.pop("dry_run", False), given.pop("yes", False)
        access = access_of(given.pop("config"), given.pop("tenant"))
        if "bpmn_xml" in given:
            given["bpmn_xml"] = read_bpmn(given["bpmn_xml"])
        if deletes and not (dry_run or yes):
            named = ", ".join(str(value) for value in given.values())
            typer.confirm(f"{method.replace('_', ' ')} {named}?", abort=True, err=True)
        kind = _Recorder if dry_run else Client
        with closing(http_of(access.settings)) as http:
            client = kind(access.api_key, base_url=access.base_url, http=http)
            try:
                answer = getattr(client, method)(access.tenant_id, **given)
            except _DryRun as recorded:
                print_json(recorded.request)
                return
            except ValueError as error:  # what goes together was not given together
                raise typer.BadParameter(_in_options(str(error), own)) from None
        if only_ids:
            _show_ids(answer)
        else:
            _show(answer, as_json=as_json)

    parameters = [_parameter(one, hints[one.name]) for one in own]
    parameters += _common(writes=writes, deletes=deletes, ids=_has_id(hints["return"]))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = _help_of(call, own)
    return run


def _help_of(call: Callable[..., Any], own: list[inspect.Parameter]) -> str:
    """Return the first paragraph of a method's docstring, in the words of a shell."""
    text = (inspect.getdoc(call) or "").split("\n\n", maxsplit=1)[0]
    text = text.replace("Return ", "Show ", 1) if text.startswith("Return ") else text
    text = _in_options(text, own)
    stays = call.__name__.startswith("update_") and any(one.default is None for one in own)
    return text.replace("`", "") + ("\n\nWhat is not given stays as it is." if stays else "")


def _in_options(text: str, own: list[inspect.Parameter]) -> str:
    for one in own:
        text = text.replace(f"`{one.name}`", f"--{one.name.replace('_', '-')}")
    return text


def _has_id(answer: Any) -> bool:
    """Tell whether what a method returns has an id to print, or each one in a list of them."""
    [shape] = get_args(answer) or (answer,)
    return issubclass(shape, BaseModel) and "id" in shape.model_fields


def _only_reads(method: str) -> bool:
    return not method.startswith(("create_", "update_", "delete_", "add_", "remove_", "upload_"))


def _parameter(one: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """Return a parameter as typer takes it: an argument where the client wants it by position, else an option."""
    text = _HELP[one.name]
    if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        metavar = "FILE" if one.name == "bpmn_xml" else one.name.upper()
        marked: Any = Annotated[hint, typer.Argument(help=text, metavar=metavar)]
    else:
        marked = Annotated[hint, typer.Option(help=text, metavar=_metavar(one.name, hint))]
    default = one.default if one.default is not inspect.Parameter.empty else inspect.Parameter.empty
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=marked)


def _metavar(name: str, hint: Any) -> str | None:
    """Return what stands for the value of an option; a flag has none."""
    kinds = (hint, *get_args(hint))
    if bool in kinds:
        return None
    return "N" if int in kinds else "ID" if name.endswith("_id") else "TEXT"


def _common(*, writes: bool, deletes: bool, ids: bool) -> Iterator[inspect.Parameter]:
    options: list[tuple[str, Any, Any]] = [("tenant", TenantOption, None), ("config", ConfigOption, None)]
    options += [("json", JsonOption, False)]
    options += [("ids", IdsOption, False)] if ids else []
    options += [("dry_run", DryRunOption, False)] if writes else []
    options += [("yes", YesOption, False)] if deletes else []
    for name, annotation, default in options:
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def read_bpmn(path: str) -> str:
    """Return the BPMN model in a file (`-`: standard input), checked, as text."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    try:
        return read_model(data)
    except Broken as broken:
        raise typer.BadParameter(f"{path}: {broken.sentence}") from None


def _show_ids(answer: Any) -> None:
    ids = [_cell(str(getattr(one, "id", ""))) for one in (answer if isinstance(answer, list) else [answer])]
    console().print("\n".join(id_ for id_ in ids if id_), soft_wrap=True)  # at once: "| head -n 1" may not break it


def _show(answer: Any, *, as_json: bool) -> None:
    """Print what came back: JSON with every field, or a table with the plain ones."""
    rows = [_plain(one) for one in (answer if isinstance(answer, list) else [answer])]
    if as_json:
        print_json(rows if isinstance(answer, list) else rows[0])
        return
    out = console()
    if isinstance(answer, str):
        out.print(answer, soft_wrap=True)
    elif isinstance(answer, list):
        _show_rows(out, rows)
    else:
        _show_record(out, rows[0])


def _show_record(out: Console, record: dict[str, Any]) -> None:
    """Print a record line by line, and what lists it has as tables."""
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            out.print(f"{name}:")
            _show_rows(out, value)
        else:
            out.print(f"{name}: {_cell(value)}", soft_wrap=True)


def _show_rows(out: Console, rows: list[dict[str, Any]]) -> None:
    """Print a table: on a terminal the columns that fit, elsewhere all, as wide as they are."""
    if not rows:
        out.print("none")
        return
    names = [name for name in _names(rows) if not all(_is_deep(row.get(name)) for row in rows)]
    longest = {name: max(cell_len(text) for text in (name, *(_cell(row.get(name)) for row in rows))) for name in names}
    shown = _fitting(names, longest, out.width)
    table = Table()
    for name in shown:
        table.add_column(name, no_wrap=_is_rigid(name, longest[name]))
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in shown))
    out.print(table)
    if shown != names:
        out.print(f"not shown: {', '.join(name for name in names if name not in shown)}; --json has all")


def _fitting(names: list[str], longest: Mapping[str, int], width: int) -> list[str]:
    """Return as many columns, from the left, as fit side by side; two at least."""
    shown, used = list[str](), 1
    for name in names:
        needed = longest[name] if _is_rigid(name, longest[name]) else _FOLDED_WIDTH
        used += needed + 3
        if used > width and len(shown) >= 2:
            break
        shown.append(name)
    return shown


def _is_rigid(name: str, longest: int) -> bool:
    """Tell whether a column is never folded: an id is there to be copied, and a short text looks torn."""
    return longest <= _FOLDED_WIDTH or name.lower().endswith("id")


def _is_deep(value: Any) -> bool:
    return isinstance(value, list | dict) and not _is_reference(value)


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"id"}


def _plain(value: Any) -> Any:
    """Return what the API said, under its own names; not what a model would have where it said nothing."""
    if not isinstance(value, BaseModel):
        return value
    said = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"success": value.success, **said} if isinstance(value, Success) else said


def _names(rows: list[dict[str, Any]]) -> list[str]:
    found = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in _PREFERRED if name in found] + [name for name in found if name not in _PREFERRED]


def _cell(value: Any) -> str:
    if _is_reference(value):
        return str(value["id"])
    if isinstance(value, str):
        return display(value.encode("utf-8", "surrogatepass"))  # somebody else's text may do nothing to a terminal
    return "" if value is None else json.dumps(value, ensure_ascii=False)


api = typer.Typer(
    no_args_is_help=True,
    help="Every operation of ProcessMind's API, from the shell.\n\n"
    "The tenant is one of the configuration, and the only one where it has one; or any by its id, whose key is in "
    f"{KEY_VARIABLE} (and the address of another server than the vendor's in {URL_VARIABLE}).",
    epilog="For example: pmwatch api datatable list --tenant acme",
)
app.add_typer(api, name="api")
for _group, _verbs in COMMANDS.items():
    _typer = typer.Typer(no_args_is_help=True, help=_GROUPS[_group])
    for _verb, _method in _verbs.items():
        _typer.command(_verb)(_command(_method))
    api.add_typer(_typer, name=_group)
