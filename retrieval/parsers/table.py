"""CSV and TSV: each row becomes one line "header: value; header: value", so that a row can be quoted whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from retrieval.parsers import Parsed, ParseError, clean
from retrieval.parsers.plain import decode

_SAMPLE = 1 << 16
# The csv module refuses longer fields unless told otherwise; a longer one is a missing quote.
_FIELD_LIMIT = 131_072


def parse(path: Path, name: str) -> Iterator[Parsed]:
    content = clean(decode(path.read_bytes(), name))
    reader = csv.reader(io.StringIO(content, newline=""), _dialect(content[:_SAMPLE], path.suffix.lower()))
    header: list[str] | None = None
    lines: list[str] = []
    try:
        for row in reader:
            cells = [" ".join(cell.split()) for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = _header(cells)
                if header is cells:
                    continue
            lines.append("; ".join(f"{_name(header, column)}: {cell}" for column, cell in enumerate(cells) if cell))
    except csv.Error as error:
        raise ParseError(
            f"{name}: line {reader.line_num}: {error}; expected rows of fields below {_FIELD_LIMIT} characters, check the quotes"
        ) from error
    if header is not None and not lines:
        lines = ["; ".join(header)]
    yield Parsed(title=PurePosixPath(name).stem, text="".join(line + "\n" for line in lines), uri=name)


def _dialect(sample: str, suffix: str) -> type[csv.Dialect] | csv.Dialect:
    fallback: type[csv.Dialect] = csv.excel_tab if suffix == ".tsv" else csv.excel
    first = sample.split("\n", 1)[0]
    counts = {mark: first.count(mark) for mark in ",;\t|"}
    likely = max(counts, key=lambda mark: counts[mark])
    if counts[likely] == 0 or likely == fallback.delimiter:
        return fallback
    if suffix == ".tsv" and counts["\t"]:
        return fallback

    class Sniffed(csv.excel):
        delimiter = likely

    return Sniffed


def _header(cells: list[str]) -> list[str]:
    """`cells` itself if it can be a header: all different, none empty, none a number; else numbered columns."""
    if len(set(cells)) == len(cells) and all(cells) and not any(_is_number(cell) for cell in cells):
        return cells
    if any(cells) and not any(_is_number(cell) for cell in cells):
        named = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
        if len(set(named)) == len(named):
            cells[:] = named
            return cells
    return [f"column {number}" for number in range(1, len(cells) + 1)]


def _name(header: list[str], column: int) -> str:
    return header[column] if column < len(header) else f"column {column + 1}"


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("%", "").lstrip("+-").isdigit()
