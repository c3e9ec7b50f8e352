"""BPMN models: XML that becomes a string of JSON on its way, so it has to be decoded here.

Source of the namespace: OMG, "Business Process Model and Notation", version 2.0, clause 15.3.
"""

import codecs
import re
from typing import Final

from pmwatch.formats.finding import Broken, Unknown, shown
from pmwatch.formats.markup import Document

MAX_MODEL_BYTES: Final = 16 * 1024 * 1024
"""The largest model that is read: it goes in one request, and real ones have a few hundred KiB."""

_ROOT: Final = "http://www.omg.org/spec/BPMN/20100524/MODEL definitions"
_MARKS: Final = (  # a byte order mark, or the beginning of "<?" without one (XML 1.0, appendix F)
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
_KNOWN: Final = re.compile(  # text that machines write; Python decodes odder things, such as "idna"
    r"utf[-_]?(?:8|16|32)(?:-sig|[-_]?[bl]e)?|(?:us-)?ascii|latin-?1|(?:iso[-_]?8859|windows|cp|ibm)[-_]?\d+|"
    r"shift[-_]jis|euc[-_](?:jp|kr)|gb2312|gbk|gb18030|big5|koi8-[ru]|mac(?:intosh|roman)?",
    re.IGNORECASE,
)
_DECLARED: Final = re.compile(r"""(<\?xml\s[^>]{0,200}?encoding\s*=\s*["'])([A-Za-z0-9._-]{1,40})(["'])""")


def decode_model(data: bytes) -> str:
    """Return the characters of an XML file. The declaration then names UTF-8, which is how the string will travel.

    Raises Broken where they are not in the encoding that the file claims.
    """
    declared = _DECLARED.match(data[:300].decode("latin-1"))
    claimed = declared[2] if declared else "utf-8"
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), claimed)
    if not _KNOWN.fullmatch(encoding):
        raise Broken(f"its encoding {shown(encoding)} is not known here")
    try:
        text = data.decode(encoding)
    except LookupError:
        raise Broken(f"its encoding {shown(encoding)} is not known here") from None
    except UnicodeError:
        raise Broken(f"it is not in the encoding that it claims, {encoding.removesuffix('-sig')}") from None
    return _DECLARED.sub(r"\g<1>UTF-8\g<3>", text, count=1) if _DECLARED.match(text) else text


def read_model(data: bytes) -> str:
    """Return the text of a BPMN 2.0 model, as `decode_model` does. Raises Broken where it is none, or is torn."""
    if not data:
        raise Broken("it is empty")
    text = decode_model(data)
    document = Document(namespaces=True)
    try:
        document.feed(text.encode("utf-8", "surrogatepass"))
        document.finish()
    except Unknown as unknown:
        raise Broken(str(unknown)) from None
    if document.root != _ROOT:
        name = document.root.rpartition(" ")[2]
        raise Broken(f"it is no BPMN 2.0 model: its outermost element is {shown(name)} of another namespace or name")
    return text
