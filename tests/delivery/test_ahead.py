"""Questions to a far service are asked side by side, and answered in their order all the same."""

import threading
from collections.abc import Callable

import pytest

from pmwatch.delivery.ahead import Ahead

MEET_SECONDS = 30.0  # for threads to meet; only a failing test waits so long


class Far:
    """A clock that moves by `seconds` at every look."""

    def __init__(self, seconds: float) -> None:
        self.at = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        self.at += self._seconds
        return self.at


def double_of(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_the_answers_come_in_the_order_of_the_things(seconds: float) -> None:
    ahead = Ahead(range(50), double_of, at_a_time=4, monotonic=Far(seconds))
    assert [ahead.next() for _ in range(50)] == [2 * number for number in range(50)]


def test_of_a_near_service_nothing_is_asked_before_it_is_wanted() -> None:
    asked: list[int] = []
    ahead = Ahead(range(5), asked.append, at_a_time=4, monotonic=Far(0.001))
    for number in range(3):
        ahead.next()
        assert asked == list(range(number + 1))


def test_a_far_one_is_asked_four_questions_at_a_time() -> None:
    meeting = threading.Barrier(4)

    def ask(number: int) -> int:
        if number:
            meeting.wait(MEET_SECONDS)  # passes only if four are asked at a time
        return number

    ahead = Ahead(range(9), ask, at_a_time=4, monotonic=Far(1.0))
    assert [ahead.next() for _ in range(9)] == list(range(9))
    assert meeting.n_waiting == 0


def test_never_are_there_more_than_four() -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    begun, go_on = threading.Semaphore(0), threading.Event()

    def ask(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        if number:
            begun.release()
            go_on.wait(MEET_SECONDS)
        with lock:
            under_way -= 1

    def let_go() -> None:
        for _ in range(4):
            begun.acquire()
        go_on.set()

    watcher = threading.Thread(target=let_go)
    watcher.start()
    ahead = Ahead(range(30), ask, at_a_time=4, monotonic=Far(1.0))
    for _ in range(30):
        ahead.next()
    watcher.join()
    assert most == 4


def test_no_thread_outlives_an_answer() -> None:
    before = threading.active_count()
    ahead = Ahead(range(20), double_of, at_a_time=4, monotonic=Far(1.0))
    ahead.next()
    assert threading.active_count() == before


def failing(*bad: int) -> tuple[Callable[[int], int], list[int]]:
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        if number in bad:
            raise ValueError(str(number))
        return number

    return ask, asked


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_an_error_comes_where_its_thing_is_wanted_and_those_behind_it_are_asked_then(seconds: float) -> None:
    ask, asked = failing(0, 7, 8)
    ahead = Ahead(range(20), ask, at_a_time=4, monotonic=Far(seconds))
    for number in range(20):
        if number in (0, 7, 8):
            with pytest.raises(ValueError, match=str(number)):
                ahead.next()
        else:
            assert ahead.next() == number
    assert sorted(asked) == list(range(20)), "each once"


def test_after_an_error_nobody_asks_on() -> None:
    meeting = threading.Barrier(4)
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        if number:
            meeting.wait(MEET_SECONDS)
            raise ValueError
        return number

    ahead = Ahead(range(30), ask, at_a_time=4, monotonic=Far(1.0))
    ahead.next()
    assert sorted(asked) == [0, 1, 2, 3, 4]


def test_helpers_go_by_the_name_of_the_thread_they_help() -> None:
    names: set[str] = set()
    ahead = Ahead(range(9), lambda _: names.add(threading.current_thread().name), at_a_time=4, monotonic=Far(1.0))
    ahead.next()
    assert names == {threading.current_thread().name}
