"""JSONL corpora: one document a line, with the fields `id` or `_id`, `title`, `text`, `source`, `lang`, `domain`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Parsed, ParseError, clean

_KNOWN = frozenset({"id", "_id", "title", "text", "source", "lang", "domain"})
# A file without one good line among the first so many is no corpus.
_GIVE_UP = 100
_LANGS = frozenset({"en", "zh"})


def parse(path: Path, name: str) -> Iterator[Parsed | ParseError]:
    lines_of: dict[str, int] = {}
    failed = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            where = f"{name}: line {number}"
            try:
                parsed = _document(raw, where, name)
            except ParseError as error:
                if not lines_of and (failed := failed + 1) > _GIVE_UP:
                    raise ParseError(f"{name}: none of the first {failed} lines is a document; the last error: {error}") from error
                yield error
                continue
            key = f"{parsed.domain or ''}\n{parsed.id}"
            if key in lines_of:
                yield ParseError(
                    f'{where}, field "id": {parsed.id!r} is on line {lines_of[key]} already; give each document an id of its own'
                )
                continue
            lines_of[key] = number
            yield parsed


def _document(raw: bytes, where: str, name: str) -> Parsed:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ParseError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ParseError(f"{where}: not valid JSON ({error}); expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise ParseError(f"{where}: expected a JSON object with id and text, found {type(row).__name__}")
    identity = row.get("id", row.get("_id"))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str) or not identity.strip():
        raise ParseError(f'{where}, field "id": expected a non-empty string, found {_short(identity)}; give each document an id')
    text = _string(row, "text", where, required=True)
    lang = _string(row, "lang", where).lower()[:2]
    return Parsed(
        id=clean(identity),
        title=" ".join(_string(row, "title", where).split()),
        text=text,
        uri=_string(row, "source", where) or f"{name}#{clean(identity)}",
        lang=lang if lang in _LANGS else None,
        domain=_string(row, "domain", where) or None,
        meta={key: value for key, value in row.items() if key not in _KNOWN},
    )


def _string(row: dict[str, Any], field: str, where: str, required: bool = False) -> str:
    value = row.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise ParseError(f'{where}, field "{field}": expected a string, found {_short(value)}')
    return clean(value)


def _short(value: object) -> str:
    return "nothing" if value is None else repr(value)[:60]
