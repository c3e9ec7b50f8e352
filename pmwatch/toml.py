"""TOML that people write: what is wrong with it, in which line, what to do, and which known word is nearest."""

import difflib
import re
from collections.abc import Collection, Sequence
from typing import Final

_AT: Final = re.compile(r"\(at line (\d+), column \d+\)")
_SECRET: Final = re.compile(r"key|proxy|secret|password|token", re.IGNORECASE)
_HEADER: Final = re.compile(r"\[{1,2}\s*([\w.-]+)\s*\]{0,2}")
_ASSIGNED: Final = re.compile(r"([\w-]+)\s*=\s*(.*)")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the known word that was probably meant, as the end of a sentence; empty where none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def trouble(text: str, error: ValueError, *, lists: Collection[str], shown: Collection[str]) -> tuple[str, str]:
    """Return what the parser says of a text, with the line where that holds no secret, and a hint.

    `lists` are the tables of which there may be several, `shown` the keys whose values may be repeated.
    """
    found = _AT.search(str(error))
    lines = text.rstrip().split("\n")[: int(found[1]) if found else None]
    line = lines[-1].strip() if found or "end of document" in str(error) else ""
    header, assigned = _HEADER.fullmatch(line), _ASSIGNED.match(line)
    may_be_shown = header or (assigned and assigned[1] in shown and not _SECRET.search(line))
    said = f"{error}: {line}" if may_be_shown and line.isprintable() else str(error)
    return said, _hint(str(error), header, assigned, lists)


def _hint(said: str, header: re.Match[str] | None, assigned: re.Match[str] | None, lists: Collection[str]) -> str:
    """Return what helps against the mistakes that people make most."""
    if header:
        return _header_hint(said, header[1], lists)
    if said.startswith("Cannot overwrite") and assigned:
        entries = " or ".join(f"[[{name}]]" for name in lists)
        return f"{assigned[1]} is there twice in this table: remove one. A new entry begins with {entries}."
    if said.startswith("Invalid value") and assigned:
        if assigned[2] in ("True", "False"):
            return "Write true or false, in small letters."
        return f'A text stands in quotes: {assigned[1]} = "…".'
    if said.startswith("Unescaped"):
        return "Write that text in single quotes, in which \\ means itself."
    return "Each line is KEY = VALUE, with texts in quotes, or a [table], or begins with #."


def _header_hint(said: str, name: str, lists: Collection[str]) -> str:
    if name in lists:
        return f"Write [[{name}]], in double brackets, above each entry."
    return f"[{name}] is there twice: put its keys together." if "twice" in said else "A table is written [NAME]."
