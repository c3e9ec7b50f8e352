"""Types that are recognised by their first and last bytes, and JSON by its brackets."""

import json
import re
import struct
from typing import Final

from pmwatch.formats.finding import Broken, Finding
from pmwatch.formats.source import Source

_PARSED: Final = 1 << 20  # JSON up to this size is parsed, since that costs memory
_COMPOUND: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLD_SHEETS: Final = (b"\x09\x00\x04\x00", b"\x09\x02\x06\x00", b"\x09\x04\x06\x00")  # Excel 2 to 4: one BOF record
_LAST_SECTOR: Final = 0xFFFFFFFA  # MAXREGSECT ([MS-CFB] 2.1)

_LOOKS: Final = (  # letters alone prove nothing, for a table may begin with them
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "a zip archive or an Office file of today (.xlsx)"),
    (re.compile(re.escape(_COMPOUND)), "an old Office file (.xls), or one with a password"),
    (re.compile(rb"\x1f\x8b"), "a gzip file"),
    (re.compile(rb"\x89PNG\r\n|GIF8[79]a.{0,6}\0|\xff\xd8\xff|RIFF....WEBPVP8", re.DOTALL), "an image"),
    (re.compile(rb"%PDF-\d\.\d[\s%]"), "a PDF"),
    (re.compile(rb"MZ[^\0]{0,64}\0|\x7fELF", re.DOTALL), "a program"),
    (re.compile(rb"PAR[1E].{0,3}[\0\x15]", re.DOTALL), "a Parquet file"),  # Thrift, or a length
    (re.compile(rb"7z\xbc\xaf\x27\x1c|\xfd7zXZ\0|BZh[1-9]1AY&SY|\x28\xb5\x2f\xfd|Rar!\x1a"), "a compressed archive"),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)[\s>]", re.IGNORECASE),
        "a web page, perhaps an error page",
    ),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<\?xml\s"), "an XML document"),
)


def looks_like(head: bytes) -> str:
    """Return what a file that begins with `head` seems to be, or an empty string where nothing is known."""
    return next((name for pattern, name in _LOOKS if pattern.match(head)), "")


def unlike(head: bytes, wanted: str) -> Broken:
    """Return the error for a file that is no `wanted`."""
    like = looks_like(head)
    return Broken(f"it is no {wanted}" + (f": it looks like {like}" if like else ""))


def check_xls(source: Source) -> Finding:
    """Check the magic, and that the sectors in which the file's own tables lie are in the file."""
    head = source.read_at(0, 512)
    if head.startswith(_OLD_SHEETS):
        return Finding(True, "it begins as an Excel sheet of before 1993 does; its end cannot be checked")
    if not head.startswith(_COMPOUND):
        raise unlike(head, "old Excel workbook (.xls)")
    if len(head) < 512:
        raise Broken("it is torn: its header is not whole")
    (shift,) = struct.unpack_from("<H", head, 0x1E)
    (directory,) = struct.unpack_from("<I", head, 0x30)
    tables = [directory, *struct.unpack_from("<109I", head, 0x4C)]
    last = max((sector for sector in tables if sector <= _LAST_SECTOR), default=0)
    if shift not in (9, 12) or (last + 1) << shift >= source.size:
        raise Broken("it is torn or damaged: its tables lie outside of it")
    return Finding(True, "it is an Excel workbook whose tables are all there")


def check_parquet(source: Source) -> Finding:
    """Check the magic at both ends and the length of the footer (Apache Parquet, "File Format")."""
    head, foot = source.read_at(0, 4), source.read_at(max(0, source.size - 8), 8)
    if head not in (b"PAR1", b"PARE"):
        raise unlike(source.read_at(0, 512), "Parquet file")
    if source.size < 12 or foot[4:] != head or int.from_bytes(foot[:4], "little") > source.size - 12:
        raise Broken("it is torn: a Parquet file ends with its footer, and this one does not")
    return Finding(True, "it begins and ends as a Parquet file does")


def check_orc(source: Source) -> Finding:
    """Check the magic at both ends (Apache ORC, "File Tail": the postscript, and its length in the last byte)."""
    foot = source.read_at(max(0, source.size - 256), 256)
    if source.read_at(0, 3) != b"ORC":
        raise unlike(source.read_at(0, 512), "ORC file")
    if source.size < 7 or foot[-4:-1] != b"ORC" or foot[-1] >= source.size - 3:
        raise Broken("it is torn: an ORC file ends with its postscript, and this one does not")
    return Finding(True, "it begins and ends as an ORC file does")


def check_json(source: Source) -> Finding:
    """Parse a small document; of a large one compare the first and the last bracket."""
    if source.size <= _PARSED:
        return _parse_json(source.read_at(0, _PARSED))
    head = source.read_at(0, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    foot = source.read_at(source.size - 4096, 4096).rstrip()
    if head[:1] not in (b"{", b"["):
        raise unlike(head, "JSON document: it begins with no bracket")
    if foot[-1:] != {b"{": b"}", b"[": b"]"}[head[:1]]:
        raise Broken(f"it is torn: it begins with {head[:1].decode()} and does not end with its counterpart")
    return Finding(True, "it begins and ends as a JSON document does; one of this size is not parsed")


def _parse_json(data: bytes) -> Finding:
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        torn = "it is torn" if error.pos >= len(error.doc.rstrip()) else "it is no JSON"
        raise Broken(f"line {error.lineno}: {torn} ({error.msg})", error.lineno) from None
    except UnicodeDecodeError:
        raise unlike(data, "JSON document, whose encoding is UTF-8") from None
    except (RecursionError, ValueError):  # too deep, or a number of more digits than Python reads
        return Finding(None, "it is nested too deeply, or holds a number too long, to be checked")
    return Finding(True, "it is JSON to its end")
