"""Wheel and sdist, an installation from the lock by deploy/install, its types, and its bill of materials."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pmwatch
from support.locks import BUILD, REQUIREMENTS, ROOT, applies, locked, pinned
from support.services import missing, require_tool

PYTHON = "/usr/bin/python3"
USE = """
from pmwatch import Client

def names(client: Client, tenant: str) -> list[str]:
    return [table.display_name for table in client.datatables(tenant)]
"""


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a program to its end, which must be good; return what it wrote."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an installation from the lock; PMWATCH_TEST_INSTALLED names one that is there."""
    given = os.environ.get("PMWATCH_TEST_INSTALLED")
    target = Path(given) if given else tmp_path_factory.mktemp("installed")
    if not given:
        done = subprocess.run([ROOT / "deploy" / "install", target], capture_output=True, text=True, check=False)
        if "No matching distribution" in done.stderr or "must be 3.11 or later" in done.stderr:
            missing("an installation from the lock", f"a package index and {PYTHON} 3.11 or later with venv")
        assert done.returncode == 0, done.stdout + done.stderr
    return target / "bin"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, the wheel, and in `again` the wheel that the sdist builds."""
    tool = require_tool("hatchling", f"pip install -r {BUILD.relative_to(ROOT)}")
    target = tmp_path_factory.mktemp("dist")
    run(tool, "build", "-t", "sdist", "-t", "wheel", "-d", target, cwd=ROOT)
    [sdist] = target.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(target / "source", filter="data")
    [source] = (target / "source").iterdir()
    run(tool, "build", "-t", "wheel", "-d", target / "again", cwd=source)
    return target


def held(directory: Path) -> dict[str, bytes]:
    """Return what the one wheel in a directory holds."""
    [wheel] = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.service("hatchling")
def test_the_sdist_builds_the_same_wheel(dist: Path) -> None:
    from_tree, from_sdist = held(dist), held(dist / "again")
    assert from_tree.keys() == from_sdist.keys()
    assert [name for name, content in from_tree.items() if from_sdist[name] != content] == []


@pytest.mark.service("hatchling")
def test_the_wheel_holds_the_whole_package_its_units_and_its_types_and_nothing_else(dist: Path) -> None:
    wheel = held(dist)
    tree = {str(path.relative_to(ROOT)) for path in (ROOT / "pmwatch").rglob("*") if path.is_file()}
    tree = {name for name in tree if "__pycache__" not in name}
    units = {f"pmwatch/deploy/systemd/{path.name}" for path in (ROOT / "deploy" / "systemd").iterdir()}
    about = {name for name in wheel if name.startswith(f"pmwatch-{pmwatch.__version__}.dist-info/")}
    assert wheel.keys() == tree | units | about
    assert "pmwatch/py.typed" in wheel
    assert {name.rpartition("/")[2] for name in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt"}


@pytest.mark.service("deploy/install")
def test_what_is_installed_is_exactly_what_the_lock_names(installed: Path) -> None:
    told = json.loads(run(installed / "pmwatch", "version", "--json"))
    python = told["python"].rpartition(".")[0]
    wanted = {name: pinned(one) for name, one in locked(REQUIREMENTS).items() if applies(one, python)}
    assert told["packages"] == wanted
    assert not (installed / "pip").exists(), "nothing else is ever installed there"


@pytest.mark.service("deploy/install")
def test_the_installed_commands_work(installed: Path, tmp_path: Path) -> None:
    config = ROOT / "config.example.toml"
    assert "fine" in run(installed / "pmwatch", "check", "--config", config, cwd=tmp_path)
    unit = run(installed / "pmwatch", "install", "systemd", "--dry-run", "--config", config, cwd=tmp_path)
    assert f"ExecStart={installed}/pmwatch run" in unit


@pytest.mark.service("deploy/install")
def test_a_client_of_the_installed_package_is_type_checked(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(USE)
    (tmp_path / "wrong.py").write_text(USE.replace("(tenant)]", "(1)]"))
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed / "python")]
    done = subprocess.run([*mypy, "right.py", "wrong.py"], capture_output=True, text=True, check=False, cwd=tmp_path)
    [wrong, total] = done.stdout.splitlines()
    assert wrong.startswith("wrong.py:")
    assert 'incompatible type "int"; expected "str"' in wrong
    assert total.startswith("Found 1 error")


@pytest.mark.service("cyclonedx-py")
def test_the_bill_of_materials_is_valid_and_names_each_package_with_version_licence_and_hashes(installed: Path) -> None:
    tool = Path(require_tool("cyclonedx-py", "the Python package cyclonedx-bom")).resolve()
    text = run(tool.with_name("python"), ROOT / "deploy" / "sbom.py", installed / "python")
    bill = json.loads(text)
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("pmwatch", pmwatch.__version__)
    told = json.loads(run(installed / "pmwatch", "version", "--json"))["packages"]
    lock = REQUIREMENTS.read_text()
    by_purl = {one["purl"]: one for one in bill["components"]}
    assert by_purl.keys() == {f"pkg:pypi/{name}@{version}" for name, version in told.items()}
    for one in by_purl.values():
        assert one["licenses"], one["name"]
        hashes = [each["content"] for where in one["externalReferences"] for each in where.get("hashes", ())]
        assert hashes, one["name"]
        assert all(each in lock for each in hashes)
    assert str(installed) not in text


@pytest.mark.service("cyclonedx-py")
def test_a_bill_of_something_that_the_lock_does_not_name_is_refused() -> None:
    tool = Path(require_tool("cyclonedx-py", "the Python package cyclonedx-bom")).resolve()
    words = [tool.with_name("python"), ROOT / "deploy" / "sbom.py", sys.executable]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not in requirements.lock" in done.stderr
    assert "pytest==" in done.stderr
