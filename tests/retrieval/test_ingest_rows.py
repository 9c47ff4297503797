"""Rows of a corpus that hold what JSON allows and a database does not: each is read, or is one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.maintain import rebuild
from retrieval.parsers import Parsed, ParseError, parse
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey

GOOD = ['{"id": "first", "text": "alpha 甲"}', '{"id": "last", "text": "omega 乙"}']


def corpus(folder: Path, *rows: str) -> Path:
    return write(folder / "corpus.jsonl", "\n".join([GOOD[0], *rows, GOOD[1]]) + "\n")


@pytest.mark.parametrize(
    ("row", "meta"),
    [
        ('"extra": "\\ud800半"', {"extra": "\ufffd半"}),
        ('"\\udfff键": 1', {"\ufffd键": 1}),
        ('"a": [{"b\\u0000": ["\\ud83d"]}, null, true, 1.5]', {"a": [{"b\ufffd": ["\ufffd"]}, None, True, 1.5]}),
        ('"emoji": "\\ud83d\\ude00"', {"emoji": "\U0001f600"}),
    ],
)
def test_half_characters_in_further_fields_are_stored(knowledge: Knowledge, tmp_path: Path, row: str, meta: dict[str, object]) -> None:
    report = knowledge.ingest(corpus(tmp_path, f'{{"id": "x", "text": "中间的一行", {row}}}'))
    assert (report.added, report.failed) == (3, [])
    document = knowledge.store.document(DocumentKey("medical", "x"))
    assert document is not None and document.info.meta == meta
    assert knowledge.ingest(corpus(tmp_path, f'{{"id": "x", "text": "中间的一行", {row}}}')).unchanged == 3


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ('"score": NaN', 'line 2, field "score": nan is no number of JSON'),
        ('"分数": [1, {"最高": -Infinity}]', 'line 2, field "分数": -inf is no number of JSON'),
        ('"score": 1e999', 'line 2, field "score": inf is no number of JSON'),
        ('"n": ' + "9" * 5000, "line 2: not valid JSON (Exceeds the limit"),
        ('"deep": ' + "[" * 100_000 + "]" * 100_000, "line 2: not valid JSON"),
        ('"deep": ' + '{"a":' * 80 + "1" + "}" * 80, 'line 2, field "deep": more than 64 objects'),
    ],
    ids=["nan", "infinity", "overflow", "digits", "brackets", "objects"],
)
def test_a_row_no_database_can_hold_is_one_error(knowledge: Knowledge, tmp_path: Path, row: str, error: str) -> None:
    report = knowledge.ingest(corpus(tmp_path, f'{{"id": "x", "text": "t", {row}}}'))
    assert report.added == 2 and [failure.error.partition("corpus.jsonl: ")[2][: len(error)] for failure in report.failed] == [error]
    assert knowledge.ids("omega")[0] == "last"


def test_a_field_named_pages_is_not_taken_for_where_pages_begin(knowledge: Knowledge, tmp_path: Path) -> None:
    knowledge.ingest(corpus(tmp_path, '{"id": "x", "text": "第一条 甲方验收。", "pages": 12}'))
    document = knowledge.store.document(DocumentKey("medical", "x"))
    assert document is not None and document.info.meta == {"pages_": 12}
    parts = {"store": knowledge.store, "vectors": knowledge.vectors, "embedder": knowledge.embedder, "settings": IngestSettings(40, 80)}
    with knowledge.db.lock("index") as lock:
        assert rebuild(lock=lock, **parts)["documents"] == 3  # type: ignore[arg-type]


def test_rows_around_bad_ones_keep_their_order(tmp_path: Path) -> None:
    path = corpus(tmp_path, '{"id": 1, "text": ' + "9" * 5000 + "}", json.dumps({"id": "中", "text": "好"}))
    found = list(parse(path, "corpus.jsonl"))
    assert [item.id if isinstance(item, Parsed) else type(item) for item in found] == ["first", ParseError, "中", "last"]
