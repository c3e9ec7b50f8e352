"""The arithmetic of trying again: full jitter, growing with the age of the trouble."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds: the first wait, the longest wait, and the age of trouble at which a file is given up."""

    first: float = 1.0
    longest: float = 300.0
    give_up_after: float = 86400.0

    def wait(self, age: float, *, jitter: Callable[[], float] = random.random) -> float:
        """Return how long to wait when the trouble is `age` seconds old: anywhere up to twice its age.

        So the waits double on average, without a counter; `jitter` returns 0 to 1 (full jitter).
        """
        ceiling = min(self.longest, max(self.first, 2 * age))
        return ceiling * (0.1 + 0.9 * jitter())

    def given_up(self, age: float) -> bool:
        """Tell whether trouble of this age (seconds) is old enough to give the file up."""
        return age >= self.give_up_after
