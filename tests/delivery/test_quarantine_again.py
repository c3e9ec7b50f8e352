"""A move into quarantine that is broken off, by a kill, a stop or a disk: it is repeated, and nothing is lost."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from delivery.test_worker import MIB, World, world
from pmwatch.advice import is_gone
from pmwatch.delivery import dispose
from pmwatch.delivery.disposals import Disposals
from pmwatch.errors import LedgerError
from pmwatch.model import Delivery, State
from pmwatch.sandbox import Fault

__all__ = ["world"]  # the fixture


class Killed(BaseException):
    """Ends a thread as a kill would: nothing of pmwatch catches it."""


def refuse(world: World, times: int | None = 1) -> None:
    world.server.faults.add(Fault(method="PUT", status=400, code="InvalidArgument", times=times))


def kill_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def reached(name: str) -> None:
        if name == place:
            raise Killed

    monkeypatch.setattr(dispose, "reached", reached)


def fail_and_die(world: World, monkeypatch: pytest.MonkeyPatch, place: str, data: bytes) -> int:
    """Let a file be refused, and the process die on its way into quarantine; return its delivery."""
    id_ = world.settle("sub/a.csv", data)
    refuse(world)
    with monkeypatch.context() as patch:
        kill_at(patch, place)
        with pytest.raises(Killed):
            world.run()
    assert (world.get(id_).state, world.get(id_).location) == (State.FAILED, b"")
    assert not (world.drop / "sub" / "a.csv").exists()
    assert not is_gone(world.get(id_), world.folders["orders"])
    return id_


def assert_in_quarantine(world: World, id_: int, data: bytes) -> None:
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason) == (State.FAILED, "rejected")
    path = Path(os.fsdecode(delivery.location))
    assert path.read_bytes() == data
    assert json.loads(path.with_name("a.csv.error.json").read_text())["reason"] == "rejected"
    assert not list((world.drop / "sub").glob(".pmwatch*"))


def elsewhere(world: World, directory: str) -> None:
    if os.stat(directory).st_dev == world.drop.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    world.folder(quarantine_dir=os.fsencode(directory))


@pytest.fixture(params=["on the same file system", "on another one"])
def anywhere(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    with ExitStack() as stack:
        if request.param == "on another one":
            elsewhere(world, stack.enter_context(TemporaryDirectory(dir="/dev/shm")))
        yield world


def test_a_kill_in_the_middle_is_made_good_by_the_next_start(anywhere: World, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = fail_and_die(anywhere, monkeypatch, "during_archive_rename", b"id\n1\n")
    anywhere.ledger.recover()
    anywhere.run()
    assert_in_quarantine(anywhere, id_, b"id\n1\n")


def test_what_a_person_queues_again_after_a_kill_is_found_and_goes(
    anywhere: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = fail_and_die(anywhere, monkeypatch, "during_archive_rename", b"id\n1\n")
    anywhere.ledger.recover()
    assert anywhere.ledger.requeue([id_]) == 1
    anywhere.run()
    assert anywhere.get(id_).state is State.DONE
    assert anywhere.stored() == [b"id\n1\n"]


@pytest.mark.parametrize("again", ["by itself", "by a person"])
def test_a_move_that_the_ledger_did_not_learn_of(anywhere: World, monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    def broken(delivery: Delivery, location: bytes, **_: float) -> None:
        raise LedgerError("disk full")

    id_ = anywhere.settle("sub/a.csv", b"id\n1\n")
    refuse(anywhere)
    with monkeypatch.context() as patch:
        patch.setattr(anywhere.ledger, "moved", broken)
        anywhere.run()
    assert (anywhere.get(id_).state, anywhere.get(id_).location) == (State.FAILED, b"")
    assert not (anywhere.drop / "sub" / "a.csv").exists()
    if again == "by itself":
        anywhere.clock.advance(61)
        anywhere.run()
        assert_in_quarantine(anywhere, id_, b"id\n1\n")
    anywhere.ledger.requeue([id_])
    anywhere.run()
    assert anywhere.get(id_).state is State.DONE
    assert anywhere.stored() == [b"id\n1\n"]


def test_a_stop_in_the_middle_of_a_long_copy(world: World) -> None:
    with TemporaryDirectory(dir="/dev/shm") as directory:
        elsewhere(world, directory)
        data = os.urandom(4 * MIB)
        id_ = world.settle("sub/a.csv", data)
        refuse(world)

        def stop() -> None:
            if world.get(id_).state is State.FAILED and list(Path(directory).rglob(".pmwatch-copy*")):
                world.abort.set()

        world.on_chunk = stop
        world.run()
        assert world.abort.is_set()
        assert (world.drop / "sub" / "a.csv").read_bytes() == data
        assert not [path for path in Path(directory).rglob("*") if path.is_file()]
        world.abort.clear()
        world.on_chunk = lambda: None
        world.ledger.recover()
        world.run()
        assert_in_quarantine(world, id_, data)


def test_a_quarantine_that_cannot_be_written_is_tried_again(world: World) -> None:
    (world.drop / ".pmwatch").write_bytes(b"in the way")
    id_ = world.settle("sub/a.csv", b"id\n1\n")
    refuse(world)
    world.run()
    assert world.reports[-1].what == "dispose_failed"
    assert (world.drop / "sub" / "a.csv").exists()
    (world.drop / ".pmwatch").unlink()
    world.run()
    assert world.get(id_).location == b"", "not before its time"
    world.clock.at = world.get(id_).not_before
    world.run()
    assert_in_quarantine(world, id_, b"id\n1\n")
    assert world.ledger.claim_quarantine(now=world.clock() + 1e6) is None


def test_a_delivery_whose_source_is_being_moved_waits(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    disposals = Disposals()
    uploader = world.uploader(disposals=disposals)
    uploader.resolve_names(world.ledger.unresolved())
    assert disposals.begin(id_)
    assert not disposals.begin(id_), "once at a time"
    assert uploader.run_one()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "being_moved")
    assert not uploader.run_one()
    disposals.over([id_])
    world.clock.advance(1)
    assert uploader.run_one()
    assert world.get(id_).state is State.DONE


def test_a_file_that_never_left_its_place_and_is_gone_is_not_found_again(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    (world.drop / "a.csv").unlink()
    world.run()
    assert world.get(id_).state is State.VANISHED
