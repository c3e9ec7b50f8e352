"""The locks below deploy/, read as pip reads them."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "deploy" / "requirements.lock"
BUILD = ROOT / "deploy" / "build.lock"


def locked(lock: Path) -> dict[str, Requirement]:
    """Return what a lock names, by normalised name; fails where a line has no hash or is no requirement."""
    found = {}
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in joined.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        text, *hashes = re.split(r"\s+--hash=", line)
        assert hashes, f"no hash: {line}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line
        requirement = Requirement(text)
        found[canonicalize_name(requirement.name)] = requirement
    return {str(name): one for name, one in found.items()}


def pinned(requirement: Requirement) -> str:
    """Return the one version that a locked requirement allows."""
    [only] = requirement.specifier
    assert only.operator == "==", requirement
    return only.version


def applies(requirement: Requirement, python: str) -> bool:
    """Tell whether it is installed on Linux under a version of Python."""
    where = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    where |= {"python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate(where)
