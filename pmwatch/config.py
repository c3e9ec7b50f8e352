"""Settings: flags > `PMWATCH_…` environment (scalars only) > TOML > defaults.

Every section and entry is checked by itself, and a second pass checks the entries against each other over
what parsed, so that one typo hides no other mistake. All problems are reported at once, as a `ConfigError`.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pmwatch.errors import ConfigError
from pmwatch.model import (
    MAX_PUT_BYTES,
    AfterUpload,
    Backlog,
    Completeness,
    CompleteWhen,
    Dedup,
    Empty,
    Folder,
    Guards,
    OnInvalid,
    Order,
    Quarantine,
    Target,
    Tenant,
    Validate,
    WatchMode,
    parse_duration,
    parse_rate,
    parse_size,
)
from pmwatch.systemd import CREDENTIALS
from pmwatch.timetable import parse_span
from pmwatch.toml import nearest, trouble

ENV_PREFIX: Final = "PMWATCH_"
_LONGEST_SECONDS: Final = 36500 * 86400.0
PLACEHOLDERS: Final = ("{tenant}", "{dataset}", "{datatable}", "{process}")
SECTIONS: Final = ("api", "state", "http", "log", "delivery", "defaults", "tenants", "folders")
_HIDDEN_KEYS: Final = frozenset({"api_key", "proxy"})
_HTTP_OFF: Final = "off"


def _duration(value: object) -> object:
    if isinstance(value, bool | int | float):
        raise ValueError(f'a duration needs a unit: write "{value}s" for seconds')  # noqa: TRY004  pydantic wants ValueError
    seconds = parse_duration(value) if isinstance(value, str) else value
    if isinstance(seconds, float) and seconds > _LONGEST_SECONDS:
        raise ValueError('at most "36500d", which is a hundred years; threads cannot wait longer')
    return seconds


def _size(value: object) -> object:
    if isinstance(value, bool | int | float):
        raise ValueError(f'a size needs a unit: write "{value}B" or "{value}MiB"')  # noqa: TRY004  pydantic wants ValueError
    return parse_size(value) if isinstance(value, str) else value


def _rate(value: str) -> str:
    parse_rate(value)
    return value


def _span(value: str) -> str:
    parse_span(value)
    return value


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a path cannot hold a NUL character")
    return value


Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
NonEmpty = Annotated[str, Field(min_length=1)]
PathText = Annotated[str, AfterValidator(_no_nul)]
Rate = Annotated[str, AfterValidator(_rate)]
NonEmptyPath = Annotated[PathText, Field(min_length=1)]


class Section(BaseModel):
    """A table of the configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def keys(cls) -> dict[str, FieldInfo]:
        """Return the table's keys as people write them, each with its field."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


class ApiSection(Section):
    """How to reach ProcessMind and the storage behind its presigned URLs."""

    base_url: NonEmpty = "https://api.processmind.com"
    connect_timeout: Duration = 10.0
    timeout: Duration = 60.0
    stall_timeout: Duration = 60.0
    ca_file: PathText = ""
    client_cert_file: PathText = ""
    client_key_file: PathText = ""
    proxy: SecretStr = SecretStr("")
    allowed_upload_hosts: tuple[NonEmpty, ...] = ()


class StateSection(Section):
    """Where the ledger and the lock live."""

    dir: NonEmptyPath = "/var/lib/pmwatch"
    keep: Duration = 0.0


class HttpSection(Section):
    """The status page, the JSON API, metrics and health."""

    listen: NonEmpty = "127.0.0.1:9108"
    allowed_hosts: tuple[NonEmpty, ...] = ("localhost", "127.0.0.1", "[::1]")


class LogSection(Section):
    """What is logged to standard error, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class DeliverySection(Section):
    """Uploading: how many at once, how long to try, how long to take leave."""

    max_parallel: Annotated[int, Field(ge=1, le=64)] = 4
    max_parallel_per_tenant: Annotated[int, Field(ge=0, le=64)] = 0
    max_parallel_per_datatable: Annotated[int, Field(ge=0, le=64)] = 0
    bandwidth: Rate = "unlimited"
    bandwidth_timetable: tuple[Annotated[str, AfterValidator(_span)], ...] = ()
    retry_first: Duration = 1.0
    retry_max: Duration = 300.0
    give_up_after: Duration = 86400.0
    shutdown_grace: Duration = 20.0
    drain_timeout: Duration = 600.0
    ask_rows_after: Duration = 60.0


class BatchOptions(Section):
    """Files that only go together: after a marker beside them, or as a manifest lists them."""

    marker: str = ""
    manifest: str = ""


class FolderOptions(Section):
    """What `[defaults]` may set for every folder."""

    include: tuple[NonEmpty, ...] = ()
    exclude: tuple[NonEmpty, ...] = ()
    recursive: bool = False
    complete_when: CompleteWhen = CompleteWhen.AUTO
    marker: NonEmpty = "{name}.done"
    batch: BatchOptions = BatchOptions()
    settle: Duration = 5.0
    watch: WatchMode = WatchMode.AUTO
    poll_interval: Annotated[float, BeforeValidator(_duration), Field(ge=0.1)] = 10.0
    root_marker: PathText = ""
    rescan_interval: Annotated[float, BeforeValidator(_duration), Field(ge=0.1)] = 300.0
    dedup: Dedup = Dedup.CONTENT
    order: Order = Order.ARRIVAL
    on_failure: Literal["continue", "block"] = "continue"
    supersede: bool = False
    validate_: Validate = Field(Validate.OFF, alias="validate")  # BaseModel has a method of this name
    require_columns: tuple[NonEmpty, ...] = ()
    on_invalid: OnInvalid = OnInvalid.HOLD
    min_size: Size = 0
    max_size: Annotated[int, BeforeValidator(_size), Field(ge=1, le=MAX_PUT_BYTES)] = MAX_PUT_BYTES
    empty: Empty = Empty.SKIP
    shrink_guard: Annotated[float, Field(ge=0, lt=1)] = 0.0
    backlog: Backlog = Backlog.SEND
    max_backlog: Annotated[int, Field(ge=0)] = 1000
    after_upload: AfterUpload = AfterUpload.KEEP
    archive_keep: Duration = 0.0
    create_missing: bool = False
    quarantine: Quarantine = Quarantine.MOVE


class TenantEntry(Section):
    """One `[[tenants]]` entry."""

    name: Name
    id: NonEmpty
    api_key: SecretStr | None = None
    api_key_file: NonEmptyPath | None = None
    requests_per_second: Annotated[float, Field(ge=0)] = 0.0


class FolderEntry(FolderOptions):
    """One `[[folders]]` entry."""

    name: Name
    path: NonEmptyPath
    tenant: str = ""
    dataset: str = ""
    datatable: str = ""
    process: str = ""
    archive_dir: PathText = ""
    quarantine_dir: PathText = ""


_FOLDER_KEYS: Final = frozenset(FolderEntry.keys())
_LISTS: Final = ("tenants", "folders")
_MODELS: Final = (ApiSection, StateSection, HttpSection, LogSection, DeliverySection, TenantEntry, FolderEntry)
_SHOWN_KEYS: Final = frozenset[str]().union(*(model.keys() for model in _MODELS)) - _HIDDEN_KEYS


class _Sources(BaseSettings):
    """Merges flags, environment and TOML without judging them; `Settings.load` does that, entry by entry."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="allow"
    )
    toml: ClassVar[dict[str, Any]] = {}

    api: dict[str, Any] = {}
    state: dict[str, Any] = {}
    http: dict[str, Any] = {}
    log: dict[str, Any] = {}
    delivery: dict[str, Any] = {}
    defaults: dict[str, Any] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  replaced by one that ignores an empty value
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  a service reads no .env by accident
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  keys have files of their own
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, strongest first."""
        environment = EnvSettingsSource(settings_cls, env_ignore_empty=True)
        return init_settings, environment, InitSettingsSource(settings_cls, init_kwargs=cls.toml)


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that passed every check."""

    api: ApiSection
    state: StateSection
    http: HttpSection
    log: LogSection
    delivery: DeliverySection
    tenants: tuple[Tenant, ...]
    folders: tuple[Folder, ...]

    @property
    def listen(self) -> tuple[str, int] | None:
        """Host and port to serve HTTP on, or None when it is off."""
        return None if self.http.listen == _HTTP_OFF else split_listen(self.http.listen)


def load(path: str | None, *, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """Read the configuration file `path` (None: environment and flags only). Raises ConfigError with all problems."""
    raw = _merge(_read_toml(path), flags or {})
    try:
        return _Reader(raw).settings()
    except ConfigError as error:
        variables = _variables(flags or {})
        raise ConfigError([_with_variable(problem, variables) for problem in error.problems], hint=error.hint) from None


def _variables(flags: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the variables of the environment that set something, by how messages name it: `api: timeout:`."""
    found = {}
    for variable, value in os.environ.items():
        section, _, key = variable.lower().removeprefix(ENV_PREFIX.lower()).partition("_")
        of_ours = variable.upper().startswith(ENV_PREFIX) and section in _Sources.model_fields
        if of_ours and key and value and key not in flags.get(section, {}):
            found[f"{section}: {key}:"] = variable
    return found


def _with_variable(problem: str, variables: Mapping[str, str]) -> str:
    """Return a problem with the variable of the environment that causes it, if one does."""
    variable = next((variable for begin, variable in variables.items() if problem.startswith(begin)), "")
    return f"{problem} (from {variable} in the environment)" if variable else problem


def state_dir_of(path: str) -> str:
    """Return the state directory that environment and file name, also where the file is wrong; else the default."""
    named = os.environ.get(f"{ENV_PREFIX}STATE_DIR", "")
    if named:
        return named
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read()
    except OSError:
        return StateSection().dir
    try:
        found = tomllib.loads(text)["state"]["dir"]
    except (RecursionError, ValueError):
        plain = re.search(r"""^\s*\[state\][^\[]*?^\s*dir\s*=\s*(["'])([^"']+)\1""", text, re.MULTILINE)
        found = plain[2] if plain else ""
    except (KeyError, TypeError):
        found = ""
    return found if isinstance(found, str) and found else StateSection().dir


def split_listen(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError with what is allowed."""
    host, separator, port = text.rpartition(":")
    if not separator or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError('write HOST:PORT, such as "127.0.0.1:9108", or "off"')
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address is this machine itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_toml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows write a byte order mark
            text = file.read()
        return tomllib.loads(text)
    except OSError as error:
        hint = "Name the file with --config FILE or PMWATCH_CONFIG; config.example.toml documents every key."
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"], hint=hint) from None
    except RecursionError:
        raise ConfigError([f"{path}: not valid TOML: nested too deeply"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None
    except ValueError as error:  # TOMLDecodeError, and a number of too many digits
        said, hint = trouble(text, error, lists=_LISTS, shown=_SHOWN_KEYS)
        raise ConfigError([f"{path}: not valid TOML: {said}"], hint=hint) from None


def _merge(toml: dict[str, Any], flags: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    wrong = {name: toml[name] for name in _Sources.model_fields if not isinstance(toml.get(name, {}), dict)}
    tables = {name: value for name, value in toml.items() if name not in wrong}
    sources = type("_SourcesWithToml", (_Sources,), {"toml": tables, "__module__": __name__})
    try:
        merged: dict[str, Any] = sources(**{name: dict(section) for name, section in flags.items()}).model_dump()
    except (SettingsError, ValidationError) as error:
        named = re.search(r'field "(\w+)"', str(error))
        variable = ENV_PREFIX + (named[1].upper() if named else "…")
        example = f"{ENV_PREFIX}DELIVERY_MAX_PARALLEL"
        raise ConfigError([f"environment: {variable} cannot be read; set single values, such as {example}"]) from None
    if "api" not in wrong and "key" not in toml.get("api", {}):
        merged["api"].pop("key", None)  # PMWATCH_API_KEY is for the commands that need no configuration
    return merged | wrong  # what is no table is reported with all the rest


_Model = TypeVar("_Model", bound=Section)


class _Reader:
    """Reads the merged tables, section by section, and collects problems on the way."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw
        self._problems: list[str] = []

    def settings(self) -> Settings:
        self._unknown_sections()
        api = self._section("api", ApiSection)
        state = self._section("state", StateSection)
        http = self._section("http", HttpSection)
        log = self._section("log", LogSection)
        delivery = self._section("delivery", DeliverySection)
        tenants = self._tenants()
        folders = self._folders(self._tenant_names())
        self._problems += _api_problems(api) + _http_problems(http)
        self._problems += _relative("state: dir", state.dir) + _api_file_problems(api)
        self._problems += list(_overlaps(folders)) + list(_own_directory_problems(folders, state))
        if self._problems:
            raise ConfigError(self._problems)
        return Settings(api, state, http, log, delivery, tuple(tenants), tuple(folders))

    def _unknown_sections(self) -> None:
        for key in self._raw:
            if key not in SECTIONS:
                known = nearest(key, SECTIONS) or f"; known sections: {', '.join(SECTIONS)}"
                if FolderEntry.keys().get(key):
                    known = "; it belongs into [defaults] or a [[folders]] entry"
                self._problems.append(f"{key}: unknown section{known}")

    def _section(self, name: str, model: type[_Model]) -> _Model:
        return self._parse(name, model, self._raw.get(name, {})) or model()

    def _parse(self, where: str, model: type[_Model], raw: Any) -> _Model | None:
        """Validate one table, note its problems, and return it without the keys that were wrong."""
        if not isinstance(raw, dict):
            name = where.partition("[")[0]
            form = f"[{name}]" if name == where else f"[[{name}]]"
            shown = "the value" if name == "tenants" else _show(where, raw)  # it might be an API key
            self._problems.append(f"{where}: {shown} is not a table; write {form}")
            return None
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
            self._problems += [_problem(where, model, detail) for detail in error.errors()]
        try:
            return model.model_validate({key: value for key, value in raw.items() if key not in wrong})
        except ValidationError:
            return None  # a required key is missing or wrong: reported above

    def _entries(self, name: str) -> list[Any]:
        entries = self._raw.get(name, [])
        return entries if isinstance(entries, list) else []

    def _named(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield where each entry stands, for messages, and the entry; note names that come twice."""
        if not isinstance(self._raw.get(name, []), list):
            self._problems.append(f"{name}: write one [[{name}]] table for each")
        seen: dict[str, str] = {}
        for index, entry in enumerate(self._entries(name), start=1):
            entry_name = entry.get("name") if isinstance(entry, dict) else None
            where = f"{name}[{index}]" + (f" {entry_name!r}" if isinstance(entry_name, str) else "")
            if isinstance(entry_name, str) and entry_name in seen:
                self._problems.append(f"{where}: name {entry_name!r} is already used by {seen[entry_name]}")
            elif isinstance(entry_name, str):
                seen[entry_name] = f"{name}[{index}]"
            yield where, entry

    def _tenant_names(self) -> frozenset[str]:
        names = (entry.get("name") for entry in self._entries("tenants") if isinstance(entry, dict))
        return frozenset(name for name in names if isinstance(name, str))

    def _tenants(self) -> list[Tenant]:
        tenants = []
        for where, raw in self._named("tenants"):
            entry = self._parse(where, TenantEntry, raw)
            if entry is None:
                continue
            if entry.api_key is not None and entry.api_key_file is not None:
                self._problems.append(f"{where}: give api_key or api_key_file, not both")
            self._problems += _relative(f"{where}: api_key_file", entry.api_key_file or "")
            tenants.append(self._tenant(where, entry))
        return tenants

    def _tenant(self, where: str, entry: TenantEntry) -> Tenant:
        key = entry.api_key.get_secret_value().strip() if entry.api_key else ""
        if not key.isascii() or not key.isprintable():
            self._problems.append(f"{where}: api_key: the value is not one line of plain text")
        key_file, from_systemd = entry.api_key_file or "", False
        if not key and not key_file:
            key_file = _credential(entry.name)
            from_systemd = key_file != ""
        if not key and not key_file:
            self._problems.append(
                f"{where}: no API key; give api_key_file, api_key, or a systemd credential pmwatch-{entry.name}"
            )
        return Tenant(
            entry.name,
            entry.id,
            key,
            os.path.abspath(key_file) if key_file else "",
            from_systemd,
            entry.requests_per_second,
        )

    def _folders(self, tenants: frozenset[str]) -> list[Folder]:
        raw_defaults = self._raw.get("defaults", {})
        self._section("defaults", FolderOptions)
        items = raw_defaults.items() if isinstance(raw_defaults, dict) else ()
        good = {key: value for key, value in items if _valid_option(key, value)}
        folders = []
        for where, raw in self._named("folders"):
            entry = self._parse(where, FolderEntry, {**good, **raw} if isinstance(raw, dict) else raw)
            if entry is not None:
                self._problems += [f"{where}: {problem}" for problem in _folder_problems(entry, tenants)]
                folders.append(_folder(entry, tenants))
        if self._raw.get("folders", []) == []:
            self._problems.append("folders: there is none; add a [[folders]] entry with name, path, tenant, datatable")
        return folders


def _credential(tenant: str) -> str:
    """Return where the tenant's systemd credential is: what systemd copied for the service, else its source."""
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        return os.path.join(directory, f"pmwatch-{tenant}")
    return os.path.join(CREDENTIALS, tenant) if os.path.isdir(CREDENTIALS) else ""


def _valid_option(key: str, value: Any) -> bool:
    try:
        FolderOptions.model_validate({key: value})
    except ValidationError:
        return False
    return True


def _problem(where: str, model: type[Section], detail: ErrorDetails) -> str:
    """Put one pydantic error into plain words: the key, the value, what is allowed, the nearest known key."""
    key = ".".join(str(part) for part in detail["loc"]) or "?"
    known = tuple(model.keys())
    if detail["type"] == "extra_forbidden" and model is FolderOptions and key in _FOLDER_KEYS:
        return f"{where}: {key}: it is for one folder only; it belongs into a [[folders]] entry"
    if detail["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key{nearest(key, known) or '; known keys: ' + ', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where}: {key}: missing; it is required"
    if detail["type"] == "string_pattern_mismatch":
        allowed = "letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"
        return f"{where}: {key}: {_show(key, detail['input'])}: allowed are {allowed}"
    said = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {_show(key, detail['input'])}: {said[:1].lower()}{said[1:]}{_choice(detail)}"


def _choice(detail: ErrorDetails) -> str:
    expected = re.findall(r"'([^']+)'", str(detail.get("ctx", {}).get("expected", "")))
    return nearest(str(detail["input"]), expected) if expected else ""


def _show(key: str, value: Any) -> str:
    if key.split(".", maxsplit=1)[0] in _HIDDEN_KEYS or isinstance(value, dict | list):
        return "the value"
    return repr(value)


def _api_problems(api: ApiSection) -> list[str]:
    try:
        url = urlsplit(api.base_url)
        host = url.hostname if url.scheme in ("http", "https") and url.port != 0 else None
    except ValueError:  # brackets without an address, a port that is none
        host = None
    if not host:
        return [f'api: base_url: {api.base_url!r} is not a URL; write "https://api.processmind.com"']
    if url.scheme == "http" and not is_loopback(host):
        return [f"api: base_url: {api.base_url!r}: http would show the API key to the network; use https"]
    if url.query or url.fragment or url.username:
        return ["api: base_url: write only scheme, host, port and path"]
    return []


def _api_file_problems(api: ApiSection) -> list[str]:
    names = ("ca_file", "client_cert_file", "client_key_file")
    problems = [problem for name in names for problem in _relative(f"api: {name}", getattr(api, name))]
    if api.client_key_file and not api.client_cert_file:
        problems.append("api: client_key_file: given without client_cert_file; name the certificate, too")
    proxy = api.proxy.get_secret_value()
    if proxy and not re.fullmatch(r"https?://[^/\s]+/?", proxy):
        problems.append(
            'api: proxy: the value is no proxy; write "http://HOST:PORT" or "http://USER:PASSWORD@HOST:PORT"'
        )
    return problems


def _relative(where: str, path: str) -> list[str]:
    if not path or os.path.isabs(path):
        return []
    return [f"{where}: {path!r} is not absolute; write the whole path from /"]


def _http_problems(http: HttpSection) -> list[str]:
    try:
        if http.listen != _HTTP_OFF:
            split_listen(http.listen)
    except ValueError as error:
        return [f"http: listen: {http.listen!r}: {error}"]
    return []


def _folder_problems(entry: FolderEntry, tenants: frozenset[str]) -> Iterator[str]:
    levels = _split_path(entry.path)[1]
    yield from _path_problems(entry, levels)
    for key in ("tenant", "dataset", "datatable", "process"):
        value = getattr(entry, key)
        if value and f"{{{key}}}" in levels:
            yield f"{key}: {value!r} is given, and the path has {{{key}}} as well; remove one"
    if not entry.tenant and "{tenant}" not in levels:
        yield "tenant: missing; name a [[tenants]] entry, or put {tenant} into the path"
    if entry.tenant and entry.tenant not in tenants:
        known = f"; known tenants: {', '.join(sorted(tenants)) or 'none'}"
        yield f"tenant: {entry.tenant!r} is not a [[tenants]] entry{nearest(entry.tenant, sorted(tenants)) or known}"
    yield from _completeness_problems(entry)
    tables = [key for key in ("datatable", "dataset") if getattr(entry, key) or f"{{{key}}}" in levels]
    if entry.process or "{process}" in levels:
        if tables:
            yield f"process: given together with {tables[0]}; a folder takes event logs or BPMN models, not both"
    elif "datatable" not in tables:
        yield (
            'datatable: missing; give an id, a name "Dataset/Table", or put {datatable} into the path; '
            "or for BPMN models name their process"
        )


def _completeness_problems(entry: FolderEntry) -> Iterator[str]:
    marker, batch = entry.marker, entry.batch
    if not re.search(r"\{(name|stem)\}", marker) or "/" in marker or marker in ("{name}", "{stem}"):
        yield f'marker: {marker!r} names no file beside the one it completes; write for example "{{name}}.done"'
    if batch.marker and batch.manifest:
        yield "batch: marker and manifest are both given; remove one"
    if "/" in batch.marker + batch.manifest:
        yield "batch: a marker or manifest lies beside its files; write its name only, without a directory"
    if "/" in entry.root_marker:
        yield f"root_marker: {entry.root_marker!r} is not a plain name; the file lies in the folder's path itself"
    if entry.min_size > entry.max_size:
        yield f"min_size: {entry.min_size} bytes are more than max_size ({entry.max_size})"
    if entry.on_failure == "block" and entry.order is Order.NONE:
        yield 'on_failure: "block" needs an order; with order = "none" no file waits for another'
    if entry.require_columns and entry.validate_ is not Validate.HEADER:
        yield 'require_columns: only looked for with validate = "header"'


def _path_problems(entry: FolderEntry, levels: tuple[str, ...]) -> Iterator[str]:
    unknown = [level for level in levels if level not in PLACEHOLDERS]
    if not os.path.isabs(entry.path):
        yield f"path: {entry.path!r} is not absolute; write the whole path from /"
    if unknown:
        allowed = ", ".join(PLACEHOLDERS)
        yield f"path: {unknown[0]!r} after a placeholder; each level there is one of {allowed}"
    if len(set(levels)) != len(levels):
        yield f"path: {entry.path!r} has a placeholder twice"
    for key in ("archive_dir", "quarantine_dir"):
        value = getattr(entry, key)
        if value and not os.path.isabs(value):
            yield f"{key}: {value!r} is not absolute; write the whole path from /"


def _split_path(path: str) -> tuple[str, tuple[str, ...]]:
    """Return the root of a path with placeholders, and the levels from the first placeholder on."""
    parts = os.path.normpath(path).split("/")
    first = next((index for index, part in enumerate(parts) if "{" in part), len(parts))
    return "/".join(parts[:first]) or "/", tuple(parts[first:])


def _folder(entry: FolderEntry, tenants: frozenset[str]) -> Folder:
    root, levels = _split_path(entry.path)
    own = os.path.join(root, ".pmwatch")
    return Folder(
        name=entry.name,
        root=os.fsencode(root),
        levels=levels,
        target=Target(entry.tenant, entry.datatable, entry.dataset, entry.process),
        include=entry.include,
        exclude=entry.exclude,
        recursive=entry.recursive,
        settle_seconds=entry.settle,
        rescan_seconds=entry.rescan_interval,
        dedup=_dedup(entry, levels),
        order=entry.order,
        after_upload=entry.after_upload,
        archive_dir=os.fsencode(os.path.normpath(entry.archive_dir or os.path.join(own, "archive"))),
        quarantine_dir=os.fsencode(os.path.normpath(entry.quarantine_dir or os.path.join(own, "quarantine"))),
        tenants=tenants,
        completeness=Completeness(entry.complete_when, entry.marker, entry.batch.marker, entry.batch.manifest),
        guards=Guards(
            min_size=entry.min_size,
            max_size=entry.max_size,
            empty=entry.empty,
            shrink=entry.shrink_guard,
            validate=entry.validate_,
            require_columns=entry.require_columns,
            on_invalid=entry.on_invalid,
            backlog=entry.backlog,
            max_backlog=entry.max_backlog,
        ),
        watch=entry.watch,
        poll_seconds=entry.poll_interval,
        root_marker=entry.root_marker,
        blocks=entry.on_failure == "block",
        supersede=entry.supersede,
        archive_seconds=entry.archive_keep,
        create_missing=entry.create_missing,
        quarantine=entry.quarantine,
    )


def _dedup(entry: FolderEntry, levels: tuple[str, ...]) -> Dedup:
    """A model replaces the one before it: an older one that comes back has to go again, unless told otherwise."""
    models = bool(entry.process) or "{process}" in levels
    return Dedup.LATEST if models and "dedup" not in entry.model_fields_set else entry.dedup


def _contains(outer: bytes, inner: bytes) -> bool:
    """Tell whether `inner` is `outer` or lies below it, symbolic links resolved."""
    outer, inner = os.path.realpath(outer), os.path.realpath(inner)
    return inner == outer or inner.startswith(outer.rstrip(b"/") + b"/")


def _looks_into(outer: Folder, inner: Folder) -> bool:
    """Tell whether files directly in the root of `inner` are also files of `outer`."""
    same = os.path.realpath(outer.root) == os.path.realpath(inner.root)
    return same or ((outer.recursive or bool(outer.levels)) and _contains(outer.root, inner.root))


def _overlaps(folders: Sequence[Folder]) -> Iterator[str]:
    for index, second in enumerate(folders):
        for first in folders[:index]:
            if _looks_into(first, second) or _looks_into(second, first):
                yield (
                    f"folders {second.name!r}: path: {os.fsdecode(second.root)!r} overlaps with folder "
                    f"{first.name!r} ({os.fsdecode(first.root)!r}); a file must belong to one folder only"
                )


def _own_directory_problems(folders: Sequence[Folder], state: StateSection) -> Iterator[str]:
    for folder in folders:
        if _contains(folder.root, os.fsencode(os.path.abspath(state.dir))):
            yield f"state: dir: {state.dir!r} lies inside the watched folder {folder.name!r}; put it elsewhere"
        for key in ("archive_dir", "quarantine_dir"):
            own: bytes = getattr(folder, key)
            if own == folder.root:
                yield f"folders {folder.name!r}: {key}: it is the watched directory itself"
            if _contains(folder.root, own):
                continue  # inside its own folder it is never looked into, and overlapping folders are refused
            for other in folders:
                if other is not folder and _contains(other.root, own):
                    yield (
                        f"folders {folder.name!r}: {key}: {os.fsdecode(own)!r} lies inside the watched folder "
                        f"{other.name!r}; its files would be uploaded again"
                    )
