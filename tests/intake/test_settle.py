"""The settler: two looks, the writer's lease, renames; never a changing file."""

from hypothesis import given
from hypothesis import strategies as st

from pmwatch.intake.evidence import Answer, Evidence
from pmwatch.intake.settle import Settler
from pmwatch.model import Fingerprint

NOBODY = Evidence(Answer.YES, "no process has it open for writing")
SOMEBODY = Evidence(Answer.NO, "a process has it open for writing")
UNKNOWN = Evidence(Answer.UNKNOWN, "no lease")


def look(size: int = 10, mtime: int = 10**18, ctime: int = 1) -> Fingerprint:
    return Fingerprint(size, mtime, ctime, 7, 1)


def test_a_file_written_in_place_needs_two_equal_looks_settle_apart() -> None:
    settler = Settler(5, lambda _: NOBODY)
    assert settler.saw(b"a", look(), now=0, wall=0) is None
    assert settler.next_due() == 5
    assert settler.saw(b"a", look(), now=4.9, wall=0) is None
    settled = settler.saw(b"a", look(), now=5, wall=0)
    assert settled is not None
    assert settled.path == b"a"
    assert len(settler) == 0


def test_growth_starts_the_wait_anew() -> None:
    settler = Settler(5, lambda _: NOBODY)
    settler.saw(b"a", look(size=10), now=0, wall=0)
    assert settler.saw(b"a", look(size=11), now=5, wall=0) is None
    assert settler.saw(b"a", look(size=11), now=9, wall=0) is None
    assert settler.saw(b"a", look(size=11), now=10, wall=0) is not None


def test_a_change_of_ctime_alone_starts_the_wait_anew() -> None:
    settler = Settler(5, lambda _: NOBODY)
    settler.saw(b"a", look(ctime=1), now=0, wall=0)
    assert settler.saw(b"a", look(ctime=2), now=5, wall=0) is None


def test_an_open_writer_holds_a_quiet_file_back_however_long() -> None:
    writers = [SOMEBODY]
    settler = Settler(5, lambda _: writers[0])
    settler.saw(b"a", look(), now=0, wall=0)
    for now in (5, 100, 10_000):
        assert settler.saw(b"a", look(), now=now, wall=0) is None
    candidate = settler.candidate(b"a")
    assert candidate is not None
    assert "open for writing" in candidate.waits_for
    assert settler.overdue(10_000) == [candidate]
    writers[0] = NOBODY
    assert settler.saw(b"a", look(), now=10_001, wall=0) is not None


def test_a_file_renamed_into_place_goes_at_once_if_nobody_has_it_open() -> None:
    assert Settler(5, lambda _: NOBODY).saw(b"a", look(), now=0, wall=0, renamed=True) is not None
    assert Settler(5, lambda _: SOMEBODY).saw(b"a", look(), now=0, wall=0, renamed=True) is None


def test_a_renamed_file_waits_where_writers_cannot_be_seen_or_its_mtime_is_1970() -> None:
    unknown = Settler(5, lambda _: UNKNOWN)
    assert unknown.saw(b"a", look(), now=0, wall=0, renamed=True) is None
    assert unknown.saw(b"a", look(), now=5, wall=0) is not None
    torn = Settler(5, lambda _: NOBODY)
    assert torn.saw(b"a", look(mtime=0), now=0, wall=0, renamed=True) is None


def test_a_rename_counts_no_more_once_the_file_changed_under_its_name() -> None:
    settler = Settler(5, lambda _: SOMEBODY)
    settler.saw(b"a", look(size=1), now=0, wall=0, renamed=True)
    settler.saw(b"a", look(size=2), now=1, wall=0)
    candidate = settler.candidate(b"a")
    assert candidate is not None
    assert not candidate.renamed


def test_an_empty_file_waits_for_content() -> None:
    settler = Settler(5, lambda _: NOBODY)
    settler.saw(b"a", look(size=0), now=0, wall=0)
    assert settler.saw(b"a", look(size=0), now=1000, wall=0) is None
    assert settler.overdue(1000) == []


def test_due_files_come_once_and_forgotten_ones_do_not() -> None:
    settler = Settler(5, lambda _: NOBODY)
    for path in (b"a", b"b"):
        settler.saw(path, look(), now=0, wall=0)
        settler.saw(path, look(), now=1, wall=0)
    settler.forget(b"b")
    assert settler.due(5) == [b"a"]
    assert settler.due(5) == []


def test_files_of_one_scan_rank_by_mtime_and_name_and_after_those_seen_before() -> None:
    settler = Settler(5, lambda _: NOBODY)
    settler.saw(b"event", look(mtime=10**18 + 99), now=1, wall=0)
    for path, mtime in ((b"z", 10**18), (b"b", 10**18 + 1), (b"a", 10**18 + 1)):
        settler.saw(path, look(mtime=mtime), now=2, wall=0, batch=2)
    ranked = sorted(settler.candidates(), key=lambda candidate: candidate.rank)
    assert [candidate.path for candidate in ranked] == [b"event", b"z", b"a", b"b"]


Step = tuple[float, int, bool]


@given(
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3), st.booleans()), min_size=1, max_size=40),
    settle=st.floats(0.1, 10),
)
def test_whatever_the_looks_a_settled_file_was_unchanged_for_settle_or_renamed(
    steps: list[Step], settle: float
) -> None:
    settler = Settler(settle, lambda _: NOBODY)
    now, size, changed_at, known = 0.0, 1, 0.0, False
    for wait, growth, renamed in steps:
        now += wait
        if growth or not known:
            size += growth
            changed_at = now
        settled = settler.saw(b"a", look(size=size), now=now, wall=0, renamed=renamed)
        known = settled is None
        if settled is not None:
            assert settled.fingerprint.size == size
            assert settled.renamed or now - changed_at >= settle


@given(growing=st.lists(st.floats(0.1, 30), min_size=1, max_size=30))
def test_a_file_that_grows_between_all_looks_never_settles(growing: list[float]) -> None:
    settler = Settler(0.1, lambda _: NOBODY)
    now = 0.0
    for size, wait in enumerate(growing, start=1):
        now += wait
        assert settler.saw(b"a", look(size=size), now=now, wall=0) is None
