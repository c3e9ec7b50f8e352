"""`pmwatch version`."""

import platform
import sqlite3
from importlib.metadata import version as version_of

from pmwatch import __version__
from pmwatch.cli import app
from pmwatch.cli.common import JsonOption, console, print_json

_SHOWN = (
    "watchdog",
    "httpx",
    "structlog",
    "pydantic-settings",
    "prometheus-client",
    "SQLAlchemy",
    "starlette",
)


@app.command()
def version(*, json: JsonOption = False) -> None:
    """Print the version, and with --json those of what it stands on."""
    if not json:
        console().print(f"pmwatch {__version__}")
        return
    print_json(
        {
            "pmwatch": __version__,
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "packages": {name: version_of(name) for name in _SHOWN},
        }
    )
