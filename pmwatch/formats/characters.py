"""Whether bytes are text, and bringing every encoding to one in which quotes and line breaks are single bytes."""

import codecs
from collections.abc import Iterator
from typing import Final

from pmwatch.formats.finding import Broken
from pmwatch.formats.source import Blocks

_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL: Final = bytes(set(range(1, 32)) - set(b"\t\n\v\f\r\x1a\x1b"))  # in no text of an 8-bit encoding
_BETWEEN: Final = (b"", 0)  # the state of a decoder between two characters


def encoding_by_mark(first: bytes) -> str:
    """Return the encoding that a byte order mark announces if it is one of wide characters, or an empty string."""
    return next((name for mark, name in _MARKS if first.startswith(mark)), "")


def ascii_based(blocks: Blocks, encoding: str) -> Iterator[bytes]:
    """Yield text without its mark: as UTF-8 where it was of wide characters, else as it is."""
    if encoding:
        yield from _transcoded(blocks(), encoding)
        return
    for number, block in enumerate(blocks()):
        yield block if number else block.removeprefix(codecs.BOM_UTF8)


def _transcoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    try:
        for block in blocks:
            text = decoder.decode(block)
            line += text.count("\n")
            yield text.encode()
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        if error.reason in ("truncated data", "unexpected end of data"):
            raise _cut(line) from None
        raise Broken(f"it is not {encoding.upper()} as its first bytes say: see line {line} and after", line) from None


def _cut(line: int) -> Broken:
    return Broken(f"line {line} is torn: it ends in the middle of a character", line)


class Characters:
    """Looks at text block by block: UTF-8, or an 8-bit encoding as older programs write, without control characters.

    In UTF-8 only NUL is refused, for by chance nothing binary is UTF-8.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding or "utf-8"
        self._decoder = None if encoding else codecs.getincrementaldecoder("utf-8")()
        self._beyond_ascii = False

    def look_at(self, block: bytes, newline: bytes, lines: int) -> None:
        """Raise Broken for what no text holds. `lines` is the number of line breaks before the block."""
        if (at := block.find(b"\0")) >= 0:
            line = lines + block.count(newline, 0, at) + 1
            raise Broken(f"line {line} holds a NUL byte: {_why_nul(block, at)}", line)
        if self._decoder is not None:
            self._decode(block, self._decoder)
        if self._encoding == "8-bit" and len(block.translate(None, _CONTROL)) < len(block):
            at = next(at for at, byte in enumerate(block) if byte in _CONTROL)
            line = lines + block.count(newline, 0, at) + 1
            raise Broken(f"line {line} is no text: it has control characters, and it is not UTF-8", line)

    def _decode(self, block: bytes, decoder: codecs.IncrementalDecoder) -> None:
        if block.isascii() and decoder.getstate() == _BETWEEN:
            return
        try:
            self._beyond_ascii |= not decoder.decode(block).isascii()
        except UnicodeDecodeError:
            self._encoding, self._decoder = "8-bit", None

    def end(self, line: int) -> str:
        """Return the encoding. Raise Broken if a character is cut off; a lone byte may be one of an 8-bit encoding."""
        if self._decoder is None or self._decoder.getstate() == _BETWEEN:
            return self._encoding
        if self._beyond_ascii:
            raise _cut(line)
        return "8-bit"


def _why_nul(block: bytes, at: int) -> str:
    around = block[max(0, at - 40) : at + 40]
    wide = b"\0\0" not in around and around.count(b"\0") * 3 > len(around)
    return "it is UTF-16 without its mark, or binary" if wide else "a part was never written, or it is binary"
