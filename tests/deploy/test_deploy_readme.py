"""deploy/README.md: its commands are shell, and the files they name are there."""

import re
import subprocess
from pathlib import Path

import pytest

from support.services import require_tool

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "deploy" / "README.md").read_text()
BLOCKS = re.findall(r"^ *```sh\n(.*?)^ *```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_commands_are_shell(block: str) -> None:
    shell = require_tool("bash", "the Debian package bash")
    result = subprocess.run([shell, "-n"], input=block, capture_output=True, text=True, timeout=10, check=False)
    assert result.returncode == 0, result.stderr


def test_files_named_in_commands_exist() -> None:
    assert BLOCKS
    named = set(re.findall(r"(?<![\w/])(?:deploy/[\w./-]+|config\.example\.toml)", "\n".join(BLOCKS)))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_directory_is_in_the_index() -> None:
    index = set(re.findall(r"^\| `([\w/-]+)/` \|", README, flags=re.MULTILINE))
    holding_files = {
        str(path.parent.relative_to(ROOT / "deploy"))
        for path in (ROOT / "deploy").rglob("*")
        if path.is_file() and path.parent != ROOT / "deploy"
    }
    inside_the_chart = {name for name in holding_files if name.startswith("helm/pmwatch/")}
    assert index == {name for name in holding_files - inside_the_chart if not name.startswith("docs")}
