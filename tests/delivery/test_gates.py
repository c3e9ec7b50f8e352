"""Gates: one probe at a time, the other side's own times, and tenants that do not disturb each other."""

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pmwatch.delivery.gates import Gate, Gates
from pmwatch.delivery.retry import RetryPolicy
from pmwatch.errors import KeyRejected, ServerFault, Throttled, Unreachable
from support.remotes import Clock

HOST = "s3.amazonaws.com"


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def told() -> list[Gate]:
    return []


@pytest.fixture
def gates(clock: Clock, told: list[Gate]) -> Gates:
    return Gates(RetryPolicy(first=1.0, longest=60.0), now=lambda: 5.0, monotonic=clock, changed=told.append)


def gate(gates: Gates, name: str) -> Gate:
    return next(one for one in gates.all() if one.name == name)


def test_an_open_gate_lets_everybody_through(gates: Gates) -> None:
    gates.keep(["acme"])
    assert all(gates.enter("acme") for _ in range(5))
    assert gates.shut_for(["acme", "never seen"]) == []
    assert gates.seconds_to_opening() is None


def test_a_closed_gate_lets_one_probe_through_when_its_time_has_come(gates: Gates, clock: Clock) -> None:
    gates.failed("acme", Unreachable("gone", hint="look"), retry_after=10)
    assert not gates.enter("acme")
    assert gates.shut_for(["acme"]) == ["acme"]
    assert gates.seconds_to_opening() == 10
    assert gates.to_probe(["acme"]) == []
    clock.advance(9.9)
    assert not gates.enter("acme")
    clock.advance(0.1)
    assert gates.shut_for(["acme"]) == []
    assert gates.to_probe(["acme", "globex"]) == ["acme"]
    assert gates.seconds_to_opening() is None, "who wants to probe may, and nobody need look for it again and again"
    assert gates.enter("acme")
    assert not gates.enter("acme")
    assert gates.shut_for(["acme"]) == ["acme"]
    assert gates.to_probe(["acme"]) == []
    assert gates.seconds_to_opening() is None


def test_a_probe_that_succeeds_opens(gates: Gates, clock: Clock, told: list[Gate]) -> None:
    gates.failed("acme", Unreachable("gone"), retry_after=10)
    clock.advance(10)
    assert gates.enter("acme")
    gates.succeeded("acme")
    assert gate(gates, "acme").is_open
    assert gates.enter("acme")
    assert gates.enter("acme")
    assert [(one.is_open, one.reason) for one in told] == [(False, "unreachable"), (True, "")]


def test_a_probe_that_fails_closes_for_longer(gates: Gates, clock: Clock, told: list[Gate]) -> None:
    gates.failed("acme", Unreachable("gone"))
    first = gate(gates, "acme").opens_at - clock.at
    assert 0 < first <= 1.0
    clock.advance(300)
    assert gates.enter("acme")
    gates.failed("acme", Unreachable("still gone"))
    closed = gate(gates, "acme")
    assert 6.0 <= closed.opens_at - clock.at <= 60.0
    assert (closed.closed_at, closed.closed_since) == (5.0, 1_000_000.0)
    assert closed.message == "still gone"
    assert len(told) == 1  # still closed for the same reason: no news


def test_a_new_reason_is_news(gates: Gates, told: list[Gate]) -> None:
    gates.failed("acme", Unreachable("gone"))
    gates.failed("acme", KeyRejected("no", hint="replace it"))
    assert [(one.reason, one.hint) for one in told] == [
        ("unreachable", Unreachable.hint),
        ("key_rejected", "replace it"),
    ]


def test_a_probe_that_says_nothing_lets_another_try(gates: Gates, clock: Clock) -> None:
    gates.failed("acme", Unreachable("gone"), retry_after=1)
    clock.advance(1)
    assert gates.enter("acme")
    gates.left("acme")
    assert not gate(gates, "acme").is_open
    assert gates.enter("acme")


def test_retry_after_of_zero_is_no_busy_loop(gates: Gates, clock: Clock) -> None:
    gates.failed("acme", Throttled("later", retry_after=0.0), retry_after=0.0)
    assert not gates.enter("acme")
    assert gate(gates, "acme").opens_at > clock.at


def test_retry_after_wins_over_the_back_off(gates: Gates, clock: Clock) -> None:
    gates.failed("acme", Throttled("later"), retry_after=3600)
    assert gate(gates, "acme").opens_at == clock.at + 3600


def test_tenants_are_separate(gates: Gates) -> None:
    gates.failed("acme", KeyRejected("no"))
    assert gates.shut_for(["acme", "globex"]) == ["acme"]
    assert gates.enter("globex")


def test_a_closed_storage_shuts_those_who_need_it(gates: Gates, clock: Clock) -> None:
    gates.points_to("acme", HOST)
    gates.points_to("globex", "other.test")
    gates.failed(HOST, ServerFault("500"), retry_after=5)
    assert gates.shut_for(["acme", "globex", "initech"]) == ["acme"]
    assert gates.shut("acme") == gate(gates, HOST)
    assert gates.shut("globex") is gates.shut("initech") is None
    clock.advance(5)
    assert gates.shut_for(["acme", "globex"]) == []
    assert gates.to_probe(["acme", "globex", "initech"]) == ["acme"]
    assert gates.enter("acme")
    assert gates.enter(HOST)
    assert gates.shut_for(["acme"]) == ["acme"]


def test_somebody_asks_to_try_at_once(gates: Gates) -> None:
    gates.failed("acme", KeyRejected("no"), retry_after=3600)
    gates.try_now("acme")
    gates.try_now("never seen")
    assert gates.enter("acme")
    assert not gates.enter("acme")


def names(gates: Gates) -> list[str]:
    return [one.name for one in gates.all()]


def test_the_gates_of_tenants_that_are_gone_go_with_them(gates: Gates) -> None:
    gates.keep(["acme", "globex"])
    gates.failed("globex", KeyRejected("no"), retry_after=3600)
    gates.keep(["acme"])
    assert names(gates) == ["acme"]
    assert gates.seconds_to_opening() is None
    gates.failed("globex", KeyRejected("no"))  # the end of a request that was under way
    gates.succeeded("globex")
    assert gates.enter("globex")
    assert names(gates) == ["acme"]
    gates.keep(["acme", "globex"])
    assert gate(gates, "globex").is_open
    gates.failed("globex", KeyRejected("no"))
    assert not gate(gates, "globex").is_open


def test_a_host_to_which_no_url_has_pointed_for_long_is_forgotten(gates: Gates, clock: Clock) -> None:
    gates.keep(["acme"])
    gates.points_to("acme", HOST)
    gates.failed(HOST, ServerFault("500"))
    clock.advance(86400)
    gates.keep(["acme"])
    assert names(gates) == ["acme", HOST], "the tenant's next file goes there"
    assert gates.enter(HOST)
    gates.left(HOST)
    gates.points_to("acme", "new.test")
    assert gates.enter("new.test")
    gates.keep(["acme"])
    assert names(gates) == ["acme", HOST, "new.test"], "URLs that were asked for before may be in use"
    clock.advance(900)
    gates.keep(["acme"])
    assert names(gates) == ["acme", "new.test"]


def test_trouble_is_shared_where_another_file_has_it_and_none_gets_through(gates: Gates, clock: Clock) -> None:
    assert not gates.fell("host", 1, quiet=60)
    assert not gates.fell("host", 1, quiet=60)  # again, and still alone
    assert gates.fell("host", 2, quiet=60)
    assert gates.fell("host", 1, quiet=60)
    assert not gates.fell("elsewhere", 3, quiet=60)
    gates.got_through("host")
    assert not gates.fell("host", 1, quiet=60)
    assert not gates.fell("host", 2, quiet=60)  # one has got through only now
    clock.advance(60)
    assert gates.fell("host", 2, quiet=60)


def test_only_one_of_many_threads_probes(gates: Gates, clock: Clock) -> None:
    gates.failed("acme", Unreachable("gone"), retry_after=1)
    clock.advance(1)
    start, through = threading.Barrier(8), []

    def enter() -> None:
        start.wait()
        if gates.enter("acme"):
            through.append(threading.get_ident())

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(through) == 1


class GateMachine(RuleBasedStateMachine):
    """However calls are mixed: at most one probe is under way, and nobody gets through before the time."""

    @initialize()
    def start(self) -> None:
        self.clock = Clock(1_000_000.0)
        self.gates = Gates(RetryPolicy(first=1.0, longest=60.0), now=lambda: 5.0, monotonic=self.clock)
        self.probes = 0
        self.opens_at: float | None = None

    @rule()
    def enter(self) -> None:
        through = self.gates.enter("acme")
        if self.opens_at is None:
            assert through
            return
        assert through == (self.probes == 0 and self.clock.at >= self.opens_at)
        self.probes += through

    @rule(wait=st.one_of(st.none(), st.integers(0, 100)))
    def fail(self, wait: int | None) -> None:
        self.gates.failed("acme", Unreachable("gone"), retry_after=wait)
        self.opens_at, self.probes = gate(self.gates, "acme").opens_at, 0
        assert self.opens_at > self.clock.at

    @rule()
    def succeed(self) -> None:
        self.gates.succeeded("acme")
        self.opens_at, self.probes = None, 0

    @rule()
    def leave(self) -> None:
        self.gates.left("acme")
        self.probes = 0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def claims_agree_with_entries(self) -> None:
        if not hasattr(self, "gates"):
            return
        closed = self.opens_at is not None and (self.probes > 0 or self.clock.at < self.opens_at)
        assert self.gates.shut_for(["acme"]) == (["acme"] if closed else [])


TestGateMachine = GateMachine.TestCase
