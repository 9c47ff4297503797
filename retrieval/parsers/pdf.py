"""PDF: the text layer page by page, tables from their ruling lines; pages without one that can be read are named, or read by OCR where
that is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Options, Parsed, ParseError, clean
from retrieval.parsers.layout import Line, Table, Word, glue, heading_sizes, page_lines, page_text
from retrieval.parsers.plain import title_of

# Pages with more ruling lines than this are drawings; looking for tables in them takes minutes.
_MAX_EDGES = 4000
# A page that is mostly a picture with less text than this is a scan with a stamp on it.
_STAMP = 40
# A page without letters but with more curves than an ornament has: letters drawn as outlines, or a drawing.
_ORNAMENT = 20
# What stands for a letter of a font without a map to Unicode, and the share of them that makes the text of a page useless.
_UNKNOWN, _USELESS = re.compile(r"\(cid:\d+\)"), 0.1
# Why the text of a page is missing.
_SCANNED = "scanned, without a text layer"
_DRAWN = "drawn, without letters"
_UNMAPPED = "in fonts that do not say which letters they show"
_EMPTY_TITLES = ("untitled", "(anonymous)", "(unspecified)")


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import pdfplumber
    from pdfminer.pdfdocument import PDFPasswordIncorrect
    from pdfminer.pdfexceptions import PDFException
    from pdfplumber.utils.exceptions import PdfminerException

    # pdfminer reports every oddity of a damaged file through its logger; what matters comes as an exception or an empty page.
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    pages: list[list[Line]] = []
    missing: dict[str, list[int]] = {}
    try:
        with pdfplumber.open(path) as document:
            for page in document.pages:
                lines, why = _read(page)
                if why and options.ocr:
                    from retrieval.parsers.ocr import page_lines as recognise

                    lines, why = recognise(page, name, options), ""
                pages.append(lines)
                if why:
                    missing.setdefault(why, []).append(page.page_number)
                page.close()
                options.alive()
            title = clean(str(document.metadata.get("Title") or "")).strip()
    except (PdfminerException, PDFException) as error:
        if isinstance(error, PDFPasswordIncorrect) or any(isinstance(cause, PDFPasswordIncorrect) for cause in error.args):
            raise ParseError(f"{name}: the PDF is encrypted; remove the password and ingest it again") from error
        reason = str(error).strip() or type(error).__name__
        raise ParseError(f"{name}: the PDF is damaged ({reason}); open it in a viewer, print it to a new PDF, and ingest that") from error
    if not pages:
        raise ParseError(f"{name}: the PDF has no pages, or is damaged; open it in a viewer, print it to a new PDF, and ingest that")
    if not any(pages):
        why = f" (they are {'; '.join(missing)})" if missing else ""
        raise ParseError(f"{name}: there is no text on any page{why}; {_OCR_HINT}")
    yield _document(pages, title if title.lower() not in _EMPTY_TITLES else "", missing, name)


_OCR_HINT = 'install the OCR extra (pip install "appliance[ocr]", and Tesseract) and set [ingest] ocr = true, or ingest a version with text'


def _document(pages: list[list[Line]], title: str, missing: dict[str, list[int]], name: str) -> Parsed:
    sizes = heading_sizes([line for lines in pages for line in lines])
    parts: list[str] = []
    spans: list[tuple[int, int, int]] = []
    position = 0
    for number, lines in enumerate(pages, 1):
        if text := page_text(lines, sizes):
            parts.append(text + "\n\n")
            spans.append((position, position + len(text), number))
            position += len(text) + 2
    whole = "".join(parts)
    warnings = tuple(
        f"{name}: {'page' if len(numbers) == 1 else 'pages'} {', '.join(map(str, numbers))}: {why}, and left out; {_OCR_HINT}"
        for why, numbers in missing.items()
    )
    return Parsed(title=title or title_of(whole, name), text=whole, uri=name, pages=tuple(spans), warnings=warnings)


def _read(page: Any) -> tuple[list[Line], str]:
    """The lines of a page, and why there are none of what it shows ("": they are there)."""
    from pdfplumber.utils.text import extract_words

    chars = page.chars
    unknown = [char for char in chars if _UNKNOWN.fullmatch(char["text"])]
    if len(unknown) > _USELESS * len(chars):
        return [], _UNMAPPED
    for char in unknown:
        char["text"] = "\ufffd"
    found = extract_words(_once(chars), x_tolerance_ratio=0.25)
    words = [
        Word(text, float(w["x0"]), float(w["x1"]), float(w["top"]), float(w["bottom"]), max(float(w["bottom"] - w["top"]), 1.0))
        for w in found
        if (text := clean(w["text"]).strip())
    ]
    letters = sum(len(word.text) for word in words)
    pictures = sum(image["width"] * image["height"] for image in page.images)
    if page.images and (not words or (letters < _STAMP and pictures > 0.5 * page.width * page.height)):
        return [], _SCANNED
    if not words and len(page.curves) > _ORNAMENT:
        return [], _DRAWN
    return page_lines(words, _tables(page)), ""


def _once(chars: list[Any]) -> list[Any]:
    """The letters without those printed again within a point, which is how some programs make text bold."""
    seen: set[tuple[str, int, int]] = set()
    out: list[Any] = []
    for char in chars:
        # In half points.
        x, y = round(2 * char["x0"]), round(2 * char["top"])
        if any((char["text"], x + dx, y + dy) in seen for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
            continue
        seen.add((char["text"], x, y))
        out.append(char)
    return out


def _tables(page: Any) -> list[Table]:
    if not 4 <= len(page.edges) <= _MAX_EDGES:
        return []
    tables: list[Table] = []
    for found in page.find_tables():
        grid = [[_cell_text(cell or "") for cell in row] for row in found.extract()]
        if len(grid) < 2 or len(grid[0]) < 2 or sum(bool(cell) for row in grid for cell in row) < 3:
            continue
        left, top, right, bottom = found.bbox
        tables.append(Table(left, right, top, bottom, _fill_merged(found, grid)))
    return tables


def _fill_merged(table: Any, grid: list[list[str]]) -> list[list[str]]:
    """Repeats the text of a cell that spans several rows in each of them, so that a row says all of itself."""
    for number, row in enumerate(table.rows):
        for column, cell in enumerate(row.cells):
            if cell is None and number and (above := _spanning(table, number, column)) is not None and above < number:
                grid[number][column] = grid[above][column]
    return grid


def _spanning(table: Any, number: int, column: int) -> int | None:
    """The row above whose cell in this column reaches down into row `number`."""
    middle = (table.rows[number].bbox[1] + table.rows[number].bbox[3]) / 2
    for above in range(number - 1, -1, -1):
        if (cell := table.rows[above].cells[column]) is not None:
            return above if cell[3] > middle else None
    return None


def _cell_text(cell: str) -> str:
    text = ""
    for line in clean(cell).split("\n"):
        text = glue(text, line.strip())
    return text
