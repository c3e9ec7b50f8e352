"""Bandwidth by the day of the week and the time of the day."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pmwatch.model import parse_rate

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ENTRY: Final = re.compile(r"([a-z]{3})(?:-([a-z]{3}))? +(\d\d):(\d\d)-(\d\d):(\d\d) +(.+)")


@dataclass(frozen=True, slots=True)
class Span:
    """A rate in bytes per second (0: unlimited) on some days of the week (0 is Monday) from minute to minute."""

    days: frozenset[int]
    begin: int
    end: int
    rate: float

    def holds(self, weekday: int, minute: int) -> bool:
        """Tell whether it holds now. One that ends at or before it begins goes on after midnight."""
        if self.begin < self.end:
            return weekday in self.days and self.begin <= minute < self.end
        return (weekday in self.days and minute >= self.begin) or ((weekday - 1) % 7 in self.days and minute < self.end)


def parse_span(text: str) -> Span:
    """Read `"mon-fri 08:00-18:00 5MiB/s"`. Raises ValueError with what is allowed.

    >>> parse_span("sat-sun 00:00-24:00 unlimited").rate
    0.0
    """
    match = _ENTRY.fullmatch(text.strip())
    allowed = 'write days, times and a rate: "mon-fri 08:00-18:00 5MiB/s" or "sun 22:00-06:00 unlimited"'
    if match is None or match[1] not in _DAYS or (match[2] or "mon") not in _DAYS:
        raise ValueError(allowed)
    first, last = _DAYS.index(match[1]), _DAYS.index(match[2] or match[1])
    days = frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    begin, end = (int(match[at]) * 60 + int(match[at + 1]) for at in (3, 5))
    if begin >= 24 * 60 or end > 24 * 60 or int(match[4]) > 59 or int(match[6]) > 59:
        raise ValueError(allowed)
    return Span(days, begin, end, parse_rate(match[7]))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second for all uploads together: the first span that holds, else `rate`. 0 is unlimited."""

    rate: float = 0.0
    spans: tuple[Span, ...] = ()

    @classmethod
    def parse(cls, rate: str, spans: Sequence[str] = ()) -> "Bandwidth":
        """Read the configuration's words. Raises ValueError with what is allowed."""
        return cls(parse_rate(rate) if rate else 0.0, tuple(parse_span(span) for span in spans))

    def at(self, local: time.struct_time) -> float:
        """Return the rate at a local time."""
        minute = local.tm_hour * 60 + local.tm_min
        return next((span.rate for span in self.spans if span.holds(local.tm_wday, minute)), self.rate)
