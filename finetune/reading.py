"""From a file to its raw rows: encodings, JSON lines, JSON, CSV. What the rows mean is decided in `finetune.dataset`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.types import DatasetError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# A whole JSON or CSV file is held in memory; JSON lines are not bounded in number, only in length.
MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Excluded:
    """A row that cannot be used: where it is and why. `field` is '' when the row as a whole is at fault."""

    file: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        field = f', field "{self.field}"' if self.field else ""
        return f"{self.file} row {self.row}{field}: {self.reason}"


Row = tuple[int, dict[str, Any] | Excluded]


def read_rows(path: Path) -> list[Row]:
    """Every row of `path` with its number (from 1: the line of JSON lines, the record of other formats).

    A row that is not an object comes as `Excluded`. Raises DatasetError where the file as a whole cannot be read.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; name one file of it ({', '.join(FORMATS)})")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DatasetError(f"{path}: unknown format {suffix or '(no ending)'}; expected a file ending in {', '.join(FORMATS)}")
    with path.open("rb") as handle:
        head = handle.read(4)
    if not head:
        raise DatasetError(f"{path}: the file is empty; expected at least one row")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DatasetError(f"{path}: the file is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if suffix in (".jsonl", ".ndjson"):
        return list(_json_lines(path))
    text = _whole(path)
    return list(_json(path, text) if suffix == ".json" else _csv(path, text, suffix))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        number = 0
        while line := handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DatasetError(
                    f"{path} row {number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; put each row on a line of its own"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _line(path, number, line)


def _line(path: Path, number: int, line: bytes) -> dict[str, Any] | Excluded:
    if b"\0" in line:
        return Excluded(path.name, number, "", "contains NUL bytes; the file is damaged or not text, export it again as UTF-8")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Excluded(path.name, number, "", _not_utf8(error, line))
    try:
        return _object(path, number, _parse(text))
    except (ValueError, RecursionError) as error:
        return Excluded(path.name, number, "", f"not valid JSON ({error}); expected one object a line, complete it or remove the line")


def _json(path: Path, text: str) -> Iterator[Row]:
    try:
        data = _parse(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: not valid JSON ({error}); the file may be cut off: export it again, or name it .jsonl if it has one object a line"
        ) from error
    if not isinstance(data, list):
        raise DatasetError(f"{path}: expected a list of rows, found {kind(data)}; write [{{...}}, {{...}}]")
    for number, item in enumerate(data, 1):
        yield number, _object(path, number, item)


def _csv(path: Path, text: str, suffix: str) -> Iterator[Row]:
    header = text.split("\n", 1)[0]
    # Spreadsheets of many countries write semicolons into .csv.
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not all(names):
            raise DatasetError(
                f"{path}: column {names.index('') + 1 if names else 1} of the header has no name; the first line must name every column"
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f'{path}: the header names the column "{twice}" twice; rename one')
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(names):
                reason = f"has {len(cells)} cells, the header has {len(names)}; quote cells that contain {delimiter!r}"
                yield number, Excluded(path.name, number, "", reason)
                continue
            yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise DatasetError(f"{path} line {reader.line_num}: not valid CSV ({error}); check the quotes around there") from error


def _whole(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DatasetError(
            f"{path}: {size >> 20} MiB, more than the {MAX_FILE_BYTES >> 20} MiB read at once; convert it to JSON lines (.jsonl)"
        )
    data = path.read_bytes()
    if b"\0" in data:
        raise DatasetError(
            f"{path}: contains NUL bytes (first at byte {data.index(0)}); the file is damaged or not text, export it again as UTF-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {_not_utf8(error, data)}") from error


def _not_utf8(error: UnicodeDecodeError, data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:65536]).best()
    guess = best.encoding if best is not None else "an unknown encoding"
    return f"not UTF-8 at byte {error.start} (looks like {guess}); save it as UTF-8 (iconv -f {guess.upper()} -t UTF-8)"


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice}" appears twice')
    return found


def _constant(name: str) -> None:
    """NaN is how data frames write a missing value; infinities are not JSON."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON value")


def _object(path: Path, number: int, item: Any) -> dict[str, Any] | Excluded:
    if isinstance(item, dict):
        return item
    return Excluded(path.name, number, "", f'expected an object like {{"question": ..., "answer": ...}}, found {kind(item)}')


def kind(value: Any) -> str:
    """What a JSON value is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"true/false ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "a list" if isinstance(value, list) else "an object"
