"""Many small files of one datatable: sent in runs, in their order, and each with a fate of its own."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery.test_worker import World
from pmwatch.delivery import ahead
from pmwatch.delivery.limits import Limits
from pmwatch.errors import KeyRejected, LedgerError, PmwatchError, Rejected, ServerFault, Throttled, Unreachable
from pmwatch.model import AfterUpload, Dedup, Delivery, Fingerprint, Order, State
from pmwatch.sandbox import Fault
from support.remotes import FakeRemote

COUNT = 40  # more than one run


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def fill(world: World, count: int = COUNT) -> list[int]:
    return [world.settle(f"{number:03}.csv", b"id\n%d\n" % number) for number in range(count)]


def done(world: World, ids: list[int]) -> bool:
    return all(world.get(id_).state is State.DONE for id_ in ids)


@pytest.mark.parametrize("order", [Order.ARRIVAL, Order.NONE])
def test_all_arrive_once_in_order(world: World, order: Order) -> None:
    world.folder(order=order)
    ids = fill(world)
    assert world.run() == 2
    assert done(world, ids)
    assert world.puts() == [200] * COUNT
    assert [world.get(id_).attempts for id_ in ids] == [1] * COUNT
    assert sorted(world.stored()) == sorted(b"id\n%d\n" % number for number in range(COUNT))
    told = [report.delivery.id for report in world.reports if report.what == "uploaded"]
    assert told == ids


def test_a_whole_run_is_archived(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    ids = fill(world)
    world.run()
    assert done(world, ids)
    assert [name for name in os.listdir(world.drop) if not name.startswith(".")] == []
    assert all(Path(os.fsdecode(world.get(id_).location)).read_bytes() for id_ in ids)


def test_one_that_is_gone_does_not_stop_the_others(world: World) -> None:
    ids = fill(world, 5)
    (world.drop / "002.csv").unlink()
    assert world.run() == 1
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2 + [State.VANISHED] + [State.DONE] * 2


def test_one_that_changes_while_the_run_is_sent_does_not_stop_the_others(world: World) -> None:
    ids = fill(world, 4)

    def change(_: Any) -> None:
        if len(world.puts()) == 1:
            (world.drop / "002.csv").write_bytes(b"id\nlonger than before\n")

    world.on_chunk = lambda: change(None)
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2 + [State.VANISHED, State.DONE]
    assert ("orders", b"002.csv") in world.looked


def test_one_that_is_refused_does_not_stop_the_others(world: World) -> None:
    ids = fill(world, 5)
    world.server.faults.add(Fault.parse("PUT 400 code=InvalidRequest path=002.csv"))
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2 + [State.FAILED] + [State.DONE] * 2


def test_those_behind_one_that_is_tried_again_wait_for_it_untried(world: World) -> None:
    ids = fill(world, 5)
    world.server.faults.add(Fault.parse("PUT 408 path=002.csv"))
    world.run()
    states = [(world.get(id_).state, world.get(id_).attempts) for id_ in ids]
    assert states == [(State.DONE, 1)] * 2 + [(State.QUEUED, 1)] + [(State.QUEUED, 0)] * 2
    world.clock.advance(120)
    world.run()
    assert done(world, ids)
    assert [world.get(id_).uploaded_at for id_ in ids] == sorted(world.get(id_).uploaded_at for id_ in ids)


def test_without_an_order_those_behind_go_on(world: World) -> None:
    world.folder(order=Order.NONE)
    ids = fill(world, 5)
    world.server.faults.add(Fault.parse("PUT 408 path=002.csv"))
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2 + [State.QUEUED] + [State.DONE] * 2


def test_a_closed_gate_gives_the_rest_back_untried(world: World) -> None:
    ids = fill(world, 6)
    world.server.faults.add(Fault.parse("PUT 503 path=002.csv"))
    world.run()
    states = [(world.get(id_).state, world.get(id_).attempts) for id_ in ids]
    assert states == [(State.DONE, 1)] * 2 + [(State.QUEUED, 1)] + [(State.QUEUED, 0)] * 3
    world.clock.advance(120)
    world.run()
    assert done(world, ids)
    assert world.presigns() == 6  # a URL that was remembered is used again


@pytest.mark.parametrize("policy", [Dedup.CONTENT, Dedup.LATEST])
def test_equal_files_in_one_run_go_once(world: World, policy: Dedup) -> None:
    world.folder(dedup=policy)
    ids = [world.settle(f"{number}.csv", b"same") for number in range(10)]
    world.run()
    assert [world.get(id_).outcome for id_ in ids] == ["uploaded"] + ["duplicate"] * 9
    assert world.stored() == [b"same"]


def test_a_b_a_b_in_one_run(world: World) -> None:
    world.folder(dedup=Dedup.LATEST)
    ids = [world.settle(f"{number}.csv", b"AB"[number % 2 : number % 2 + 1]) for number in range(6)]
    world.run()
    assert [world.get(id_).outcome for id_ in ids] == ["uploaded"] * 6
    assert world.puts() == [200] * 6


def test_a_ledger_that_fails_after_the_puts_sends_nothing_twice(world: World, monkeypatch: Any) -> None:
    ids = fill(world, 5)
    real, calls = world.ledger.uploaded, []

    def fails(arrived: Any) -> None:
        calls.append(len(arrived))
        if len(calls) == 1:
            raise LedgerError("disk full")
        real(arrived)

    monkeypatch.setattr(world.ledger, "uploaded", fails)
    world.run()
    assert done(world, ids)
    assert sorted(world.puts()) == [200] * 5 + [412] * 5
    assert {record.put_count for record in world.server.objects()} == {1}


def test_shutdown_in_the_middle_of_a_run_gives_the_rest_back(world: World) -> None:
    ids = fill(world, 6)

    def stop() -> None:
        if len(world.puts()) == 2:
            world.abort.set()

    world.on_chunk = stop
    world.uploader().resolve_names(world.ledger.unresolved())
    world.uploader().run_one()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2 + [State.QUEUED] * 4
    assert [world.get(id_).attempts for id_ in ids[3:]] == [0] * 3
    world.on_chunk = lambda: None
    world.abort.clear()
    world.run()
    assert done(world, ids)
    assert {record.put_count for record in world.server.objects()} == {1}


def test_deliveries_with_a_remembered_url_go_along_with_fresh_ones(world: World) -> None:
    ids = fill(world, 4)
    world.server.faults.add(Fault.parse("PUT 503 path=000.csv"))
    world.run()
    assert all(world.get(id_).presigned_url for id_ in ids[:1])
    ids += [world.settle("late.csv", b"late")]
    world.clock.advance(120)
    world.run()
    assert done(world, ids)


# ---- a service that is far away -----------------------------------------------------------------------------


@pytest.fixture
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_FAR_SECONDS", 0.0)


@pytest.mark.usefixtures("_far")
def test_a_tenant_that_was_asked_to_slow_down_asks_for_one_url_at_a_time(world: World) -> None:
    world.remote = remote = FakeRemote()
    threads, before = set[int](), threading.active_count()
    remote.on_presign = lambda: threads.add(threading.active_count())
    limits = Limits(monotonic=world.clock)
    limits.slow_down("acme")
    ids = fill(world, 9)
    uploader = world.uploader(limits=limits)
    uploader.resolve_names(world.ledger.unresolved())
    uploader.run_one()
    assert done(world, ids)
    assert threads == {before}


def fail_once(world: World, path: bytes, error: PmwatchError) -> None:
    """Let the API fail one file's first question for a URL."""
    real, left = world.remote.presign, [error]

    def presign(delivery: Delivery, source: Fingerprint, *, valid_seconds: int | None = None) -> str:
        if delivery.path == path and left:
            raise left.pop()
        return real(delivery, source, valid_seconds=valid_seconds)

    world.remote.presign = presign  # type: ignore[method-assign]


@pytest.mark.usefixtures("_far")
@pytest.mark.parametrize("order", [Order.ARRIVAL, Order.NONE])
def test_urls_are_asked_for_side_by_side_and_the_files_still_go_in_order(world: World, order: Order) -> None:
    remote = FakeRemote()
    meeting = threading.Barrier(4)

    def meet() -> None:
        if remote.presigned:
            meeting.wait(30.0)  # passes only if four ask at a time

    remote.on_presign = meet
    world.remote = remote
    world.folder(order=order)
    ids = fill(world, 9)
    assert world.run() == 1
    assert done(world, ids)
    assert len(remote.presigned) == 9
    assert [remote.stored[url] for url, _ in remote.puts] == [b"id\n%d\n" % number for number in range(9)]


@pytest.mark.usefixtures("_far")
@pytest.mark.parametrize("error", [Throttled("429"), ServerFault("500"), KeyRejected("401"), Unreachable("gone")])
def test_trouble_of_the_api_in_the_middle_closes_the_gate_for_good(world: World, error: PmwatchError) -> None:
    ids = fill(world, 20)
    fail_once(world, b"005.csv", error)
    world.run()
    assert not world.is_open("acme"), "an answer to one that was asked beside it opens nothing"
    first = next(one for one in map(world.get, ids) if one.state is State.QUEUED)
    assert first.attempts == 1
    behind = [world.get(id_) for id_ in ids if id_ > first.id]
    assert {(one.state, one.attempts) for one in behind} == {(State.QUEUED, 0)}
    world.try_for(600)
    assert done(world, ids)
    assert {record.put_count for record in world.server.objects()} == {1}
    told = [report.delivery.id for report in world.reports if report.what == "uploaded"]
    assert told == ids


@pytest.mark.usefixtures("_far")
def test_a_file_that_gets_no_url_does_not_stop_the_others(world: World) -> None:
    ids = fill(world, 12)
    fail_once(world, b"005.csv", Rejected("400"))
    world.run()
    states = [world.get(id_).state for id_ in ids]
    assert sorted(states) == [State.DONE] * 11 + [State.FAILED]
    told = [report.delivery.id for report in world.reports if report.what == "uploaded"]
    assert told == sorted(told)


@pytest.mark.usefixtures("_far")
def test_shutdown_while_urls_are_asked_for_gives_the_run_back(world: World) -> None:
    remote = FakeRemote()

    def stop() -> None:
        if len(remote.presigned) == 3:
            world.abort.set()

    remote.on_presign = stop
    world.remote = remote
    ids = fill(world, 20)
    world.uploader().resolve_names(world.ledger.unresolved())
    world.uploader().run_one()
    assert remote.puts == []
    assert len(remote.presigned) < 8, "nobody asks on"
    assert {world.get(id_).state for id_ in ids} == {State.QUEUED}
    world.abort.clear()
    remote.on_presign = lambda: None
    world.run()
    assert done(world, ids)
