"""CSV and TSV: each row becomes one line "header: value; header: value", so that a row can be quoted whole.

A table with a column of questions and one of answers (and none named text) holds pairs: each row is a document.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from retrieval.parsers import Options, Parsed, ParseError, Skipped, clean
from retrieval.parsers.blocks import header_of, record_line
from retrieval.parsers.plain import decode, decode_known
from retrieval.parsers.rows import documents, is_pair

_SAMPLE = 1 << 16
# Rows between two signs of life.
_BATCH = 10_000
# The csv module refuses longer fields unless told otherwise; a longer one is a missing quote.
_FIELD_LIMIT = 131_072


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed | ParseError | Skipped]:
    content = clean(decode(path.read_bytes(), name))
    rows = _rows(content, path, name)
    first = next(rows, (0, []))[1]
    if is_pair(first):
        yield from documents(_pairs(first, rows), name, "line")
        return
    # Written, not collected: millions of short strings would take five times the memory.
    text = io.StringIO()
    names = _flat(first)
    if (header := header_of(names)) is None:
        header = [f"column {number}" for number in range(1, len(names) + 1)]
        text.write(record_line(header, names) + "\n")
    for count, (_, row) in enumerate(rows):
        if line := record_line(header, _flat(row)):
            text.write(line + "\n")
        if count % _BATCH == 0:
            options.alive()
    if header and not text.tell():
        text.write("; ".join(header) + "\n")
    yield Parsed(title=PurePosixPath(name).stem, text=text.getvalue(), uri=name)


def is_pairs(path: Path) -> bool:
    """Whether the table's first row names a question and an answer, and no text. No encoding is guessed here: this is no child."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE)
    # Up to the last whole line, so that no character is cut.
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    try:
        text = decode_known(sample, path.name)
        # The English names are the same in every other encoding.
        text = sample.decode("latin-1") if text is None else text
        return is_pair(next(_rows(clean(text), path, path.name), (0, []))[1])
    except ParseError:
        return False  # What is wrong with the file is said when it is parsed.


def _rows(content: str, path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold anything, with the numbers of their last lines."""
    reader = csv.reader(_lines(content), _dialect(content[:_SAMPLE], path.suffix.lower()))
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ParseError(
            f"{name}: line {reader.line_num}: {error}; expected rows of fields below {_FIELD_LIMIT} characters, check the quotes"
        ) from error


def _pairs(header: list[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    names = [name.strip() for name in header]
    for number, row in rows:
        yield number, {name: cell for name, cell in zip(names, row, strict=False) if name and cell.strip()}


def _flat(row: list[str]) -> list[str]:
    return [" ".join(cell.split()) for cell in row]


def _lines(content: str) -> Iterator[str]:
    start = 0
    while start < len(content):
        stop = content.find("\n", start) + 1 or len(content)
        yield content[start:stop]
        start = stop


def _dialect(sample: str, suffix: str) -> type[csv.Dialect]:
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
