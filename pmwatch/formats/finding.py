"""What a check says, and the judgement of a header that all types with columns share."""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pmwatch.model import display

_SHOWN: Final = 40  # characters of a file's content in a sentence
_COMPARED: Final = 500  # header names among which the nearest is looked for


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `ok` is None where there is no check; `line` counts from 1, 0 where there are no lines."""

    ok: bool | None
    sentence: str
    line: int = 0


class Broken(Exception):
    """A check came to its end early: the file is not as it should be."""

    def __init__(self, sentence: str, line: int = 0) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.line = line


class Unknown(Exception):
    """A check cannot tell."""


def shown(text: str) -> str:
    """Return a piece of a file's content for a sentence: printable, in quotes, shortened."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f'"{display(cut.encode("utf-8", "surrogatepass"))}"'


def judge_header(names: Sequence[str], required: Sequence[str], line: int = 0) -> None:
    """Raise Broken unless every column has a name of its own and all required ones are there."""
    columns = [name.strip(" \t\r\n\ufeff\u00a0") for name in names]
    if not any(columns):
        raise Broken("there is no header row", line)
    where = f"line {line}" if line else "the header"
    for number, column in enumerate(columns, start=1):
        if not column:
            raise Broken(f"{where} gives column {number} of {len(columns)} no name", line)
    column, count = Counter(columns).most_common(1)[0]
    if count > 1:
        raise Broken(f"{where} names {count} columns {shown(column)}", line)
    missing = [column for column in required if column not in columns]
    if missing:
        noun = "column" if len(missing) == 1 else "columns"
        said = ", ".join(f"{shown(name)}{_nearest(name, columns)}" for name in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise Broken(f"{where} lacks the {noun} {said}{more}", line)


def _nearest(name: str, columns: Sequence[str]) -> str:
    folded = {column[:100].casefold(): column for column in reversed(columns[:_COMPARED])}
    near = difflib.get_close_matches(name[:100].casefold(), folded, n=1, cutoff=0.5)
    return f" (nearest: {shown(folded[near[0]])})" if near else ""
