"""Faults on demand: the next requests that match a rule fail the way the rule says."""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, Self, TypeVar, get_args

When = Literal["before", "after", "mid"]
_Number = TypeVar("_Number", int, float)

_STATUSES = range(300, 600)
_CODES = {
    400: "RequestTimeout",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "OperationAborted",
    412: "PreconditionFailed",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}

_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "status": (int,),
    "code": (str,),
    "times": (int, NoneType),
    "path_contains": (str,),
    "retry_after": (str, int, NoneType),
    "when": (str,),
    "delay": (int, float),
    "close": (bool,),
    "body": (str, NoneType),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule: which requests fail, how, and how often.

    `when="before"` answers `status` and stores nothing; `"after"` handles the request and then loses the
    answer; `"mid"` cuts the connection when half of the body is in. `close` drops the connection instead of
    answering. `delay` (seconds) comes first; `status=0` does nothing else. `times=None` is for ever;
    `method="*"` is any.
    `body` replaces the error document, for answers that are not what a client expects.
    """

    method: str = "PUT"
    status: int = 503
    code: str = ""
    times: int | None = 1
    path_contains: str = ""
    retry_after: str | int | None = None
    when: When = "before"
    delay: float = 0.0
    close: bool = False
    body: str | None = None

    def __post_init__(self) -> None:
        """Refuse a rule that could not be carried out: ValueError."""
        checks = (
            (self.status == 0 or self.status in _STATUSES, "status must be 0 or an HTTP error status"),
            (self.times is None or self.times > 0, "times must be at least 1, or null for ever"),
            (self.when in get_args(When), "when must be before, after or mid"),
            (self.delay >= 0, "delay must not be negative"),
        )
        for good, message in checks:
            if not good:
                raise ValueError(message)

    @property
    def error_code(self) -> str:
        """The code of the error document: the rule's own, or the usual one of the status."""
        return self.code or _CODES.get(self.status, "InternalError")

    def matches(self, method: str, path: str) -> bool:
        """Tell whether the rule is about this request; `path` is decoded and has no query."""
        return self.method in {"*", method} and self.path_contains in path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a rule as people write it, or raise ValueError.

        METHOD STATUS, then in any order `xN` (`x*` for ever), `before`, `after`, `mid`, `close`,
        `delay=SECONDS`, `retry-after=VALUE`, `code=CODE`, `path=PART`. Examples: "PUT 503 x3",
        "GET 429 x2 retry-after=5 path=presignedurl".
        """
        words = text.split()
        if len(words) < 2:
            raise ValueError(f"a fault is METHOD STATUS [xN] [...], not {text!r}")
        values: dict[str, Any] = {"method": words[0].upper(), "status": _number(words[1], int)}
        for word in words[2:]:
            values.update(_read_word(word))
        return cls(**values)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build a rule from a decoded JSON object with the names of the fields, or raise ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError("a fault is a JSON object")  # noqa: TRY004  callers handle one kind of error
        for name, value in values.items():
            if name not in _JSON_TYPES:
                raise ValueError(f"a fault has no field {name!r}")
            if not isinstance(value, _JSON_TYPES[name]):
                raise ValueError(f"the value of {name} has the wrong type")  # noqa: TRY004  as above
        return cls(**values)


def _number(text: str, kind: type[_Number]) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "delay": lambda value: {"delay": _number(value, float)},
    "retry-after": lambda value: {"retry_after": value},
    "code": lambda value: {"code": value},
    "path": lambda value: {"path_contains": value},
}


def _read_word(word: str) -> dict[str, Any]:
    if word in get_args(When):
        return {"when": word}
    if word == "close":
        return {"close": True}
    if word == "x*":
        return {"times": None}
    if word[0] == "x" and word[1:].isdecimal():
        return {"times": int(word[1:])}
    name, equals, value = word.partition("=")
    if not equals or name not in _READERS:
        raise ValueError(f"a fault cannot have {word!r}")
    return _READERS[name](value)


class Faults:
    """The rules in force, in the order in which they were added. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, int | None]] = []

    def add(self, fault: Fault | str) -> Fault:
        """Put a rule in force; a text is read with `Fault.parse`."""
        rule = Fault.parse(fault) if isinstance(fault, str) else fault
        with self._lock:
            self._rules.append((rule, rule.times))
        return rule

    def clear(self) -> None:
        """Drop all rules."""
        with self._lock:
            self._rules.clear()

    def pending(self) -> list[dict[str, Any]]:
        """Return the rules in force as JSON objects; `times` is what is left."""
        with self._lock:
            return [{**dataclasses.asdict(fault), "times": left} for fault, left in self._rules]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the first rule for this request, and count it as used."""
        with self._lock:
            for index, (fault, left) in enumerate(self._rules):
                if fault.matches(method, path):
                    self._use(index, fault, left)
                    return fault
        return None

    def _use(self, index: int, fault: Fault, left: int | None) -> None:
        if left == 1:
            del self._rules[index]
        elif left is not None:
            self._rules[index] = (fault, left - 1)
