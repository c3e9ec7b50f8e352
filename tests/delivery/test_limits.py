"""Bandwidth, uploads at a time, API requests a second: held to, shared, and slower where the other side asks."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.delivery.limits import Limits, Most
from pmwatch.delivery.pace import Pace
from pmwatch.errors import Interrupted
from pmwatch.model import Destination, Order, Target, parse_rate
from pmwatch.timetable import Bandwidth, parse_span
from support.ledgers import claimed, drop, opened

MIB = 1024 * 1024


@dataclass
class Time:
    """Time that passes only while somebody sleeps."""

    at: float = 1000.0
    naps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.at += seconds


def pace_of(clock: Time, rate: str) -> Pace:
    pace = Pace(now=lambda: 0.0, monotonic=clock, sleep=clock.sleep)
    pace.bandwidth = Bandwidth.parse(rate)
    return pace


def nothing() -> None:
    """Check nothing."""


# ---- the timetable -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [("20MiB/s", 20 * MIB), ("1KiB/s", 1024), ("1.5MB/s", 1_500_000), ("unlimited", 0)],
)
def test_a_bandwidth_is_a_size_a_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["20MiB", "20", "fast", "0B/s", "100B/s", "5MiB/m", "", "/s"])
def test_what_is_no_bandwidth_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"a bandwidth is|a size is|at least"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("mon-fri 08:00-18:00 5MiB/s", ["mon 08:00", "fri 17:59"], ["mon 07:59", "mon 18:00", "sat 12:00"]),
        ("sun 22:00-06:00 5MiB/s", ["sun 22:00", "sun 23:59", "mon 05:59"], ["sun 05:59", "mon 06:00", "mon 22:30"]),
        ("sat-mon 00:00-24:00 5MiB/s", ["sat 00:00", "sun 12:00", "mon 23:59"], ["tue 00:00", "fri 23:59"]),
        ("wed 12:00-12:00 5MiB/s", ["wed 12:00", "thu 11:59"], ["wed 11:59", "thu 12:00"]),
    ],
)
def test_a_span_holds_on_its_days_and_times_across_midnight_too(
    span: str, inside: list[str], outside: list[str]
) -> None:
    parsed = parse_span(span)

    def holds(moment: str) -> bool:
        day, _, clock = moment.partition(" ")
        weekday = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day)
        return parsed.holds(weekday, int(clock[:2]) * 60 + int(clock[3:]))

    assert all(holds(moment) for moment in inside)
    assert not any(holds(moment) for moment in outside)


@pytest.mark.parametrize(
    "text", ["mon 8-18 5MiB/s", "day 08:00-18:00 5MiB/s", "mon 08:00-25:00 5MiB/s", "mon 08:61-09:00 5MiB/s", "mon"]
)
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="mon-fri 08:00-18:00 5MiB/s"):
        parse_span(text)


def test_the_first_span_that_holds_counts_and_else_the_rate() -> None:
    bandwidth = Bandwidth.parse("8MiB/s", ["mon 10:00-12:00 unlimited", "mon-fri 08:00-18:00 1MiB/s"])
    monday = time.strptime("2026-11-23 11:00", "%Y-%m-%d %H:%M")
    tuesday = time.strptime("2026-11-24 11:00", "%Y-%m-%d %H:%M")
    sunday = time.strptime("2026-11-22 11:00", "%Y-%m-%d %H:%M")
    assert [bandwidth.at(at) for at in (monday, tuesday, sunday)] == [0.0, MIB, 8 * MIB]


# ---- bytes a second ----------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=4),
    rate=st.sampled_from(["64KiB/s", "1MiB/s", "20MiB/s"]),
)
def test_a_paced_body_is_the_same_body_and_takes_its_time(sizes: list[int], rate: str) -> None:
    clock = Time()
    pace = pace_of(clock, rate)
    chunks = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    assert b"".join(pace.paced(iter(chunks), nothing)) == b"".join(chunks)
    exact = sum(sizes) / parse_rate(rate)
    assert clock.at - 1000.0 <= exact + 1e-6
    assert clock.at - 1000.0 >= exact - max(0.1, 16 * 1024 / parse_rate(rate)) - 1e-6, "all but the last piece"


def test_without_a_bandwidth_chunks_pass_as_they_are() -> None:
    clock = Time()
    chunk = b"x" * MIB
    assert next(pace_of(clock, "unlimited").paced(iter([chunk]), nothing)) is chunk
    assert clock.naps == []


def test_two_uploads_share_one_bandwidth() -> None:
    clock = Time()
    pace = pace_of(clock, "1MiB/s")
    one, two = (pace.paced(iter([b"x" * MIB]), nothing) for _ in range(2))
    for piece in one:
        assert len(piece) == len(next(two))
    assert clock.at - 1000.0 == pytest.approx(2.0, abs=0.2)


def test_a_slow_body_goes_in_small_pieces_and_a_stop_is_heard_at_once() -> None:
    clock = Time()
    checks: list[float] = []

    def check() -> None:
        checks.append(clock.at)
        if clock.at > 1002.0:
            raise Interrupted("stop")

    pieces: Iterator[bytes] = pace_of(clock, "16KiB/s").paced(iter([b"x" * MIB]), check)
    seen: list[bytes] = []
    with pytest.raises(Interrupted):
        seen.extend(pieces)
    assert {len(piece) for piece in seen} <= {16 * 1024}
    assert clock.at < 1002.6
    assert max(clock.naps) <= 0.25


def test_the_rate_seen_tells_how_long_an_upload_will_take() -> None:
    clock = Time()
    pace = pace_of(clock, "unlimited")
    assert pace.expected_seconds(MIB) == 0.0, "nothing is known"
    pace.saw(10, 10.0)
    assert pace.expected_seconds(MIB) == 0.0, "small files say nothing of the line"
    pace.saw(10 * MIB, 10.0)
    assert pace.expected_seconds(60 * MIB) == 60.0
    pace.bandwidth = Bandwidth.parse("512KiB/s")
    assert pace.expected_seconds(60 * MIB) == 120.0


# ---- at a time ---------------------------------------------------------------------------------------------------

TARGETS = [Target("acme", "table-1"), Target("acme", "table-2"), Target("other", "table-9")]


def test_a_tenant_and_a_datatable_get_no_more_at_a_time_than_they_may(tmp_path: Path) -> None:
    with opened(tmp_path, *TARGETS[1:]) as ledger:
        for number in range(12):
            drop(ledger, f"{number}.csv", target=TARGETS[number % 3], order=Order.NONE)
        limits = Limits()
        limits.most = Most(parallel=8, for_tenant=3, for_datatable=2)

        def claim() -> tuple[str, str] | None:
            claimed = limits.claim(
                lambda tenants, tables: ledger.claim_run(now=1.0, without_tenants=tenants, full_tables=tables)
            )
            running.extend(claimed)
            return (claimed[0].target.tenant, claimed[0].target.datatable) if claimed else None

        running: list[object] = []
        got = [claim() for _ in range(8)]
        assert sum(one is not None and one[0] == "acme" for one in got) == 3
        assert got.count(("other", "table-9")) == 2
        assert got.count(None) == 3
        assert max(got.count(("acme", table)) for table in ("table-1", "table-2")) == 2
        limits.ended(running[0])  # type: ignore[arg-type]  # a Delivery
        assert claim() is not None
        assert claim() is None


def test_two_threads_never_take_the_last_place_both() -> None:
    limits = Limits()
    limits.most = Most(parallel=4, for_tenant=1)
    inside = threading.Semaphore(1)

    def claim(_tenants: object, _tables: object) -> list[object]:
        assert inside.acquire(blocking=False), "two claims at once"
        inside.release()
        return []

    threads = [threading.Thread(target=lambda: [limits.claim(claim) for _ in range(200)]) for _ in range(4)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_429_halves_a_tenant_and_quiet_brings_it_back_step_by_step(tmp_path: Path) -> None:
    clock, told = Time(), []
    limits = Limits(monotonic=clock, changed=lambda tenant, now: told.append((tenant, now)))
    limits.most = Most(parallel=8)
    with opened(tmp_path) as ledger:
        drop(ledger, "a.csv")
        delivery = claimed(ledger)
    for _ in range(4):
        limits.slow_down("acme")
    assert limits.slowed() == {"acme": 1}
    assert told == [("acme", 4), ("acme", 2), ("acme", 1)]
    limits.claim(lambda _tenants, _tables: [delivery])
    asked: list[tuple[str, ...]] = []
    limits.claim(lambda tenants, _tables: asked.append(tuple(tenants)) or [])  # type: ignore[func-returns-value]
    assert asked == [("acme",)], "its one place is taken"
    limits.went_well("acme")
    assert limits.slowed() == {"acme": 1}, "not at once"
    for share in range(2, 8):
        clock.at += 31
        limits.went_well("acme")
        limits.went_well("acme")
        assert limits.slowed() == {"acme": share}
    clock.at += 31
    limits.went_well("acme")
    assert limits.slowed() == {}
    assert told[-1] == ("acme", 8)


def test_a_run_without_a_destination_yet_counts_as_well(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        drop(ledger, "a.csv")
        delivery = replace(claimed(ledger), destination=None)
    limits = Limits()
    limits.claim(lambda _tenants, _tables: [delivery])
    limits.ended(delivery)
    limits.ended(replace(delivery, destination=Destination("t", "d", "x")))


# ---- requests a second -------------------------------------------------------------------------------------------


def test_requests_of_a_tenant_are_spread_and_others_do_not_wait() -> None:
    clock = Time()
    limits = Limits(monotonic=clock, sleep=clock.sleep)
    limits.most = Most(requests={"acme": 4.0})
    for _ in range(9):
        limits.before_request("acme", nothing)
    assert clock.at - 1000.0 == pytest.approx(2.0)
    limits.before_request("other", nothing)
    assert clock.at - 1000.0 == pytest.approx(2.0)


def test_a_stop_is_heard_while_waiting_for_a_request() -> None:
    clock = Time()
    limits = Limits(monotonic=clock, sleep=clock.sleep)
    limits.most = Most(requests={"acme": 0.01})

    def check() -> None:
        if clock.at > 1001.0:
            raise Interrupted("stop")

    limits.before_request("acme", check)
    with pytest.raises(Interrupted):
        limits.before_request("acme", check)
    assert clock.at < 1001.6
