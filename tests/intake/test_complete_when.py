"""Which evidence lets a file go, and what it waits for otherwise: the settler alone, then with real files."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pmwatch.intake.evidence import Answer, Evidence, marker_of
from pmwatch.intake.rules import MARKER, Rules
from pmwatch.intake.settle import Settler
from pmwatch.model import Completeness, CompleteWhen, Empty, Fingerprint, Guards, State
from support.folders import make_folder
from support.intakes import DiskIntake

AUTO, RENAMED, CLOSED, STABLE, MARKED = CompleteWhen
SETTLE = 5.0
QUIET = "a second look, unchanged for 5 s"
OPEN = "the process that has it open for writing"
UNSEEN = "proof that nobody has it open for writing: writers cannot be seen"
NO_MARKER = "its marker"
WRITERS = {
    "closed": (Answer.YES, "nobody has"),
    "open": (Answer.NO, "x"),
    "unknown": (Answer.UNKNOWN, "writers cannot be seen"),
}
GOES = ""


@dataclass(frozen=True, slots=True)
class Case:
    """Evidence that is there, and what a file waits for then; empty where it goes."""

    when: CompleteWhen
    waits_for: str
    writer: str = "closed"
    renamed: bool = False
    quiet: bool = False
    torn: bool = False  # its mtime is 1970
    marker: bool = False


TABLE = [
    Case(AUTO, QUIET),
    Case(AUTO, QUIET, writer="open"),
    Case(AUTO, GOES, quiet=True),
    Case(AUTO, OPEN, quiet=True, writer="open"),
    Case(AUTO, GOES, quiet=True, writer="unknown"),
    Case(AUTO, GOES, renamed=True),
    Case(AUTO, OPEN, renamed=True, writer="open"),
    Case(AUTO, QUIET, renamed=True, writer="unknown"),
    Case(AUTO, QUIET, renamed=True, torn=True),
    Case(AUTO, GOES, renamed=True, torn=True, quiet=True),
    Case(AUTO, QUIET, marker=True),
    Case(RENAMED, GOES),
    Case(RENAMED, OPEN, writer="open"),
    Case(RENAMED, GOES, writer="unknown"),
    Case(RENAMED, QUIET, torn=True),
    Case(RENAMED, GOES, torn=True, quiet=True),
    Case(RENAMED, OPEN, torn=True, quiet=True, writer="open"),
    Case(CLOSED, QUIET),
    Case(CLOSED, QUIET, renamed=True),
    Case(CLOSED, GOES, quiet=True),
    Case(CLOSED, OPEN, quiet=True, writer="open"),
    Case(CLOSED, UNSEEN, quiet=True, writer="unknown"),
    Case(STABLE, QUIET),
    Case(STABLE, QUIET, renamed=True),
    Case(STABLE, GOES, quiet=True),
    Case(STABLE, GOES, quiet=True, writer="open"),
    Case(STABLE, GOES, quiet=True, writer="unknown"),
    Case(MARKED, NO_MARKER),
    Case(MARKED, NO_MARKER, quiet=True),
    Case(MARKED, NO_MARKER, renamed=True),
    Case(MARKED, GOES, marker=True),
    Case(MARKED, GOES, marker=True, writer="open"),
    Case(MARKED, GOES, marker=True, torn=True),
]


def settler_of(case: Case, *, empty_too: bool = False) -> Settler:
    return Settler(
        SETTLE,
        lambda _: Evidence(*WRITERS[case.writer]),
        when=case.when,
        marked=lambda _path, _ctime_ns: Evidence(Answer.YES if case.marker else Answer.NO, NO_MARKER),
        empty_too=empty_too,
    )


def look(case: Case, *, size: int = 10) -> Fingerprint:
    return Fingerprint(size, 0 if case.torn else 10**18, 1, 7, 1)


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_a_file_goes_or_waits_for_what_is_missing(case: Case) -> None:
    settler = settler_of(case)
    # Only the look that counts sees all of the evidence: nothing may go on the first one of two.
    if case.quiet:
        settler.saw(b"a.csv", look(case, size=9), now=-1.0, wall=0.0)  # it changes, so that this look decides nothing
        first = settler.saw(b"a.csv", look(case), now=0.0, wall=0.0)
        settled = first or settler.saw(b"a.csv", look(case), now=SETTLE, wall=0.0, renamed=case.renamed)
    else:
        settled = settler.saw(b"a.csv", look(case), now=0.0, wall=0.0, renamed=case.renamed)
    candidate = settler.candidate(b"a.csv")
    if case.waits_for:
        assert settled is None
        assert candidate is not None
        assert candidate.waits_for == case.waits_for
        assert settler.next_due() is not None
    else:
        assert settled is not None
        assert candidate is None


@pytest.mark.parametrize("when", CompleteWhen)
@pytest.mark.parametrize("empty_too", [False, True])
def test_a_file_without_a_byte_goes_only_where_that_is_wanted(when: CompleteWhen, empty_too: bool) -> None:  # noqa: FBT001
    case = Case(when, "", marker=True)
    settler = settler_of(case, empty_too=empty_too)
    looks = [settler.saw(b"a.csv", look(case, size=0), now=now, wall=0.0) for now in (0.0, SETTLE)]
    assert any(looks) is empty_too
    if not empty_too:
        candidate = settler.candidate(b"a.csv")
        assert candidate is not None
        assert candidate.waits_for == "content: it is empty"


@pytest.mark.parametrize("when", [AUTO, RENAMED, CLOSED, STABLE])
def test_growth_starts_every_wait_anew(when: CompleteWhen) -> None:
    settler = settler_of(Case(when, "", writer="open" if when is RENAMED else "closed"))
    for step in range(4):
        assert settler.saw(b"a.csv", look(Case(when, ""), size=step + 1), now=step * SETTLE, wall=0.0) is None


# ---- with real files ----------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(when: CompleteWhen = AUTO, *, marker: str = "{name}.done", **changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, completeness=Completeness(when, marker), **changes))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize(("when", "at_once"), [(AUTO, True), (RENAMED, True), (CLOSED, False), (STABLE, False)])
def test_a_file_renamed_into_place(make: Callable[..., DiskIntake], when: CompleteWhen, at_once: bool) -> None:  # noqa: FBT001
    disk = make(when)
    disk.turn()
    disk.arrive("a.csv", renamed=True)
    disk.turn()
    assert disk.entered() == (["a.csv"] if at_once else [])
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]


@pytest.mark.parametrize(("when", "at_once"), [(AUTO, False), (RENAMED, True), (CLOSED, False), (STABLE, False)])
def test_a_file_written_in_place(make: Callable[..., DiskIntake], when: CompleteWhen, at_once: bool) -> None:  # noqa: FBT001
    disk = make(when)
    disk.turn()
    disk.arrive("a.csv")
    disk.turn()
    assert disk.entered() == (["a.csv"] if at_once else [])
    disk.turn(after=SETTLE)
    assert disk.entered() == ["a.csv"]


@pytest.mark.parametrize(("when", "waits"), [(AUTO, True), (RENAMED, True), (CLOSED, True), (STABLE, False)])
def test_a_file_that_is_open_for_writing(make: Callable[..., DiskIntake], when: CompleteWhen, waits: bool) -> None:  # noqa: FBT001
    disk = make(when)
    disk.turn()
    with open(disk.arrive("a.csv"), "ab"):
        disk.turn()
        disk.turn(after=SETTLE)
        assert disk.entered() == ([] if waits else ["a.csv"])
        if waits:
            assert disk.waits_for("a.csv") == "the process that has it open for writing"
    disk.turn(after=60)
    assert disk.entered() == ["a.csv"]


def test_what_only_the_first_scan_finds_settles_too(make: Callable[..., DiskIntake]) -> None:
    disk = make(RENAMED)
    disk.write("b.csv", mtime=1_000)
    disk.write("a.csv", mtime=200_000)
    disk.write("c.csv", mtime=100_000)
    disk.settle()
    # b's mtime is of 1970, as that of a broken-off rsync: it waited to be quiet
    assert disk.entered() == ["b.csv", "c.csv", "a.csv"]


@pytest.mark.parametrize("empty", [Empty.UPLOAD, Empty.FAIL])
def test_an_empty_file_is_entered_where_something_becomes_of_it(make: Callable[..., DiskIntake], empty: Empty) -> None:
    disk = make(guards=Guards(empty=empty))
    disk.write("a.csv", b"")
    disk.turn()
    told = disk.why("a.csv")
    assert told.verdict == "settling"
    assert "It waits for a second look, unchanged for 5 s." in told.sentences
    disk.settle()
    assert disk.entered() == ["a.csv"]


# ---- a file's own marker ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path", "marker"),
    [
        ("{name}.done", b"orders.csv", b"orders.csv.done"),
        ("{stem}.ok", b"orders.csv", b"orders.ok"),
        ("{stem}.ok", b"orders.2026.csv", b"orders.2026.ok"),
        (".{name}", b"sub/dir/orders.csv", b"sub/dir/.orders.csv"),
        ("{name}-{stem}.x", b"a.csv", b"a.csv-a.x"),
        ("{name}.done", b"\xff\n.csv", b"\xff\n.csv.done"),
        ("{name}.done", b"{stem}.csv", b"{stem}.csv.done"),
        ("{stem}.done", b"{name}.csv", b"{name}.done"),
        ("{name}.done", rb"a\1.csv", rb"a\1.csv.done"),
    ],
)
def test_the_name_of_a_marker(template: str, path: bytes, marker: bytes) -> None:
    assert marker_of(path, template) == marker


@pytest.mark.parametrize(
    ("template", "name", "is_marker"),
    [
        ("{name}.done", "a.csv.done", True),
        ("{name}.done", "a.CSV.DONE", True),
        ("{name}.done", "a.csv", False),
        ("{stem}.ok", "a.ok", True),
        ("done-{name}", "done-a.csv", True),
        ("[{name}]", "[a.csv]", True),
        ("[{name}]", "n", False),
        (".{name}.ok", ".a.csv.ok", True),
        ("{name}.lock", "a.csv.lock", True),
    ],
)
def test_a_marker_is_never_a_file_to_upload(tmp_path: Path, template: str, name: str, is_marker: bool) -> None:  # noqa: FBT001
    rules = Rules(make_folder(tmp_path, completeness=Completeness(MARKED, template), include=("*",)))
    mapped = rules.map(name.encode())
    assert (mapped.reason == MARKER) is is_marker
    assert (mapped.target is None) is is_marker


def test_without_markers_asked_for_such_a_file_is_one_like_any_other(tmp_path: Path) -> None:
    assert Rules(make_folder(tmp_path, include=("*",))).map(b"a.csv.done").target is not None


@pytest.mark.parametrize("template", ["{name}.done", "{stem}.ok", ".{name}.ok"])
def test_the_event_of_a_marker_lets_its_file_go_at_once(make: Callable[..., DiskIntake], template: str) -> None:
    disk = make(MARKED, marker=template, include=("*",))
    marker = os.fsdecode(marker_of(b"a.csv", template))
    disk.turn()
    disk.arrive("a.csv")
    disk.arrive("b.csv")
    disk.turn(after=3600)
    assert disk.entered() == []
    assert disk.waits_for("a.csv") == f"its marker {marker}"
    assert disk.intake.status().settling == 2
    disk.arrive(marker, b"")
    disk.turn()
    assert disk.entered() == ["a.csv"]
    disk.settle()
    disk.scan()
    assert disk.entered() == ["a.csv"]
    assert disk.intake.status().ignored == {MARKER: 1}


def test_a_marker_that_came_first_is_too_old(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.turn()
    disk.arrive("a.csv.done")
    disk.turn()
    disk.arrive("a.csv")
    disk.change_after("a.csv", "a.csv.done")
    disk.settle()
    assert disk.entered() == []
    assert disk.waits_for("a.csv") == "a new marker: a.csv.done is older than its last change"
    (disk.drop / "a.csv.done").unlink()
    disk.arrive("a.csv.done")
    disk.turn()
    assert disk.entered() == ["a.csv"]


def test_marker_and_file_in_one_turn_in_either_order(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.turn()
    for name in ("a.csv", "b.csv", "a.csv.done", "b.csv.done"):
        disk.write(name)
    for name in ("a.csv.done", "a.csv", "b.csv", "b.csv.done"):
        disk.hint(name)
    disk.turn()
    assert sorted(disk.entered()) == ["a.csv", "b.csv"]


def test_a_file_that_changed_after_its_marker_needs_a_new_one(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.arrive("a.csv")
    disk.turn()
    disk.write("a.csv.done")
    disk.write("a.csv", b"id\n1\n2\n")
    disk.change_after("a.csv", "a.csv.done")
    disk.hint("a.csv.done")
    disk.turn()
    assert disk.entered() == []
    assert "a new marker" in disk.waits_for("a.csv")


def test_a_marker_that_was_taken_away_marks_no_more(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.turn()
    disk.write("a.csv.done")
    (disk.drop / "a.csv.done").unlink()
    disk.hint("a.csv.done")
    disk.arrive("a.csv")
    disk.settle()
    assert disk.entered() == []
    assert disk.waits_for("a.csv") == "its marker a.csv.done"


def test_a_marker_whose_event_was_lost_is_found_by_the_looks_that_follow(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.arrive("a.csv")
    disk.turn()
    disk.turn(after=SETTLE)
    disk.write("a.csv.done")
    disk.turn(after=60)
    assert disk.entered() == ["a.csv"]


def test_markers_lie_beside_their_file(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED, recursive=True)
    disk.write("one/a.csv")
    disk.write("two/a.csv")
    disk.write("a.csv.done")
    disk.write("one/a.csv.done")
    disk.settle()
    assert disk.entered() == ["one/a.csv"]


def test_the_next_version_of_a_file_needs_the_next_marker(make: Callable[..., DiskIntake]) -> None:
    disk = make(MARKED)
    disk.write("a.csv")
    disk.write("a.csv.done")
    disk.settle()
    assert disk.entered() == ["a.csv"]
    assert disk.deliveries()[0].state is State.QUEUED
    size = disk.deliveries()[0].fingerprint.size
    disk.arrive("a.csv", b"id\n1\n2\n3\n")
    disk.change_after("a.csv", "a.csv.done")
    disk.settle()
    assert disk.deliveries()[0].fingerprint.size == size
    (disk.drop / "a.csv.done").write_bytes(b"again")
    disk.hint("a.csv.done")
    disk.turn()
    assert disk.deliveries()[0].fingerprint.size == 9
