"""XLSX: each sheet is a section, each row one line "header: value; header: value", so that a row can be quoted whole."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from retrieval.parsers import Options, Parsed, clean
from retrieval.parsers.blocks import header_of, join_blocks, record_line
from retrieval.parsers.office import check

# Rows between two signs of life.
_BATCH = 1000
_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_PERCENT = re.compile(r"0(?:\.(0+))?%")


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import openpyxl

    check(path, name, "XLSX")
    workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
    blocks: list[tuple[str, str]] = []
    warnings: list[str] = []
    try:
        for sheet in workbook.worksheets:
            if sheet.sheet_state != "visible":
                warnings.append(f"{name}: the hidden sheet {sheet.title!r} was left out; show it to have it read")
                continue
            found = list(_sheet(sheet, options))
            if found:
                blocks.append(("heading", f"# {' '.join(clean(sheet.title).split())}"))
                blocks.extend(found)
            options.alive()
        title = clean(str(workbook.properties.title or "")).strip()
    finally:
        workbook.close()
    if missing := _uncalculated(path, options):
        count, first = len(missing), missing[0]
        warnings.append(
            f"{name}: {count} formulas (the first in {first}) have no stored value and were left out; "
            "open the workbook in its own program, save it, and ingest it again"
        )
    yield Parsed(title=title or PurePosixPath(name).stem, text=join_blocks(blocks), uri=name, warnings=tuple(warnings))


def _sheet(sheet: Any, options: Options) -> Iterator[tuple[str, str]]:
    # What a file says about its size may be wrong by millions of empty cells.
    sheet.reset_dimensions()
    header: list[str] | None = None
    waiting: list[str] = []  # a line with one cell: the title of a table if a header follows
    for number, row in enumerate(sheet.iter_rows()):
        if number % _BATCH == 0:
            options.alive()
        cells = [_text(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        filled = [cell for cell in cells if cell]
        if header is None and len(filled) == 1:
            waiting.append(filled[0])
            continue
        if header is None:
            yield from (("paragraph", title) for title in waiting)
            waiting = []
            header = header_of(cells)
            if header is not None:
                continue
            header = [f"column {column}" for column in range(1, len(cells) + 1)]
        yield "row", record_line(header, cells)
    if header is None:
        # A sheet of one column is a list.
        yield from (("row", line) for line in waiting)


def _uncalculated(path: Path, options: Options) -> list[str]:
    """The cells whose formula was never calculated, as in workbooks that a script wrote."""
    import lxml.etree  # type: ignore[import-untyped]

    found: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not _SHEET.fullmatch(member):
                continue
            with archive.open(member) as file:
                for number, (_, row) in enumerate(lxml.etree.iterparse(file, tag="{*}row", resolve_entities=False)):
                    if number % _BATCH == 0:
                        options.alive()
                    for formula in row.iterfind("{*}c/{*}f"):
                        cell = formula.getparent()
                        # The value of a formula may be an empty string.
                        if cell.get("t") != "str" and not cell.findtext("{*}v"):
                            found.append(str(cell.get("r")))
                    # What was read does not stay in memory.
                    row.clear()
                    while row.getprevious() is not None:
                        del row.getparent()[0]
    return found


def _text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, (int, float)):
        if found := _PERCENT.search(str(cell.number_format)):
            return f"{100 * value:.{len(found.group(1) or '')}f}%"
        # 15 digits, as the program shows them: 0.1 + 0.2 is 0.3.
        return format(value, ".15g") if isinstance(value, float) else str(value)
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return " ".join(clean(str(value)).split())
