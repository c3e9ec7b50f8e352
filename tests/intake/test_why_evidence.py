"""`why` says what speaks for and against a file being complete, and which command answers for one that is held."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmwatch.explain import below_root, why
from pmwatch.model import Completeness, CompleteWhen, Guards, State, Validate
from support.folders import make_folder
from support.intakes import DiskIntake
from support.ledgers import claimed

NO_RENAME = "Evidence: unknown, it was not seen being renamed into place."
CLOSED = "Evidence: yes, no process on this machine has it open for writing."
OPEN = "Evidence: no, a process on this machine has it open for writing."
ASIDE = ' (it does not count: validate is "off").'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(**changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, **changes))
        made[-1].turn()
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_a_settling_file(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    disk.arrive("a.csv", b"case;activity\n1;start\n")
    disk.turn()
    told = disk.why("a.csv")
    assert told.verdict == "settling"
    assert told.sentences[:2] == [
        "Seen 0ms ago; it may still be written.",
        "It waits for a second look, unchanged for 5 s.",
    ]
    assert told.sentences[2:4] == [NO_RENAME, CLOSED]
    assert told.sentences[4].startswith("Evidence: yes, ")
    assert told.sentences[4].endswith(ASIDE)


def test_a_file_that_is_open_and_torn(make: Callable[..., DiskIntake]) -> None:
    disk = make(guards=Guards(validate=Validate.STRUCTURE))
    with open(disk.arrive("a.csv", b'case;activity\n1;"sta'), "ab"):
        disk.turn()
        told = disk.why("a.csv")
    assert OPEN in told.sentences
    assert told.sentences[-1].startswith("Evidence: no, ")
    assert "does not count" not in told.sentences[-1]


def test_a_renamed_file_that_is_open(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    with open(disk.arrive("a.csv", renamed=True), "ab"):
        disk.turn()
        assert "Evidence: yes, it was renamed into place." in disk.why("a.csv").sentences


def test_a_file_that_waits_for_its_marker(make: Callable[..., DiskIntake]) -> None:
    disk = make(completeness=Completeness(CompleteWhen.MARKER))
    disk.arrive("a.csv")
    disk.turn()
    assert disk.why("a.csv").sentences[1:3] == [
        "It waits for its marker a.csv.done.",
        "Evidence: no, its marker a.csv.done.",
    ]
    disk.write("a.csv.done")
    assert disk.why("a.csv").sentences[2] == "Evidence: yes, its marker a.csv.done is there."


@pytest.mark.parametrize("running", [False, True])
def test_a_file_that_nobody_has_looked_at_yet(make: Callable[..., DiskIntake], running: bool) -> None:  # noqa: FBT001
    disk = make()
    disk.write("a.csv", b"case;activity\n1;start\n")
    told = disk.why("a.csv", running=running)
    assert told.verdict == "new"
    assert ("not watched now" in told.sentences[0]) is not running
    assert "It is not in the ledger in its present form; the next look takes it up." in told.sentences
    assert told.sentences[-3:-1] == [NO_RENAME, CLOSED]
    assert told.sentences[-1].startswith("Evidence: yes, ")


def test_a_large_file_is_not_read_for_it(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    with open(disk.write("a.csv", b""), "wb") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    assert disk.why("a.csv").sentences[-1] == CLOSED


def test_a_format_without_a_check(make: Callable[..., DiskIntake]) -> None:
    disk = make(include=("*",))
    disk.write("a.pdf", b"x")
    assert disk.why("a.pdf").sentences[-1] == f"Evidence: unknown, there is no check for .pdf{ASIDE}"


def test_a_held_file_names_the_commands(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    disk.arrive("a.csv", renamed=True)
    disk.turn()
    delivery = claimed(disk.ledger, now=disk.wall())
    disk.ledger.end(delivery, State.HELD, reason="too_small", detail="too small", now=disk.wall())
    told = disk.why("a.csv")
    assert told.verdict == "held"
    assert told.sentences == [
        (
            "It is held for a person (too_small: too small). "
            f"To send it as it is: pmwatch release {delivery.id}; to drop it: pmwatch discard {delivery.id}"
        )
    ]
    disk.ledger.discard([delivery.id], now=disk.wall())
    assert disk.why("a.csv").sentences[0].startswith("It ended as discarded")


def test_an_empty_file(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    disk.arrive("a.csv", b"")
    disk.turn()
    assert disk.why("a.csv").sentences == ["It is empty; it waits for content."]


def test_a_file_that_was_empty_at_the_last_look(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    disk.arrive("a.csv", b"")
    disk.turn()
    with open(disk.write("a.csv", b"case;activity\n"), "ab"):
        told = disk.why("a.csv")
    assert told.verdict == "settling"
    assert told.sentences[1] == "It has changed since the last look, when it waited for content: it is empty."
    assert OPEN in told.sentences


def test_a_renamed_file_that_was_written_to_afterwards(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    with open(disk.arrive("a.csv", renamed=True), "ab") as file:
        disk.turn()
        file.write(b"more\n")
        file.flush()
        assert NO_RENAME in disk.why("a.csv").sentences


@pytest.mark.parametrize("root", ["drop", "link", "/drop", "up/drop", "link/"])
@pytest.mark.parametrize("asked", ["drop", "link", "/drop", "up/drop", "link/../drop/gone/..", "link/./"])
def test_a_folder_and_its_file_may_be_named_through_symbolic_links(tmp_path: Path, root: str, asked: str) -> None:
    (tmp_path / "drop").mkdir()
    (tmp_path / "link").symlink_to("drop")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "drop" / "a.csv").symlink_to("elsewhere.csv")

    def named(name: str) -> bytes:
        return os.fsencode("/" * name.startswith("/") + f"{tmp_path}/{name.strip('/')}")

    assert below_root(named(root), named(asked) + b"/a.csv") == b"a.csv"
    assert below_root(named(root), named(asked) + b"/gone/a.csv") == b"gone/a.csv"
    assert below_root(named(root), named(asked)) is None
    assert below_root(named(root), named(asked) + b"/../a.csv") is None
    assert below_root(named(root), named("drop-not/a.csv")) is None


def test_a_file_belongs_to_the_innermost_folder(tmp_path: Path) -> None:
    outer = make_folder(tmp_path)
    inner = replace(outer, name="inner", root=outer.root + b"/sub")
    for folders in ([outer, inner], [inner, outer]):
        for path, name in ((b"/a.csv", "orders"), (b"/sub/a.csv", "inner"), (b"/sub", "orders")):
            told = why(outer.root + path, folders=folders, ledger=None, candidates=None, now=time.time())
            assert told.folder == name
    assert below_root(b"/", b"/a.csv") == b"a.csv"
    assert below_root(b"/", b"/") is None
