"""Writes the bill of materials (SBOM, CycloneDX JSON) of an installation to standard output.

    python deploy/sbom.py /opt/pmwatch/bin/python > pmwatch.cdx.json

Runs in an environment that has the Python package cyclonedx-bom. It tells what is installed, with licences and who
needs what, and the hashes of deploy/requirements.lock, with which it was installed. The same installation always gives
the same bill. Exits with a message where a package is not of the lock, or the bill is not valid.
"""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LOCK: Final = ROOT / "deploy" / "requirements.lock"


def cyclonedx(*words: str) -> dict[str, Any]:
    """Return the bill that cyclonedx-py makes, always the same from the same."""
    more = ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible", "--no-validate"]
    line = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *words, *more]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.stderr)
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def identity(component: dict[str, Any]) -> tuple[str, str]:
    """Return normalised name and version."""
    return re.sub(r"[-_.]+", "-", component["name"]).lower(), component["version"]


def bill(python: str) -> dict[str, Any]:
    """Return what is installed for an interpreter, each package with the hashes of the lock."""
    made = cyclonedx("environment", python)
    locked = {identity(one): one["externalReferences"] for one in cyclonedx("requirements", str(LOCK))["components"]}
    foreign = [one["bom-ref"] for one in made["components"] if identity(one) not in locked]
    if foreign:
        sys.exit(f"not in {LOCK.name}: {', '.join(foreign)}; install with deploy/install")
    for one in made["components"]:
        one.setdefault("externalReferences", []).extend(locked[identity(one)])
    return made


def check(text: str, version: str) -> None:
    """Exit where a bill is not what its format asks for."""
    schema = import_module("cyclonedx.schema").SchemaVersion.from_version(version)
    wrong = import_module("cyclonedx.validation.json").JsonStrictValidator(schema).validate_str(text)
    if wrong is not None:
        sys.exit(f"the bill is not valid: {wrong}")


def main() -> None:
    """Write the bill of the interpreter that is named."""
    if len(sys.argv) != 2:
        sys.exit("usage: python deploy/sbom.py PYTHON")
    made = bill(sys.argv[1])
    text = json.dumps(made, indent=2) + "\n"
    check(text, made["specVersion"])
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
