"""JSONL corpora: one document a line; see `retrieval.parsers.rows` for the fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Options, Parsed, ParseError, Skipped
from retrieval.parsers.rows import documents

# A longer line is a file without newlines, not a document.
_LINE_BYTES = 512 << 20


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed | ParseError | Skipped]:
    yield from documents(_rows(path, name), name, "line")


def _rows(path: Path, name: str) -> Iterator[tuple[int, dict[str, Any] | ParseError]]:
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(_LINE_BYTES), b""), 1):
            if len(raw) == _LINE_BYTES:
                raise ParseError(f"{name}: line {number} is longer than {_LINE_BYTES >> 20} MB; expected one JSON object a line")
            if raw.strip():
                yield number, _row(raw, f"{name}: line {number}")


def _row(raw: bytes, where: str) -> dict[str, Any] | ParseError:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return ParseError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8")
    except (ValueError, RecursionError) as error:  # An integer of thousands of digits is a plain ValueError.
        return ParseError(f"{where}: not valid JSON ({error}); expected one JSON object a line")
    if not isinstance(row, dict):
        return ParseError(f"{where}: expected a JSON object with id and text, found {type(row).__name__}")
    return row
