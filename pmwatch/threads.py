"""Named threads that live and die together, a mailbox for signals, and proof that every thread makes its turns."""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_LOOK_SECONDS: Final = 1.0  # a signal that comes just before a wait does not end it, and is handled only after it


class Wakeup:
    """Lets idle threads sleep until there may be work. A `wake` between look and sleep is not lost."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    @property
    def ticket(self) -> int:
        """Take one before looking for work; `wait` returns at once if somebody woke since."""
        return self._count

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wake_some(self, most: int) -> None:
        """Wake at most so many of those who wait: there is work for no more."""
        with self._condition:
            self._count += 1
            self._condition.notify(most)

    def wait(self, ticket: int, timeout: float) -> None:
        """Sleep until the next `wake`, at most `timeout` seconds."""
        with self._condition:
            if self._count == ticket:
                self._condition.wait(timeout)


class Pulse:
    """When each thread last made a turn (monotonic seconds)."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._turns: dict[str, float] = {}

    def beat(self, name: str) -> None:
        """Say that this thread made a turn."""
        self._turns[name] = self._monotonic()

    def forget(self, name: str) -> None:
        """Expect no more turns of a thread that has ended."""
        self._turns.pop(name, None)

    def late(self, limit: float) -> list[str]:
        """Return the threads whose last turn is more than `limit` seconds ago."""
        now = self._monotonic()
        return sorted(name for name, at in list(self._turns.items()) if now - at > limit)


class ThreadGroup:
    """Threads of which none may die unnoticed: `died` is told of an exception, and the service then stops."""

    def __init__(self, *, died: Callable[[str, BaseException], None]) -> None:
        self._died = died
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread of this name. Threads are daemons: a stuck one cannot keep the process alive."""

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  whatever it is, the others must learn of it
                self._died(name, error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def join(self, names: Iterable[str], *, timeout: float) -> list[str]:
        """Wait for threads to end, `timeout` seconds for all together; return those that still run."""
        deadline = time.monotonic() + timeout
        left = []
        for name in names:
            thread = self._threads[name]
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(name)
            else:
                del self._threads[name]
        return left

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of threads that were started and not joined yet."""
        return [name for name in self._threads if name.startswith(prefix)]


class Mailbox:
    """Signals and messages for the main thread. A handler only puts: anything more could hang inside a signal."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()

    def put(self, message: object) -> None:
        """Leave a message."""
        self._queue.put(message)

    def take(self, timeout: float | None = None) -> object | None:
        """Return the next message, or None after `timeout` seconds."""
        if timeout is None:
            while (message := self.take(_LOOK_SECONDS)) is None:
                pass
            return message
        try:
            return self._queue.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def receive(self, *signals: signal.Signals) -> None:
        """Let these signals become messages. Must be called from the main thread."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self._queue.put(signal.Signals(number))

        for one in signals:
            signal.signal(one, handle)

    @contextmanager
    def receiving(self, *signals: signal.Signals) -> Iterator[None]:
        """Let these signals become messages; afterwards they do what they did before."""
        before = {one: signal.getsignal(one) for one in signals}
        self.receive(*signals)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
