"""Threads that live and die together, and how they wake each other."""

import signal
import threading
from collections.abc import Iterator

import pytest

from pmwatch.threads import Mailbox, Pulse, ThreadGroup, Wakeup

PATIENCE_SECONDS = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---- Wakeup ------------------------------------------------------------------------------------------------------


def test_a_wake_between_look_and_sleep_is_not_lost() -> None:
    wakeup = Wakeup()
    ticket = wakeup.ticket
    wakeup.wake()
    returned = threading.Event()

    def sleeper() -> None:
        wakeup.wait(ticket, threading.TIMEOUT_MAX)
        returned.set()

    threading.Thread(target=sleeper, daemon=True).start()
    assert returned.wait(PATIENCE_SECONDS)


def test_everybody_who_waits_is_woken() -> None:
    wakeup = Wakeup()
    ticket = wakeup.ticket
    woken = threading.Semaphore(0)

    def sleeper() -> None:
        wakeup.wait(ticket, threading.TIMEOUT_MAX)
        woken.release()

    for _ in range(5):
        threading.Thread(target=sleeper, daemon=True).start()
    wakeup.wake()
    assert all(woken.acquire(timeout=PATIENCE_SECONDS) for _ in range(5))


def test_one_of_those_who_wait_is_woken_and_wakes_the_next() -> None:
    wakeup = Wakeup()
    ticket = wakeup.ticket
    woken, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def sleeper() -> None:
        wakeup.wait(ticket, threading.TIMEOUT_MAX)
        woken.release()
        assert go_on.acquire(timeout=PATIENCE_SECONDS)
        wakeup.wake_some(1)

    threads = [threading.Thread(target=sleeper, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(wakeup._condition._waiters) < 3:  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    wakeup.wake_some(1)
    for left in (2, 1, 0):
        assert woken.acquire(timeout=PATIENCE_SECONDS)
        assert not woken.acquire(blocking=False)
        assert len(wakeup._condition._waiters) == left  # type: ignore[attr-defined]
        go_on.release()


def test_without_a_wake_the_time_passes() -> None:
    wakeup = Wakeup()
    before = wakeup.ticket
    wakeup.wait(before, 0.0)
    assert wakeup.ticket == before


# ---- Pulse -------------------------------------------------------------------------------------------------------


def test_a_thread_without_a_turn_for_longer_than_the_limit_is_late() -> None:
    clock = Clock()
    pulse = Pulse(monotonic=clock)
    pulse.beat("b")
    pulse.beat("a")
    clock.now += 10
    assert pulse.late(10) == []
    assert pulse.late(9.5) == ["a", "b"]
    pulse.beat("a")
    assert pulse.late(9.5) == ["b"]


def test_a_thread_that_has_ended_owes_no_turn() -> None:
    clock = Clock()
    pulse = Pulse(monotonic=clock)
    pulse.beat("a")
    pulse.forget("a")
    pulse.forget("never there")
    clock.now += 1000
    assert pulse.late(1) == []


# ---- ThreadGroup ---------------------------------------------------------------------------------------------------


class Deaths:
    """What a group was told of threads that died."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.names: list[str] = []
        self.errors: list[BaseException] = []

    def __call__(self, name: str, error: BaseException) -> None:
        self.names.append(name)
        self.errors.append(error)
        self.told.set()


def test_a_thread_that_dies_is_not_unnoticed() -> None:
    deaths = Deaths()
    group = ThreadGroup(died=deaths)

    def work() -> None:
        raise ZeroDivisionError

    group.start("upload-1", work)
    assert deaths.told.wait(PATIENCE_SECONDS)
    assert deaths.names == ["upload-1"]
    assert isinstance(deaths.errors[0], ZeroDivisionError)


def test_even_a_system_exit_is_not_unnoticed() -> None:
    deaths = Deaths()
    group = ThreadGroup(died=deaths)

    def work() -> None:
        raise SystemExit(1)

    group.start("upload-1", work)
    assert deaths.told.wait(PATIENCE_SECONDS)
    assert isinstance(deaths.errors[0], SystemExit)


def test_a_thread_that_ends_is_no_death() -> None:
    deaths = Deaths()
    group = ThreadGroup(died=deaths)
    group.start("once", lambda: None)
    assert group.join(["once"], timeout=PATIENCE_SECONDS) == []
    assert deaths.names == []


def test_threads_have_their_names_and_cannot_keep_the_process_alive() -> None:
    group = ThreadGroup(died=Deaths())
    seen: list[tuple[str, bool]] = []
    thread = threading.current_thread
    group.start("intake-orders", lambda: seen.append((thread().name, thread().daemon)))
    assert group.join(["intake-orders"], timeout=PATIENCE_SECONDS) == []
    assert seen == [("intake-orders", True)]


def test_join_returns_those_that_still_run_and_forgets_those_that_ended() -> None:
    group = ThreadGroup(died=Deaths())
    stop = threading.Event()

    def work() -> None:
        stop.wait()

    group.start("upload-1", work)
    group.start("upload-2", lambda: None)
    group.start("intake", work)
    assert group.names("upload-") == ["upload-1", "upload-2"]
    assert group.join(["upload-2"], timeout=PATIENCE_SECONDS) == []
    assert group.join(group.names(), timeout=0.0) == ["upload-1", "intake"]
    assert group.names() == ["upload-1", "intake"]
    stop.set()
    assert group.join(group.names(), timeout=PATIENCE_SECONDS) == []
    assert group.names() == []


# ---- Mailbox -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_messages_are_taken_in_the_order_in_which_they_were_left() -> None:
    mailbox = Mailbox()
    mailbox.put("one")
    mailbox.put("two")
    assert [mailbox.take(0.0), mailbox.take(0.0), mailbox.take(0.0)] == ["one", "two", None]


def test_an_empty_mailbox_gives_nothing_even_when_the_time_is_over_already() -> None:
    assert Mailbox().take(-1.0) is None


def test_a_message_from_another_thread_ends_the_wait() -> None:
    mailbox = Mailbox()
    threading.Thread(target=mailbox.put, args=("hello",), daemon=True).start()
    assert mailbox.take(PATIENCE_SECONDS) == "hello"


@pytest.mark.usefixtures("_handlers_as_before")
def test_signals_become_messages() -> None:
    mailbox = Mailbox()
    mailbox.receive(signal.SIGUSR1, signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)
    assert mailbox.take(PATIENCE_SECONDS) is signal.SIGUSR2
    assert mailbox.take(PATIENCE_SECONDS) is signal.SIGUSR1


def test_signals_are_received_for_a_while() -> None:
    mailbox, before = Mailbox(), signal.getsignal(signal.SIGUSR1)
    with mailbox.receiving(signal.SIGUSR1):
        signal.raise_signal(signal.SIGUSR1)
    assert mailbox.take() is signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_that_comes_anywhere_in_the_wait_for_it_ends_it() -> None:
    mailbox = Mailbox()
    with mailbox.receiving(signal.SIGALRM):
        for number in range(1_000):  # a lock that the handler wanted too would be held at one of these moments
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 50))
            while (message := mailbox.take(0.01)) is None:  # one that comes just before the wait is handled after it
                pass
            assert message is signal.SIGALRM
