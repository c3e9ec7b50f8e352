"""Guards: what is held or failed before it goes, with real files, a real ledger and the sandbox."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from delivery.test_worker import GLOBEX, World
from pmwatch.model import (
    MAX_PUT_BYTES,
    AfterUpload,
    Empty,
    Fingerprint,
    Guards,
    OnInvalid,
    Order,
    Outcome,
    Settled,
    State,
    Target,
    Validate,
)
from support.intakes import DiskIntake

MIB = 1024 * 1024
INVOICES = Target("acme", "Sales/Invoices")
WHOLE = b"case;activity\n1;start\n1;end\n"
TORN = b'case;activity\n1;"sta'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def guarded(world: World, **guards: Any) -> None:
    world.folder(guards=Guards(**guards))


def settle_listed(world: World, name: str, data: bytes, sha256: str) -> int:
    """Enter a file with the hash that a manifest says."""
    (world.drop / name).write_bytes(data)
    look = Fingerprint.of(os.stat(world.drop / name))
    folder, at = world.folders["orders"], world.clock()
    settled = Settled("orders", name.encode(), look, folder.target, folder.order, at, at, expected_sha256=sha256)
    return world.ledger.enqueue([settled])[0]


def fate(world: World, id_: int) -> tuple[str, str]:
    delivery = world.get(id_)
    return str(delivery.state), delivery.reason


# ---- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [(9, ("held", "too_small")), (10, ("done", "")), (20, ("done", "")), (21, ("held", "too_large"))],
)
def test_a_size_out_of_bounds_is_held(world: World, size: int, expected: tuple[str, str]) -> None:
    guarded(world, min_size=10, max_size=20)
    id_ = world.settle("a.csv", b"x" * size)
    world.run()
    assert fate(world, id_) == expected
    if expected[0] == "held":
        assert world.presigns() == 0
        report = world.reports[-1]
        assert (report.what, report.reason) == ("held", expected[1])
        assert f"pmwatch release {id_}" in report.hint
        assert ("min_size (10 B)" if size < 10 else "max_size (20 B)") in report.message
        assert (world.drop / "a.csv").exists()


@pytest.mark.parametrize(("guards", "reason"), [({"min_size": 100}, "too_small"), ({"max_size": 1}, "too_large")])
def test_a_size_out_of_bounds_fails_where_that_is_asked_for(world: World, guards: Any, reason: str) -> None:
    guarded(world, on_invalid=OnInvalid.FAIL, **guards)
    id_ = world.settle("a.csv", WHOLE)
    world.run()
    assert fate(world, id_) == ("failed", reason)
    location = Path(os.fsdecode(world.get(id_).location))
    assert location.read_bytes() == WHOLE
    told = json.loads(Path(f"{location}.error.json").read_text())
    assert told["reason"] == reason
    assert not (world.drop / "a.csv").exists()


@pytest.mark.parametrize("release", [False, True])
def test_more_than_one_upload_takes_always_fails(world: World, release: bool) -> None:  # noqa: FBT001
    guarded(world, validate=Validate.STRUCTURE)
    with open(world.drop / "a.csv", "wb") as file:
        file.truncate(MAX_PUT_BYTES + 1)
    id_ = world.settle("a.csv")
    world.run()
    assert fate(world, id_) == ("failed", "too_large")
    assert "Split" in world.reports[-1].hint
    if release:
        world.ledger.requeue([id_], release=True)
        world.run()
        assert fate(world, id_) == ("failed", "too_large")
    assert world.presigns() == 0


@pytest.mark.parametrize(
    ("empty", "expected"),
    [(Empty.SKIP, None), (Empty.FAIL, ("failed", "empty")), (Empty.UPLOAD, ("done", ""))],
)
def test_a_file_without_a_byte_through_intake_and_delivery(
    world: World, tmp_path: Path, empty: Empty, expected: tuple[str, str] | None
) -> None:
    world.folder(guards=Guards(empty=empty, validate=Validate.STRUCTURE))
    disk = DiskIntake(tmp_path, target=world.folders["orders"].target, guards=Guards(empty=empty))
    try:
        disk.write("a.csv", b"")
        disk.settle()
        ids = [one.id for one in disk.deliveries()]
    finally:
        disk.close()
    world.run()
    if expected is None:
        assert ids == []
    else:
        assert [fate(world, id_) for id_ in ids] == [expected]
        assert world.stored() == ([b""] if expected[0] == "done" else [])


# ---- shrinking ----------------------------------------------------------------------------------------------


def test_a_file_that_is_much_smaller_than_the_last_is_held(world: World) -> None:
    guarded(world, shrink=0.5)
    first = world.settle("1.csv", b"x" * 1000)
    world.run()
    small = world.settle("2.csv", b"y" * 499)
    world.run()
    half = world.settle("3.csv", b"z" * 500)
    world.run()
    assert [fate(world, id_) for id_ in (first, small, half)] == [("done", ""), ("held", "shrunk"), ("done", "")]
    assert "less than 50% of the last file (1000 B)" in world.get(small).detail


def test_it_is_held_even_where_the_invalid_fails(world: World) -> None:
    guarded(world, shrink=0.5, on_invalid=OnInvalid.FAIL)
    world.settle("1.csv", b"x" * 1000)
    world.run()
    small = world.settle("2.csv", b"y")
    world.run()
    assert fate(world, small) == ("held", "shrunk")


def test_inside_a_run_each_is_compared_with_the_one_before_it(world: World) -> None:
    guarded(world, shrink=0.5)
    sizes = (1000, 400, 600, 299, 300, 1)
    ids = [world.settle(f"{number}.csv", bytes([65 + number]) * size) for number, size in enumerate(sizes)]
    assert world.run() == 1
    assert [fate(world, id_)[0] for id_ in ids] == ["done", "held", "done", "held", "done", "held"]


def test_what_went_to_another_datatable_or_from_another_folder_does_not_count(world: World) -> None:
    guarded(world, shrink=0.5)
    world.settle("1.csv", b"x" * 1000)
    world.run()
    world.folder("other", guards=Guards(shrink=0.5))  # the same datatable
    world.folder("invoices", INVOICES, guards=Guards(shrink=0.5))
    world.folder("globex", GLOBEX, guards=Guards(shrink=0.5))
    ids = [world.settle("a.csv", name.encode(), name) for name in ("other", "invoices", "globex")]
    world.run()
    assert [fate(world, id_) for id_ in ids] == [("done", "")] * 3
    world.folders["orders"] = replace(world.folders["orders"], target=INVOICES)
    moved = world.settle("2.csv", b"first there")
    world.run()
    assert fate(world, moved) == ("done", "")


def test_a_held_one_is_not_what_the_next_is_compared_with(world: World) -> None:
    guarded(world, shrink=0.5)
    for number, size in enumerate((1000, 10)):
        world.settle(f"{number}.csv", b"x" * size)
        world.run()
    later = world.settle("2.csv", b"y" * 10)
    world.run()
    assert fate(world, later) == ("held", "shrunk")
    world.ledger.requeue([world.ledger.find("orders", b"1.csv")[0].id], release=True)
    world.run()
    assert fate(world, world.settle("3.csv", b"z" * 10)) == ("queued", "")
    world.run()
    assert fate(world, world.ledger.find("orders", b"3.csv")[0].id) == ("done", "")


# ---- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "validate", "columns", "expected"),
    [
        (WHOLE, Validate.OFF, (), "done"),
        (TORN, Validate.OFF, (), "done"),
        (WHOLE, Validate.STRUCTURE, (), "done"),
        (TORN, Validate.STRUCTURE, (), "held"),
        (WHOLE, Validate.HEADER, (), "done"),
        (WHOLE, Validate.HEADER, ("case", "activity"), "done"),
        (WHOLE, Validate.HEADER, ("case", "timestamp"), "held"),
        (TORN, Validate.HEADER, ("case",), "held"),
    ],
)
def test_formats(world: World, data: bytes, validate: Validate, columns: tuple[str, ...], expected: str) -> None:
    guarded(world, validate=validate, require_columns=columns)
    id_ = world.settle("a.csv", data)
    world.run()
    assert fate(world, id_) == (expected, "invalid" if expected == "held" else "")
    assert world.stored() == ([data] if expected == "done" else [])
    if "timestamp" in columns:
        assert "timestamp" in world.get(id_).detail


def test_a_type_without_a_check_goes(world: World) -> None:
    guarded(world, validate=Validate.STRUCTURE)
    id_ = world.settle("a.unknown", TORN)
    world.run()
    assert fate(world, id_) == ("done", "")


def test_an_invalid_file_fails_where_that_is_asked_for(world: World) -> None:
    guarded(world, validate=Validate.STRUCTURE, on_invalid=OnInvalid.FAIL)
    id_ = world.settle("a.csv", TORN)
    world.run()
    assert fate(world, id_) == ("failed", "invalid")
    assert Path(os.fsdecode(world.get(id_).location)).read_bytes() == TORN
    world.ledger.requeue([id_])
    world.run()
    assert fate(world, id_) == ("failed", "invalid")  # a retry asks again
    world.ledger.requeue([id_], release=True)
    world.run()
    assert fate(world, id_) == ("done", "")
    assert world.stored() == [TORN]


@pytest.mark.parametrize("order", Order)
def test_one_that_is_held_does_not_stop_those_behind_it(world: World, order: Order) -> None:
    world.folder(order=order, guards=Guards(validate=Validate.STRUCTURE))
    ids = [world.settle(f"{number}.csv", TORN if number == 1 else WHOLE + b"2;%d\n" % number) for number in range(4)]
    world.run()
    assert [fate(world, id_)[0] for id_ in ids] == ["done", "held", "done", "done"]
    assert all(gate.is_open for gate in world.gates.all())


def test_a_large_file_is_checked_in_turns_and_given_back_when_pmwatch_ends(world: World) -> None:
    guarded(world, validate=Validate.STRUCTURE)
    id_ = world.settle("a.csv", b"case;activity\n" + b"1;start\n" * (MIB // 2))
    world.on_chunk = world.abort.set
    world.uploader().resolve_names(world.ledger.unresolved())
    world.uploader().run_one()
    assert fate(world, id_) == ("queued", "interrupted")
    world.abort.clear()
    world.on_chunk = lambda: None
    world.run()
    assert fate(world, id_) == ("done", "")


# ---- what a person does -------------------------------------------------------------------------------------


def test_a_corrected_version_takes_the_place_of_the_held_one(world: World) -> None:
    guarded(world, validate=Validate.STRUCTURE)
    held = world.settle("a.csv", TORN)
    world.run()
    corrected = world.settle("a.csv", WHOLE)
    assert corrected != held
    assert (world.get(held).state, world.get(held).outcome) == (State.DONE, Outcome.SUPERSEDED)
    world.run()
    assert (world.get(corrected).state, world.get(corrected).outcome) == (State.DONE, Outcome.UPLOADED)
    assert world.stored() == [WHOLE]
    assert world.ledger.counts()[("orders", "held")] == 0


def test_a_corrected_version_in_the_place_of_a_failed_one_goes(world: World) -> None:
    guarded(world, validate=Validate.STRUCTURE, on_invalid=OnInvalid.FAIL)
    failed = world.settle("a.csv", TORN)
    world.run()
    corrected = world.settle("a.csv", WHOLE)
    world.run()
    assert fate(world, failed) == ("failed", "invalid")
    assert fate(world, corrected) == ("done", "")


@pytest.mark.parametrize("retried", [False, True])
def test_what_was_released_goes_as_it_is(world: World, retried: bool) -> None:  # noqa: FBT001
    guarded(world, validate=Validate.STRUCTURE, max_size=1)
    id_ = world.settle("a.csv", TORN)
    world.run()
    assert fate(world, id_) == ("held", "too_large")
    assert world.ledger.requeue([id_], release=True) == 1
    if retried:
        world.server.faults.add("PUT 400 code=InvalidRequest")
        world.run()
        assert world.get(id_).state is State.FAILED
        assert world.ledger.requeue([id_]) == 1
    world.run()
    assert fate(world, id_) == ("done", "")
    assert world.stored() == [TORN]


def test_a_retry_alone_asks_the_guards_again(world: World) -> None:
    guarded(world, max_size=1)
    id_ = world.settle("a.csv", WHOLE)
    world.run()
    world.ledger.requeue([id_])
    world.run()
    assert fate(world, id_) == ("held", "too_large")
    guarded(world)
    world.ledger.requeue([id_])
    world.run()
    assert fate(world, id_) == ("done", "")


def test_the_word_of_a_person_does_not_count_for_the_next_version(world: World) -> None:
    guarded(world, max_size=1)
    id_ = world.settle("a.csv", WHOLE)
    world.run()
    world.ledger.requeue([id_], release=True)
    world.settle("a.csv", TORN)
    world.run()
    assert fate(world, id_) == ("held", "too_large")


def test_a_released_file_is_archived_like_any_other(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE, guards=Guards(max_size=1))
    id_ = world.settle("a.csv", WHOLE)
    world.run()
    assert (world.drop / "a.csv").exists()
    world.ledger.requeue([id_], release=True)
    world.run()
    assert fate(world, id_) == ("done", "")
    assert not (world.drop / "a.csv").exists()


# ---- a manifest's hash --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 2 * MIB])
def test_content_that_is_not_what_its_manifest_says_is_held(world: World, size: int) -> None:
    data = os.urandom(size)
    right = settle_listed(world, "right.csv", data, hashlib.sha256(data).hexdigest())
    wrong = settle_listed(world, "wrong.csv", data + b"x", hashlib.sha256(data).hexdigest())
    world.run()
    assert fate(world, right) == ("done", "")
    assert fate(world, wrong) == ("held", "manifest_mismatch")
    assert hashlib.sha256(data).hexdigest()[:12] in world.get(wrong).detail
    assert world.stored() == [data]
    world.ledger.requeue([wrong])
    world.run()
    assert fate(world, wrong) == ("held", "manifest_mismatch")
    world.ledger.requeue([wrong], release=True)
    world.run()
    assert fate(world, wrong) == ("done", "")
    assert len(world.stored()) == 2
