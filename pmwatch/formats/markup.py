"""XML: well-formed to its end. A stream through expat, which is given nothing to follow, expand or pile up."""

from collections.abc import Callable
from typing import Final
from xml.parsers import expat

from pmwatch.formats.finding import Broken, Finding, Unknown, shown
from pmwatch.formats.source import Blocks

_DEEPEST: Final = 1000
_MOST_NAMES: Final = 10_000  # expat keeps every name of an element or attribute until it is done
_LONGEST_TAG: Final = 4 << 20  # it keeps a tag until it has it whole
_PIECE: Final = 1 << 18

_AFTER_ROOT: Final = 9  # XML_ERROR_JUNK_AFTER_DOC_ELEMENT (expat.h)
_UNKNOWN_ENCODING: Final = 18  # XML_ERROR_UNKNOWN_ENCODING

Started = Callable[[str, dict[str, str]], None]
Told = Callable[[str], None]


class Document:
    """An XML document that is fed in pieces; what an attacker could make of one is refused with Broken.

    Names are as written, or `namespace name` with `namespaces`. Raises Unknown where Python cannot decode it.
    """

    def __init__(
        self,
        *,
        namespaces: bool = False,
        started: Started | None = None,
        ended: Told | None = None,
        text: Told | None = None,
    ) -> None:
        self.root = ""
        self._open: list[str] = []
        self._names: dict[str, str] = {}
        self._fed = 0
        self._started, self._ended = started, ended
        self._parser = expat.ParserCreate(namespace_separator=" " if namespaces else None, intern=self._names)
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.StartDoctypeDeclHandler = self._declared  # without it there are no entities either
        self._parser.CharacterDataHandler = text

    def feed(self, data: bytes) -> None:
        """Go on with the next piece. Raises Broken."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._fed += len(piece)
            self._parse(piece, is_last=False)
            if self._fed - self._parser.CurrentByteIndex > _LONGEST_TAG:
                raise self.broken(f"it holds a tag of more than {_LONGEST_TAG >> 20} MiB")
            if len(self._names) > _MOST_NAMES:
                raise self.broken(f"it has more than {_MOST_NAMES} different names of elements and attributes")

    def finish(self) -> None:
        """Say that there is no more. Raises Broken where the document is not at its end."""
        self._parse(b"", is_last=True)

    def broken(self, sentence: str) -> Broken:
        """Return an error at the line that was read last."""
        line = self._parser.CurrentLineNumber
        return Broken(f"line {line}: {sentence}", line)

    def _parse(self, piece: bytes, *, is_last: bool) -> None:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            if error.code == _UNKNOWN_ENCODING:
                raise Unknown("it cannot be checked: its encoding is not known here") from None
            raise Broken(f"line {error.lineno}: {self._in_words(error, is_last=is_last)}", error.lineno) from None
        except (LookupError, ValueError):  # from the search for a codec
            raise Unknown("it cannot be checked: its encoding is not known here") from None

    def _in_words(self, error: expat.ExpatError, *, is_last: bool) -> str:
        if error.code == _AFTER_ROOT:
            return f"something follows its end, </{self.root}>"
        if is_last and (self._open or not self.root):
            return (
                f"it is torn: it ends inside {shown(self._open[-1])}" if self._open else "it is torn: it ends at once"
            )
        return f"it is not well-formed at column {error.offset + 1} ({expat.ErrorString(error.code)})"

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= _DEEPEST:
            raise self.broken(f"its elements lie more than {_DEEPEST} deep")
        self.root = self.root or name
        self._open.append(name)
        if self._started is not None:
            self._started(name, attributes)

    def _end(self, name: str) -> None:
        self._open.pop()
        if self._ended is not None:
            self._ended(name)

    def _declared(self, *_: object) -> None:
        raise self.broken("it declares a document type; it needs none, and none is ever followed")


def check_xml(blocks: Blocks, root: str) -> Finding:
    """Check that the outermost element is `root`, with or without a prefix, and that it ends."""
    document = Document()
    for block in blocks():
        document.feed(block)
        if document.root.rpartition(":")[2] not in ("", root):
            raise Broken(f"its outermost element is {shown(document.root)}, not {shown(root)}")
    document.finish()
    return Finding(True, f"it is well-formed to its end, </{root}>")
