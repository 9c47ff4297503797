"""From a file to its raw rows: encodings, JSON lines, JSON, CSV, Parquet, Arrow. What the rows mean is decided elsewhere."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.types import DatasetError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# A whole JSON or CSV file is held in memory; JSON lines are not bounded in number, only in length.
MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 16 * 2**20
# Parquet compresses well: what counts is its size once unpacked.
MAX_TABLE_BYTES = 2**30
# In GB18030, real Chinese data sets consist of the 3,755 common characters of GB 2312 and its punctuation to 0.95 and more; UTF-8, Big5 and
# Western text read as GB18030 to 0.13 at most.
_CHINESE_SHARE = 0.8
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SEP = re.compile(r"sep=([,;\t|])\r?\n", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
# Where the end of a CSV file's header is looked for.
_HEADER_CHARS = 65536


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


@dataclass(frozen=True, slots=True)
class Row:
    """One row: an object with its number (from 1: the line of JSON lines, the record of other formats), or why it is none.

    `copy` counts from 1 where a data set asks for the same row more than once.
    """

    file: str
    number: int
    value: dict[str, Any] | Excluded
    copy: int = 1


@dataclass(frozen=True, slots=True)
class FileRows:
    """Every row of a file. `notes` say what was taken for granted, such as its encoding."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


def read_rows(path: Path) -> FileRows:
    """Every row of `path`, by its ending. Text is UTF-8, or else UTF-16 (with a byte order mark) or GB18030, which is noted.

    Raises DatasetError where the file as a whole cannot be read.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; name one file of it ({', '.join(FORMATS)})")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DatasetError(f"{path}: unknown format {suffix or '(no ending)'}; expected a file ending in {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: the file is empty; expected at least one row")
    if suffix in (".parquet", ".arrow"):
        return FileRows(list(_table(path, suffix)))
    encoding = _encoding(path)
    notes = () if encoding == "utf-8" else (f"{path.name}: read as {encoding.upper()}",)
    if suffix in (".csv", ".tsv"):
        return FileRows(list(_csv(path, _whole(path, encoding), suffix)), notes)
    if suffix == ".json":
        return _list_or_lines(path, _whole(path, encoding), notes)
    return _lines_or_list(path, encoding, notes)


def parse_json(text: str) -> Any:
    """`json.loads` that refuses a key given twice and numbers beyond a float, and reads NaN as null.

    Raises ValueError or RecursionError.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number)


def torn(value: Any) -> bool:
    """Whether a text in `value` holds half of a surrogate pair, which JSON can spell and nothing can store. Raises RecursionError."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return True
    return False


def read_text(path: Path) -> str:
    """The whole text of `path`, in whichever of the encodings it is. Raises DatasetError."""
    return _whole(path, _encoding(path))


def kind(value: Any) -> str:
    """What a value is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"true/false ({str(value).lower()})"
    if isinstance(value, int | float):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, bytes):
        return "binary data"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _lines_or_list(path: Path, encoding: str, notes: tuple[str, ...]) -> FileRows:
    """JSON lines; a list that was named .jsonl is a list all the same."""
    with path.open("rb") as handle:
        opens = handle.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if opens == b"[" and path.stat().st_size <= MAX_FILE_BYTES:
        try:
            text = _whole(path, encoding)
            data = parse_json(text)
        except (ValueError, RecursionError, DatasetError):
            data = None
        if isinstance(data, list) and all(isinstance(item, dict) for item in data):
            return FileRows(_listed(path, text, data), (*notes, f"{path.name}: read as one JSON list"))
    lines = _json_lines(path) if encoding == "utf-8" else _text_lines(path, _whole(path, encoding))
    return FileRows(list(lines), notes)


def _list_or_lines(path: Path, text: str, notes: tuple[str, ...]) -> FileRows:
    """A JSON list; JSON lines are commonly named .json too."""
    try:
        data = parse_json(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            return FileRows(list(_text_lines(path, text)), (*notes, f"{path.name}: read as JSON lines, one object a line"))
        raise DatasetError(f"{path}: not valid JSON ({error}); the file may be cut off: export it again") from error
    if not isinstance(data, list):
        raise DatasetError(f"{path}: expected a list of rows, found {kind(data)}; write [{{...}}, {{...}}]")
    return FileRows(_listed(path, text, data), notes)


def _listed(path: Path, text: str, data: list[Any]) -> list[Row]:
    """The rows of a list that was written as `text`."""
    spelt = _SURROGATE.search(text) is not None
    return [Row(path.name, number, _object(path, number, item, spelt)) for number, item in enumerate(data, 1)]


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        number = 0
        while line := handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = handle.readline(MAX_LINE_BYTES)
                reason = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; shorten it, or put each row on a line of its own"
                yield Row(path.name, number, Excluded(path.name, number, "", reason))
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if b"\0" in line:
                reason = "contains NUL bytes; the file is damaged or not text, export it again as UTF-8"
                yield Row(path.name, number, Excluded(path.name, number, "", reason))
            elif line.strip():
                try:
                    yield Row(path.name, number, _line(path, number, line.decode("utf-8")))
                except UnicodeDecodeError as error:
                    yield Row(path.name, number, Excluded(path.name, number, "", _not_utf8(error, line)))


def _text_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Row(path.name, number, _line(path, number, line))


def _line(path: Path, number: int, text: str) -> dict[str, Any] | Excluded:
    try:
        return _object(path, number, parse_json(text), _SURROGATE.search(text) is not None)
    except (ValueError, RecursionError) as error:
        return Excluded(path.name, number, "", f"not valid JSON ({error}); expected one object a line, complete it or remove the line")


def _csv(path: Path, text: str, suffix: str) -> Iterator[Row]:
    # Excel names the delimiter in a line of its own before the header.
    named = _SEP.match(text)
    text = text[named.end() :] if named else text
    # What a name of the header holds between quotes says nothing.
    header = _QUOTED.sub("", text[:_HEADER_CHARS]).split("\n", 1)[0]
    # Spreadsheets of many countries write semicolons into .csv.
    delimiter = named[1] if named else "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    # The limit is the process's: it is only ever raised, so that files read at once do not disturb each other. Ours is a row's error later.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FILE_BYTES))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        if not all(names):
            raise DatasetError(
                f"{path}: column {names.index('') + 1 if names else 1} of the header has no name; the first line must name every column"
            )
        _distinct(path, names)
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(names):
                reason = f"has {len(cells)} cells, the header has {len(names)}; quote cells that contain {delimiter!r}"
                yield Row(path.name, number, Excluded(path.name, number, "", reason))
                continue
            yield Row(path.name, number, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        line = reader.line_num + bool(named)
        raise DatasetError(f"{path} line {line}: not valid CSV ({error}); check the quotes around there") from error


def _table(path: Path, suffix: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if suffix == ".parquet":
            file = pq.ParquetFile(path)
            size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
            _small_enough(path, size)
            table = file.read()
        else:
            table = _arrow(path)
            _small_enough(path, table.nbytes)
        _distinct(path, table.column_names)
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: not a readable {suffix[1:]} file ({reason}); it may be cut off: export it again") from error
    for number, row in enumerate(rows, 1):
        yield Row(path.name, number, finite(row))


def finite(value: Any) -> Any:
    """The value with null for NaN, which is how data frames write a missing one, and text for infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    # Tables give the entries of a map as tuples.
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _arrow(path: Path) -> Any:
    """Both Arrow formats: the stream that data set libraries save, and the file with a footer."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        magic = source.read(6)
        source.seek(0)
        return pa.ipc.open_file(source).read_all() if magic == b"ARROW1" else pa.ipc.open_stream(source).read_all()


def _small_enough(path: Path, size: int) -> None:
    if size > MAX_TABLE_BYTES:
        raise DatasetError(f"{path}: {size >> 20} MiB unpacked, more than the {MAX_TABLE_BYTES >> 20} MiB read at once; split the file")


def _distinct(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f'{path}: the header names the column "{twice}" twice; rename one')


def _encoding(path: Path) -> str:
    """ "utf-8", "utf-16" (by its mark) or "gb18030" (by its characters); what is none of them is left to fail as UTF-8."""
    with path.open("rb") as handle:
        head = handle.read(4)
        if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
            raise DatasetError(f"{path}: the file is UTF-32; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)")
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        handle.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        while block := handle.read(1 << 20):
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError:
                return "gb18030" if _is_chinese(block) else "utf-8"
            if not text.isascii():
                # A file with a megabyte of good UTF-8 is a UTF-8 file, whatever is wrong further down.
                return "utf-8"
    return "utf-8"


def _is_chinese(data: bytes) -> bool:
    """Whether the bytes read as GB18030 are everyday Chinese: Western or UTF-8 bytes read so give rare characters."""
    wide = [character for character in data.decode("gb18030", "replace") if not character.isascii()]
    leads = [character.encode("gb2312", "ignore")[:1] for character in wide]
    common = sum(b"\xa1" <= lead <= b"\xa3" or b"\xb0" <= lead <= b"\xd7" for lead in leads)
    return bool(wide) and common >= _CHINESE_SHARE * len(wide)


def _whole(path: Path, encoding: str) -> str:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DatasetError(
            f"{path}: {size >> 20} MiB, more than the {MAX_FILE_BYTES >> 20} MiB read at once; convert it to JSON lines in UTF-8 (.jsonl)"
        )
    data = path.read_bytes()
    if encoding != "utf-16" and b"\0" in data:
        raise DatasetError(
            f"{path}: contains NUL bytes (first at byte {data.index(0)}); the file is damaged or not text, export it again as UTF-8"
        )
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            raise DatasetError(f"{path}: {_not_utf8(error, data)}") from error
        raise DatasetError(
            f"{path}: not {encoding.upper()} at byte {error.start}; the file is damaged, export it again as UTF-8"
        ) from error


def _not_utf8(error: UnicodeDecodeError, data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:65536]).best()
    guess = best.encoding if best is not None else "an unknown encoding"
    return f"not UTF-8 at byte {error.start} (looks like {guess}); save it as UTF-8 (iconv -f {guess.upper()} -t UTF-8)"


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


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large; put it in quotes")
    return number


def _object(path: Path, number: int, item: Any, spelt: bool) -> dict[str, Any] | Excluded:
    """The row `item`, or why it is none; `spelt` says whether its text spells a surrogate, without which it holds none."""
    if not isinstance(item, dict) or not item:
        found = kind(item) if item != {} else "an empty one"
        return Excluded(path.name, number, "", f'expected an object like {{"question": ..., "answer": ...}}, found {found}')
    try:
        if not spelt or not torn(item):
            return item
    except RecursionError:
        return Excluded(path.name, number, "", "is nested too deeply; flatten it or remove the row")
    column = next(name for name, value in item.items() if torn({name: value}))
    where = "its name contains" if torn(column) else "contains"
    shown = column.encode(errors="backslashreplace").decode()
    return Excluded(path.name, number, shown, f"{where} half of a surrogate pair; export the text again, or remove the row")
