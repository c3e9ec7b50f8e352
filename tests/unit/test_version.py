"""`pmwatch version`: what a bug report needs, and all of it."""

import json
import platform
import re
import sqlite3
import ssl
import tomllib
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from pmwatch import __version__
from pmwatch.cli import load
from pmwatch.ledger import VERSION

app = load()

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_it_tells_what_pmwatch_stands_on_and_which_ledger_it_writes() -> None:
    told = json.loads(CliRunner().invoke(app, ["version", "--json"]).stdout)
    packages = told.pop("packages")
    assert told == {
        "pmwatch": __version__,
        "ledger": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION,
    }
    wanted = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    names = {re.split("[<>=]", one)[0].lower() for one in wanted}
    assert names <= packages.keys()
    assert {"httpcore", "pydantic-core", "certifi"} <= packages.keys(), "also what those need"
    assert packages.keys().isdisjoint({"pmwatch", "pytest", "mypy"})
    assert {name: version(name) for name in packages} == packages


def test_without_json_it_is_one_line() -> None:
    assert CliRunner().invoke(app, ["version"]).stdout == f"pmwatch {__version__}\n"
