"""Believable order-to-cash event logs, for the demo and the tests. The same seed gives the same bytes."""

import io
import random
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from xml.sax.saxutils import escape

HEADER: Final = ("Case ID", "Activity", "Timestamp", "Resource", "Amount", "Country")
_START: Final = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_COUNTRIES: Final = ("NL", "DE", "BE", "FR", "PL", "ES")
_PEOPLE: Final = ("A. de Vries", "M. Schäfer", "L. Peeters", "C. Lefèvre", "Z. Wójcik", "batch job")
_ZIP_TIME: Final = (2026, 1, 5, 8, 0, 0)  # without it the archive would hold the time of day

Row = tuple[str, str, str, str, str, str]


def order_to_cash(cases: int, *, seed: int, prefix: str = "SO") -> Iterator[Row]:
    """Yield the events of `cases` sales orders: most straight through, some changed, blocked or returned."""
    chance = random.Random(seed)  # noqa: S311  data, not secrets
    for number in range(cases):
        case = f"{prefix}-{seed:02d}{number:06d}"
        amount = f"{chance.lognormvariate(6, 1):.2f}"
        country = chance.choice(_COUNTRIES)
        at = _START + timedelta(minutes=chance.randrange(60 * 24 * 28))
        for activity in _activities(chance):
            yield case, activity, at.isoformat(timespec="seconds"), chance.choice(_PEOPLE), amount, country
            at += timedelta(minutes=chance.expovariate(1 / 600))


def _activities(chance: random.Random) -> list[str]:
    path = ["Create Order", "Check Credit"]
    if chance.random() < 0.12:
        path += ["Block Order", "Release Order"]
    path += ["Confirm Order"]
    path += ["Change Quantity"] * chance.choice((0, 0, 0, 1, 2))
    path += ["Pick Goods", "Ship Goods", "Create Invoice", "Send Invoice"]
    if chance.random() < 0.2:
        path += ["Send Reminder"]
    return path if chance.random() < 0.05 else [*path, "Receive Payment"]


def csv_bytes(rows: Iterator[Row], *, delimiter: str = ",") -> bytes:
    """Return rows as CSV with a header, UTF-8. No field of ours needs quotes."""
    return "".join(f"{delimiter.join(row)}\n" for row in (HEADER, *rows)).encode()


def xlsx_bytes(rows: Iterator[Row]) -> bytes:
    """Return rows as a minimal XLSX workbook (ECMA-376: content types, workbook, one sheet, inline strings)."""
    lines = (
        "<row>" + "".join(f'<c t="inlineStr"><is><t>{escape(cell)}</t></is></c>' for cell in row) + "</row>"
        for row in (HEADER, *rows)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relationships = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "application/vnd.openxmlformats-package.relationships+xml"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        f'<Default Extension="rels" ContentType="{package}"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{relationships}"><Relationship Id="rId1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="Event log" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{relationships}"><Relationship Id="rId1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            xml = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n' + text
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), xml.encode(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
