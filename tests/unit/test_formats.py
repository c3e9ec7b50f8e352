"""Formats: what ends properly passes, what was cut off does not, and nothing a stranger wrote does harm."""

import csv
import gzip
import io
import os
import random
import re
import struct
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import openpyxl  # type: ignore[import-untyped]  # it has none
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pmwatch.errors import SourceUnreadable
from pmwatch.formats import Broken, Finding, Validate, check, read_model
from pmwatch.model import READABLE_TYPES
from pmwatch.sandbox.eventlogs import csv_bytes, order_to_cash, xlsx_bytes

MIB = 1 << 20
LOG = b'<?xml version="1.0"?>\n<log>\n<trace><event><string key="concept:name" value="pay"/></event></trace>\n</log>'
XLSX = xlsx_bytes(order_to_cash(3, seed=7))


def found(data: bytes, name: str, validate: Validate = Validate.STRUCTURE, columns: Sequence[str] = ()) -> Finding:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 3, os.SEEK_SET)
        finding = check(file.fileno(), name, validate=validate, require_columns=columns)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3, "the offset belongs to the caller"
    return finding


def passes(data: bytes, name: str, validate: Validate = Validate.STRUCTURE, columns: Sequence[str] = ()) -> str:
    finding = found(data, name, validate, columns)
    assert finding.ok is True, finding
    return finding.sentence


def fails(data: bytes, name: str, validate: Validate = Validate.STRUCTURE, columns: Sequence[str] = ()) -> str:
    finding = found(data, name, validate, columns)
    assert finding.ok is False, finding
    assert finding.sentence.isprintable()
    assert len(finding.sentence) < 1000
    return finding.sentence


# ---- which check a name gets --------------------------------------------------------------------------------------


def test_off_looks_at_nothing() -> None:
    assert found(b"\0", "a.csv", Validate.OFF).ok is None


@pytest.mark.parametrize("kind", [*READABLE_TYPES, "xlsm", "parquet", "orc", "json", "bpmn"])
def test_every_readable_type_has_a_check_that_an_empty_file_and_a_picture_fail(kind: str) -> None:
    assert fails(b"", f"a.{kind}") == "it is empty"
    fails(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(600), f"A.{kind.upper()}")


@pytest.mark.parametrize("name", ["notes.md", "README", "a.", "a.\n", "a.abcdefghijklmnop"])
def test_other_types_have_none(name: str) -> None:
    finding = found(b"anything\0", name)
    assert finding.ok is None
    assert finding.sentence.isprintable()


def test_the_caller_hears_that_work_goes_on_and_its_descriptor_stays_open() -> None:
    beats: list[int] = []
    with tempfile.TemporaryFile() as file:
        file.write(b"a,b\n" * (2 * MIB))
        file.flush()
        assert check(file.fileno(), "a.csv", validate=Validate.STRUCTURE, beat=lambda: beats.append(1)).ok
        os.fstat(file.fileno())
    assert len(beats) >= 8


def test_a_disk_that_cannot_be_read_is_no_finding(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # reading a directory fails as a broken disk does
    try:
        with pytest.raises(SourceUnreadable, match="reading failed"):
            check(fd, "a.csv", validate=Validate.STRUCTURE)
    finally:
        os.close(fd)


# ---- text: the last line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"a,b\n1,2\n",
        b"a,b\n1,2",  # a missing line break proves nothing
        b"a;b;c\r\n1;2;3\r\n\r\n  \r\n",
        b"a\tb\n1\t2\n\x1a",
        b"a|b\r1|2\r",
        b"sep=;\na;b\n1;2",
        b"\n\na,b\n1,2",
        b"a,b,\n1,2\n3,4",  # the header has a delimiter too many
        b"a,b,c,d,e\n1,2\n1,2\n3,4",  # or all records leave out what is empty
        b"a,b\n1,2,3\nx\n1,2",  # in the middle anything goes
        b'a,b\n1,"x\ny"',
        b'a,b\n1,"x\n\ny"\n',
        b'a,b\n1,""',
        b'a,b\n1,"""x"""',
        b'a,b\n5" pipe,x\n7" pipe,3"\n1,2"',  # a quote within a field is a character
        b'a;b\n1;x,"y',
        b"a,b\n1,x\ty|z;",
        b"only\none",
        b"only\n1, 2\nx",
        b"a,b",
        b'"a\nb",c\n1,2\n3,4',
        b'a,,\n,,"\n"\n',
        b'a,,;\n,,"x;\ny;\n"\n',  # under another delimiter the lines within quotes are records
        b"a,b\n1,\\",
        b'a,b\n1,"\\"',  # a backslash escapes nothing
        b"a|b|c,d\nx,y",  # two delimiters could be meant, and under one of them all is well
    ],
)
def test_what_ends_properly_passes(data: bytes) -> None:
    passes(data, "a.csv")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a,b,c\n1,2,3\n4,5", "line 3 is torn: 2 fields, the header has 3"),
        (b"a,b,c\n1,2,3\n4,5\n\n", "line 3 is torn: 2 fields, the header has 3"),
        (b"a;b\r\n1;2\r\n3", "line 3 is torn: 1 field, the header has 2"),
        (b"a|b\r1|2\r3", "line 3 is torn: 1 field, the header has 2"),
        (b"a\tb\n3", "line 2 is torn: 1 field, the header has 2"),
        (b'a,b\n"x\ny",2\n"p\n\nq"', "line 4 is torn: 1 field, the header has 2"),
        (b'a,b\n1,2\n3,"x\n4,5\n', "line 3 opens a quote that is never closed"),
        (b'a,b\n1,2\n3,"', "line 3 opens a quote that is never closed"),
        (b'a,b\n1,"""', "line 2 opens a quote that is never closed"),
        (b'"a', "line 1 opens a quote that is never closed"),
        (b'a,b\n5" pipe,x\n7" pipe', "line 3 is torn: 1 field, the header has 2"),
        (b"a,b,c,d,e\n1,2,3\n1,2,3\n3,4", "line 4 is torn: 2 fields, a whole line has 3"),
        (b"sep=;\na;b\n1", "line 3 is torn: 1 field, the header has 2"),
        (b'a,"x;y"\n1,"p;q', "line 2 opens a quote that is never closed"),
        (b"\n \r\n\x1a", "it holds nothing but blank lines"),
    ],
)
def test_a_torn_last_line_is_told_with_its_number(data: bytes, sentence: str) -> None:
    finding = found(data, "a.csv")
    assert (finding.ok, finding.sentence) == (False, sentence)
    assert finding.line == (int(sentence.split()[1]) if sentence.startswith("line") else 0)


@pytest.mark.parametrize("lead", [0, 70_000, MIB - 5, MIB, MIB + 1, 3 * MIB + 77])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_the_end_is_found_however_far_it_is_from_the_beginning(lead: int, newline: bytes) -> None:
    row = b'12,"a ""b""' + newline + b'c",3' + newline
    rows = lead // len(row)
    whole = b"x,y,z" + newline + row * rows
    passes(whole, "a.csv")
    line = 2 * rows + 2
    assert fails(whole + b"1,2", "a.csv") == f"line {line} is torn: 2 fields, the header has 3"
    assert fails(whole + b'1,2,"' + newline, "a.csv") == f"line {line} opens a quote that is never closed"
    passes(whole + b'1",2,3' + newline, "a.csv")


@pytest.mark.parametrize("size", [60_000, 200_000, MIB + 10, 3 * MIB])
def test_a_very_long_last_record_is_judged_by_its_quotes_at_least(size: int) -> None:
    text = b"text\n" * (size // 5)
    passes(b'a,b\n1,2\n1,"' + text + b'"\n', "a.csv")
    assert fails(b'a,b\n1,2\n1,"' + text, "a.csv") == "line 3 opens a quote that is never closed"
    passes(b"a,b\n1,2\n1," + text.replace(b"\n", b" "), "a.csv")


def test_the_parity_of_stray_quotes_misleads_nobody() -> None:
    stray = b'a,b\n5" pipe,x\n' + b'1,"two\nlines"\n' * 200_000
    passes(stray, "a.csv")
    assert fails(stray + b"3", "a.csv") == "line 400003 is torn: 1 field, the header has 2"
    assert fails(stray + b'3,"', "a.csv") == "line 400003 opens a quote that is never closed"


def test_a_quote_that_an_early_line_forgot_is_named_at_that_line() -> None:
    data = b'a,b\n1,"never\n' + b"3,4\n" * MIB
    assert fails(data, "a.csv") == "line 2 opens a quote that is never closed"


@pytest.mark.parametrize("count", [MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1])
def test_a_file_of_quotes_alone_is_judged_by_whether_their_number_is_even(count: int) -> None:
    finding = found(b'"' * count, "a.csv")
    assert finding.ok is (count % 2 == 0)


@pytest.mark.parametrize("shift", range(-4, 4))
@pytest.mark.parametrize("run", [1, 2, 3, 4])
def test_quotes_at_the_seam_of_two_blocks_belong_together(shift: int, run: int) -> None:
    lead = b"a,b\n" + b"x" * (MIB - 9) + b"xxxx"[: 4 + shift] + b"\n" + b'"' * run + b"x"
    rest = b",2\n" + b"1,2\n" * (MIB // 3)  # into the third block
    closed, torn = (b'"' + rest, rest) if run % 2 else (rest, b',"' + rest)
    passes(lead + closed, "a.csv")
    assert fails(lead + torn, "a.csv") == "line 3 opens a quote that is never closed"


PLAIN = st.text(st.sampled_from("abc XYZ09"), min_size=1, max_size=6).filter(lambda text: text.strip())
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    }
)
CELLS = st.text(st.sampled_from("ab1 ,;\t|\"'\\\n\r\u00e9\u20ac\U0001f600"), max_size=8) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5
)


def written(rows: Iterable[Sequence[str]], dialect: dict[str, object]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **dialect).writerows(rows)  # type: ignore[arg-type]  # the options have different types
    return out.getvalue()


def is_quoted_well(rows: Iterable[Sequence[str]], dialect: dict[str, object]) -> bool:
    """Tell whether csv.writer quotes every line break: before Python 3.13 only the characters that end its lines."""
    others = set("\r\n") - set(str(dialect["lineterminator"]))
    return dialect["quoting"] == csv.QUOTE_ALL or not any(others & set(cell) for row in rows for cell in row)


@st.composite
def tables(draw: st.DrawFn, header: st.SearchStrategy[str], *, narrowest: int = 1) -> list[list[str]]:
    width = draw(st.integers(narrowest, 5))
    names = draw(st.lists(header, min_size=width, max_size=width))
    rows = draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6))
    return [names, *rows]


@given(
    table=tables(CELLS, narrowest=2) | tables(PLAIN),
    dialect=DIALECTS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    cut=st.booleans(),
)
def test_whatever_csv_writer_writes_passes(
    table: list[list[str]], dialect: dict[str, object], encoding: str, *, cut: bool
) -> None:
    assume(any(name.strip(" \r\n\x1a") for name in table[0]))
    assume(is_quoted_well(table, dialect))
    text = written(table, dialect)
    passes((text.rstrip("\r\n") if cut and text.rstrip("\r\n").endswith('"') else text).encode(encoding), "a.csv")


@given(
    table=tables(PLAIN, narrowest=2).filter(lambda table: len(table) > 1),
    dialect=DIALECTS,
    keep=st.floats(0, 1, exclude_max=True),
    lead=st.sampled_from([0, 0, 0, 70_000, 2 * MIB]),
)
def test_whatever_is_cut_off_within_its_last_record_fails(
    table: list[list[str]], dialect: dict[str, object], keep: float, lead: int
) -> None:
    *before, last = table
    before += [["filler"] * len(last)] * (lead // (7 * len(last)))
    record = written([last], dialect)
    part = record[: round(keep * len(record))]
    assume(is_quoted_well(table, dialect))
    fields = len(next(csv.reader([part], delimiter=str(dialect["delimiter"])), []))
    assume(part.strip(" \r\n\x1a"))
    assume(fields < len(last) or part.count('"') % 2)
    assert found((written(before, dialect) + part).encode(), "a.csv").ok is False


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\n\x1a", "\n  "])
def test_a_line_break_at_the_end_shows_that_the_last_line_is_whole(end: str) -> None:
    text = f"a,b\n1,2{end}"
    for encoding in ("utf-8", "utf-16"):
        assert passes(text.encode(encoding), "a.csv").endswith("), and its last line is whole")


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n1,2,", "a,b\n1,2 ", "a,b\r1,2", "a,b", 'a,b\n1,"2\n"'])
def test_without_one_the_last_line_may_be_cut_but_nothing_proves_it(text: str) -> None:
    sentence = "but it does not end with a line break, so its last line may be cut"
    for encoding in ("utf-8", "utf-16"):
        assert sentence in passes(text.encode(encoding), "a.csv")


# ---- text: encodings and what is no text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("a,b\nSchäfer,€\n".encode("cp1252"), "8-bit"),
        ("a,b\n\N{CYRILLIC SMALL LETTER ZHE},1\n".encode("cp1251"), "8-bit"),
        (b"a,b\n1,caf\xe9", "8-bit"),  # ends as if in the middle of a UTF-8 character
        (("a,b\n" + "Schäfer,€\n" * 9).encode() + b"Sch\xe4fer,1\n", "8-bit"),  # one line of another program
        ("a,b\nSchäfer,€\n".encode("utf-8-sig"), "utf-8"),
        ("a,b\nSchäfer,€\n".encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + "a,b\n1,2".encode("utf-16-be"), "utf-16"),
        ("a,b\nSchäfer,€\n".encode("utf-32"), "utf-32"),
        (b"\0\0\xfe\xff" + "a,b\n1,2".encode("utf-32-be"), "utf-32"),
        (b"a,b\n\x01\x02,3\n", "utf-8"),  # odd, but text
        (b"a,b\n" + b"1,2\n" * MIB + b"\xe4,\xf6", "8-bit"),
    ],
)
def test_any_encoding_of_text_will_do(data: bytes, encoding: str) -> None:
    assert f"({encoding})" in passes(data, "a.csv")


def test_a_character_across_two_blocks_is_one() -> None:
    data = b"a,b\n" + b"x" * (MIB - 5) + "€,".encode() * 5 + b"\n1,2"
    assert "(utf-8)" in passes(data, "a.csv")
    passes(data.decode().encode("utf-16"), "a.csv")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("a,b\nü,1\n2,€".encode()[:-1], "line 3 is torn: it ends in the middle of a character"),
        ("a,b\nü,1\n2,€".encode("utf-16")[:-1], "line 3 is torn: it ends in the middle of a character"),
        ("a,b\nü,1\n2,€".encode("utf-32")[:-1], "line 3 is torn: it ends in the middle of a character"),
        (b"\xff\xfea\0\n\0" + b"\0\xdc" * 2, "it is not UTF-16 as its first bytes say: see line 1 and after"),
        (b"a,b\n1,2\n" + bytes(5000), "line 3 holds a NUL byte: a part was never written, or it is binary"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1 holds a NUL byte: it is UTF-16 without its mark, or binary"),
        (b"a,b\n\xe4\x02,1\n", "line 2 is no text: it has control characters, and it is not UTF-8"),
        (b"a,b\n" * MIB + b"\x05\xff", f"line {MIB + 1} is no text: it has control characters, and it is not UTF-8"),
        (b"PK\x03\x04rest", "it is no text: it looks like a zip archive or an Office file of today (.xlsx)"),
        (b"%PDF-1.7\n", "it is no text: it looks like a PDF"),
        (b"MZ\x90\0\3", "it is no text: it looks like a program"),
        (b"\x1f\x8b\x08", "it is no text: it looks like a gzip file"),
        (b"\n <!DOCTYPE HTML>\n<p>Log in", "it is no text: it looks like a web page, perhaps an error page"),
        (b'<?xml version="1.0"?><log/>', "it is no text: it looks like an XML document"),
    ],
)
def test_what_is_no_text_is_told_by_what_it_looks_like(data: bytes, sentence: str) -> None:
    assert fails(data, "a.csv") == sentence


@pytest.mark.parametrize(
    "header",
    [
        "MZ,b", "PARENT_ID,CHILD", "PARE,b", "PARECER,b", "PARE\N{LATIN CAPITAL LETTER C WITH CEDILLA}A,b", "PAR1,PAR2",
        "PAR1\tPAR2", "PAR1", "PK,b", "PK_ID;b", "BM,b", "BMI,b", "II*,b", "GIF89a,b", "GIF87a", "RIFF_ID_WEBP,b",
        "RIFF,b", "%PDF,b", "%PDF-1,b", "%PDF-1.7,b", "{\\rtf,b", "BZh,b", "Rar!,b", "ORC,b", "SQLite format 3,b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_a_header_may_begin_as_another_type_does(header: str, encoding: str) -> None:
    passes(f"{header}\n1,2\n1,2\n".encode(encoding), "a.csv")


def test_what_begins_with_letters_is_known_by_what_follows_them() -> None:
    bytes_of = {
        "a Parquet file": b"PAR1\x15\x04\x15\x0c\x15\x10L\x15",
        "a Parquet file ": b"PARE\x2a\x01\0\0\x19\x1c",
        "an image": b"GIF89a\x2c\x01\x2c\x01\xf7\0\0\xff\xff\xff",
        "an image ": b"RIFF\x24\x20\x01\x20WEBPVP8 ",
        "a PDF": b"%PDF-1.4\r%\xe2\xe3\xcf\xd3\r",
    }
    for like, data in bytes_of.items():
        assert fails(data, "a.csv") == f"it is no text: it looks like {like.strip()}"


# ---- text: the header ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"Case ID,Activity,At\n1,2,3\n",
        b"\xef\xbb\xbfCase ID;Activity;At\n",
        b'"Case ID"\t" Activity "\t"At"',
        "Case ID|Activity|At\n".encode("utf-16"),
        b"\n\nCase ID,Activity,At",
        b"sep=,\r\nCase ID,Activity,At\r\n",
    ],
)
def test_required_columns_are_found(data: bytes) -> None:
    passes(data, "a.csv", Validate.HEADER, ["Activity", "Case ID"])


@pytest.mark.parametrize(
    ("data", "columns", "sentence"),
    [
        (b"CaseID,Activity\n", ["Case ID"], 'line 1 lacks the column "Case ID" (nearest: "CaseID")'),
        (b"case id,x\n", ["Case ID", "Zeit"], 'line 1 lacks the columns "Case ID" (nearest: "case id"), "Zeit"'),
        (b"x,y\n", [f"{n:02}" for n in range(12)], ', "08", "09" and 2 more'),
        (b"\na,,c\n", [], "line 2 gives column 2 of 3 no name"),
        (b"a,b,\n", [], "line 1 gives column 3 of 3 no name"),
        (b"a,b, a\n", [], 'line 1 names 2 columns "a"'),
        (b",,\n1,2,3", [], "there is no header row"),
        ("Größe,x\n".encode("cp1252"), ["Grösse"], 'line 1 lacks the column "Grösse" (nearest: "Größe")'),
        (b"a\x01,b\n", ["a"], r'line 1 lacks the column "a" (nearest: "a\x01")'),
        (b"n" * 200 + b",b\n", ["n" * 190], '(nearest: "' + "n" * 39 + '…")'),
        (b"x" * MIB, [], "line 1 is no header: it is longer than 256 KiB"),
        (b"a,b\n1,2\n3", ["a"], "line 3 is torn: 1 field, the header has 2"),
    ],
)
def test_what_is_wrong_with_a_header_is_told(data: bytes, columns: list[str], sentence: str) -> None:
    assert sentence in fails(data, "a.csv", Validate.HEADER, columns)


def test_columns_count_with_header_only() -> None:
    passes(b"a,b\n1,2\n", "a.csv", Validate.STRUCTURE, ["c"])


# ---- gzip ---------------------------------------------------------------------------------------------------------


def test_what_a_gzip_file_holds_is_checked_as_its_own_type() -> None:
    passes(gzip.compress(b"a,b\n1,2\n"), "a.csv.gz", Validate.HEADER, ["b"])
    assert fails(gzip.compress(b"a,b\n1"), "A.CSV.GZ") == "line 2 is torn: 1 field, the header has 2"
    assert "torn" in fails(gzip.compress(LOG[:-3]), "a.xes.gz")
    passes(gzip.compress(LOG), "a.xes.gz")
    members = b"".join(gzip.compress(line) for line in (b"a,b\n", b"1,", b"2\n"))
    passes(members + bytes(512), "a.csv.gz")
    assert "xlsx inside it is not checked" in passes(gzip.compress(XLSX), "a.xlsx.gz")
    passes(gzip.compress(b"x"), "a.gz")


def test_what_is_wrong_with_a_gzip_file_is_told() -> None:
    whole = gzip.compress(bytes(random.Random(1).choices(b"0123,\n", k=3 * MIB)))
    assert fails(whole[:-9], "a.txt.gz") == "it is torn: the gzip stream does not reach its end"
    damage = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    assert fails(damage, "a.foo.gz") == "it is damaged: its gzip stream or checksum is wrong"
    assert fails(whole + b"rest", "a.foo.gz") == "it is damaged: its gzip stream or checksum is wrong"
    assert "damaged" in fails(b"a,b\n", "a.csv.gz")


@given(rows=st.lists(PLAIN, max_size=20), inner=st.sampled_from(["csv", "xes", "zip"]), keep=st.floats(0, 1))
def test_no_part_of_a_gzip_file_passes(rows: list[str], inner: str, keep: float) -> None:
    whole = gzip.compress(("name\n" + "\n".join(rows)).encode() if inner != "xes" else LOG)
    assert found(whole[: min(len(whole) - 1, round(keep * len(whole)))], f"a.{inner}.gz").ok is False


# ---- XML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        LOG,
        LOG + b"\n<!-- made by hand -->\n",
        b"<log/>",
        b'<xes:log xmlns:xes="http://www.xes-standard.org/"/>',
        b"\xef\xbb\xbf<log/>",
        LOG.decode().encode("utf-16"),
        b'<?xml version="1.0" encoding="windows-1252"?><log a="\x80"/>',
        b"<log>" + b"<trace><event/></trace>" * 100_000 + b"</log>",
    ],
)
def test_a_log_passes_as_xes(data: bytes) -> None:
    passes(data, "a.xes")


BILLION_LAUGHS = b'<!DOCTYPE log [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><log>&b;&b;&b;</log>'
EXTERNAL = b'<!DOCTYPE log SYSTEM "file:///etc/passwd"><log/>'


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (LOG[: LOG.index(b"</event>")], 'line 3: it is torn: it ends inside "event"'),
        (LOG[: LOG.index(b"value")], 'line 3: it is torn: it ends inside "event"'),
        (LOG[:22], "line 2: it is torn: it ends at once"),
        (LOG + LOG[22:], "line 4: something follows its end, </log>"),
        (LOG.replace(b"</event>", b""), "line 3: it is not well-formed at column "),
        (LOG + bytes(100), "line 4: it is not well-formed at column "),
        (b"<bpmn/>", 'its outermost element is "bpmn", not "log"'),
        (b"<html><p>Log in", 'its outermost element is "html", not "log"'),
        (b"a,b\n1,2", "line 1: it is not well-formed at column 1 "),
        (BILLION_LAUGHS, "line 1: it declares a document type"),
        (EXTERNAL, "line 1: it declares a document type"),
        (b"<log>&xxe;</log>", "line 1: it is not well-formed at column 6 (undefined entity)"),
        (b"<log>" * MIB, "line 1: its elements lie more than 1000 deep"),
        (b"<log>\n<a b='" + b"x" * (5 * MIB) + b"'/></log>", "line 2: it holds a tag of more than 4 MiB"),
        (b"<log>\n" + b"".join(b"<n%d/>" % n for n in range(11_000)) + b"</log>", "line 2: it has more than 10000"),
    ],
)
def test_what_is_wrong_with_xml_is_told_with_its_line(data: bytes, sentence: str) -> None:
    assert fails(data, "a.xes").startswith(sentence)


@pytest.mark.parametrize("encoding", ["gb2312", "no-such-encoding", "rot13", "base64", "idna", "utf-7"])
def test_xml_in_an_encoding_that_is_not_known_cannot_be_checked(encoding: str) -> None:
    finding = found(f'<?xml version="1.0" encoding="{encoding}"?><log a="x"/>'.encode(), "a.xes")
    assert finding.ok is None
    assert "encoding" in finding.sentence


def test_a_process_model_is_xml_with_another_root_and_has_no_columns() -> None:
    model = b'<bpmn:definitions xmlns:bpmn="http://www.omg.org/spec/BPMN/20100524/MODEL"></bpmn:definitions>'
    assert "columns are not looked for in .bpmn" in passes(model, "a.bpmn", Validate.HEADER, ["Case ID"])
    assert "columns are not looked for in .xes" in passes(LOG, "a.xes", Validate.HEADER, ["Case ID"])
    fails(model, "a.xes")


@given(st.integers(1, len(LOG) - 1))
def test_no_part_of_a_log_passes(kept: int) -> None:
    assert found(LOG[:kept], "a.xes").ok is False


# ---- workbooks ----------------------------------------------------------------------------------------------------


def workbook(*rows: Sequence[object], sheets: Callable[[openpyxl.Workbook], None] = lambda _: None) -> bytes:
    book, out = openpyxl.Workbook(), io.BytesIO()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    sheets(book)
    book.save(out)
    return out.getvalue()


def repacked(data: bytes, changes: dict[str, bytes | None], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive with other parts: None takes one out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        parts: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
        for name, content in (parts | changes).items():
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["xlsx", "xlsm", "xlsb"])
def test_a_workbook_passes(kind: str) -> None:
    passes(XLSX, f"a.{kind}")
    passes(workbook(["a", "b"], [1, 2]), f"a.{kind}")


def test_the_columns_of_a_workbook_are_found_in_its_first_row_with_content() -> None:
    columns = ["Case ID", "Activity"]
    passes(XLSX, "a.xlsx", Validate.HEADER, columns)
    passes(workbook([], [None, "Case ID ", "Activity", "7"], [None, 1, 2, 3]), "a.xlsx", Validate.HEADER, columns)
    assert "are not looked for in .xlsb" in passes(XLSX, "a.xlsb", Validate.HEADER, columns)
    sentence = fails(XLSX, "a.xlsx", Validate.HEADER, ["CaseID"])
    assert sentence == 'the header lacks the column "CaseID" (nearest: "Case ID")'
    assert "column 2 of 3 no name" in fails(workbook(["a", None, "c"]), "a.xlsx", Validate.HEADER)
    assert 'names 2 columns "a"' in fails(workbook(["a", "b", "a"]), "a.xlsx", Validate.HEADER)
    assert fails(workbook(), "a.xlsx", Validate.HEADER) == "there is no header row"


def test_the_first_sheet_counts_and_a_chart_is_none() -> None:
    def more(book: openpyxl.Workbook) -> None:
        book.create_chartsheet(index=0)
        book.create_sheet("later").append(["c"])

    passes(workbook(["a", "b"], sheets=more), "a.xlsx", Validate.HEADER, ["a"])
    assert "lacks" in fails(workbook(["a", "b"], sheets=more), "a.xlsx", Validate.HEADER, ["c"])


SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
BOOK, RELATIONS = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
HEAD = b"<worksheet><sheetData>"


def with_shared_texts(texts: str) -> bytes:
    """Return a workbook whose header row is the third and the first of its shared texts, as Excel itself keeps them."""
    row = b'<row r="1"><c r="A1" t="s"><v>2</v></c><c r="B1" t="s"><v>0</v></c><c r="C1" t="b"><v>1</v></c></row>'
    relation = '<Relationship Id="rId9" Type="x/sharedStrings" Target="/xl/sharedStrings.xml"/></Relationships>'
    with zipfile.ZipFile(io.BytesIO(XLSX)) as archive:
        relations = archive.read(RELATIONS).replace(b"</Relationships>", relation.encode())
    sheet = HEAD + row + b"</sheetData></worksheet>"
    return repacked(XLSX, {SHEET: sheet, STRINGS: f"<sst>{texts}</sst>".encode(), RELATIONS: relations})


def test_shared_texts_are_read_as_a_reader_of_the_sheet_sees_them() -> None:
    formatted = "<si><r><t>Case</t></r><r><t> ID</t></r><rPh sb='0' eb='1'><t>kei</t></rPh></si>"
    data = with_shared_texts(f"<si><t>Activity</t></si><si><t>never read</t></si>{formatted}<si>")
    passes(data, "a.xlsx", Validate.HEADER, ["Case ID", "Activity", "1"])


def test_a_shared_text_that_is_missing_is_a_column_without_a_name() -> None:
    data = with_shared_texts("<si><t>Activity</t></si>")
    assert fails(data, "a.xlsx", Validate.HEADER, ["Case ID"]) == 'the header lacks the column "Case ID"'
    data = with_shared_texts("<si><t/></si><si><t/></si><si><t>a</t></si>")
    assert fails(data, "a.xlsx", Validate.HEADER) == "the header gives column 2 of 3 no name"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({SHEET: HEAD + b"<row><c><v>1"}, 'torn: it ends inside "v"'),
        ({SHEET: b"no XML"}, "not well-formed"),
        ({SHEET: BILLION_LAUGHS}, "declares a document type"),
        ({SHEET: None}, 'it has no part "xl/worksheets/sheet1.xml"'),
        ({SHEET: HEAD + b"<c><v>1</v></c>" * 17_000}, "more than 16384 columns"),
        ({SHEET: HEAD + b"<a>" * 2000}, "more than 1000 deep"),
        ({SHEET: HEAD + b" " * (257 * MIB)}, "is not found within its first 256 MiB"),
        ({SHEET: b'<?xml version="1.0" encoding="gb2312"?><a/>'}, "encoding"),
        ({BOOK: b"<workbook/>"}, "it names no worksheet"),
        ({"_rels/.rels": b"<Relationships/>"}, "it names no officeDocument"),
        ({BOOK: b" " * (5 * MIB)}, "is not found within its first 4 MiB"),
    ],
)
def test_what_is_wrong_inside_a_workbook_is_told_when_its_header_is_asked_for(
    changes: dict[str, bytes | None], sentence: str
) -> None:
    data = repacked(workbook(["a", "b"]), changes)
    passes(data, "a.xlsx")
    finding = found(data, "a.xlsx", Validate.HEADER)
    assert sentence in finding.sentence
    assert finding.ok is (None if sentence == "encoding" else False)


def test_a_password_or_a_damaged_part_is_told() -> None:
    data = bytearray(XLSX)
    with zipfile.ZipFile(io.BytesIO(XLSX)) as archive:
        at = archive.getinfo(SHEET).header_offset
    data[at + 60 : at + 80] = bytes(20)
    assert "cannot be unpacked" in fails(bytes(data), "a.xlsx", Validate.HEADER)
    locked = XLSX.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")  # flag bit 0
    assert "cannot be unpacked" in fails(locked, "a.xlsx", Validate.HEADER)


@given(st.integers(1, len(XLSX) - 1))
def test_no_part_of_a_workbook_passes(kept: int) -> None:
    assert "torn" in fails(XLSX[:kept], "a.xlsx") or kept < 4


def test_a_workbook_in_a_torn_workbook_is_not_taken_for_it() -> None:
    outer = repacked(XLSX, {"xl/embeddings/inner.xlsx": XLSX}, zipfile.ZIP_STORED)
    kept = outer.index(XLSX) + len(XLSX)
    assert "is not its own" in fails(outer[:kept], "a.xlsx")


def far(offset: int) -> bytes:
    """Return a workbook of which a part is said to lie at `offset`, in the 64 bits of zip64 where it needs them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("far.xml", "")
        archive.infolist()[1].header_offset = offset
    return out.getvalue()


@pytest.mark.parametrize("offset", [1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_part_that_lies_where_no_file_reaches_is_told(offset: int) -> None:
    assert "a part is not where" in fails(far(offset), "a.xlsx")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_part_that_is_packed_in_a_way_which_no_workbook_has_is_not_unpacked(method: int) -> None:
    assert "packed as no workbook's part is" in fails(repacked(XLSX, {}, method), "a.xlsx", Validate.HEADER)


def test_what_is_no_workbook_is_told_by_what_it_looks_like() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "a")
    assert fails(out.getvalue(), "a.xlsx") == "it is a zip archive, but no Excel workbook"
    assert "looks like an old Office file (.xls), or one with a password" in fails(xls(), "a.xlsx")
    assert fails(b"a,b\n1,2", "a.xlsx") == "it is no Excel workbook (.xlsx)"
    hole = bytearray(XLSX)
    with zipfile.ZipFile(io.BytesIO(XLSX)) as archive:
        at = archive.infolist()[2].header_offset
    hole[at : at + 100] = bytes(100)
    assert "a part is not where" in fails(bytes(hole), "a.xlsx")


def test_a_zip_directory_of_any_size_is_not_read_as_a_whole() -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * (5 * MIB // len(entry))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, len(directory), 4, 0)
    assert "larger than that of any workbook" in fails(b"PK\x03\x04" + directory + end, "a.xlsx")


# ---- types known by their ends ------------------------------------------------------------------------------------


def xls(sectors: int = 4, directory: int = 2, shift: int = 9) -> bytes:
    head = bytearray(512)
    head[:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    struct.pack_into("<H", head, 0x1E, shift)
    struct.pack_into("<I", head, 0x30, directory)
    struct.pack_into("<109I", head, 0x4C, 3, *[0xFFFFFFFF] * 108)
    return bytes(head) + bytes(sectors << shift)


def test_an_old_workbook_has_its_tables_inside() -> None:
    assert "are not looked for in .xls" in passes(xls(), "a.xls", Validate.HEADER, ["x"])
    passes(b"\x09\x02\x06\x00" + bytes(20), "a.xls")
    assert "torn" in fails(xls(sectors=2), "a.xls")
    assert "torn" in fails(xls()[:300], "a.xls")
    assert "torn or damaged" in fails(xls(shift=2), "a.xls")
    assert fails(b"<html><table>", "a.xls").endswith("it looks like a web page, perhaps an error page")
    assert "(.xlsx)" in fails(XLSX, "a.xls")


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("a.parquet", b"PAR1" + bytes(50) + b"footer" + (6).to_bytes(4, "little") + b"PAR1"),
        ("a.orc", b"ORC" + bytes(50) + b"postscriptORC\x0d"),
    ],
)
def test_a_file_of_columns_has_its_magic_at_both_ends(name: str, whole: bytes) -> None:
    passes(whole, name)
    for kept in range(1, len(whole)):
        fails(whole[:kept], name)
    assert "image" in fails(b"GIF89a" + whole, name)


def test_json_is_parsed_where_it_is_small_and_matched_at_its_ends_where_it_is_large() -> None:
    small = b'{"events": [{"a": 1},\n {"b": "x"}]}'
    passes(small + b"\n", "a.json")
    for kept in range(1, len(small)):
        assert "torn" in fails(small[:kept], "a.json") or kept
    assert fails(b'{"a":\n 1} x', "a.json").startswith("line 2: it is no JSON")
    assert "UTF-8" in fails(b'{"a": "\xff"}', "a.json")
    large = b"[" + b'{"a": 1},' * (MIB // 4) + b"{}]"
    passes(b"\xef\xbb\xbf " + large + b"\n", "a.json")
    assert "torn" in fails(large[:-1], "a.json")
    assert "no bracket" in fails(b"x" + large, "a.json")
    assert found(b"[" * 100_000, "a.json").ok is None
    assert found(b"9" * 10_000, "a.json").ok is None


# ---- what strangers may write -------------------------------------------------------------------------------------

KINDS = (*READABLE_TYPES, "xlsm", "parquet", "orc", "json", "bpmn", "csv.gz", "xes.gz", "xlsx.gz", "gz")
MODEL = b'<definitions xmlns="http://www.omg.org/spec/BPMN/20100524/MODEL"><process id="p"/></definitions>'
SEEDS = (
    LOG,
    MODEL,
    MODEL.decode().encode("utf-16"),
    XLSX,
    far(1 << 33),
    *(repacked(XLSX, {}, method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)),
    workbook(["a", "b"], [1, 2]),
    b'a,b\n1,"x\ny"\n',
    gzip.compress(b"a,b\n1,2\n"),
    xls(),
    b'{"a": [1]}',
)


@given(data=st.binary(max_size=300), kind=st.sampled_from(KINDS), validate=st.sampled_from(Validate))
def test_no_bytes_are_an_error_of_the_check(data: bytes, kind: str, validate: Validate) -> None:
    assert found(data, f"a.{kind}", validate, ["a"]).sentence.isprintable()


@given(
    seed=st.sampled_from(SEEDS),
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=5),
)
def test_no_damage_is_an_error_of_the_check(seed: bytes, kind: str, changes: list[tuple[float, bytes]]) -> None:
    data = bytearray(seed)
    for where, what in changes:
        at = int(where * len(data))
        data[at : at + len(what)] = what
    assert found(bytes(data), f"a.{kind}", Validate.HEADER, ["a"]).sentence.isprintable()


FAR = (b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x80", b"\xff" * 4, b"\0" * 4, b"\x01\0\x08\0" + b"\xff" * 8)


@given(
    seed=st.sampled_from(SEEDS),
    kind=st.sampled_from(["xlsx", "xlsb", "xls", "xes", "csv", "bpmn"]),
    changes=st.lists(
        st.tuples(st.integers(0), st.integers(0, 70), st.sampled_from(FAR) | st.binary(min_size=1, max_size=4)),
        max_size=5,
    ),
)
def test_no_lie_about_sizes_and_places_is_an_error_of_the_check(
    seed: bytes, kind: str, changes: list[tuple[int, int, bytes]]
) -> None:
    """Changes strike the headers of a zip's parts and its directory, or else the beginning."""
    data = bytearray(seed)
    headers = [found.start() for found in re.finditer(b"PK", seed)] or [0]
    for which, behind, what in changes:
        at = headers[which % len(headers)] + behind
        data[at : at + len(what)] = what
    assert found(bytes(data), f"a.{kind}", Validate.HEADER, ["a"]).sentence.isprintable()
    with suppress(Broken):
        read_model(bytes(data))


def deflated(piece: bytes, times: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(piece) for _ in range(times)) + packer.flush()


HOSTILE: dict[str, tuple[Literal["csv", "csv.gz", "xes", "xes.gz", "foo.gz"], Callable[[], bytes]]] = {
    "a bomb of text": ("csv.gz", lambda: deflated(b"a,b\n" * (MIB // 4), 120)),
    "a bomb of anything": ("foo.gz", lambda: deflated(bytes(MIB), 120)),
    "a bomb of markup": ("xes.gz", lambda: deflated(b"<log>" * (MIB // 5), 100)),
    "one line": ("csv", lambda: b"x" * (24 * MIB)),
    "delimiters": ("csv", lambda: b"," * (24 * MIB)),
    "line breaks": ("csv", lambda: b"\n" * (6 * MIB)),
    "quotes": ("csv", lambda: b'"' * (16 * MIB + 1)),
    "lone quotes": ("csv", lambda: b'x"\n' * (MIB // 2) + b'"'),
    "a quote that is not closed": ("csv", lambda: b'"' + b"a,b\n" * (2 * MIB)),
    "many attributes": ("xes", lambda: b"<log " + b"".join(b'a%d="" ' % n for n in range(3_000_000)) + b"/>"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_does_not_grow_with_what_is_in_the_file(name: str) -> None:
    kind, data = HOSTILE[name]
    with tempfile.TemporaryFile() as file:
        file.write(data())
        file.flush()
        tracemalloc.start()
        try:
            check(file.fileno(), f"a.{kind}", validate=Validate.HEADER, require_columns=["a"])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 48 * MIB


def test_a_bomb_is_named() -> None:
    assert "unpacks to more than 250 times its size" in fails(deflated(bytes(MIB), 120), "a.gz")


# ---- real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("PMWATCH_TEST_DATA" not in os.environ, reason="PMWATCH_TEST_DATA names no directory of event logs")
def test_real_event_logs_pass() -> None:
    files = [path for path in Path(os.environ["PMWATCH_TEST_DATA"]).iterdir() if path.is_file()]
    findings = {path.name: found(path.read_bytes(), path.name) for path in files}
    checked = {name: finding for name, finding in findings.items() if finding.ok is not None}
    assert checked
    assert [finding for finding in checked.values() if not finding.ok] == []


def test_generated_event_logs_pass_and_every_cut_within_the_last_line_is_found() -> None:
    for delimiter in ",;\t|":
        data = csv_bytes(order_to_cash(50, seed=3), delimiter=delimiter)
        passes(data, "a.csv", Validate.HEADER, ["Case ID", "Activity", "Timestamp"])
        last = data.rstrip().rindex(b"\n") + 1
        for kept in range(last + 1, data.rindex(delimiter.encode()) + 1):
            assert "torn" in fails(data[:kept], "a.csv")


def test_a_check_that_breaks_down_in_a_way_that_nobody_thought_of_is_a_finding(tmp_path: Path) -> None:
    def breaks_down() -> None:
        raise IndexError("somewhere in a library")

    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n")
    with (tmp_path / "a.csv").open("rb") as file:
        found = check(file.fileno(), "a.csv", validate=Validate.STRUCTURE, beat=breaks_down)
    assert (found.ok, "IndexError" in found.sentence, "somewhere" in found.sentence) == (False, True, False)
