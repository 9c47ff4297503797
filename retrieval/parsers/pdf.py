"""PDF: the text layer page by page; wrapped lines are joined again, and aligned columns become `| a | b |` rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval import structure
from retrieval.parsers import Parsed, ParseError, clean
from retrieval.parsers.blocks import row_line
from retrieval.parsers.plain import title_of

_GAP = re.compile(r" {2,}")
_PIECE = re.compile(r"\S+(?: \S+)*")
# Columns may differ by this many positions from line to line.
_ALIGNED = 2
# A line this close to the widest line of its page was broken by the page's margin.
_FULL = 0.8


def parse(path: Path, name: str) -> Iterator[Parsed]:
    import pypdf
    from pypdf.errors import PyPdfError

    # pypdf reports every oddity of a damaged file through its logger; what matters comes as an exception or an empty page.
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ParseError(f"{name}: the PDF is encrypted; remove the password and ingest it again")
        texts = [_page_text(page) for page in reader.pages]
        metadata = reader.metadata
    except PyPdfError as error:
        raise ParseError(f"{name}: the PDF is damaged ({error}); open it in a viewer, print it to a new PDF, and ingest that") from error
    empty = [number for number, text in enumerate(texts, 1) if not text]
    if len(empty) == len(texts):
        raise ParseError(f"{name}: no page has a text layer (scanned pages?); run OCR on it and ingest the result")
    parts: list[str] = []
    pages: list[tuple[int, int, int]] = []
    position = 0
    for number, text in enumerate(texts, 1):
        if text:
            parts.append(text + "\n\n")
            pages.append((position, position + len(text), number))
            position += len(text) + 2
    whole = "".join(parts)
    title = clean(str((metadata.title if metadata else None) or "")).strip()
    yield Parsed(
        title=title if title and title.lower() not in ("untitled", "(anonymous)", "(unspecified)") else title_of(whole, name),
        text=whole,
        uri=name,
        pages=tuple(pages),
        warnings=(f"{name}: no text layer on page {', '.join(map(str, empty))}",) if empty else (),
    )


def _page_text(page: Any) -> str:
    lines = clean(page.extract_text(extraction_mode="layout", layout_mode_space_vertically=False)).split("\n")
    if _is_two_column(lines):
        lines = [_GAP.sub(" ", line) for line in clean(page.extract_text()).split("\n")]
    return _paragraphs(_logical_lines([line.rstrip() for line in lines if line.strip()]))


def _is_two_column(lines: list[str]) -> bool:
    """Whether most lines hold two long pieces side by side: columns of prose, which layout order would interleave."""
    filled = [line.strip() for line in lines if line.strip()]
    split = [pieces for line in filled if len(pieces := _GAP.split(line)) == 2 and min(map(structure.width, pieces)) >= 25]
    return len(split) > 0.5 * len(filled)


def _logical_lines(lines: list[str]) -> list[str]:
    """Joins wrapped prose, and turns aligned pieces into table rows, with wrapped cells joined to the row above."""
    full = _FULL * max((structure.width(line.strip()) for line in lines if not _GAP.search(line.strip())), default=0)
    out: list[str] = []
    row: dict[int, str] = {}  # the open table row: column position -> cell
    wrapped = False
    for line in lines:
        pieces = {found.start(): found.group() for found in _PIECE.finditer(line)}
        if row and _wraps_row(pieces, list(row)):
            for position, piece in pieces.items():
                column = min(row, key=lambda known: abs(known - position))
                row[column] = _glue(row[column], piece)
            continue
        if row:
            out.append(row_line(list(row.values())))
            row = {}
        if len(pieces) > 1:
            row, wrapped = pieces, False
            continue
        prose = line.strip()
        if wrapped and not structure.starts_block(prose):
            out[-1] = _glue(out[-1], prose)
        else:
            out.append(prose)
        wrapped = structure.width(prose) >= full and structure.heading(prose, alone=True) is None
    if row:
        out.append(row_line(list(row.values())))
    return out


def _wraps_row(pieces: dict[int, str], columns: list[int]) -> bool:
    """Whether a line holds only second lines of cells of the row above, judged by the columns its pieces begin at."""
    if len(pieces) >= len(columns) or not all(any(abs(start - column) <= _ALIGNED for column in columns) for start in pieces):
        return False
    first, text = next(iter(pieces.items()))
    if abs(first - columns[0]) > _ALIGNED:
        return True
    return len(pieces) == 1 and text[0].islower() and structure.width(text) < columns[1] - columns[0]


def _glue(left: str, right: str) -> str:
    # "pre-" + "printed" keeps its hyphen; Chinese lines join without a space.
    return left + ("" if left[-1] == "-" or structure.width(left[-1]) == 2 or structure.width(right[0]) == 2 else " ") + right


def _paragraphs(lines: list[str]) -> str:
    """The lines as text, with blank lines around headings and behind tables."""
    levels = [found[0] if (found := structure.heading(line, alone=True)) else None for line in lines]
    out: list[str] = []
    for index, line in enumerate(lines):
        # Several numbered lines of one level in a row are a list, not headings.
        title = levels[index] is not None and levels[index] not in levels[max(0, index - 1) : index] + levels[index + 1 : index + 2]
        if out and out[-1] and (title or (structure.is_row(lines[index - 1]) and not structure.is_row(line))):
            out.append("")
        out.append(line)
        if title:
            out.append("")
    return "\n".join(out).strip()
