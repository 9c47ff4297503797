"""Rows of JSONL corpora and tables as documents: texts with the fields `id` (or `_id`), `title`, `text`, `source`, `lang`, `domain`,
and pairs of question and answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retrieval.parsers import Parsed, ParseError, Skipped, clean

_KNOWN = frozenset({"id", "_id", "title", "text", "source", "lang", "domain"})
_QUESTIONS = ("question", "问题", "提问")
_ANSWERS = ("answer", "答案", "回答")
# A file without one good row among the first so many is no corpus.
_GIVE_UP = 100
_LANGS = frozenset({"en", "zh"})
_HELD_OUT = frozenset({"dev", "test", "valid", "validation"})
_TITLE = 200
# Objects within objects of further fields: more is no metadata, and deeper than databases take.
_DEPTH = 64


def documents(rows: Iterable[tuple[int, Mapping[str, Any] | ParseError]], name: str, unit: str) -> Iterator[Parsed | ParseError | Skipped]:
    """Each (number, row) of a file as a document; a row that cannot be one, or whose id was there before, as a ParseError.

    `unit` is what a number counts ("line", "row"). Pairs held out for evaluation (`split` dev or test) are skipped: with their answers in
    the index, an evaluation would measure nothing. Raises ParseError if the file is no corpus at all.
    """
    number_of: dict[tuple[str | None, str], int] = {}
    failed = held_out = 0
    for number, row in rows:
        where = f"{name}: {unit} {number}"
        try:
            if isinstance(row, ParseError):
                raise row
            if _is_pair_row(row) and str(row.get("split")).lower() in _HELD_OUT:
                held_out += 1
                continue
            parsed = _document(row, where, name)
            key = (parsed.domain, str(parsed.id))
            if key in number_of:
                raise ParseError(
                    f'{where}, field "id": {parsed.id!r} is on {unit} {number_of[key]} already; give each document an id of its own'
                )
        except ParseError as error:
            failed += 1
            if not number_of and failed > _GIVE_UP:
                raise ParseError(f"{name}: none of the first {failed} {unit}s is a document; the last error: {error}") from error
            yield error
            continue
        number_of[key] = number
        yield parsed
    if held_out:
        yield Skipped(name, f"{held_out} pairs of the splits dev and test are for evaluation, their answers are not indexed")


def is_pair(columns: Iterable[str]) -> bool:
    """Whether columns of these names hold questions and answers, and no text."""
    names = {column.strip().lower() for column in columns}
    return "text" not in names and not names.isdisjoint(_QUESTIONS) and not names.isdisjoint(_ANSWERS)


def _is_pair_row(row: Mapping[str, Any]) -> bool:
    return row.get("text") is None and is_pair(key for key, value in row.items() if value is not None)


def _document(row: Mapping[str, Any], where: str, name: str) -> Parsed:
    meta = {_name(key): _storable(value, f'{where}, field "{clean(key)}"') for key, value in row.items() if key not in _KNOWN}
    title = " ".join(_string(row, "title", where).split())
    if _is_pair_row(row):
        question, answer = _pair(row, where)
        text = f"{question}\n\n{answer}\n"
        title = title or " ".join(question.split())[:_TITLE]
        # Without an id, equal pairs are one document however the rows are ordered.
        fallback = "qa-" + hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
        meta = {key: value for key, value in meta.items() if key.strip().lower() not in _QUESTIONS + _ANSWERS}
    else:
        text, fallback = _string(row, "text", where, required=True), None
    identity = _identity(row, where, fallback)
    lang = _string(row, "lang", where).lower()[:2]
    return Parsed(
        id=identity,
        title=title,
        text=text,
        uri=_string(row, "source", where) or f"{name}#{identity}",
        lang=lang if lang in _LANGS else None,
        domain=_string(row, "domain", where) or None,
        meta=meta,
    )


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    named = {key.strip().lower(): key for key, value in row.items() if value is not None}
    found = [next(named[alias] for alias in aliases if alias in named) for aliases in (_QUESTIONS, _ANSWERS)]
    texts = [_string(row, key, where, required=True).strip() for key in found]
    for key, text in zip(found, texts, strict=True):
        if not text:
            raise ParseError(f'{where}, field "{key}": it is empty; expected a question and its answer')
    return texts[0], texts[1]


def _identity(row: Mapping[str, Any], where: str, fallback: str | None) -> str:
    identity = row.get("id", row.get("_id", fallback))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str) or not identity.strip():
        raise ParseError(f'{where}, field "id": expected a non-empty string, found {_short(identity)}; give each document an id')
    return clean(identity)


def _string(row: Mapping[str, Any], field: str, where: str, required: bool = False) -> str:
    value = row.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        hint = "; expected text, or a question and an answer" if field == "text" and value is None else ""
        raise ParseError(f'{where}, field "{field}": expected a string, found {_short(value)}{hint}')
    return clean(value)


def _name(key: str) -> str:
    """What a further field is called in the metadata, where "pages" says where the pages of a document begin."""
    return "pages_" if key == "pages" else clean(key)


def _storable(value: Any, where: str, depth: int = 0) -> Any:
    """A value of JSON with its strings cleaned. Raises ParseError for what is nested too deeply, and for numbers JSON does not have."""
    if depth > _DEPTH:
        raise ParseError(f"{where}: more than {_DEPTH} objects or lists inside one another; give it as text")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ParseError(f"{where}: {value} is no number of JSON, and databases refuse it; write null, or a finite number")
    if isinstance(value, dict):
        return {clean(key): _storable(inner, where, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner, where, depth + 1) for inner in value]
    return value


def _short(value: object) -> str:
    return "nothing" if value is None else repr(value)[:60]
