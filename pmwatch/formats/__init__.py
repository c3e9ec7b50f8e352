"""Whether a file ends as its format says it must: evidence against a writer that died or was cut off.

Reads in one pass with constant memory, whatever a stranger put into the file, and tells people what is wrong.
It is no judge of content: lines in the middle may be as odd as real logs are.
"""

from collections.abc import Callable, Sequence
from typing import Final

from pmwatch.errors import PmwatchError
from pmwatch.formats.binary import check_json, check_orc, check_parquet, check_xls
from pmwatch.formats.finding import Broken, Finding, Unknown
from pmwatch.formats.markup import check_xml
from pmwatch.formats.models import MAX_MODEL_BYTES, decode_model, read_model
from pmwatch.formats.sheets import check_workbook
from pmwatch.formats.source import Blocks, Source
from pmwatch.formats.text import check_text
from pmwatch.model import Validate

__all__ = ["MAX_MODEL_BYTES", "Broken", "Finding", "Validate", "check", "decode_model", "read_model"]

_TEXTS: Final = ("csv", "tsv", "txt")
_MARKUP: Final = {"xes": "log", "bpmn": "definitions"}
_WORKBOOKS: Final = ("xlsx", "xlsm", "xlsb")
_OTHERS: Final = {"xls": check_xls, "parquet": check_parquet, "orc": check_orc, "json": check_json}


def check(
    fd: int,
    name: str,
    *,
    validate: Validate,
    require_columns: Sequence[str] = (),
    beat: Callable[[], None] = lambda: None,
) -> Finding:
    """Check the open regular file `fd` as the type that the extension of `name` says, in any case.

    `require_columns` counts with `header` only. The descriptor stays open and its offset where it is; `beat`
    is called at least once a MiB. Raises SourceUnreadable where reading fails.
    """
    if validate is Validate.OFF:
        return Finding(None, "its format is not checked: validate is off")
    columns = tuple(require_columns) if validate is Validate.HEADER else None
    try:
        return _find(Source(fd, beat), name.lower(), columns)
    except Broken as broken:
        return Finding(False, broken.sentence, broken.line)
    except Unknown as unknown:
        return Finding(None, str(unknown))
    except (PmwatchError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  no file of a stranger's ends a service, whatever nobody thought of
        return Finding(False, f"its check broke down ({type(error).__name__}); please report this file")


def _find(source: Source, name: str, columns: tuple[str, ...] | None) -> Finding:
    *_, kind = name.rpartition(".")
    if not source.size:
        raise Broken("it is empty")
    if kind == "gz":
        return _compressed(source, name.removesuffix(".gz"), columns)
    return _whole(source, kind, columns)


def _whole(source: Source, kind: str, columns: tuple[str, ...] | None) -> Finding:
    if kind in _WORKBOOKS:
        return check_workbook(source, kind, columns)
    if kind in _OTHERS:
        return _without_columns(_OTHERS[kind](source), kind, columns)
    return _streamed(source.blocks, kind, columns) or Finding(None, f"there is no check for {_named(kind)}")


def _compressed(source: Source, name: str, columns: tuple[str, ...] | None) -> Finding:
    """Check a gzip file to its end, and what it holds where that can be read as a stream."""
    *_, kind = name.rpartition(".")
    inside = _streamed(source.unzipped_blocks, kind, columns)
    if inside is not None:
        return inside
    for _ in source.unzipped_blocks():
        pass
    return Finding(True, f"the gzip file is complete; {_named(kind)} inside it is not checked")


def _streamed(blocks: Blocks, kind: str, columns: tuple[str, ...] | None) -> Finding | None:
    """Check what needs nothing but to be read from its beginning to its end; None for other types."""
    if kind in _TEXTS:
        return check_text(blocks, columns)
    if kind in _MARKUP:
        return _without_columns(check_xml(blocks, _MARKUP[kind]), kind, columns)
    return None


def _without_columns(finding: Finding, kind: str, columns: tuple[str, ...] | None) -> Finding:
    if not columns or not finding.ok:
        return finding
    return Finding(True, f"{finding.sentence}; columns are not looked for in {_named(kind)}")


def _named(kind: str) -> str:
    return f".{kind}" if kind.isalnum() and kind.isascii() and len(kind) <= 10 else "what has no known extension"
