"""BPMN models on their way to a process, with the real client against the sandbox; and rows that arrived."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from delivery.test_worker import ORDERS, World
from pmwatch import Client
from pmwatch.delivery.limits import Limits
from pmwatch.delivery.rows import RowCounts
from pmwatch.errors import Interrupted, Unreachable
from pmwatch.formats import MAX_MODEL_BYTES
from pmwatch.model import AfterUpload, Dedup, Delivery, Guards, OnInvalid, State, Target
from pmwatch.sandbox import Fault
from support.remotes import FakeRemote

CLAIMS = Target("acme", "", "", "Claims")


def model(name: str, encoding: str = "UTF-8") -> bytes:
    """Return a model whose process has this name."""
    return (
        f'<?xml version="1.0" encoding="{encoding}"?>'
        '<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL" targetNamespace="x">'
        f'<process id="p" name="{name}"/></definitions>'
    ).encode(encoding)


class Models(World):
    """A world whose tenant has the process "Claims", and a folder of its models."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        tenant = self.server.tenants[0]
        with Client(tenant["api_key"], base_url=self.server.base_url) as client:
            self.process = client.create_process(tenant["id"], "Claims").id
        self.models_folder()

    def models_folder(self, **changes: Any) -> None:
        self.folder("models", CLAIMS, dedup=Dedup.LATEST, **changes)

    def deliver(self, name: str, data: bytes) -> Delivery:
        id_ = self.settle(name, data, "models")
        self.run()
        return self.get(id_)

    def held(self) -> str:
        """Return the model that the process has."""
        return next((str(one["bpmn"]) for _, one in self.server.sandbox.models()), "")

    def model_puts(self) -> int:
        return sum(one.path.endswith("/bpmn") for one in self.server.requests())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Models]:
    made = Models(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("after", list(AfterUpload))
def test_a_model_becomes_the_process_s_and_its_file_goes_where_it_should(world: Models, after: AfterUpload) -> None:
    world.models_folder(after_upload=after)
    done = world.deliver("claims.bpmn", model("Größe", "ISO-8859-1"))
    assert (done.state, done.outcome) == (State.DONE, "uploaded")
    assert [one.message for one in world.reports if one.what == "uploaded"] == ["the process has this model"]
    assert done.destination is not None
    assert done.destination.datatable_id == world.process
    assert world.held() == model("Größe").decode()
    assert done.sha256
    assert (world.base / "models/claims.bpmn").exists() == (after is AfterUpload.KEEP)
    assert world.server.objects() == []


def test_the_same_model_goes_once_and_an_older_one_that_comes_back_goes_again(world: Models) -> None:
    first, second = model("first"), model("second")
    assert world.deliver("a.bpmn", first).outcome == "uploaded"
    assert world.deliver("b.bpmn", first).outcome == "duplicate"
    assert world.deliver("c.bpmn", second).outcome == "uploaded"
    assert world.deliver("d.bpmn", first).outcome == "uploaded"
    assert (world.held(), world.model_puts()) == (first.decode(), 3)


def test_models_of_one_run_arrive_in_their_order(world: Models) -> None:
    for number in range(40):
        world.settle(f"{number}.bpmn", model(f"version {number}"), "models")
    world.run()
    assert world.held() == model("version 39").decode()
    assert world.model_puts() == 40


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"<html/>", "it is no BPMN 2.0 model"), (model("torn")[:-3], "torn"), (b"\xff\xfe\x00", "encoding")],
)
def test_what_is_no_model_is_held_and_nothing_is_sent(world: Models, data: bytes, sentence: str) -> None:
    held = world.deliver("a.bpmn", data)
    assert (held.state, held.reason) == (State.HELD, "invalid")
    assert sentence in held.detail
    assert world.model_puts() == 0
    world.models_folder(guards=Guards(on_invalid=OnInvalid.FAIL))
    assert world.deliver("b.bpmn", data + b" ").state is State.FAILED


def test_a_model_too_large_for_one_request_fails(world: Models) -> None:
    failed = world.deliver("a.bpmn", b" " * (MAX_MODEL_BYTES + 1))
    assert (failed.state, failed.reason) == (State.FAILED, "too_large")


def test_what_a_person_releases_goes_as_it_is_and_the_service_has_the_last_word(world: Models) -> None:
    held = world.deliver("a.bpmn", b"<html/>")
    world.ledger.requeue([held.id], release=True)
    world.run()
    failed = world.get(held.id)
    assert (failed.state, failed.reason) == (State.FAILED, "rejected")
    assert "not a BPMN 2.0 document" in failed.detail
    assert world.model_puts() == 1


@pytest.mark.parametrize(
    "fault", [Fault(method="PUT", status=503), Fault(method="PUT", close=True), Fault(method="PUT", status=500)]
)
def test_trouble_is_tried_again_until_the_model_is_there(world: Models, fault: Fault) -> None:
    world.server.faults.add(replace(fault, times=2))
    id_ = world.settle("a.bpmn", model("late"), "models")
    for _ in range(20):
        world.run()
        world.clock.advance(120)
    assert world.get(id_).state is State.DONE
    assert world.held() == model("late").decode()


def test_a_process_that_does_not_exist_keeps_its_models_waiting_and_names_what_is_near(world: Models) -> None:
    target = Target("acme", "", "", "Claim")
    world.folder("models", target)
    fared = world.uploader().resolve_names([target])
    error = fared[target]
    assert error is not None
    assert "there is no process 'Claim'" in error.message
    assert "Claims" in error.hint
    fared = world.uploader().resolve_names([target], may_create=lambda _: True)
    assert fared[target] is None


def test_a_name_that_two_processes_have_needs_an_id(world: Models) -> None:
    tenant = world.server.tenants[0]
    with Client(tenant["api_key"], base_url=world.server.base_url) as client:
        second = client.create_process(tenant["id"], "Claims").id
    error = world.uploader().resolve_names([CLAIMS])[CLAIMS]
    assert error is not None
    assert "not unique" in error.message
    assert second in error.message
    by_id = Target("acme", "", "", second)
    assert world.uploader().resolve_names([by_id]) == {by_id: None}


# ---- rows that arrived --------------------------------------------------------------------------------------


def rows_of(world: World) -> RowCounts:
    counts = RowCounts(ledger=world.ledger, gates=world.gates, limits=Limits(), now=world.clock)
    counts.after_seconds = 60.0
    return counts


def test_the_rows_of_a_datatable_are_asked_for_once_after_its_last_upload(world: Models) -> None:
    counts = rows_of(world)
    world.on_report = lambda report: counts.arrived(report.delivery) if report.what == "uploaded" else None
    first, second = world.settle("a.csv", b"id\n1\n2\n"), world.settle("b.csv", b"id\n3\n")
    world.run()
    counts.ask(world.remote, lambda: None)
    assert world.get(second).row_count is None, "it is too early"
    world.clock.advance(61)
    before = len(world.server.requests())
    counts.ask(world.remote, lambda: None)
    counts.ask(world.remote, lambda: None)
    assert len(world.server.requests()) - before == 1
    assert (world.get(first).row_count, world.get(second).row_count) == (None, 3)


def test_nobody_asks_for_rows_of_models_or_where_it_is_off(world: Models) -> None:
    counts = rows_of(world)
    done = world.deliver("a.bpmn", model("x"))
    counts.arrived(done)
    counts.after_seconds = 0.0
    counts.arrived(world.get(world.settle("a.csv", b"id\n1\n")))
    world.clock.advance(1000)
    counts.ask(FakeRemote(), lambda: pytest.fail("something is asked"))


def test_trouble_with_rows_harms_nothing(world: Models) -> None:
    class Away(FakeRemote):
        def row_count(self, delivery: Delivery) -> int | None:
            raise Unreachable(f"nobody tells about {delivery.id}")

    counts = rows_of(world)
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    counts.arrived(world.get(id_))
    world.clock.advance(61)
    counts.ask(Away(), lambda: None)
    assert world.get(id_).row_count is None
    assert world.get(id_).target == ORDERS


def test_at_the_end_all_rows_are_asked_for_and_kept_in_mind_where_that_is_interrupted(world: Models) -> None:
    def stop() -> None:
        raise Interrupted("no time")

    counts = rows_of(world)
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    counts.arrived(world.get(id_))
    counts.ask(world.remote, stop, at_once=True)
    assert world.get(id_).row_count is None
    counts.ask(world.remote, lambda: None, at_once=True)
    assert world.get(id_).row_count == 1


def test_a_file_that_arrives_while_rows_are_asked_for_has_its_own_question_later(world: Models) -> None:
    counts = rows_of(world)
    first, second = world.settle("a.csv", b"id\n1\n2\n"), world.settle("b.csv", b"id\n3\n")
    world.run()
    counts.arrived(world.get(first))
    counts.ask(world.remote, lambda: counts.arrived(world.get(second)), at_once=True)
    assert (world.get(first).row_count, world.get(second).row_count) == (None, None)
    counts.ask(world.remote, lambda: None, at_once=True)
    assert world.get(second).row_count == 3
