"""Delimited text: decodable, not binary, and its last record whole (RFC 4180; a backslash escapes nothing).

One fast pass counts quotes and keeps the beginning and the end. Whether the last line lies inside quotes follows
from the parity of their number, unless somebody wrote a lone quote, as in `5" pipe`: so what looks torn by parity
is read again, quote by quote, before it is called torn.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pmwatch.formats.binary import looks_like
from pmwatch.formats.characters import Characters, ascii_based, encoding_by_mark
from pmwatch.formats.finding import Broken, Finding, judge_header
from pmwatch.formats.source import Blocks

_DELIMITERS: Final = (b",", b";", b"\t", b"|")
_HEAD: Final = 256 << 10  # the header lies within
_TAILS: Final = (64 << 10, 1 << 20)  # the last record is looked for in the first, then in the second
_SAMPLE: Final = 50  # records that tell which delimiter is meant
_CLOSED: Final = -1
_OPENED_BEFORE: Final = -2

_BLANK: Final = b" \r\n\x1a"  # DOS programs end a file with 0x1A
_LINE_BREAK: Final = re.compile(rb"\r\n|\n|\r")
_QUOTED: Final = re.compile(rb'"[^"]*"')
_TOGGLE: Final = re.compile(rb'(?<!")"(?:"")*(?!")')  # an odd run of quotes; an even one escapes, or is an empty field
_SEPARATOR: Final = re.compile(rb"sep=.\r?", re.IGNORECASE | re.DOTALL)  # Excel's own first line


@dataclass(frozen=True, slots=True)
class _Outline:
    """What the fast pass kept: `_before` means before the tail, which goes without the blank lines at the end.

    `ended` tells whether a line break is among these.
    """

    head: bytes
    tail: bytes
    size_before: int
    quotes_before: int
    lines_before: int
    newline: bytes
    ended: bool
    encoding: str

    def line_at(self, position: int) -> int:
        """Return the number of the line that holds a position of the tail."""
        return self.lines_before + self.tail.count(self.newline, 0, position) + 1

    def line_start(self, window: int) -> int:
        """Return where the first line begins that lies wholly within the tail's last `window` bytes."""
        if not self.size_before and len(self.tail) <= window:
            return 0
        found = self.tail.find(self.newline, max(0, len(self.tail) - window))
        return found + 1 if found >= 0 else len(self.tail)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a file is with this delimiter: a whole record has `expected` fields, a `share` has as many as the header."""

    delimiter: bytes
    header: list[bytes]
    header_line: int
    expected: int
    share: float


@dataclass(frozen=True, slots=True)
class _End:
    """The last record: where it begins in the tail, its fields (0: unknown), and where the open quote was opened."""

    start: int
    fields: int
    opened: int

    def is_whole(self, expected: int) -> bool:
        """Tell whether nothing speaks against it."""
        return self.opened == _CLOSED and (not self.fields or self.fields >= expected)


def check_text(blocks: Blocks, columns: Sequence[str] | None) -> Finding:
    """Check a file of delimited text; its header too where `columns` is not None.

    A last record of more than a MiB is checked for its quotes only.
    """
    first = next(blocks(), b"")
    encoding = encoding_by_mark(first)
    if not encoding and (like := looks_like(first)):
        raise Broken(f"it is no text: it looks like {like}")
    text = partial(ascii_based, blocks, encoding)
    outline = _outline(text(), encoding)
    layouts = _layouts(outline)
    if not layouts:
        raise Broken("it holds nothing but blank lines")
    troubles = [trouble for layout in layouts if (trouble := _torn(outline, layout, text)) is not None]
    if len(troubles) == len(layouts):
        raise troubles[0]
    if columns is not None:
        _judge(outline, layouts[0], columns)
    cut = "but it does not end with a line break, so its last line may be cut"
    end = "and its last line is whole" if outline.ended else cut
    return Finding(True, f"it is text ({outline.encoding}), {end}")


def _outline(blocks: Iterator[bytes], encoding: str) -> _Outline:
    characters = Characters(encoding)
    head = tail = newline = b""
    size = quotes = lines = 0
    for block in blocks:
        newline = newline or _newline(block[:_HEAD])
        characters.look_at(block, newline, lines)
        head = head or block[:_HEAD]
        tail = block if len(block) >= _TAILS[-1] else (tail + block)[-_TAILS[-1] :]
        size += len(block)
        quotes += block.count(b'"')
        lines += block.count(newline)
    newline = newline or b"\n"
    size_before, quotes_before, lines_before = size - len(tail), quotes - tail.count(b'"'), lines - tail.count(newline)
    encoding = characters.end(lines + 1)
    kept = tail.rstrip(_BLANK)
    ended = newline in tail[len(kept) :]
    return _Outline(head, kept, size_before, quotes_before, lines_before, newline, ended, encoding)


def _newline(head: bytes) -> bytes:
    found = _LINE_BREAK.search(_QUOTED.sub(b"", head)) or _LINE_BREAK.search(head)
    return b"\r" if found and found[0] == b"\r" else b"\n"


def _judge(outline: _Outline, layout: _Layout, columns: Sequence[str]) -> None:
    if len(outline.head) == _HEAD and outline.newline not in outline.head.strip(_BLANK):
        raise Broken(f"line 1 is no header: it is longer than {_HEAD >> 10} KiB", 1)
    encoding = "cp1252" if outline.encoding == "8-bit" else "utf-8"
    names = [_unquoted(field).decode(encoding, "replace") for field in layout.header]
    judge_header(names, columns, layout.header_line)


# ---- records and fields -------------------------------------------------------------------------------------------


def _open_quote(text: bytes, opened: int, starts: bytes) -> int:
    """Return where in `text` the quote was opened that is open at its end, _OPENED_BEFORE, or _CLOSED.

    A quote opens a field at the beginning of the text, and behind one of the bytes `starts`; elsewhere it is a
    character like any other.
    """
    if b'"' not in text:
        return opened
    for run in _TOGGLE.finditer(text):
        at = run.start()
        if opened != _CLOSED:
            opened = _CLOSED
        elif not at or text[at - 1] in starts:
            opened = at
    return opened


def _records(text: bytes, delimiter: bytes, newline: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a text, each with the number of its first line."""
    lines, opened = list[bytes](), _CLOSED
    for number, line in enumerate(text.split(newline), start=1):
        lines.append(line)
        opened = _open_quote(line, opened, delimiter)
        if opened == _CLOSED:
            yield number - len(lines) + 1, newline.join(lines).strip(b"\r\n")
            lines.clear()
    if lines:
        yield text.count(newline) - len(lines) + 2, newline.join(lines)


def _fields(record: bytes, delimiter: bytes) -> list[bytes]:
    fields, parts, opened = list[bytes](), list[bytes](), _CLOSED
    for part in record.split(delimiter):
        parts.append(part)
        opened = _open_quote(part, opened, b"")
        if opened == _CLOSED:
            fields.append(delimiter.join(parts))
            parts.clear()
    return [*fields, delimiter.join(parts)] if parts else fields


def _unquoted(field: bytes) -> bytes:
    if len(field) < 2 or field[:1] != b'"' or field[-1:] != b'"':
        return field
    return field[1:-1].replace(b'""', b'"')


# ---- delimiter and header -----------------------------------------------------------------------------------------


def _layouts(outline: _Outline) -> list[_Layout]:
    """Return what the file may be: one layout, or several for which its first records speak equally."""
    layouts = [layout for delimiter in _DELIMITERS if (layout := _layout(outline, delimiter)) is not None]
    layouts.sort(key=lambda layout: (len(layout.header) > 1, layout.share, len(layout.header)), reverse=True)
    rivals = [other for other in layouts[1:] if len(other.header) > 1 and other.share == layouts[0].share]
    return layouts[:1] + rivals


def _layout(outline: _Outline, delimiter: bytes) -> _Layout | None:
    records = list[tuple[int, bytes]]()
    for line, record in _records(outline.head, delimiter, outline.newline):
        if record.strip(_BLANK) and (records or not _SEPARATOR.fullmatch(record)):
            records.append((line, record))
        if len(records) > _SAMPLE:
            break
    if not records:
        return None
    line, record = records[0]
    header = _fields(record, delimiter) if delimiter in _QUOTED.sub(b"", record) else [record]
    named = max((number for number, name in enumerate(header, start=1) if name.strip()), default=1)
    counts = [len(_fields(record, delimiter)) for _, record in records[1:-1]]  # the last one may be cut off
    expected = min(named, max(counts, default=named))  # a header may be wider than any record
    share = counts.count(len(header)) / len(counts) if counts else 1.0
    return _Layout(delimiter, header, line, expected, share)


# ---- the last record ----------------------------------------------------------------------------------------------


def _torn(outline: _Outline, layout: _Layout, text: Blocks) -> Broken | None:
    """Return what is wrong with the last record, or None."""
    if _end_by_parity(outline, layout.delimiter).is_whole(layout.expected):
        return None
    start = outline.line_start(_TAILS[-1])
    opened_line = _opened_line(text(), outline.size_before + start, layout.delimiter, outline.newline)
    end = _end(outline, start, _OPENED_BEFORE if opened_line else _CLOSED, layout.delimiter)
    if end.is_whole(layout.expected):
        return None
    if end.opened != _CLOSED:
        line = opened_line if end.opened == _OPENED_BEFORE else outline.line_at(end.opened)
        return Broken(f"line {line} opens a quote that is never closed", line)
    line = outline.line_at(end.start)
    has = "1 field" if end.fields == 1 else f"{end.fields} fields"
    whole = "the header has" if layout.expected == len(layout.header) else "a whole line has"
    return Broken(f"line {line} is torn: {has}, {whole} {layout.expected}", line)


def _end_by_parity(outline: _Outline, delimiter: bytes) -> _End:
    for window in _TAILS:
        start = outline.line_start(window)
        is_open = (outline.quotes_before + outline.tail.count(b'"', 0, start)) % 2
        end = _end(outline, start, _OPENED_BEFORE if is_open else _CLOSED, delimiter)
        if end.fields:
            break
    return end


def _end(outline: _Outline, start: int, opened: int, delimiter: bytes) -> _End:
    """Find the last record in the tail from `start`, where a line begins."""
    record, position = -1, start
    for line in outline.tail[start:].split(outline.newline) if start < len(outline.tail) else ():
        if opened == _CLOSED:
            record = position
        here = _open_quote(line, _CLOSED if opened == _CLOSED else _OPENED_BEFORE, delimiter)
        opened = position + here if here >= 0 else opened if here == _OPENED_BEFORE else _CLOSED
        position += len(line) + 1
    return _End(record, len(_fields(outline.tail[record:], delimiter)) if record >= 0 else 0, opened)


def _opened_line(blocks: Iterator[bytes], count: int, delimiter: bytes, newline: bytes) -> int:
    """Return the line that opened the quote that is open after the first `count` bytes, 0 where none is."""
    lines, opened_line, carry = 0, 0, b""
    while count:
        block = next(blocks, b"")[:count]
        count = count - len(block) if block else 0  # it became shorter meanwhile
        part, carry = _without_last_run(carry + block) if count else (carry + block, b"")
        opened = _open_quote(part, _OPENED_BEFORE if opened_line else _CLOSED, delimiter + newline)
        if opened != _OPENED_BEFORE:
            opened_line = lines + part.count(newline, 0, opened) + 1 if opened >= 0 else 0
        lines += part.count(newline)
    return opened_line


def _without_last_run(data: bytes) -> tuple[bytes, bytes]:
    """Split off the quotes at the end, which may go on in the next block, and the byte before them.

    Of the quotes only whether their number is odd is kept, so that a file of nothing else takes no memory.
    """
    rest = data.rstrip(b'"')
    cut, run = max(0, len(rest) - 1), len(data) - len(rest)
    return data[:cut], rest[cut:] + b'"' * (2 - run % 2 if run else 0)
