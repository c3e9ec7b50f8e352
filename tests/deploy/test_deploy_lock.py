"""The locks: what pyproject.toml asks for, within its bounds and with hashes; nothing of the tests, and no address."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.locks import BUILD, REQUIREMENTS, ROOT, applies, locked, pinned

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PYTHONS = [
    found[1] for one in PROJECT["classifiers"] if (found := re.fullmatch(r"Programming Language .* (3\.\d+)", one))
]
DECLARED = [(REQUIREMENTS, one) for one in PROJECT["dependencies"]]
DECLARED += [(BUILD, one) for one in PYPROJECT["build-system"]["requires"]]


@pytest.mark.parametrize(("lock", "text"), DECLARED, ids=lambda value: getattr(value, "name", value))
def test_each_dependency_is_locked_at_a_version_within_its_bounds(lock: Path, text: str) -> None:
    declared = Requirement(text)
    found = locked(lock).get(canonicalize_name(declared.name))
    assert found is not None, "run deploy/relock"
    assert declared.specifier.contains(pinned(found)), f"{found.name} {pinned(found)}: run deploy/relock"


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_goes_with_every_python_but_what_other_systems_need(python: str) -> None:
    missing = {name for name, one in locked(REQUIREMENTS).items() if not applies(one, python)}
    assert missing <= {"colorama"}
    assert "3.11" in PYTHONS


def test_nothing_of_the_tests_is_locked() -> None:
    of_tests = {canonicalize_name(Requirement(one).name) for one in PROJECT["optional-dependencies"]["test"]}
    assert of_tests.isdisjoint(locked(REQUIREMENTS))


@pytest.mark.parametrize("lock", [REQUIREMENTS, BUILD], ids=lambda lock: lock.name)
def test_a_lock_names_no_address_and_no_other_way_to_get_packages(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    assert [line for line in lines if "://" in line or line.startswith("-") or " @ " in line] == []


def test_the_command_that_renews_the_locks_is_named_in_them() -> None:
    assert "deploy/relock" in REQUIREMENTS.read_text().splitlines()[1]
    assert (ROOT / "deploy" / "relock").stat().st_mode & 0o111
