"""Excel workbooks of today: the zip directory, and the header row of the first sheet.

The directory is a zip's end, so a torn one has none. Of the parts only what leads to the header row is unpacked.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Final

from pmwatch.formats.binary import unlike
from pmwatch.formats.finding import Broken, Finding, judge_header, shown
from pmwatch.formats.markup import Document, Started, Told
from pmwatch.formats.source import Source

_PIECE: Final = 1 << 16
_MOST_OF_AN_INDEX: Final = 4 << 20  # unpacked, of a part that only names others
_MOST_OF_A_PART: Final = 256 << 20
_MOST_COLUMNS: Final = 16_384  # these two are Excel's own limits
_LONGEST_TEXT: Final = 32_767
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # OPC allows no other; LZMA takes memory as a file says
_LOCAL_HEADER: Final = b"PK\x03\x04"
_CELL: Final = re.compile(r"([A-Z]{1,3})\d+")
_ZIP_TROUBLE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # a password, or (NotImplementedError) an unknown method of compression
    ValueError,
)

Relations = dict[str, tuple[str, str]]
"""What a part refers to: by id its kind (`worksheet`, `sharedStrings`) and its path."""


class _Found(Exception):
    """What was looked for is found; the rest of the part need not be read."""


def check_workbook(source: Source, kind: str, columns: Sequence[str] | None) -> Finding:
    """Check that the zip directory is whole, and that every part begins where it says; the columns, too, of XML."""
    if source.read_at(0, 4) != _LOCAL_HEADER:
        raise unlike(source.read_at(0, 512), f"Excel workbook (.{kind})")
    try:
        archive = zipfile.ZipFile(source)
    except _ZIP_TROUBLE:
        raise Broken("it is torn: a workbook ends with its zip directory, and this one does not") from None
    with archive:
        _check_parts(source, archive)
        if columns is not None and kind != "xlsb":
            judge_header(_header_row(archive), columns)
    unread = "; columns are not looked for in .xlsb" if columns and kind == "xlsb" else ""
    return Finding(True, f"its zip directory and parts are all there{unread}")


def _check_parts(source: Source, archive: zipfile.ZipFile) -> None:
    parts = archive.infolist()
    if min((part.header_offset for part in parts), default=-1):  # the directory of a zip within a torn one
        raise Broken("it is torn or damaged: its zip directory is not its own")
    if any(source.read_at(part.header_offset, 4) != _LOCAL_HEADER for part in parts):
        raise Broken("it is damaged: a part is not where its zip directory says")
    if "[content_types].xml" not in {part.filename.lower() for part in parts}:
        raise Broken("it is a zip archive, but no Excel workbook")


# ---- the header row -----------------------------------------------------------------------------------------------


def _header_row(archive: zipfile.ZipFile) -> list[str]:
    """Return the texts of the first row of the first sheet that has any."""
    workbook = _path("officeDocument", _relations(archive, "").values())
    relations = _relations(archive, workbook)
    sheets = [relations[id_] for id_ in _sheet_ids(archive, workbook) if id_ in relations]
    row = _FirstRow()
    _read(archive, _path("worksheet", sheets), started=row.started, ended=row.ended, text=row.text)
    strings = _Strings(row.shared.values())
    if row.shared:
        path = _path("sharedStrings", relations.values())
        _read(archive, path, started=strings.started, ended=strings.ended, text=strings.text)
    cells = row.cells | {column: strings.found.get(index, "") for column, index in row.shared.items()}
    used = [column for column, text in cells.items() if text.strip()]
    return [cells.get(column, "") for column in range(min(used), max(used) + 1)] if used else []


def _relations(archive: zipfile.ZipFile, part: str) -> Relations:
    directory, name = posixpath.split(part)
    relations: Relations = {}

    def started(_: str, attributes: dict[str, str]) -> None:
        kind, target = attributes.get("Type", "").rpartition("/")[2], attributes.get("Target", "")
        path = posixpath.normpath(posixpath.join("/", directory, target)).lstrip("/")
        relations[attributes.get("Id", "")] = kind, path

    _read(archive, posixpath.join(directory, "_rels", f"{name}.rels"), started=started, most=_MOST_OF_AN_INDEX)
    return relations


def _path(wanted: str, relations: Iterable[tuple[str, str]]) -> str:
    path = next((path for kind, path in relations if kind == wanted), "")
    if not path:
        raise Broken(f"it is no Excel workbook: it names no {wanted}")
    return path


def _sheet_ids(archive: zipfile.ZipFile, workbook: str) -> list[str]:
    ids = list[str]()

    def started(name: str, attributes: dict[str, str]) -> None:
        if _local(name) == "sheet":
            ids.extend(value for key, value in attributes.items() if key.endswith("relationships id"))

    _read(archive, workbook, started=started, most=_MOST_OF_AN_INDEX)
    return ids


def _read(
    archive: zipfile.ZipFile,
    path: str,
    *,
    started: Started,
    ended: Told | None = None,
    text: Told | None = None,
    most: int = _MOST_OF_A_PART,
) -> None:
    """Read an XML part until a handler has what it looks for, and no more than `most` bytes of it."""
    document = Document(namespaces=True, started=started, ended=ended, text=text)
    try:
        with _opened(archive, path) as part:
            for piece in _pieces(part, most):
                document.feed(piece)
            document.finish()
    except _Found:
        return
    except Broken as broken:
        raise Broken(f"{shown(path)} in it: {broken.sentence}") from None
    except KeyError:
        raise Broken(f"it has no part {shown(path)}, which another one names") from None
    except _ZIP_TROUBLE:
        raise Broken(f"it is damaged: {shown(path)} in it cannot be unpacked") from None


def _opened(archive: zipfile.ZipFile, path: str) -> IO[bytes]:
    if archive.getinfo(path).compress_type not in _METHODS:
        raise Broken("it is packed as no workbook's part is")
    return archive.open(path)


def _pieces(part: IO[bytes], most: int) -> Iterator[bytes]:
    unpacked = 0
    while piece := part.read(_PIECE):
        unpacked += len(piece)
        if unpacked > most:
            raise Broken(f"the header row is not found within its first {most >> 20} MiB")
        yield piece


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


class _Text:
    """Collects the text of `t` and `v` elements, without the pronunciation (`rPh`) that Japanese cells may have."""

    def __init__(self) -> None:
        self._spoken = False
        self._inside = False
        self.value = ""

    def started(self, name: str) -> None:
        """Note the beginning of an element."""
        self._spoken |= name == "rPh"
        self._inside = name in ("t", "v") and not self._spoken

    def ended(self, name: str) -> None:
        """Note the end of an element."""
        self._spoken &= name != "rPh"
        self._inside = False

    def text(self, data: str) -> None:
        """Take text, up to what a cell can hold."""
        if self._inside:
            self.value = (self.value + data)[:_LONGEST_TEXT]


class _FirstRow:
    """Finds the first row with content: its texts by column, in `shared` the numbers of those kept elsewhere."""

    def __init__(self) -> None:
        self.cells: dict[int, str] = {}
        self.shared: dict[int, int] = {}
        self._text = _Text()
        self._column = 0
        self._kind = ""

    def started(self, name: str, attributes: dict[str, str]) -> None:
        """Note the beginning of an element."""
        self._text.started(_local(name))
        if _local(name) == "row":
            self._column = 0
        elif _local(name) == "c":
            self._column = _column(attributes.get("r", "")) or self._column + 1
            self._kind = attributes.get("t", "")
            self._text.value = ""

    def ended(self, name: str) -> None:
        """Note the end of an element; raise _Found at the end of the row."""
        self._text.ended(_local(name))
        if _local(name) == "c":
            self._keep(self._text.value)
        elif _local(name) == "row" and (self.shared or self.cells):
            raise _Found

    def _keep(self, text: str) -> None:
        if self._column > _MOST_COLUMNS:
            raise Broken(f"a row has more than {_MOST_COLUMNS} columns")
        if self._kind == "s" and text.isdecimal() and len(text) <= 9:
            self.shared[self._column] = int(text)
        elif text.strip():
            self.cells[self._column] = text

    def text(self, data: str) -> None:
        """Take text."""
        self._text.text(data)


def _column(reference: str) -> int:
    """Return the number of a cell's column, `C7` being in the third; 0 where it is not said."""
    match = _CELL.fullmatch(reference)
    number = 0
    for letter in match[1] if match else "":
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


class _Strings:
    """Finds those of the workbook's shared texts that are `wanted`."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self.found: dict[int, str] = {}
        self._wanted = set(wanted)
        self._text = _Text()
        self._index = -1

    def started(self, name: str, _attributes: dict[str, str]) -> None:
        """Note the beginning of an element."""
        self._text.started(_local(name))
        if _local(name) == "si":
            self._index += 1
            self._text.value = ""

    def ended(self, name: str) -> None:
        """Note the end of an element; raise _Found when all are there."""
        self._text.ended(_local(name))
        if _local(name) == "si" and self._index in self._wanted:
            self.found[self._index] = self._text.value
            if len(self.found) == len(self._wanted):
                raise _Found

    def text(self, data: str) -> None:
        """Take text."""
        self._text.text(data)
