"""`why` says what speaks for and against a file being complete, and which command answers for one that is held."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pmwatch.explain import why
from pmwatch.ledger import Action, ByHand
from pmwatch.model import (
    AfterUpload,
    Completeness,
    CompleteWhen,
    Delivery,
    Fingerprint,
    Guards,
    Quarantine,
    State,
    Target,
    Validate,
)
from pmwatch.places import place_of
from support.folders import make_folder
from support.intakes import DiskIntake
from support.ledgers import DESTINATION, TARGET, claimed, sha, succeed

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
        "It is held for a person (too_small: too small).",
        "A corrected file in its place goes by itself.",
        f"To send it as it is: pmwatch release {delivery.id}; to drop it: pmwatch discard {delivery.id}",
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
    assert told.sentences[1] == "It has changed since the last look, and the next one judges it anew."
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

    def below(path: bytes) -> bytes | None:
        found = place_of(path, [replace(make_folder(tmp_path / "drop"), root=named(root))])
        return None if found is None else found.below

    assert below(named(asked) + b"/a.csv") == b"a.csv"
    assert below(named(asked) + b"/gone/a.csv") == b"gone/a.csv"
    assert below(named(asked)) == b""
    assert below(named(asked) + b"/../a.csv") is None
    assert below(named("drop-not/a.csv")) is None


def test_a_file_belongs_to_the_innermost_folder(tmp_path: Path) -> None:
    outer = make_folder(tmp_path)
    inner = replace(outer, name="inner", root=outer.root + b"/sub")
    for folders in ([outer, inner], [inner, outer]):
        for path, name in ((b"/a.csv", "orders"), (b"/sub/a.csv", "inner"), (b"/sub", "inner")):
            told = why(outer.root + path, folders=folders, ledger=None, candidate_of=None, now=time.time())
            assert told.folder == name


# ---- what a person can do -------------------------------------------------------------------------------------------


def ended(disk: DiskIntake, name: str, to: State, reason: str, detail: str = "") -> Delivery:
    """Let a file arrive, and its delivery end so."""
    disk.arrive(name, f"id\n{name}\n".encode(), renamed=True)
    disk.turn()
    delivery = claimed(disk.ledger, now=disk.wall())
    disk.ledger.end(delivery, to, reason=reason, detail=detail, now=disk.wall())
    return delivery


def uploaded(disk: DiskIntake, name: str) -> Delivery:
    disk.arrive(name, f"id\n{name}\n".encode(), renamed=True)
    disk.turn()
    delivery = claimed(disk.ledger, now=disk.wall())
    succeed(disk.ledger, delivery, name, now=disk.wall())
    return delivery


def test_an_overtaken_file_names_the_command_that_is_accepted(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    held = ended(disk, "q0.csv", State.HELD, "too_small")
    uploaded(disk, "q1.csv")
    assert disk.why("q0.csv").sentences[-1] == (
        f"To send it as it is: pmwatch release {held.id} --force (q1.csv went meanwhile, so it would arrive after it)"
        f"; to drop it: pmwatch discard {held.id}"
    )


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_a_file_that_is_gone_cannot_go(make: Callable[..., DiskIntake], state: State) -> None:
    disk = make(recursive=True)
    delivery = ended(disk, "sub/a.csv", state, "invalid", "torn")
    (disk.drop / "sub" / "a.csv").unlink()
    told = disk.why("sub/a.csv")
    assert told.verdict == state
    assert told.sentences[1:] == [
        f"It is no longer on disk, so it cannot go: put it back, or give it up: pmwatch discard {delivery.id}"
    ]
    disk.drop.rename(disk.drop.with_name("away"))
    assert "pmwatch release" in disk.why("sub/a.csv").sentences[-1], "an absent folder says nothing of the file"


@pytest.mark.parametrize(
    ("reason", "detail", "said"),
    [
        ("rejected", "the storage answered 403", "ask its support with the request id in the log"),
        ("unreadable", "reading failed", "Give pmwatch's user read access"),
        ("answer_lost", "", "It failed 0ms ago (answer_lost)."),
    ],
)
def test_a_failed_file_has_a_hint_and_both_commands(
    make: Callable[..., DiskIntake], reason: str, detail: str, said: str
) -> None:
    disk = make()
    delivery = ended(disk, "a.csv", State.FAILED, reason, detail)
    told = disk.why("a.csv").sentences
    assert said in " ".join(told)
    assert told[-1] == (
        f"Once the cause is gone: pmwatch retry {delivery.id}; to drop it: pmwatch discard {delivery.id}"
    )


def test_a_file_that_its_format_speaks_against_is_not_tried_again_in_vain(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    delivery = ended(disk, "a.csv", State.FAILED, "invalid", "torn")
    assert f"pmwatch release {delivery.id};" in disk.why("a.csv").sentences[-1]


@pytest.mark.parametrize("note", ['{"again": "pmwatch retry 1", "request_id": "R1"}', '{"request_id": "R1"}', "[", "7"])
def test_the_request_id_comes_from_the_note_of_this_very_delivery(make: Callable[..., DiskIntake], note: str) -> None:
    disk = make(quarantine=Quarantine.LINK)
    assert ended(disk, "a.csv", State.FAILED, "rejected", "403").id == 1
    disk.write(".pmwatch/quarantine/a.csv.error.json", note.encode())
    expected = "the request id R1" if "again" in note else "the request id in the log"
    assert disk.why("a.csv").sentences[1] == f"ProcessMind refuses it as it is: ask its support with {expected}."


@pytest.mark.parametrize(("after", "where"), [(AfterUpload.DELETE, "its directory"), (AfterUpload.ARCHIVE, "archive")])
def test_a_source_that_cannot_be_disposed_of(make: Callable[..., DiskIntake], after: AfterUpload, where: str) -> None:
    disk = make(after_upload=after)
    disk.arrive("a.csv", renamed=True)
    disk.turn()
    delivery = claimed(disk.ledger, now=disk.wall())
    succeed(disk.ledger, delivery, "a", now=disk.wall(), dispose=True)
    owned = disk.ledger.claim_disposal(now=disk.wall() + 86400.0)
    assert owned is not None
    detail = "a.csv is uploaded, but cannot be deleted: Permission denied"
    disk.ledger.dispose_later(owned, reason="dispose", detail=detail, not_before=0.0)
    hint = disk.why("a.csv").sentences[1]
    assert hint.startswith("Give pmwatch's user write access to its directory")
    assert where in hint


# ---- where it lies --------------------------------------------------------------------------------------------------


def test_what_was_sent_by_hand_is_known(make: Callable[..., DiskIntake], tmp_path: Path) -> None:
    disk = make()
    file = tmp_path / "own.csv"
    file.write_bytes(b"id\n1\n")
    one = ByHand(str(file).encode(), Fingerprint.of(file.stat()), TARGET, DESTINATION, sha("A"))
    id_ = disk.ledger.begin_by_hand(one, force=False, now=disk.wall()).of
    disk.ledger.uploaded_by_hand(id_, etag="", by=Action(disk.wall(), "ann", "upload"))
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("../own.csv", "../link/own.csv"):
        told = disk.why(name)
        assert (told.verdict, told.folder) == ("done", "(upload)")
        assert told.sentences[0] == "No folder of the configuration contains it. It was sent with pmwatch upload."
    assert disk.why("../other.csv").verdict == "unwatched"


def test_a_folder_that_is_reached_through_a_link_is_the_same(make: Callable[..., DiskIntake], tmp_path: Path) -> None:
    disk = make()
    ended(disk, "a.csv", State.HELD, "too_small")
    (tmp_path / "link").symlink_to(disk.drop)
    assert disk.why("../link/a.csv").verdict == "held"


def test_a_file_of_a_folder_that_is_no_longer_configured(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    delivery = ended(disk, "a.csv", State.HELD, "too_small")
    assert disk.why("a.csv", configured=False).sentences == [
        "It came by folder orders, which is no longer in the configuration.",
        "It is held for a person (too_small).",
        f"Bring folder orders back into the configuration; to drop it: pmwatch discard {delivery.id}",
    ]
    disk.write("a.csv", b"something else")
    assert disk.why("a.csv", configured=False).verdict == "unwatched"


def test_what_pmwatch_keeps_tells_the_story_of_its_delivery(make: Callable[..., DiskIntake]) -> None:
    disk = make()
    failed = ended(disk, "a.csv", State.FAILED, "rejected", "403")
    kept = disk.write(".pmwatch/quarantine/a.csv")
    disk.ledger.moved(failed, bytes(kept))
    said = f"delivery {failed.id}, a.csv of folder orders, kept in the quarantine of folder orders by pmwatch itself."
    for name, what in (("a.csv", "It is"), ("a.csv.error.json", "It tells about")):
        told = disk.why(f".pmwatch/quarantine/{name}")
        assert told.verdict == "failed"
        assert told.sentences[0] == f"{what} {said}"
        assert [one["id"] for one in told.history] == [failed.id]
    disk.write(".pmwatch/archive/b.csv")
    assert disk.why(".pmwatch/archive/b.csv").verdict == "ignored"
    assert disk.why(".pmwatch/archive/c.csv").verdict == "absent"
    assert disk.why(".pmwatch/archive").verdict == "directory"


def test_a_directory_says_where_its_files_go(make: Callable[..., DiskIntake]) -> None:
    disk = make(levels=("{tenant}", "{datatable}"), target=Target("", ""))
    disk.write("acme/Orders/a.csv")
    disk.write("acme/Orders/deep/a.csv")
    for name, said in (
        ("", "the directory that folder orders watches: files in it are not taken, unmapped: not inside"),
        ("acme/Orders", "a directory of folder orders: files in it go to acme/Orders."),
        ("acme/Orders/deep", "a directory of folder orders: files in it are not taken, in a sub-directory, and"),
    ):
        told = disk.why(name)
        assert told.verdict == "directory"
        assert told.sentences[0].startswith(f"It is {said}")
