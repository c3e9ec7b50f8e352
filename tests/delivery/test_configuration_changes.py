"""What a changed configuration, a deleted datatable, a stop and an outage make of deliveries that are on their way."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.test_worker import GIVE_UP_SECONDS, World, during_the_put
from pmwatch.errors import AnswerLost, LedgerError, Unreachable
from pmwatch.ledger.store import MAX_RECOVERIES
from pmwatch.model import Order, State, Target
from pmwatch.sandbox import Fault
from support.remotes import FakeRemote

INVOICES = Target("acme", "Sales/Invoices")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def tables(world: World) -> list[str]:
    """Return the names of the datatables that got something, in that order."""
    names = {
        table["id"]: table["name"]
        for tenant in world.server.tenants
        for dataset in tenant["datasets"]
        for table in dataset["datatables"]
    }
    return [names[record.datatable_id] for record in world.server.objects()]


def reload(world: World, target: Target) -> None:
    """Do what a reload does that points the folder to another datatable."""
    world.folder(target=target)
    world.ledger.retarget("orders", lambda _: (target, Order.ARRIVAL))


# ---- another target ---------------------------------------------------------------------------------------------


def test_what_was_under_way_at_a_reload_goes_to_the_new_target_when_it_is_tried_again(world: World) -> None:
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(3)]
    world.server.faults.add(Fault(method="PUT", status=503, times=1))
    during_the_put(world, lambda: reload(world, INVOICES))
    world.run()
    world.clock.advance(120)
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 3
    assert tables(world) == ["Invoices"] * 3
    assert {world.get(id_).target for id_ in ids} == {INVOICES}


@pytest.mark.parametrize("state", [State.HELD, State.FAILED])
def test_what_a_person_frees_goes_where_the_configuration_says_now(world: World, state: State) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.uploader().resolve_names(world.ledger.unresolved())
    delivery = world.ledger.claim(now=world.clock())
    assert delivery is not None
    world.ledger.end(delivery, state, reason="r", detail="", now=world.clock())
    reload(world, INVOICES)
    assert world.get(id_).target == INVOICES
    world.ledger.requeue([id_], release=True)
    world.run()
    assert tables(world) == ["Invoices"]


def test_an_attempt_never_begins_towards_a_target_of_the_past(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.uploader().resolve_names(world.ledger.unresolved())
    world.folder(target=INVOICES)  # and the ledger was not told
    world.run()
    world.run()
    assert tables(world) == ["Invoices"]
    assert world.get(id_).attempts == 1


def test_what_cannot_be_redirected_for_the_ledgers_trouble_is_given_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LedgerError("disk full")

    id_ = world.settle("a.csv", b"id\n1\n")
    world.uploader().resolve_names(world.ledger.unresolved())
    world.folder(target=INVOICES)
    with monkeypatch.context() as patch:
        patch.setattr(world.ledger, "redirect", broken)
        assert world.uploader().run_one()
    assert world.get(id_).state is State.QUEUED
    world.run()
    world.run()
    assert tables(world) == ["Invoices"]


# ---- no folder any more -----------------------------------------------------------------------------------------


def test_what_was_under_way_when_its_folder_was_removed_is_held_and_others_go_on(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    other = world.folder("other")
    behind = world.settle("b.csv", b"id\n2\n", folder="other")
    world.server.faults.add(Fault(method="PUT", status=503, times=1))
    gone = world.folders["orders"]

    def remove() -> None:
        del world.folders["orders"]
        world.ledger.adopt(world.folders)

    during_the_put(world, remove)
    world.run()
    world.clock.advance(120)
    assert world.run() <= 2
    assert (world.get(id_).state, world.get(id_).reason) == (State.HELD, "folder_removed")
    assert world.get(behind).state is State.DONE
    world.folders |= {"orders": gone, "other": other}
    world.ledger.adopt(world.folders)
    world.run()
    assert world.get(id_).state is State.DONE


# ---- a datatable that is made again -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [Order.ARRIVAL, Order.NONE])
def test_a_datatable_that_is_deleted_and_made_again_is_found_under_its_new_id(world: World, order: Order) -> None:
    world.folder(order=order)
    world.settle("a.csv", b"id\n1\n")
    world.run()
    tenant = world.server.sandbox.tenant(world.tenants["acme"].id)
    assert tenant is not None
    dataset = tenant.datasets[0]
    dataset.datatables[:] = [table for table in dataset.datatables if table.name != "Orders"]
    made = world.server.sandbox.add_datatable(dataset, "Orders")
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(2, 5)]
    for _ in range(3):
        world.run()
        world.clock.advance(120)
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 3
    assert [record.datatable_id for record in world.server.objects()][1:] == [made.id] * 3


# ---- the end of a process ---------------------------------------------------------------------------------------


def test_an_ordinary_stop_is_no_crash_however_often_it_comes(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.uploader().resolve_names(world.ledger.unresolved())
    for _ in range(2 * MAX_RECOVERIES):
        assert world.ledger.claim(now=world.clock()) is not None
        assert world.ledger.hand_back() == 1
        assert world.ledger.recover() == 0
    assert (world.get(id_).state, world.get(id_).recoveries) == (State.QUEUED, 0)
    assert world.get(id_).reason == "interrupted"


@pytest.mark.parametrize("blocking", [True, False])
def test_what_seems_to_kill_the_process_blocks_where_its_folder_says_so(world: World, blocking: bool) -> None:  # noqa: FBT001
    id_, later = (world.settle(name, name.encode()) for name in ("a.csv", "b.csv"))
    world.uploader().resolve_names(world.ledger.unresolved())
    for _ in range(MAX_RECOVERIES):
        claimed = world.ledger.claim(now=world.clock())
        assert claimed is not None
        assert claimed.id == id_
        world.ledger.recover(blocking={"orders"} if blocking else set())
    assert world.get(id_).reason == "crash_loop"
    world.run()
    assert world.get(later).state is (State.QUEUED if blocking else State.DONE)


# ---- the age of trouble -----------------------------------------------------------------------------------------


def test_time_behind_a_closed_gate_does_not_count_against_a_file(world: World) -> None:
    fake = FakeRemote(signed_at="20300101T000000Z")
    world.remote = fake
    id_ = world.settle("a.csv", b"id\n1\n")

    def lost(_: bytes) -> None:
        raise AnswerLost("it broke")

    def down(_: bytes) -> None:
        raise Unreachable("refused")

    fake.on_put = lost
    world.run()
    fake.on_put = down
    while world.clock() < world.get(id_).settled_at + 2 * GIVE_UP_SECONDS:
        world.clock.advance(60)
        world.run()
    fake.on_put = lost
    world.clock.advance(60)
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "answer_lost")
    assert world.clock() - world.get(id_).first_failed_at < GIVE_UP_SECONDS / 2


def test_the_time_in_which_pmwatch_did_not_run_does_not_count_either(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add(Fault(method="PUT", close=True, times=2))
    world.run()
    world.clock.advance(2 * GIVE_UP_SECONDS)
    world.run()
    assert world.get(id_).state is State.QUEUED
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.DONE


def test_a_missing_destination_does_not_count_against_a_file(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add(Fault(method="GET", status=404, times=None, path_contains="presignedurl"))
    world.run()
    delivery = world.get(id_)
    assert (delivery.reason, delivery.first_failed_at, delivery.destination) == ("destination_unknown", 0.0, None)
