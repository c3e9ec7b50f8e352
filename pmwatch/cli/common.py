"""What several commands share: options, settings, the running daemon, output."""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlencode

import typer
from rich.console import Console

from pmwatch.config import Settings, load, state_dir_of
from pmwatch.errors import ConfigError, LedgerError
from pmwatch.health import reachable
from pmwatch.lock import is_held, read_holder
from pmwatch.model import BY_HAND

if TYPE_CHECKING:
    from pmwatch.ledger import Ledger
    from pmwatch.processmind import Http

DEFAULT_CONFIG: Final = "/etc/pmwatch/config.toml"
_ASK_SECONDS: Final = 10.0
_PIPED_WIDTH: Final = 1_000_000  # no line of a program or a file has an end at which data could be cut

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        envvar="PMWATCH_CONFIG",
        metavar="FILE",
        help=f"Configuration file, by default {DEFAULT_CONFIG}.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
StateDirOption = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="Overrides the configured state.dir.", show_default=False),
]
ListenOption = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Overrides the configured http.listen.", show_default=False),
]
LogLevelOption = Annotated[
    str | None,
    typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.", show_default=False),
]


def settings_of(
    config: str | None,
    *,
    state_dir: str | None = None,
    listen: str | None = None,
    log_level: str | None = None,
) -> Settings:
    """Read the configuration; flags win. Raises ConfigError with every problem."""
    flags: dict[str, dict[str, Any]] = {}
    for section, key, value in (
        ("state", "dir", state_dir),
        ("http", "listen", listen),
        ("log", "level", log_level),
    ):
        if value is not None:
            flags[section] = {key: value}
    return load(config or DEFAULT_CONFIG, flags=flags)


@dataclass(frozen=True, slots=True)
class Place:
    """The state directory that a command asks about, and the configuration, or what is wrong with it."""

    state_dir: str
    read: Settings | ConfigError

    @property
    def settings(self) -> Settings:
        """The configuration. Raises ConfigError where only the daemon could answer, and does not."""
        if isinstance(self.read, ConfigError):
            raise self.read
        return self.read


def place_of(config: str | None, *, state_dir: str | None = None) -> Place:
    """Return where to ask. A wrong configuration is no more than a warning while a daemon runs on with the old one."""
    try:
        settings = settings_of(config, state_dir=state_dir)
    except ConfigError as error:
        named = state_dir or state_dir_of(config or DEFAULT_CONFIG)
        if not read_holder(named):
            raise
        more = f" (and {len(error.problems) - 1} more; see pmwatch check)" if len(error.problems) > 1 else ""
        said = f"the configuration is wrong: {error.problems[0]}{more}; the daemon runs on with the old one"
        sys.stderr.write(f"pmwatch: {said}\n")
        return Place(named, error)
    return Place(settings.state.dir, settings)


def http_of(settings: Settings | None) -> "Http":
    """Return connections as the configuration wants them, or plain ones without any."""
    from pmwatch.processmind import Http, Timeouts, open_http

    if settings is None:
        return Http()
    api = settings.api
    return open_http(
        Timeouts(api.connect_timeout, api.timeout, api.stall_timeout),
        ca_file=api.ca_file,
        client_cert_file=api.client_cert_file,
        client_key_file=api.client_key_file,
        proxy=api.proxy.get_secret_value(),
    )


def check_folder_name(settings: Settings, name: str | None, *, ledger_too: bool = False) -> None:
    """Refuse a folder that is not in the configuration: a typo must not look like "nothing to do".

    With `ledger_too` one that was in it once, and has deliveries, will do.
    """
    known = [folder.name for folder in settings.folders]
    if name is not None and name not in known and ledger_too:
        known += _removed_folders(settings, known)
    if name is not None and name not in known:
        raise typer.BadParameter(f"--folder: there is no folder {name!r}; known folders: {', '.join(known)}")


def _removed_folders(settings: Settings, known: Sequence[str]) -> list[str]:
    if not has_ledger(settings):
        return []
    with open_ledger(settings, read_only=True) as ledger:
        return sorted({folder for folder, _ in ledger.counts()} - {*known, BY_HAND})


def console() -> Console:
    """Return a console for people; file names are data, so markup and highlighting are off.

    Where nobody looks, as in a pipe, lines are as long as they are.
    """
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def print_json(value: Any) -> None:
    """Print JSON, ASCII only: a file name cannot do anything to a terminal or a log."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def ask_daemon(state_dir: str, path: str, query: Mapping[str, str | bytes] | None = None) -> dict[str, Any] | None:
    """Ask the running pmwatch; None where none runs with this state directory, or it does not answer."""
    address = str(read_holder(state_dir).get("http", ""))
    if not address:
        return None
    url = f"http://{reachable(address)}{path}" + (f"?{urlencode(query, errors='surrogateescape')}" if query else "")
    request = urllib.request.Request(url, headers={"Host": "localhost"})
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ASK_SECONDS) as answer:
            found = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def not_asked(state_dir: str) -> str:
    """Say why the running pmwatch could not be asked; empty where none runs."""
    holder = read_holder(state_dir)
    if not holder and not (os.path.isdir(state_dir) and is_held(state_dir)):
        return ""
    why = "it does not answer" if holder.get("http") else '[http] listen is "off", or it has only just started'
    return f"pmwatch runs (PID {holder.get('pid', 'unknown')}), but cannot be asked: {why}"


def open_ledger(settings: Settings, *, read_only: bool, older_too: bool = False) -> "Ledger":
    """Open the ledger of the configured state directory, which must exist.

    Never migrated by a command: the pmwatch that runs may still be the older one.
    """
    if not has_ledger(settings):
        hint = "Has pmwatch run on this machine with this state.dir?"
        raise LedgerError(f"there is no ledger in {settings.state.dir}", hint=hint)
    from pmwatch.ledger import Ledger

    return Ledger.open(settings.state.dir, read_only=read_only, older_too=older_too)


def has_ledger(settings: Settings) -> bool:
    """Tell whether there is a ledger in the configured state directory."""
    return os.path.exists(os.path.join(settings.state.dir, "ledger.db"))
