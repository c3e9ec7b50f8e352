"""`pmwatch version`."""

import platform
import re
import sqlite3
import ssl
from importlib.metadata import PackageNotFoundError, distribution

from pmwatch import __version__
from pmwatch.cli import app
from pmwatch.cli.common import JsonOption, console, print_json
from pmwatch.ledger import VERSION


@app.command()
def version(*, json: JsonOption = False) -> None:
    """Print the version, and with --json those of all that it stands on and of the ledger that it writes."""
    if not json:
        console().print(f"pmwatch {__version__}")
        return
    print_json(
        {
            "pmwatch": __version__,
            "ledger": VERSION,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "sqlite": sqlite3.sqlite_version,
            "openssl": ssl.OPENSSL_VERSION,
            "packages": dict(sorted(_needed("pmwatch").items())),
        }
    )


def _needed(name: str) -> dict[str, str]:
    """Return the version of each installed package that a package needs, directly or not, by its normalised name."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        try:
            here = distribution(waiting.pop())
        except PackageNotFoundError:  # needed on other systems only; or a source tree that was never installed
            continue
        found[_normalised(here.name)] = here.version
        wanted = {_normalised(one) for one in here.requires or () if "extra ==" not in one}
        waiting += sorted(wanted - found.keys())
    found.pop(_normalised(name), None)
    return found


def _normalised(requirement: str) -> str:
    """Return the name in a requirement, normalised: prometheus-client for `Prometheus_Client>=0.20`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()
