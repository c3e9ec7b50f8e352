"""Imports go down: the level table of the design, held against the syntax tree of every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "pmwatch"

LEVELS = {
    "model": 0,
    "errors": 0,
    "metrics": 0,
    "log": 0,
    "systemd": 0,
    "threads": 0,
    "failpoints": 0,
    "files": 0,
    "formats": 0,
    "filesystems": 0,
    "timetable": 0,
    "toml": 0,
    "config": 1,
    "lock": 1,
    "places": 1,
    "health": 2,
    "units": 2,
    "ledger": 2,
    "processmind": 2,
    "sandbox": 2,
    "intake": 3,
    "delivery": 3,
    "web": 3,
    "explain": 3,
    "advice": 3,
    "audit": 3,
    "doctor": 3,
    "rebuild": 3,
    "retention": 3,
    "provision": 3,
    "answers": 4,
    "reporting": 4,
    "service": 4,
    "cli": 5,
    "__main__": 5,
}
EXEMPT = {"__init__"}  # pmwatch/__init__.py re-exports Client, lazily
FROM_INIT = {"__version__"}

# Imports within a level that exist, each with its reason. Nothing else may look sideways.
SIDEWAYS = {
    ("files", "errors"): "opening a file below a root says in our own errors what is wrong with it",
    ("files", "model"): "its messages escape paths, and name the kind of what is no regular file",
    ("formats", "errors"): "a file that cannot be read is told as everywhere else",
    ("formats", "model"): "what is checked is the configuration's word, and content is escaped in sentences",
    ("timetable", "model"): "a rate is written there as everywhere else",
    ("explain", "intake"): "`why` asks the same rules and the same evidence that intake asks",
    ("explain", "advice"): "`why` ends with what a person can do",
    ("advice", "delivery"): "where a source lies is known to what moves it",
    ("audit", "intake"): "an audit gives every file on disk the verdict that intake would give it",
    ("rebuild", "audit"): "what lies in a folder is what an audit would account for",
    ("rebuild", "intake"): "what is held is what intake would have taken",
    ("doctor", "intake"): "the doctor looks at a root as a scan does",
    ("service", "answers"): "the service hands its parts to what answers questions about them",
    ("service", "reporting"): "the service lets its parts tell what happens",
    ("__main__", "cli"): "python -m pmwatch is the command",
}

SEES_SETTINGS = {"cli", "service"}
ONLY_USER = {"httpx": "processmind", "httpcore": "processmind", "sqlalchemy": "ledger", "watchdog": "intake.watch"}

MODULES = sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return a module's name below pmwatch: `ledger.store`, `ledger` for its __init__, `__init__` for the root's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def unit_of(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports, anywhere in it: modules, and `package.name` for names taken from a package."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it goes"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Yield the units of pmwatch that a module imports; names that pmwatch/__init__.py itself defines are none."""
    for name in imports(path):
        head, _, rest = name.partition(".")
        if head == "pmwatch" and rest not in FROM_INIT:
            yield unit_of(rest)


def is_same_or_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_every_module_has_a_level_and_every_level_a_module() -> None:
    assert {unit_of(dotted(path)) for path in MODULES} == LEVELS.keys() | EXEMPT


@pytest.mark.parametrize("path", [path for path in MODULES if dotted(path) not in EXEMPT], ids=dotted)
def test_imports_go_down(path: Path) -> None:
    unit = unit_of(dotted(path))
    wrong = [
        other
        for other in own_imports(path)
        if other != unit and LEVELS[other] >= LEVELS[unit] and (unit, other) not in SIDEWAYS
    ]
    assert wrong == [], f"{dotted(path)} (level {LEVELS[unit]}) must not import {wrong}"


def test_sideways_imports_stay_within_one_level_and_every_exception_is_needed() -> None:
    assert all(LEVELS[user] == LEVELS[used] for user, used in SIDEWAYS)
    existing = {(unit_of(dotted(path)), used) for path in MODULES for used in own_imports(path)}
    assert set(SIDEWAYS) - existing == set()


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_cli_and_service_see_the_settings(path: Path) -> None:
    unit = unit_of(dotted(path))
    assert unit in SEES_SETTINGS | {"config"} or "config" not in own_imports(path)


@pytest.mark.parametrize("library", ONLY_USER)
def test_a_library_stays_behind_its_own_package(library: str) -> None:
    users = {dotted(path) for path in MODULES if any(is_same_or_below(name, library) for name in imports(path))}
    assert users, f"nobody imports {library}"
    assert [user for user in users if not is_same_or_below(user, ONLY_USER[library])] == []


def test_the_package_itself_imports_nothing_of_its_own_when_it_is_imported() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [name for node in at_import for name in ast.unparse(node).split() if name.startswith("pmwatch")] == []


def test_signals_go_to_the_mailbox_and_nowhere_else() -> None:
    """A handler that sets an event hangs where the main thread was just waiting for that event, and had its lock."""
    users = {dotted(path) for path in MODULES if "signal.signal(" in path.read_text()}
    assert users == {"threads", "intake.evidence"}  # the latter only has one ignored
