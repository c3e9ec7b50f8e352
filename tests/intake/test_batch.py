"""Batches: files that only go together, after a marker beside them or as a manifest lists them."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.errors import SourceUnreadable
from pmwatch.intake import batch
from pmwatch.intake.evidence import Answer, Evidence, batch_listed, batch_marked
from pmwatch.intake.rules import MARKER
from pmwatch.model import Completeness, State
from support.intakes import DiskIntake

SETTLE = 5.0
BY_MARKER = Completeness(batch_marker="*.go")
BY_MANIFEST = Completeness(batch_manifest="*.manifest")
NAMES = ("a.csv", "b.csv", "c.csv")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskIntake]]:
    made: list[DiskIntake] = []

    def build(completeness: Completeness, **changes: Any) -> DiskIntake:
        made.append(DiskIntake(tmp_path, completeness=completeness, **changes))
        made[-1].turn()
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def marked(make: Callable[..., DiskIntake]) -> DiskIntake:
    return make(BY_MARKER)


@pytest.fixture
def listed(make: Callable[..., DiskIntake]) -> DiskIntake:
    return make(BY_MANIFEST)


def later(disk: DiskIntake, name: str, *, than: tuple[str, ...] = NAMES) -> None:
    """Make the last change of a marker later than that of all files."""
    for other in than:
        if (disk.drop / other).exists():
            disk.change_after(name, other)


# ---- a marker -----------------------------------------------------------------------------------------------


def test_a_batch_goes_whole_by_time_and_name_in_one_entry(marked: DiskIntake) -> None:
    for name, mtime in (("z.csv", 10**9 + 1), ("b.csv", 10**9 + 2), ("m.csv", 10**9), ("a.csv", 10**9 + 2)):
        marked.arrive(name, name.encode(), renamed=True, mtime=mtime)
        marked.turn(after=1)
    marked.settle()
    assert marked.entered() == []
    assert marked.intake.status().settling == 4
    assert marked.waits_for("a.csv") == "the *.go of its batch"
    marked.arrive("all.go", b"")
    marked.turn()
    assert marked.entered() == ["m.csv", "z.csv", "a.csv", "b.csv"]
    assert marked.told.settled_counts == [4]
    assert marked.intake.idle


def test_a_batch_waits_for_those_that_are_not_complete_yet_and_says_so(marked: DiskIntake) -> None:
    marked.arrive("a.csv", renamed=True)
    marked.arrive("b.csv")
    marked.turn()
    marked.arrive("all.go", b"")
    marked.turn()
    assert marked.entered() == []
    assert marked.waits_for("a.csv") == "others of its batch: b.csv"
    told = marked.why("a.csv")
    assert told.verdict == "settling"
    assert "It waits for others of its batch: b.csv." in told.sentences
    assert marked.intake.status().settling == 2
    marked.turn(after=SETTLE)
    assert marked.entered() == ["a.csv", "b.csv"]
    assert marked.told.settled_counts == [2]


def test_many_that_are_late_are_not_all_named(marked: DiskIntake) -> None:
    marked.arrive("0.csv", renamed=True)
    marked.turn()
    for number in range(1, 6):
        marked.arrive(f"{number}.csv")
    marked.arrive("all.go", b"")
    marked.turn()
    assert marked.waits_for("0.csv") == "others of its batch: 1.csv, 2.csv, 3.csv and 2 more"


def test_an_empty_file_that_waits_for_content_holds_no_batch_up(marked: DiskIntake) -> None:
    marked.arrive("empty.csv", b"")
    marked.arrive("a.csv", renamed=True)
    marked.arrive("all.go", b"")
    marked.settle()
    assert marked.entered() == ["a.csv"]


def test_the_next_export_needs_a_new_marker(marked: DiskIntake) -> None:
    marked.arrive("a.csv", renamed=True)
    marked.arrive("all.go", b"")
    marked.turn()
    assert marked.entered() == ["a.csv"]
    marked.arrive("b.csv", renamed=True)
    marked.change_after("b.csv", "all.go")
    marked.hint("b.csv", renamed=True)
    marked.settle()
    assert marked.entered() == ["a.csv"]
    assert marked.waits_for("b.csv") == "a new *.go of its batch"
    marked.change_after("all.go", "b.csv")
    marked.turn()
    assert marked.entered() == ["a.csv", "b.csv"]


def test_a_marker_that_was_taken_away_is_missed_again(marked: DiskIntake) -> None:
    marked.arrive("all.go", b"")
    marked.arrive("a.csv", renamed=True)
    marked.change_after("a.csv", "all.go")
    marked.settle()
    assert marked.waits_for("a.csv") == "a new *.go of its batch"
    (marked.drop / "all.go").unlink()
    marked.settle()
    assert marked.entered() == []
    assert marked.waits_for("a.csv") == "the *.go of its batch"


def test_the_newest_of_several_markers_counts(marked: DiskIntake) -> None:
    marked.arrive("1.go", b"")
    marked.arrive("a.csv", renamed=True)
    marked.change_after("a.csv", "1.go")
    marked.settle()
    assert marked.entered() == []
    marked.arrive("2.go", b"")
    marked.change_after("2.go", "a.csv")
    marked.turn()
    assert marked.entered() == ["a.csv"]


def test_markers_are_known_whatever_their_case_and_never_uploaded(make: Callable[..., DiskIntake]) -> None:
    disk = make(BY_MARKER, include=("*",))
    disk.arrive("a.csv", renamed=True)
    disk.turn()
    assert disk.entered() == []
    disk.arrive("ALL.GO", b"go")
    disk.settle()
    disk.scan()
    assert disk.entered() == ["a.csv"]
    assert disk.intake.status().ignored == {MARKER: 1}


def test_a_directory_or_a_link_is_no_marker(marked: DiskIntake) -> None:
    (marked.drop / "all.go").mkdir()
    (marked.drop / "linked.go").symlink_to("a.csv")
    marked.arrive("a.csv", renamed=True)
    marked.settle()
    assert marked.entered() == []


def test_a_file_that_changes_while_it_waits_holds_its_batch_up(marked: DiskIntake) -> None:
    marked.arrive("a.csv", renamed=True)
    marked.arrive("b.csv", renamed=True)
    marked.turn()
    marked.write("b.csv", b"id\n1\n2\n")  # without an event
    marked.arrive("all.go", b"")
    later(marked, "all.go")
    marked.turn()
    assert marked.entered() == []
    assert marked.waits_for("b.csv") == "another look: it changed while it waited for its batch"
    marked.hint("b.csv")
    marked.turn()
    assert marked.waits_for("a.csv") == "others of its batch: b.csv"
    marked.turn(after=SETTLE)
    assert marked.entered() == ["a.csv", "b.csv"]
    assert marked.deliveries()[1].fingerprint.size == 7


def test_a_file_that_was_removed_while_it_waited_is_forgotten(marked: DiskIntake) -> None:
    marked.arrive("a.csv", renamed=True)
    marked.arrive("b.csv", renamed=True)
    marked.turn()
    (marked.drop / "b.csv").unlink()  # no event tells of it
    marked.arrive("all.go", b"")
    marked.settle()
    assert marked.entered() == ["a.csv"]
    assert marked.intake.idle


def test_directories_are_batches_of_their_own(make: Callable[..., DiskIntake]) -> None:
    disk = make(BY_MARKER, recursive=True)
    for name in ("one/a.csv", "one/b.csv", "two/a.csv", "c.csv"):
        disk.arrive(name, name.encode(), renamed=True)
    disk.arrive("one/all.go", b"")
    disk.settle()
    assert disk.entered() == ["one/a.csv", "one/b.csv"]
    assert disk.waits_for("two/a.csv") == disk.waits_for("c.csv") == "the *.go of its batch"
    disk.arrive("two/all.go", b"")
    disk.turn()
    assert disk.entered()[2:] == ["two/a.csv"]


def test_a_restart_in_the_middle_loses_nothing(marked: DiskIntake) -> None:
    for name in NAMES[:2]:
        marked.arrive(name, name.encode(), renamed=True)
    marked.turn()
    marked.restart()
    marked.settle()
    assert marked.entered() == []
    assert marked.intake.status().settling == 2
    marked.arrive("c.csv", b"c", renamed=True)
    marked.turn()
    marked.restart()
    marked.arrive("all.go", b"")
    marked.settle()
    assert sorted(marked.entered()) == [*NAMES]
    assert marked.told.settled_counts == [3]
    marked.restart()
    marked.settle()
    assert marked.told.settled_counts == [3]


def test_what_waits_for_very_long_is_told_once(marked: DiskIntake) -> None:
    marked.arrive("a.csv", renamed=True)
    for _ in range(3):
        marked.turn(after=600)
    assert [one.path for one in marked.told.overdue] == [b"a.csv"]
    assert [one.waits_for for one in marked.intake.status().never_settling] == ["the *.go of its batch"]


# ---- a manifest ---------------------------------------------------------------------------------------------


def forms() -> dict[str, bytes]:
    """Return manifests that all list the same three files."""
    hashes = [sha(name.encode()) for name in NAMES]
    plain = "\n".join(NAMES)
    return {
        "plain": plain.encode(),
        "with a last line break": f"{plain}\n".encode(),
        "sha256sum": "".join(f"{one}  {name}\n" for one, name in zip(hashes, NAMES, strict=True)).encode(),
        "sha256sum -b": "".join(f"{one} *{name}\n" for one, name in zip(hashes, NAMES, strict=True)).encode(),
        "upper case": "".join(f"{one.upper()}\t{name}\n" for one, name in zip(hashes, NAMES, strict=True)).encode(),
        "comments and blanks": f"# an export\n\n  {NAMES[0]}  \n#\n{NAMES[1]}\n{NAMES[2]}\n\n".encode(),
        "CRLF": plain.replace("\n", "\r\n").encode() + b"\r\n",
        "BOM": b"\xef\xbb\xbf" + plain.encode(),
        "BOM and sha256sum with CRLF": b"\xef\xbb\xbf"
        + "".join(f"{one}  {name}\r\n" for one, name in zip(hashes, NAMES, strict=True)).encode(),
        "a name twice": f"{plain}\n{NAMES[0]}\n".encode(),
    }


@pytest.mark.parametrize("form", forms())
def test_all_that_a_manifest_lists_goes_in_any_form(listed: DiskIntake, form: str) -> None:
    listed.arrive("1.manifest", forms()[form])
    for name in NAMES:
        assert listed.entered() == []
        listed.arrive(name, name.encode(), renamed=True, mtime=10**9)
        listed.turn(after=1)
    listed.turn()
    assert listed.entered() == [*NAMES]
    assert listed.told.settled_counts == [3]
    said = [one.expected_sha256 for one in listed.deliveries()]
    assert said == (
        [sha(name.encode()) for name in NAMES] if sha(b"a.csv") in forms()[form].decode().lower() else [""] * 3
    )


def test_a_batch_says_what_is_missing(listed: DiskIntake) -> None:
    listed.arrive("1.manifest", b"a.csv\nb.csv\nc.csv\nd.csv\ne.csv\n")
    listed.arrive("a.csv", renamed=True)
    listed.arrive("x.csv", renamed=True)
    listed.settle()
    assert listed.entered() == []
    missing = "the rest of 1.manifest: 4 of 5 not here, b.csv, c.csv, d.csv and 1 more"
    assert listed.waits_for("a.csv") == missing
    assert listed.waits_for("x.csv") == "the *.manifest of its batch"
    assert f"It waits for {missing}." in listed.why("a.csv").sentences
    assert listed.intake.status().settling == 2


def test_what_no_manifest_lists_stays(listed: DiskIntake) -> None:
    listed.arrive("a.csv", renamed=True)
    listed.arrive("b.csv", renamed=True)
    listed.arrive("1.manifest", b"b.csv\n")
    listed.settle()
    assert listed.entered() == ["b.csv"]
    assert listed.waits_for("a.csv") == "the *.manifest of its batch"


BROKEN = {
    "empty": (b"", "content in 1.manifest: it lists nothing"),
    "only comments": (b"# a\n\n", "content in 1.manifest: it lists nothing"),
    "a directory": (b"a.csv\nsub/b.csv\n", "a right 1.manifest: line 2 names no file beside it"),
    "the parent": (b"a.csv\n..\n", "a right 1.manifest: line 2 names no file beside it"),
    "itself": (b".\n", "a right 1.manifest: line 1 names no file beside it"),
    "absolute": (b"/etc/passwd\n", "a right 1.manifest: line 1 names no file beside it"),
    "UTF-16": ("a.csv\n".encode("utf-16"), "a right 1.manifest: line 1 names no file beside it"),
    "too large": (b"#" * (16 * 1024 * 1024) + b"\na.csv\n", "a smaller 1.manifest: it has more than 16 MiB"),
}


@pytest.mark.parametrize("form", BROKEN)
def test_a_manifest_that_cannot_be_is_said_and_a_right_one_counts(listed: DiskIntake, form: str) -> None:
    content, sentence = BROKEN[form]
    listed.arrive("a.csv", renamed=True)
    listed.arrive("1.manifest", content)
    listed.settle()
    assert listed.entered() == []
    assert listed.waits_for("a.csv") == sentence
    listed.arrive("1.manifest", b"a.csv\n")
    listed.turn()
    assert listed.entered() == ["a.csv"]


def test_a_manifest_that_cannot_be_read_is_said(listed: DiskIntake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_root: bytes, _path: bytes) -> int:
        raise SourceUnreadable("1.manifest may not be read")

    listed.arrive("a.csv", renamed=True)
    listed.arrive("1.manifest", b"a.csv\n")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "open_regular", refuse)
        listed.turn()
    assert listed.waits_for("a.csv") == "a manifest that can be read: 1.manifest may not be read"
    listed.turn()
    assert listed.entered() == ["a.csv"]


def test_a_manifest_that_is_being_written_is_waited_for(listed: DiskIntake) -> None:
    listed.arrive("a.csv", renamed=True)
    listed.arrive("b.csv", renamed=True)
    with open(listed.write("1.manifest", b""), "wb") as file:
        file.write(b"a.csv\n")
        file.flush()
        listed.settle()
        assert listed.entered() == []
        assert listed.waits_for("a.csv") == "1.manifest, which is still being written"
        file.write(b"b.csv\n")
    listed.turn()
    assert listed.entered() == ["a.csv", "b.csv"]


def test_a_broken_manifest_does_not_stop_the_batch_of_another(listed: DiskIntake) -> None:
    listed.arrive("1.manifest", b"a.csv\n")
    listed.arrive("2.manifest", b"../x\n")
    listed.arrive("a.csv", renamed=True)
    listed.arrive("b.csv", renamed=True)
    listed.turn()
    assert listed.entered() == ["a.csv"]
    assert listed.waits_for("b.csv") == "a right 2.manifest: line 1 names no file beside it"


def test_two_manifests_may_list_one_file_and_a_hash_counts(listed: DiskIntake) -> None:
    listed.arrive("1.manifest", f"{sha(b'b')}  b.csv\na.csv\n".encode())
    listed.arrive("2.manifest", b"b.csv\nc.csv\n")
    for name in "abc":
        listed.write(f"{name}.csv", name.encode())
        listed.hint(f"{name}.csv", renamed=True)
    listed.turn()
    assert sorted(listed.entered()) == [*NAMES]
    assert {one.display_path: one.expected_sha256 for one in listed.deliveries()}["b.csv"] == sha(b"b")


@pytest.mark.parametrize("event", [False, True])
def test_a_listed_file_that_is_removed_while_it_waits_is_missing_again(listed: DiskIntake, event: bool) -> None:  # noqa: FBT001
    listed.arrive("a.csv", renamed=True)
    listed.turn()
    (listed.drop / "a.csv").unlink()
    if event:
        listed.hint("a.csv")
    listed.arrive("1.manifest", b"a.csv\nb.csv\n")
    listed.arrive("b.csv", renamed=True)
    listed.turn()
    assert listed.entered() == []
    listed.turn()
    assert listed.waits_for("b.csv") == "the rest of 1.manifest: 1 of 2 not here, a.csv"
    listed.arrive("a.csv", renamed=True)
    listed.turn()
    assert listed.entered() == ["b.csv", "a.csv"]


def test_a_listed_file_that_changes_while_it_waits_settles_again(listed: DiskIntake) -> None:
    listed.arrive("1.manifest", b"a.csv\nb.csv\n")
    listed.arrive("a.csv", renamed=True)
    listed.turn()
    listed.write("a.csv", b"id\n1\n2\n")  # no event
    listed.arrive("b.csv", renamed=True)
    listed.turn()
    assert listed.entered() == []
    assert listed.waits_for("a.csv") == "another look: it changed while it waited for its batch"
    listed.scan()
    assert listed.waits_for("a.csv") == "a second look, unchanged for 5 s"
    assert listed.waits_for("b.csv") == "the rest of 1.manifest: 1 of 2 not here, a.csv"
    listed.settle()
    assert sorted(listed.entered()) == ["a.csv", "b.csv"]
    assert listed.told.settled_counts == [2]


def test_manifests_of_several_directories_are_independent(make: Callable[..., DiskIntake]) -> None:
    disk = make(BY_MANIFEST, recursive=True)
    for directory in ("one", "two"):
        disk.arrive(f"{directory}/1.manifest", b"a.csv\nb.csv\n")
        disk.arrive(f"{directory}/a.csv", renamed=True)
    disk.arrive("two/b.csv", renamed=True)
    disk.arrive("b.csv", renamed=True)
    disk.settle()
    assert disk.entered() == ["two/a.csv", "two/b.csv"]
    assert disk.waits_for("one/a.csv") == "the rest of 1.manifest: 1 of 2 not here, b.csv"
    assert disk.waits_for("b.csv") == "the *.manifest of its batch"


def test_a_manifest_survives_a_restart(listed: DiskIntake) -> None:
    data = b"id\n1\n"
    listed.arrive("a.csv", data, renamed=True)
    listed.arrive("1.manifest", f"{sha(data)}  a.csv\n{sha(data)}  b.csv\n".encode())
    listed.turn()
    listed.restart()
    listed.write("b.csv", data)
    listed.settle()
    assert listed.told.settled_counts == [2]
    assert {one.expected_sha256 for one in listed.deliveries()} == {sha(data)}
    assert {one.state for one in listed.deliveries()} == {State.QUEUED}


# ---- any interleaving ---------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "rename", "remove", "touch"]), st.sampled_from(NAMES)),
        st.tuples(st.sampled_from(["turn", "wait", "scan", "restart"]), st.just("")),
    ),
    max_size=25,
)


def act(disk: DiskIntake, what: str, name: str, *, hinted: bool) -> None:
    path = disk.drop / name
    if what in ("write", "rename"):
        disk.write(f".{name}", os.urandom(4))
        (disk.drop / f".{name}").rename(path)
    with suppress(FileNotFoundError):
        if what == "remove":
            path.unlink()
        if what == "touch":
            os.utime(path)
    if what in ("turn", "wait"):
        disk.turn(after=SETTLE if what == "wait" else 0.0)
    elif what == "scan":
        disk.scan()
    elif what == "restart":
        disk.restart()
    elif hinted:
        disk.hint(name, renamed=what == "rename")


@given(steps=STEPS, hinted=st.booleans(), manifest_at=st.integers(0, 25))
def test_whatever_comes_in_between_no_listed_batch_goes_in_part(
    steps: list[tuple[str, str]],
    hinted: bool,  # noqa: FBT001
    manifest_at: int,
) -> None:
    with tempfile.TemporaryDirectory() as base:
        disk = DiskIntake(Path(base), completeness=BY_MANIFEST)
        try:
            for number, (what, name) in enumerate(steps):
                if number == manifest_at:
                    disk.arrive("1.manifest", "\n".join(NAMES).encode())
                act(disk, what, name, hinted=hinted)
                first = set(disk.told.settled_counts[:1])
                assert first <= {len(NAMES)}
                if not first:
                    assert disk.entered() == []
            if not disk.told.settled_counts:
                for name in NAMES:
                    disk.write(name, os.urandom(4))
                disk.arrive("1.manifest", "\n".join(NAMES).encode())
                disk.scan()
                disk.settle()
                assert sorted(disk.entered()) == [*NAMES]
        finally:
            disk.close()


@given(steps=STEPS)
def test_whatever_comes_in_between_no_marked_batch_goes_in_part(steps: list[tuple[str, str]]) -> None:
    """All files and then a marker; whatever was seen of them before, they go in one entry."""
    with tempfile.TemporaryDirectory() as base:
        disk = DiskIntake(Path(base), completeness=BY_MARKER)
        try:
            for what, name in steps:
                act(disk, what, name, hinted=True)
            assert disk.entered() == []
            there = sorted(path.name for path in disk.drop.glob("*.csv"))
            disk.arrive("all.go", b"")
            later(disk, "all.go")
            disk.settle()
            disk.scan()
            disk.settle()
            assert sorted(disk.entered()) == there
            assert disk.told.settled_counts == ([len(there)] if there else [])
        finally:
            disk.close()


@pytest.mark.parametrize(
    ("newest", "changed", "answer", "sentence"),
    [
        (None, 5, Answer.NO, "the *.ok of its batch"),
        (4, 5, Answer.NO, "a new *.ok of its batch"),
        (5, 5, Answer.YES, "the *.ok of its batch is there"),
    ],
)
def test_a_marker_is_evidence_for_what_it_is_not_older_than(
    newest: int | None, changed: int, answer: Answer, sentence: str
) -> None:
    assert batch_marked("*.ok", newest_ns=newest, ctime_ns=changed) == Evidence(answer, sentence)


@pytest.mark.parametrize(
    ("here", "answer", "sentence"),
    [
        ([b"a", b"b\n"], Answer.YES, "all that list.txt lists is here"),
        ([b"a"], Answer.NO, r"the rest of list.txt: 1 of 2 not here, b\x0a"),
    ],
)
def test_a_manifest_is_evidence_for_a_batch(here: list[bytes], answer: Answer, sentence: str) -> None:
    assert batch_listed(b"list.txt", listed=[b"a", b"b\n"], here=here) == Evidence(answer, sentence)
