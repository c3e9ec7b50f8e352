"""The uploader with everything real: ledger, files, API client, keys, and the sandbox's API and store."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pmwatch.delivery.gates import Gate, Gates
from pmwatch.delivery.remote import ProcessMindRemote, Remote
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.delivery.worker import Report, Uploader
from pmwatch.errors import AnswerLost, KeyRejected, LedgerError, ServerFault, Throttled, Unreachable
from pmwatch.ledger import Ledger
from pmwatch.model import (
    MAX_PUT_BYTES,
    AfterUpload,
    Dedup,
    Delivery,
    Fingerprint,
    Folder,
    Order,
    Outcome,
    Settled,
    State,
    Target,
    Tenant,
)
from pmwatch.processmind import Http, Receipt, Storage
from pmwatch.processmind.keys import KeyRing
from pmwatch.sandbox import Fault, SandboxServer, TenantSeed
from support.folders import make_folder
from support.remotes import Clock, FakeRemote

MIB = 1024 * 1024
ORDERS = Target("acme", "Sales/Orders")
GLOBEX = Target("globex", "Sales/Orders")
GIVE_UP_SECONDS = 3600.0


class World:
    """One uploader and all that it needs. The sandbox, the gates and the worker share one clock."""

    def __init__(self, base: Path, **sandbox: Any) -> None:
        self.base = base
        self.clock = Clock(float(int(time.time())))
        seeds = [TenantSeed(name, {"Sales": ("Orders", "Invoices")}) for name in ("acme", "globex")]
        self.server = SandboxServer(base / "sandbox", tenants=seeds, now=self.clock, **sandbox)
        self.server.start()
        self.drop = base / "drop"
        self.drop.mkdir()
        (base / "state").mkdir()
        self.ledger = Ledger.open(str(base / "state"))
        self.http = Http()
        tenants = {}
        for tenant in self.server.tenants:
            path = base / f"{tenant['name']}.key"
            path.write_text(tenant["api_key"])
            tenants[tenant["name"]] = Tenant(tenant["name"], tenant["id"], api_key_file=str(path))
        self.tenants = tenants
        self.keys = KeyRing(tenants.values())
        self.remote: Remote = ProcessMindRemote(
            http=self.http,
            storage=Storage(self.http, allow_loopback=True),
            base_url=self.server.base_url,
            tenants=tenants,
            keys=self.keys,
        )
        self.host = self.server.base_url.removeprefix("http://")
        self.gate_changes: list[Gate] = []
        self.policy = RetryPolicy(first=1.0, longest=60.0, give_up_after=GIVE_UP_SECONDS)
        self.gates = Gates(self.policy, now=self.clock, monotonic=self.clock, changed=self.gate_changes.append)
        self.folders: dict[str, Folder] = {}
        self.folder()
        self.reports: list[Report] = []
        self.looked: list[tuple[str, bytes]] = []
        self.abort = threading.Event()
        self.on_report: Callable[[Report], None] = lambda _: None
        self.on_chunk: Callable[[], None] = lambda: None

    def close(self) -> None:
        self.ledger.close()
        self.http.close()
        self.server.stop()

    def folder(self, name: str = "orders", target: Target = ORDERS, **changes: Any) -> Folder:
        root = self.drop if name == "orders" else self.base / name
        root.mkdir(exist_ok=True)
        made = make_folder(root, name=name, target=target, tenants=frozenset({target.tenant}), **changes)
        self.folders[name] = made
        return made

    def settle(self, path: str, data: bytes | None = None, folder: str = "orders") -> int:
        """Enter a file into the ledger, as intake would; return its delivery's id."""
        known = self.folders[folder]
        name = os.path.join(known.root, os.fsencode(path))
        if data is not None:
            os.makedirs(os.path.dirname(name), exist_ok=True)
            with open(name, "wb") as file:
                file.write(data)
        look = Fingerprint.of(os.stat(name))
        at = self.clock()
        ids = self.ledger.enqueue([Settled(folder, os.fsencode(path), look, known.target, known.order, at, at)])
        return ids[0] if ids else 0

    def uploader(self, **more: Any) -> Uploader:
        return Uploader(
            ledger=self.ledger,
            remote=self.remote,
            gates=self.gates,
            folders=lambda: self.folders,
            policy=self.policy,
            report=self._report,
            look_again=lambda folder, path: self.looked.append((folder, path)),
            abort=self.abort,
            beat=self._beat,
            now=self.clock,
            monotonic=self.clock,
            **more,
        )

    def _beat(self) -> None:
        self.on_chunk()

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        self.on_report(report)

    def run(self) -> int:
        """Work until nothing may go; return how many turns did something."""
        uploader, turns = self.uploader(), 0
        uploader.resolve_names(self.ledger.unresolved())
        while uploader.run_one():
            turns += 1
            assert turns < 200, "it never comes to rest"
        return turns

    def try_for(self, seconds: float) -> None:
        """Let so much time pass, with an attempt whenever one is due."""
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.at = min(until, self.ledger.next_due(now=self.clock()) or until)
            self.run()

    def get(self, id_: int) -> Delivery:
        delivery = self.ledger.get(id_)
        assert delivery is not None
        return delivery

    def stored(self) -> list[bytes]:
        return [self.server.object_path(record).read_bytes() for record in self.server.objects()]

    def presigns(self) -> int:
        return sum("presignedurl" in request.path for request in self.server.requests())

    def puts(self) -> list[int]:
        return [request.status for request in self.server.requests() if request.method == "PUT"]

    def whats(self) -> list[str]:
        return [report.what for report in self.reports]

    def is_open(self, gate: str) -> bool:
        return all(one.is_open for one in self.gates.all() if one.name == gate)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(**sandbox: Any) -> World:
        made.append(World(tmp_path, **sandbox))
        return made[-1]

    yield make
    for world in made:
        world.close()


# ---- the happy path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, MIB + 1, 9 * MIB + 3])
def test_a_file_reaches_its_datatable(world: World, size: int) -> None:
    data = os.urandom(size)
    id_ = world.settle("orders.csv", data)
    assert world.run() == 1
    delivery, record = world.get(id_), world.server.objects()[0]
    assert world.stored() == [data]
    assert (delivery.state, delivery.outcome, delivery.attempts) == (State.DONE, Outcome.UPLOADED, 1)
    assert delivery.sha256 == record.sha256 == hashlib.sha256(data).hexdigest()
    assert delivery.etag == hashlib.md5(data).hexdigest()
    assert delivery.detail == "etag verified"
    assert delivery.presigned_url == ""
    assert (record.filename, record.put_count) == ("orders.csv", 1)
    assert record.datatable_id == world.server.tenants[0]["datasets"][0]["datatables"][0]["id"]
    assert world.whats() == ["uploaded"]
    assert world.reports[0].request_id
    assert (world.drop / "orders.csv").exists()
    assert world.run() == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("größe ✓ 100%.csv", "größe ✓ 100%.csv"),
        ("a&b=c?d#e+f.csv", "a&b=c?d#e+f.csv"),
        ("sub/dir/a.csv", "a.csv"),
        (os.fsdecode(b"\xff\n.csv"), "%FF%0A.csv"),
    ],
)
def test_names_of_all_kinds(world: World, name: str, told: str) -> None:
    id_ = world.settle(name, b"id\n1\n")
    world.run()
    assert world.get(id_).state is State.DONE
    assert world.server.objects()[0].filename == told


def test_a_signed_content_type(make_world: Callable[..., World]) -> None:
    world = make_world(sign_content_type=True)
    ids = [
        world.settle(f"orders.{kind}", kind.encode()) for kind in ("csv", "tsv", "txt", "xls", "xlsx", "xlsb", "xes")
    ]
    world.run()
    assert {world.get(id_).state for id_ in ids} == {State.DONE}


def test_many_threads_send_everything_once(world: World) -> None:
    world.folder(order=Order.NONE)
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(40)]
    uploader = world.uploader()
    uploader.resolve_names(world.ledger.unresolved())

    def work() -> None:
        while uploader.run_one():
            pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.run()
    assert {world.get(id_).state for id_ in ids} == {State.DONE}
    assert sorted(world.stored()) == sorted(b"id\n%d\n" % number for number in range(40))
    assert {record.put_count for record in world.server.objects()} == {1}


def test_equal_files_at_once_go_once(world: World) -> None:
    world.folder(order=Order.NONE)
    ids = [world.settle(f"{number}.csv", b"the same") for number in range(12)]
    uploader = world.uploader()
    uploader.resolve_names(world.ledger.unresolved())
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            if not uploader.run_one() and all(world.get(id_).state is State.DONE for id_ in ids):
                done.set()

    world.on_report = lambda report: world.clock.advance(1.0) if report.reason == "equal_under_way" else None
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.stored() == [b"the same"]
    outcomes = sorted(world.get(id_).outcome for id_ in ids)
    assert outcomes == [Outcome.DUPLICATE] * 11 + [Outcome.UPLOADED]


@pytest.mark.parametrize("size", [10, 8 * MIB])
def test_a_file_that_waits_for_an_equal_one_is_read_the_more_seldom_the_larger_it_is(world: World, size: int) -> None:
    world.folder(order=Order.NONE)
    content = b"x" * size
    ids = [world.settle(name, content) for name in ("first.csv", "second.csv")]
    uploader = world.uploader()
    uploader.resolve_names(world.ledger.unresolved())
    first = world.ledger.claim(now=world.clock())
    assert first is not None
    world.ledger.decide([(first, hashlib.sha256(content).hexdigest(), Dedup.CONTENT)])  # it is under way
    assert uploader.run_one()
    (waiting,) = (world.get(id_) for id_ in ids if id_ != first.id)
    assert (waiting.state, waiting.reason) == (State.QUEUED, "equal_under_way")
    assert waiting.not_before - world.clock() == pytest.approx(0.05 + size / 100e6, abs=1e-4)


# ---- dedup --------------------------------------------------------------------------------------------------


def test_the_same_content_does_not_go_twice(world: World) -> None:
    first = world.settle("a.csv", b"id\n1\n")
    world.run()
    second = world.settle("b.csv", b"id\n1\n")
    world.run()
    assert world.stored() == [b"id\n1\n"]
    delivery = world.get(second)
    assert (delivery.state, delivery.outcome, delivery.duplicate_of) == (State.DONE, Outcome.DUPLICATE, first)
    assert world.presigns() == 1


@pytest.mark.parametrize("size", [10, 2 * MIB])
@pytest.mark.parametrize(
    ("dedup", "sent"), [(Dedup.CONTENT, "AB"), (Dedup.LATEST, "ABA"), (Dedup.OFF, "ABAA")], ids=str
)
def test_a_then_b_then_a(world: World, dedup: Dedup, sent: str, size: int) -> None:
    world.folder(dedup=dedup)
    for step, letter in enumerate("ABAA"):
        world.settle("orders.csv" if step < 3 else "other.csv", letter.encode() * size)
        world.clock.advance(1)
        world.run()
    assert [data[:1].decode() for data in world.stored()] == list(sent)
    older = [report.older_version for report in world.reports if report.what == "duplicate"]
    assert older == {Dedup.CONTENT: [True, True], Dedup.LATEST: [False], Dedup.OFF: []}[dedup]


def test_other_datatables_do_not_count(world: World) -> None:
    world.folder("invoices", Target("acme", "Sales/Invoices"))
    world.folder("globex", GLOBEX)
    for folder in world.folders:
        world.settle("a.csv", b"id\n1\n", folder)
    world.run()
    assert len(world.stored()) == 3


def test_touching_a_kept_file_is_no_delivery(world: World) -> None:
    first = world.settle("a.csv", b"id\n1\n")
    world.run()
    os.utime(world.drop / "a.csv", ns=(10**18, 10**18))
    world.settle("a.csv")
    world.run()
    assert world.whats() == ["uploaded", "unchanged"]
    assert [delivery.id for delivery in world.ledger.find("orders", b"a.csv")] == [first]


# ---- URLs ---------------------------------------------------------------------------------------------------


def test_a_remembered_url_that_has_expired_is_asked_for_again(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add("PUT 503")
    world.run()
    assert world.get(id_).presigned_url
    world.clock.advance(7200)
    world.run()
    assert world.get(id_).attempts == 2
    assert (world.presigns(), world.puts()) == (2, [503, 200])
    assert world.get(id_).state is State.DONE


def test_a_url_is_asked_what_arrived_until_its_last_second(make_world: Callable[..., World]) -> None:
    world = make_world(url_expires_seconds=20)
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add(Fault(method="PUT", when="after", close=True))
    world.run()
    assert world.get(id_).reason == "answer_lost"
    world.clock.advance(19)
    world.run()
    assert (world.get(id_).state, world.presigns(), world.puts()[-1]) == (State.DONE, 1, 412)
    assert world.stored() == [b"id\n1\n"]


def test_a_url_that_the_storage_calls_expired_is_replaced_in_the_same_attempt(
    make_world: Callable[..., World],
) -> None:
    world = make_world(security_token="token", security_token_seconds=10)
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add("PUT 503")
    world.run()
    world.clock.advance(60)  # the URL itself is good for an hour, the token behind it is not
    world.run()
    assert world.get(id_).state is State.DONE
    assert (world.get(id_).attempts, world.presigns()) == (2, 2)
    assert world.puts() == [503, 400, 200]


def test_a_url_that_is_always_expired_is_trouble_that_ends(make_world: Callable[..., World]) -> None:
    world = make_world(security_token="token", security_token_seconds=-1)
    id_ = world.settle("a.csv", b"id\n1\n")
    assert world.run() == 1
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason, delivery.presigned_url) == (State.QUEUED, "url_expired", "")
    world.try_for(GIVE_UP_SECONDS + 60)
    assert world.get(id_).state is State.FAILED


def test_a_key_revoked_while_a_url_is_replaced_closes_the_tenants_gate_alone(
    make_world: Callable[..., World],
) -> None:
    world = make_world(security_token="token", security_token_seconds=10)
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add("PUT 503")
    world.run()
    world.clock.advance(60)
    world.server.sandbox.revoke_key(world.tenants["acme"].id)
    world.run()
    assert world.get(id_).reason == "key_rejected"
    assert not world.is_open("acme")
    assert world.is_open(world.host)


def lost_answers() -> list[Any]:
    cut = Fault(method="PUT", when="after", close=True)
    said = Fault(method="PUT", when="after", status=500)
    return [pytest.param(cut, "answer_lost", id="cut"), pytest.param(said, "server_fault", id="500")]


@pytest.mark.parametrize(("fault", "reason"), lost_answers())
@pytest.mark.parametrize("size", [0, 5, 9 * MIB])
def test_a_lost_answer_is_repeated_against_the_same_url(world: World, fault: Fault, reason: str, size: int) -> None:
    data = os.urandom(size)
    id_ = world.settle("a.csv", data)
    world.server.faults.add(fault)
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason) == (State.QUEUED, reason)
    assert delivery.presigned_url
    assert len(world.stored()) == 1  # it had arrived
    world.clock.advance(120)
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.detail) == (State.DONE, "an earlier attempt had arrived")
    assert delivery.sha256 == hashlib.sha256(data).hexdigest()
    assert world.server.objects()[0].put_count == 1
    assert world.presigns() == 1
    assert world.puts()[-1] == 412


def test_a_connection_cut_midway_is_repeated_and_stored_once(world: World) -> None:
    data = os.urandom(9 * MIB)
    id_ = world.settle("a.csv", data)
    world.server.faults.add(Fault(method="PUT", when="mid"))
    world.run()
    assert world.get(id_).reason == "answer_lost"
    assert world.stored() == []
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.DONE
    assert world.stored() == [data]
    assert world.presigns() == 1


def test_a_process_that_died_after_the_put_does_not_send_twice(world: World) -> None:
    class Death(BaseException):
        pass

    id_ = world.settle("a.csv", b"id\n1\n")
    uploaded = world.ledger.uploaded

    def die(*_: object, **__: object) -> None:
        raise Death

    world.ledger.uploaded = die  # type: ignore[method-assign]
    with pytest.raises(Death):
        world.run()
    world.ledger.uploaded = uploaded  # type: ignore[method-assign]
    assert world.get(id_).state is State.UPLOADING
    world.ledger.close()
    world.ledger = Ledger.open(str(world.base / "state"))
    assert world.ledger.recover() == 1
    assert world.get(id_).reason == "answer_lost"
    world.run()
    assert world.get(id_).state is State.DONE
    assert world.server.objects()[0].put_count == 1


# ---- gates --------------------------------------------------------------------------------------------------


def test_a_revoked_key_closes_only_its_tenants_gate(world: World) -> None:
    world.folder("globex", GLOBEX)
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(3)]
    world.uploader().resolve_names(world.ledger.unresolved())
    world.server.sandbox.revoke_key(world.tenants["acme"].id)
    other = world.settle("a.csv", b"id\n1\n", "globex")
    world.run()
    assert world.get(other).state is State.DONE
    assert [world.get(id_).state for id_ in ids] == [State.QUEUED] * 3
    assert [world.get(id_).attempts for id_ in ids] == [1, 0, 0]  # one found out, the others wait unharmed
    assert world.get(ids[0]).first_failed_at == 0.0
    closed = world.gate_changes[-1]
    assert (closed.name, closed.reason) == ("acme", "key_rejected")
    assert world.tenants["acme"].api_key_file in closed.hint
    assert world.is_open("globex")
    assert world.is_open(world.host)

    fresh = world.server.sandbox.rotate_key(world.tenants["acme"].id)
    world.clock.advance(120)
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.QUEUED] * 3
    path = Path(world.tenants["acme"].api_key_file)
    (world.base / "new").write_text(fresh)
    (world.base / "new").rename(path)
    assert world.keys.changed("acme")
    world.gates.try_now("acme")
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 3
    assert [record.filename for record in world.server.objects()][1:] == ["0.csv", "1.csv", "2.csv"]


def unreachable(_data: bytes) -> None:
    raise Unreachable("refused")


def test_a_gate_opens_in_time_though_the_clock_is_set_back_by_a_day(world: World) -> None:
    monotonic = Clock(1000.0)
    world.gates = Gates(world.policy, now=world.clock, monotonic=monotonic, changed=world.gate_changes.append)
    fake = FakeRemote(signed_at=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(world.clock())))
    world.remote = fake
    fake.on_put = unreachable
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    fake.on_put = lambda _data: None
    assert not world.is_open("storage.test")
    assert [one.closed_at for one in world.gate_changes] == [world.clock()]
    world.clock.advance(-86400)
    world.ledger.bring_near(now=world.clock(), longest=300.0)  # as the service does each minute
    world.run()
    assert world.get(id_).state is State.QUEUED
    monotonic.advance(60)
    world.run()
    assert world.get(id_).state is State.DONE


def test_a_probe_goes_alone_and_the_runs_of_others_are_whole(world: World) -> None:
    world.folder("globex", GLOBEX)
    world.settle("first.csv", b"id\n0\n")
    world.uploader().resolve_names([ORDERS, GLOBEX])
    world.gates.failed("acme", KeyRejected("no"), retry_after=10)
    for number in range(40):
        world.settle(f"a{number}.csv", b"id,acme\n%d\n" % number)
        world.settle(f"g{number}.csv", b"id,globex\n%d\n" % number, folder="globex")
    assert world.run() == 2, "acme waits; globex goes in runs of 32"
    world.clock.advance(10)
    presigned = world.presigns()
    assert world.uploader().run_one()
    assert world.presigns() == presigned + 1
    assert world.is_open("acme")
    assert world.run() == 2


def test_a_gate_that_nobody_probes_makes_no_run_smaller(world: World) -> None:
    fake = FakeRemote(signed_at=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(world.clock())))
    world.remote = fake
    world.settle("a.csv", b"a")
    fake.on_put = unreachable
    world.run()
    fake.on_put = lambda _data: None
    old = fake.presign
    world.remote.presign = lambda *one, **more: old(*one, **more).replace("storage.test", "new.test")  # type: ignore[method-assign]
    os.unlink(world.drop / "a.csv")
    for number in range(33):
        world.settle(f"{number}.csv", b"%d" % number)
    world.clock.advance(100)
    assert world.run() == 3, "a probe, which finds that URLs point elsewhere, and a run for all"
    assert not world.is_open("storage.test")
    assert world.gates.seconds_to_opening() is None
    world.gates.keep(["acme"])
    world.clock.advance(900)
    world.gates.keep(["acme"])
    assert [one.name for one in world.gates.all()] == ["acme", "new.test"]


def test_a_key_that_was_rotated_in_time_costs_nothing(world: World) -> None:
    world.settle("a.csv", b"id\n1\n")
    world.run()
    path = Path(world.tenants["acme"].api_key_file)
    before = path.stat()
    path.write_text(world.server.sandbox.rotate_key(world.tenants["acme"].id))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # so that only the refusal tells
    id_ = world.settle("b.csv", b"id\n2\n")
    world.run()
    assert (world.get(id_).state, world.get(id_).attempts) == (State.DONE, 1)
    assert world.gate_changes == []


def test_a_key_file_that_is_gone(world: World) -> None:
    world.settle("a.csv", b"id\n1\n")
    world.uploader().resolve_names(world.ledger.unresolved())
    path = Path(world.tenants["acme"].api_key_file)
    path.rename(world.base / "away")
    id_ = world.settle("b.csv", b"id\n2\n")
    world.run()
    assert world.get(id_).state is State.QUEUED
    assert [(one.name, one.reason) for one in world.gate_changes] == [("acme", "key_unavailable")]
    (world.base / "away").rename(path)
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.DONE


@pytest.mark.parametrize(("status", "retry_after"), [(503, 30), (429, 30), (500, None)])
def test_trouble_of_the_storage_closes_its_gate_for_all(world: World, status: int, retry_after: int | None) -> None:
    world.folder(order=Order.NONE)
    world.folder("globex", GLOBEX)
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(3)]
    ids.append(world.settle("a.csv", b"id\n1\n", "globex"))
    world.server.faults.add(Fault(method="PUT", status=status, retry_after=retry_after))
    assert world.run() <= 2
    # The very first PUT met the trouble: nothing is claimed again and again while the gate is closed.
    assert world.puts() == [status]
    assert sum(world.get(id_).attempts for id_ in ids) <= 2
    assert [(one.name, one.is_open) for one in world.gate_changes] == [(world.host, False)]
    assert world.is_open("acme")
    assert all(world.get(id_).first_failed_at == 0.0 for id_ in ids)
    if retry_after:
        world.clock.advance(retry_after - 0.1)
        assert world.run() <= 1
        assert world.puts() == [status]
    world.clock.advance(60)
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 4
    assert world.is_open(world.host)
    assert len(world.stored()) == 4


def test_a_throttled_api_closes_the_tenants_gate(world: World) -> None:
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(2)]
    world.uploader().resolve_names(world.ledger.unresolved())
    world.server.faults.add("GET 429 path=presignedurl retry-after=30")
    assert world.run() == 1
    assert [(one.name, one.reason) for one in world.gate_changes] == [("acme", "throttled")]
    world.clock.advance(29.9)
    assert world.run() == 0
    world.clock.advance(0.1)
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2


def test_a_server_that_is_down_harms_no_file(world: World) -> None:
    ids = [world.settle(f"{number}.csv", b"id\n%d\n" % number) for number in range(2)]
    world.uploader().resolve_names(world.ledger.unresolved())
    world.server.stop()
    for _ in range(5):
        assert world.run() <= 1
        world.clock.advance(GIVE_UP_SECONDS)
    assert [world.get(id_).state for id_ in ids] == [State.QUEUED] * 2
    assert world.get(ids[0]).first_failed_at == 0.0
    world.server.start()
    world.run()
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2


def test_a_presigned_url_to_another_host_gets_no_bytes(world: World) -> None:
    world.remote = ProcessMindRemote(
        http=world.http,
        storage=Storage(world.http),  # loopback is not allowed
        base_url=world.server.base_url,
        tenants=world.tenants,
        keys=world.keys,
    )
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "bad_url")
    assert world.puts() == []
    assert "allowed_upload_hosts" in world.gate_changes[-1].hint


def test_an_unknown_destination_is_named_and_asked_for_again(world: World) -> None:
    world.folder(target=Target("acme", "Sales/Later"))
    id_ = world.settle("a.csv", b"id\n1\n")
    troubles = world.uploader().resolve_names(world.ledger.unresolved())
    assert [error.reason for error in troubles.values() if error is not None] == ["destination_unknown"]
    assert world.run() == 0
    tenant = world.server.sandbox.tenant(world.tenants["acme"].id)
    assert tenant is not None
    world.server.sandbox.add_datatable(tenant.datasets[0], "Later")
    world.run()
    assert world.get(id_).state is State.DONE


def test_a_datatable_that_is_deleted_never_fails_the_file(world: World) -> None:
    world.settle("a.csv", b"id\n1\n")
    world.run()
    id_ = world.settle("b.csv", b"id\n2\n")
    world.server.faults.add(Fault(method="GET", status=404, times=None, path_contains="presignedurl"))
    for _ in range(3):
        world.run()
        world.clock.advance(GIVE_UP_SECONDS)
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "destination_unknown")
    assert world.is_open("acme")
    world.server.faults.clear()
    world.run()
    assert world.get(id_).state is State.DONE


def test_names_are_not_asked_for_behind_a_closed_gate(world: World) -> None:
    world.settle("a.csv", b"id\n1\n")
    world.server.sandbox.revoke_key(world.tenants["acme"].id)
    uploader = world.uploader()
    uploader.resolve_names(world.ledger.unresolved())
    asked = len(world.server.requests())
    uploader.resolve_names(world.ledger.unresolved())
    assert len(world.server.requests()) == asked
    assert not world.is_open("acme")


def test_a_ledger_that_cannot_be_written_is_not_the_tenants_fault(world: World) -> None:
    world.settle("a.csv", b"id\n1\n")
    resolve = world.ledger.resolve

    def broken(*_: object) -> None:
        raise LedgerError("the disk is full")

    world.ledger.resolve = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(LedgerError):
        world.uploader().resolve_names(world.ledger.unresolved())
    assert world.is_open("acme")
    world.ledger.resolve = resolve  # type: ignore[method-assign]
    world.run()
    assert world.stored() == [b"id\n1\n"]


# ---- sources that do not hold still -------------------------------------------------------------------------


def during_the_put(world: World, change: Callable[[], object]) -> None:
    """Let something happen while the second chunk is about to be read."""
    chunks = []

    def on_chunk() -> None:
        chunks.append(1)
        if len(chunks) == 2:
            change()

    world.on_chunk = on_chunk


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda path: path.write_bytes(b"y" * (3 * MIB)),
    "grows": append,
    "shrinks": lambda path: os.truncate(path, 2 * MIB + 1),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_source_that_changes_during_the_put(world: World, change: Callable[[Path], object]) -> None:
    path = world.drop / "a.csv"
    path.write_bytes(b"x" * (3 * MIB))
    os.utime(path, ns=(10**18, 10**18))
    id_ = world.settle("a.csv")
    during_the_put(world, lambda: change(path))
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason, delivery.presigned_url) == (State.VANISHED, "source_changed", "")
    assert world.looked == [("orders", b"a.csv")]
    assert world.stored() == []
    world.on_chunk = lambda: None
    world.settle("a.csv")
    world.run()
    assert world.stored() == [path.read_bytes()]


@pytest.mark.parametrize("gone", [True, False], ids=["deleted", "replaced"])
def test_a_name_that_changes_during_the_put_does_not_matter(world: World, *, gone: bool) -> None:
    path, data = world.drop / "a.csv", os.urandom(3 * MIB)
    id_ = world.settle("a.csv", data)

    def change() -> None:
        if gone:
            path.unlink()
        else:
            (world.drop / "fresh").write_bytes(b"newer")
            (world.drop / "fresh").rename(path)

    during_the_put(world, change)
    world.run()
    assert world.stored() == [data]
    assert world.get(id_).state is State.DONE


@pytest.mark.parametrize("change", [*CHANGES.values(), Path.unlink], ids=[*CHANGES, "deleted"])
def test_a_source_that_changed_since_it_settled(world: World, change: Callable[[Path], object]) -> None:
    path = world.drop / "a.csv"
    path.write_bytes(b"x" * (3 * MIB))
    os.utime(path, ns=(10**18, 10**18))
    id_ = world.settle("a.csv")
    change(path)
    world.run()
    assert world.get(id_).state is State.VANISHED
    assert world.looked == [("orders", b"a.csv")]
    assert world.presigns() == 0


def strange(path: Path, kind: str, secret: Path) -> None:
    path.unlink()
    if kind == "symlink":
        path.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_regular_file_is_never_sent(world: World, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"one")
    id_ = world.settle("a.csv", b"one")
    os.utime(secret, ns=(world.get(id_).fingerprint.mtime_ns,) * 2)
    strange(world.drop / "a.csv", kind, secret)
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "unreadable")
    world.try_for(GIVE_UP_SECONDS + 60)
    delivery = world.get(id_)
    assert (delivery.state, delivery.location) == (State.FAILED, b"")
    assert os.path.lexists(world.drop / "a.csv")
    assert secret.read_bytes() == b"one"
    assert world.presigns() == 0


def test_a_directory_above_that_becomes_a_link(world: World, tmp_path: Path) -> None:
    id_ = world.settle("sub/a.csv", b"one")
    (world.drop / "sub").rename(tmp_path / "elsewhere")
    (world.drop / "sub").symlink_to(tmp_path / "elsewhere")
    world.run()
    assert world.get(id_).state is State.VANISHED
    assert world.stored() == []


# ---- what the storage confirms ------------------------------------------------------------------------------


def test_a_wrong_etag_is_tried_again_with_a_fresh_url(world: World) -> None:
    remote = FakeRemote(signed_at="29990101T000000Z")
    wrong = [Receipt("0" * 32, "0" * 32, "r-1")]
    right = remote.receipt_of
    remote.receipt_of = lambda data: wrong.pop() if wrong else right(data)
    world.remote = remote
    world.folder(target=Target("acme", "table-1"))
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason, delivery.presigned_url) == (State.QUEUED, "checksum_mismatch", "")
    world.clock.advance(120)
    world.run()
    assert world.get(id_).state is State.DONE
    assert remote.puts == [(remote.presigned[0], False), (remote.presigned[1], False)]


def test_an_etag_that_cannot_be_compared(world: World) -> None:
    remote = FakeRemote(receipt_of=lambda _: Receipt("kms", "", "r-1"))
    world.remote = remote
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    assert (world.get(id_).state, world.get(id_).detail) == (State.DONE, "etag not comparable")


@pytest.mark.parametrize("md5", ["", "0" * 32])
def test_a_confirmation_before_the_last_byte_is_none(world: World, md5: str) -> None:
    class Hasty(FakeRemote):
        def put(self, url: str, open_body: Callable[[], Iterator[bytes]], **_: Any) -> Receipt:
            self.puts.append((url, False))
            next(open_body())
            return Receipt(md5, md5, "r-1")

    world.remote = Hasty()
    id_ = world.settle("a.csv", os.urandom(3 * MIB))
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.QUEUED, "checksum_mismatch")


# ---- giving up ----------------------------------------------------------------------------------------------


def give_up(world: World, id_: int) -> None:
    world.server.faults.add(Fault(method="PUT", close=True, times=None))
    for _ in range(200):
        world.run()
        delivery = world.get(id_)
        if delivery.state is not State.QUEUED:
            break
        assert delivery.not_before > world.clock()
        world.clock.at = delivery.not_before
    world.server.faults.clear()


def test_a_file_is_given_up_by_age_and_explained(world: World) -> None:
    data = b"id\n1\n"
    id_ = world.settle("sub/a.csv", data)
    started = world.clock()
    give_up(world, id_)
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason, delivery.presigned_url) == (State.FAILED, "answer_lost", "")
    assert world.clock() - started >= GIVE_UP_SECONDS
    quarantined = world.drop / ".pmwatch" / "quarantine" / "sub" / "a.csv"
    assert os.fsdecode(delivery.location) == str(quarantined)
    assert quarantined.read_bytes() == data
    assert not (world.drop / "sub" / "a.csv").exists()
    text = quarantined.with_name("a.csv.error.json").read_text()
    facts = json.loads(text)
    assert facts["reason"] == "answer_lost"
    assert facts["message"]
    assert facts["attempts"] == delivery.attempts > 3
    assert (facts["folder"], facts["file"], facts["size"]) == ("orders", "sub/a.csv", len(data))
    assert facts["again"] == f"pmwatch retry {id_}"
    assert "X-Amz" not in text
    assert "http" not in text


@pytest.mark.parametrize("seen", [True, False])  # whether intake has seen the newer version before the next attempt
def test_the_ledger_says_of_a_replaced_version_that_it_may_have_arrived(world: World, *, seen: bool) -> None:
    first = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add(Fault(method="PUT", when="after", close=True))
    world.run()
    assert world.get(first).reason == "answer_lost"
    (world.drop / "a.csv").write_bytes(b"id\n1\n2\n")
    if not seen:
        world.clock.advance(120)
        world.run()
        assert world.looked == [("orders", b"a.csv")]
    second = world.settle("a.csv")
    world.run()
    assert (world.get(first).state, world.get(first).reason) == (State.VANISHED, "answer_lost")
    assert "arrived" in world.get(first).detail
    assert world.get(second).state is State.DONE
    assert world.stored() == [b"id\n1\n", b"id\n1\n2\n"]


def test_no_file_is_given_up_for_a_storage_that_breaks_every_connection(world: World) -> None:
    world.policy = RetryPolicy(first=60.0, longest=600.0, give_up_after=GIVE_UP_SECONDS)
    world.folder("invoices", Target("acme", "Sales/Invoices"))
    ids = [world.settle("a.csv", b"id\n1\n"), world.settle("b.csv", b"id\n2\n", "invoices")]
    world.server.faults.add(Fault(method="PUT", close=True, times=None))
    world.run()
    world.try_for(3 * GIVE_UP_SECONDS)
    assert [(world.get(id_).state, world.get(id_).reason) for id_ in ids] == [(State.QUEUED, "answer_lost")] * 2
    assert "other files fail too" in world.get(ids[0]).detail
    world.server.faults.clear()
    world.try_for(600)
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 2


def test_of_a_single_datatable_only_the_first_file_is_given_up_meanwhile(world: World) -> None:
    world.policy = RetryPolicy(first=60.0, longest=600.0, give_up_after=GIVE_UP_SECONDS)
    ids = [world.settle(f"{name}.csv", name.encode()) for name in "abc"]
    world.server.faults.add(Fault(method="PUT", close=True, times=None))
    world.run()
    world.try_for(4 * GIVE_UP_SECONDS)
    assert [world.get(id_).state for id_ in ids] == [State.FAILED, State.QUEUED, State.QUEUED]


def test_a_file_that_fails_alone_is_given_up_while_others_get_through(world: World) -> None:
    world.policy = RetryPolicy(first=60.0, longest=600.0, give_up_after=GIVE_UP_SECONDS)
    world.folder("invoices", Target("acme", "Sales/Invoices"))
    id_ = world.settle("a.csv", b"id\n1\n")
    world.server.faults.add(Fault(method="PUT", close=True, times=None, path_contains="a.csv"))
    for number in range(5):
        assert world.get(id_).state is State.QUEUED
        world.settle(f"{number}.csv", b"%d" % number, "invoices")
        world.run()
        world.try_for(GIVE_UP_SECONDS / 4)
    assert world.get(id_).state is State.FAILED


def test_a_retry_sends_from_quarantine(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    id_ = world.settle("a.csv", b"id\n1\n")
    give_up(world, id_)
    assert world.ledger.requeue([id_]) == 1
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.outcome) == (State.DONE, Outcome.UPLOADED)
    assert world.stored() == [b"id\n1\n"]
    assert world.server.objects()[0].filename == "a.csv"
    assert b"/archive/" in delivery.location
    assert os.path.exists(delivery.location)


def test_a_new_file_at_the_path_does_not_disturb_one_in_quarantine(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    give_up(world, id_)
    newer = world.settle("a.csv", b"id\n2\n")
    assert newer not in (0, id_)
    world.ledger.requeue([id_])
    world.run()
    assert sorted(world.stored()) == [b"id\n1\n", b"id\n2\n"]


def test_more_than_five_gib_fails_before_anything_is_asked_for(world: World) -> None:
    path = world.drop / "huge.csv"
    with path.open("wb") as file:
        file.truncate(MAX_PUT_BYTES + 1)
    id_ = world.settle("huge.csv")
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason) == (State.FAILED, "too_large")
    assert world.presigns() == 0
    assert "5 GiB" in world.reports[-1].message
    assert world.reports[-1].hint


def test_a_rejection_fails_at_once(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    later = world.settle("b.csv", b"id\n2\n")
    world.server.faults.add(Fault(method="PUT", status=400, code="InvalidArgument"))
    world.run()
    assert (world.get(id_).state, world.get(id_).reason) == (State.FAILED, "rejected")
    assert world.get(later).state is State.DONE  # a failed file does not block
    facts = json.loads((world.drop / ".pmwatch" / "quarantine" / "a.csv.error.json").read_text())
    assert facts["s3_code"] == "InvalidArgument"
    assert facts["hint"]


# ---- stopping -----------------------------------------------------------------------------------------------


def test_an_abort_in_the_middle_gives_the_delivery_back(world: World) -> None:
    data = os.urandom(9 * MIB)
    id_ = world.settle("a.csv", data)
    during_the_put(world, world.abort.set)
    assert set(world.uploader().resolve_names(world.ledger.unresolved()).values()) == {None}
    assert world.uploader().run_one()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason, delivery.first_failed_at) == (State.QUEUED, "interrupted", 0.0)
    assert delivery.not_before <= world.clock()
    assert world.stored() == []
    world.abort.clear()
    world.on_chunk = lambda: None
    world.run()
    assert world.get(id_).state is State.DONE
    assert world.stored() == [data]
    assert world.presigns() == 1


def test_a_folder_that_is_no_longer_configured(world: World) -> None:
    id_ = world.settle("a.csv", b"id\n1\n")
    uploader = world.uploader()
    uploader.resolve_names(world.ledger.unresolved())
    folders = dict(world.folders)
    world.folders.clear()
    uploader.run_one()
    assert (world.get(id_).state, world.get(id_).reason) == (State.HELD, "folder_removed")
    world.folders.update(folders)
    world.ledger.adopt(world.folders)
    world.run()
    assert world.get(id_).state is State.DONE


# ---- disposal -----------------------------------------------------------------------------------------------


def test_archiving_and_deleting(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    world.folder("globex", GLOBEX, after_upload=AfterUpload.DELETE)
    one, two = world.settle("a.csv", b"id\n1\n"), world.settle("a.csv", b"id\n1\n", "globex")
    again = world.settle("b.csv", b"id\n1\n")
    world.run()
    assert not (world.drop / "a.csv").exists()
    assert not (world.base / "globex" / "a.csv").exists()
    for id_ in (one, again):  # a duplicate's source goes the same way
        delivery = world.get(id_)
        assert delivery.state is State.DONE
        assert Path(os.fsdecode(delivery.location)).read_bytes() == b"id\n1\n"
    assert (world.get(two).state, world.get(two).location) == (State.DONE, b"")
    assert world.get(again).outcome == Outcome.DUPLICATE


def test_archiving_on_another_file_system(world: World, tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as archive:
        world.folder(after_upload=AfterUpload.ARCHIVE, archive_dir=os.fsencode(archive))
        data = os.urandom(2 * MIB)
        id_ = world.settle("a.csv", data)
        world.run()
        assert Path(os.fsdecode(world.get(id_).location)).read_bytes() == data
    assert not (world.drop / "a.csv").exists()


@pytest.mark.parametrize("after", [AfterUpload.ARCHIVE, AfterUpload.DELETE])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "rewritten"])
def test_a_file_that_arrives_between_upload_and_disposal_stays(
    world: World, after: AfterUpload, *, replaced: bool
) -> None:
    world.folder(after_upload=after)
    path = world.drop / "a.csv"
    id_ = world.settle("a.csv", b"id\n1\n")

    def arrive(report: Report) -> None:
        if report.what == "uploaded" and replaced:
            (world.drop / "fresh").write_bytes(b"id\n1\n2\n")
            (world.drop / "fresh").rename(path)
        elif report.what == "uploaded":
            path.write_bytes(b"id\n1\n2\n")

    world.on_report = arrive
    world.run()
    assert path.read_bytes() == b"id\n1\n2\n"
    assert world.get(id_).state is State.DONE
    assert world.looked == [("orders", b"a.csv")]
    world.on_report = lambda _: None
    newer = world.settle("a.csv")
    world.run()
    assert world.get(newer).state is State.DONE
    assert world.stored() == [b"id\n1\n", b"id\n1\n2\n"]
    assert not path.exists()


def test_an_archive_that_is_in_trouble_is_tried_again_without_a_second_upload(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    (world.drop / ".pmwatch").write_bytes(b"in the way")
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    delivery = world.get(id_)
    assert (delivery.state, delivery.reason) == (State.UPLOADED, "dispose")
    assert delivery.not_before > world.clock()
    assert world.whats() == ["uploaded", "dispose_failed"]
    (world.drop / ".pmwatch").unlink()
    world.clock.at = delivery.not_before
    world.run()
    assert world.get(id_).state is State.DONE
    assert not (world.drop / "a.csv").exists()
    assert world.puts() == [200]


def test_a_process_that_died_before_the_disposal_takes_it_up(world: World) -> None:
    class Death(BaseException):
        pass

    world.folder(after_upload=AfterUpload.ARCHIVE)
    id_ = world.settle("a.csv", b"id\n1\n")

    def die(report: Report) -> None:
        if report.what == "uploaded":
            raise Death

    world.on_report = die
    with pytest.raises(Death):
        world.run()
    assert world.get(id_).state is State.UPLOADED
    world.on_report = lambda _: None
    world.ledger.recover()
    world.run()
    assert world.get(id_).state is State.DONE
    assert os.path.exists(world.get(id_).location)
    assert world.puts() == [200]


def test_the_next_file_of_a_datatable_is_sent_before_the_one_before_it_is_archived(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    uploader = world.uploader()
    first = world.settle("a.csv", b"id\n1\n")
    uploader.resolve_names(world.ledger.unresolved())
    assert uploader.run_one()
    assert (world.get(first).state, (world.drop / "a.csv").exists()) == (State.UPLOADED, True)
    second = world.settle("b.csv", b"id\n2\n")
    assert uploader.run_one()
    assert world.whats() == ["uploaded", "uploaded"]
    assert uploader.run_one()
    assert world.whats() == ["uploaded", "uploaded", "disposed", "disposed"]
    assert [world.get(id_).state for id_ in (first, second)] == [State.DONE, State.DONE]
    assert not uploader.run_one()


def test_an_archive_that_has_waited_for_half_a_second_comes_before_the_next_file(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    uploader = world.uploader()
    world.settle("a.csv", b"id\n1\n")
    uploader.resolve_names(world.ledger.unresolved())
    assert uploader.run_one()
    world.clock.at += 0.6
    world.settle("b.csv", b"id\n2\n")
    assert uploader.run_one()
    assert world.whats() == ["uploaded", "disposed", "uploaded"]


def test_an_archive_does_not_wait_for_ever_behind_files_that_go_on_and_on(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    uploader = world.uploader()
    for number in range(65):
        world.settle(f"{number}.csv", b"id\n%d\n" % number)
        uploader.resolve_names(world.ledger.unresolved())
        assert uploader.run_one()
    assert "disposed" in world.whats()


def test_a_disposal_that_outlives_its_lease_is_not_begun_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    id_ = world.settle("a.csv", b"id\n1\n")
    uploader = world.uploader()
    calls: list[int] = []
    uploader.resolve_names(world.ledger.unresolved())

    def slow(uploaded: list[tuple[Delivery, Folder]], **_: Any) -> list[tuple[bytes, bool]]:
        calls.extend(delivery.id for delivery, _ in uploaded)
        if len(calls) == 1:
            world.clock.advance(3600)  # the lease is over long before the copy is
            assert uploader.run_one()  # what another thread would do now
        return [(b"/archive/a.csv", False) for _ in uploaded]

    monkeypatch.setattr("pmwatch.delivery.worker.dispose_all", slow)
    assert uploader.run_one()  # sends
    assert uploader.run_one()  # disposes of it
    assert calls == [id_]
    assert (world.get(id_).state, world.get(id_).location) == (State.DONE, b"/archive/a.csv")


# ---- order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "waits"), [(Order.ARRIVAL, True), (Order.NONE, False)])
def test_a_later_file_waits_for_one_that_is_retried(world: World, order: Order, *, waits: bool) -> None:
    world.folder(order=order)
    first = world.settle("a.csv", b"id\n1\n")
    second = world.settle("b.csv", b"id\n2\n")
    world.server.faults.add(Fault(method="PUT", close=True, path_contains="a.csv"))
    world.run()
    assert world.get(first).reason == "answer_lost"
    assert world.get(second).state is (State.QUEUED if waits else State.DONE)
    blocker = world.ledger.blocker(world.get(second)) if waits else None
    assert (blocker.id if blocker else 0) == (first if waits else 0)
    world.clock.advance(120)
    world.run()
    names = [record.filename for record in world.server.objects()]
    assert names == (["a.csv", "b.csv"] if waits else ["b.csv", "a.csv"])


def test_another_datatable_does_not_wait(world: World) -> None:
    world.folder("invoices", Target("acme", "Sales/Invoices"))
    world.settle("a.csv", b"id\n1\n")
    other = world.settle("b.csv", b"id\n2\n", "invoices")
    world.server.faults.add(Fault(method="PUT", close=True, path_contains="a.csv"))
    world.run()
    assert world.get(other).state is State.DONE


def test_arrival_is_kept_over_many_files_and_faults(world: World) -> None:
    ids = [world.settle(f"{number:02}.csv", b"id\n%d\n" % number) for number in range(15)]
    for name, fault in [
        ("03", Fault(method="PUT", close=True)),
        ("05", Fault(method="PUT", when="after", close=True)),
        ("07", Fault(method="PUT", status=503)),
        ("11", Fault(method="PUT", when="mid")),
    ]:
        world.server.faults.add(replace(fault, path_contains=f"{name}.csv"))
    for _ in range(8):
        world.run()
        world.clock.advance(120)
    assert [world.get(id_).state for id_ in ids] == [State.DONE] * 15
    assert [record.filename for record in world.server.objects()] == [f"{number:02}.csv" for number in range(15)]
    assert [record.put_count for record in world.server.objects()] == [1] * 15


# ---- secrets ------------------------------------------------------------------------------------------------


def test_no_report_and_no_ended_row_holds_a_secret(world: World) -> None:
    keys = [tenant["api_key"] for tenant in world.server.tenants]
    faults = [
        Fault(method="PUT", status=400, code="InvalidArgument", path_contains="0.csv"),
        Fault(method="PUT", close=True, path_contains="1.csv"),
        Fault(method="PUT", status=500, path_contains="2.csv"),
        Fault(method="GET", status=401, path_contains="presignedurl"),
        Fault(method="GET", status=500, path_contains="presignedurl"),
    ]
    for fault in faults:
        world.server.faults.add(fault)
    urls: set[str] = set()
    for number in range(4):
        world.settle(f"{number}.csv", b"id\n%d\n" % number)
    for _ in range(8):
        world.run()
        urls |= {delivery.presigned_url for delivery in world.ledger.list()}
        world.clock.advance(120)
    signatures = {url.rpartition("X-Amz-Signature=")[2] for url in urls if url}
    assert signatures
    ended = [delivery for delivery in world.ledger.list() if delivery.state in {State.DONE, State.FAILED}]
    assert len(ended) == 4
    texts = [repr(replace(report, delivery=ended[0])) for report in world.reports]
    texts += [repr(delivery) for delivery in ended] + [repr(gate) for gate in world.gate_changes]
    texts += [path.read_text() for path in world.drop.rglob("*.json")]
    for secret in (*keys, *signatures, "X-Amz-"):
        assert not [text for text in texts if secret in text]


# ---- the seam -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "gate"),
    [
        (ServerFault("500"), "acme"),
        (Throttled("later", retry_after=5.0), "acme"),
        (KeyRejected("no"), "acme"),
    ],
)
def test_gate_errors_before_the_storage_are_the_tenants(world: World, error: Exception, gate: str) -> None:
    remote = FakeRemote()

    def fail() -> None:
        raise error

    remote.on_presign = fail
    world.remote = remote
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    assert [one.name for one in world.gates.all() if not one.is_open] == [gate]
    assert world.get(id_).attempts == 1


def test_an_unknown_answer_counts_against_the_file(world: World) -> None:
    remote = FakeRemote()

    def fail(_: bytes) -> None:
        raise AnswerLost("gone")

    remote.on_put = fail
    world.remote = remote
    id_ = world.settle("a.csv", b"id\n1\n")
    world.run()
    assert world.get(id_).first_failed_at == world.clock()
    assert all(gate.is_open for gate in world.gates.all())


def test_the_same_bytes_rewritten_between_upload_and_disposal_are_disposed_of_too(world: World) -> None:
    world.folder(after_upload=AfterUpload.ARCHIVE)
    path = world.drop / "a.csv"
    world.settle("a.csv", b"id\n1\n")

    def arrive(report: Report) -> None:
        if report.what == "uploaded":
            path.write_bytes(b"id\n1\n")
            os.utime(path, (1_700_000_000, 1_700_000_000))

    world.on_report = arrive
    world.run()
    assert path.exists()
    world.on_report = lambda _: None
    again = world.settle("a.csv")
    world.run()
    assert world.get(again).outcome == "duplicate"
    assert world.stored() == [b"id\n1\n"]
    assert not path.exists()
