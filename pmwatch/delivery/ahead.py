"""Asking about several things side by side, where an answer takes long enough to be worth it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_FAR_SECONDS: Final = 0.005  # what answers sooner is near, and threads would cost more than they save


class Ahead(Generic[T, R]):
    """The answers of `ask` about each of `things`, one after the other, in their order.

    The first is asked for alone. Where its answer came from far away, those behind it are asked for `at_a_time`, up to
    the first that fails: what is wrong with that one may be wrong with all. No thread outlives a call of `next`.
    """

    def __init__(
        self,
        things: Iterable[T],
        ask: Callable[[T], R],
        *,
        at_a_time: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._at_a_time = at_a_time
        self._monotonic = monotonic
        self._waiting: deque[tuple[T, Future[R]]] = deque((thing, Future()) for thing in things)
        self._answers = iter([answer for _, answer in self._waiting])
        self._failed = False

    def next(self) -> R:
        """Return the answer about the next thing. Raises what asking raised."""
        answer = next(self._answers)
        if not answer.done():
            self._ask_some()
        return answer.result()

    def _ask_some(self) -> None:
        self._failed = False
        started = self._monotonic()
        self._ask_one()
        if self._failed or self._at_a_time == 1 or self._monotonic() - started < _FAR_SECONDS:
            return
        name = threading.current_thread().name  # whose turns they make: it is alive while they are
        helpers = [threading.Thread(target=self._ask_all, name=name, daemon=True) for _ in range(self._at_a_time - 1)]
        for helper in helpers:
            helper.start()
        self._ask_all()
        for helper in helpers:
            helper.join()

    def _ask_all(self) -> None:
        while not self._failed and self._ask_one():
            pass

    def _ask_one(self) -> bool:
        """Ask about the first that nobody asks about; tell whether there was one."""
        try:
            thing, answer = self._waiting.popleft()
        except IndexError:
            return False
        try:
            answer.set_result(self._ask(thing))
        except BaseException as error:  # noqa: BLE001  raised again where the answer is wanted
            self._failed = True
            answer.set_exception(error)
        return True
