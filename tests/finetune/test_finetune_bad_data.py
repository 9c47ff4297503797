"""Malformed files, each with the message a person gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import dataset, reading
from finetune.dataset import read_pairs
from finetune.types import DatasetError

GOOD = '{"question": "q", "answer": "a"}\n'
LONG = "x" * 200_001


def _line(**changes: object) -> str:
    return GOOD + json.dumps({"question": "q", "answer": "a"} | changes, ensure_ascii=False) + "\n"


# name, content, what the message must say
BAD: list[tuple[str, str | bytes, tuple[str, ...]]] = [
    ("empty.jsonl", "", ("the file is empty",)),
    ("blank.jsonl", "\n\n  \n", ("no usable row", "expected at least one row")),
    ("empty.json", "[]", ("no usable row",)),
    ("empty.csv", "question,answer\n", ("no usable row",)),
    ("utf16.jsonl", GOOD.encode("utf-16"), ("UTF-16", "iconv")),
    (
        "gbk.jsonl",
        '{"question": "手续费是多少，怎么收取？", "answer": "按照合同约定收取手续费。"}\n'.encode("gb18030"),
        ("row 1", "not UTF-8", "iconv"),
    ),
    (
        "gbk.csv",
        "question,answer\n手续费是多少，怎么收取？,按照合同约定收取手续费。\n".encode("gb18030"),
        ("not UTF-8 at byte 16", "iconv"),
    ),
    ("latin.json", '[{"question": "Où?", "answer": "là"}]'.encode("latin-1"), ("not UTF-8",)),
    ("nul.jsonl", GOOD.encode() + b'{"question": "q\0", "answer": "a"}\n', ("row 2", "NUL bytes")),
    ("nul.csv", b"question,answer\nq\0,a\n", ("NUL bytes", "byte 17")),
    ("escaped-nul.jsonl", _line(answer="a\0b"), ("row 2", '"answer"', "NUL character")),
    ("surrogate.jsonl", GOOD + '{"question": "\\ud83d", "answer": "a"}\n', ("row 2", '"question"', "surrogate")),
    ("cut.jsonl", GOOD + '{"question": "q", "answ', ("row 2", "not valid JSON", "complete it")),
    ("cut.json", '[{"question": "q", "answer": "a"}, {"que', ("not valid JSON", "cut off")),
    ("lines.json", GOOD + GOOD, ("not valid JSON", ".jsonl")),
    ("deep.jsonl", GOOD + "[" * 200_000 + "\n", ("row 2", "not valid JSON")),
    ("infinity.jsonl", GOOD + '{"question": "q", "answer": "a", "x": -Infinity}\n', ("row 2", "-Infinity")),
    ("twice.jsonl", GOOD + '{"question": "q", "answer": "a", "answer": "b"}\n', ("row 2", '"answer" appears twice')),
    ("object.json", '{"question": "q", "answer": "a"}', ("expected a list of rows, found an object",)),
    ("text.jsonl", GOOD + '"just text"\n', ("row 2", "expected an object", "just text")),
    ("list.json", '[["q", "a"]]', ("row 1", "expected an object", "a list")),
    ("number.jsonl", _line(answer=42), ("row 2", '"answer"', "expected text, found a number (42)", "quotes")),
    ("truth.jsonl", _line(question=True), ("row 2", '"question"', "true/false")),
    ("null.jsonl", _line(answer=None), ("row 2", '"answer"', "found null")),
    ("missing.jsonl", GOOD + '{"question": "q"}\n', ("row 2", '"answer"', "missing")),
    ("no-answer.jsonl", _line(answer="  "), ("row 2", '"answer"', "empty", '"answerable": false')),
    ("no-question.jsonl", _line(question=""), ("row 2", '"question"', "empty")),
    ("huge.jsonl", _line(answer=LONG), ("row 2", '"answer"', "200,001 characters")),
    ("ids.jsonl", _line(id="x") + _line(id="x"), ("row 4", '"id"', "already the id of row 2")),
    ("id-type.jsonl", _line(id=["x"]), ("row 2", '"id"', "found a list")),
    ("id-long.jsonl", _line(id="i" * 201), ("row 2", '"id"', "201 characters")),
    ("split.jsonl", _line(split="tset"), ("row 2", '"split"', "train or dev or test", 'mean "test"')),
    ("lang.jsonl", _line(lang="de"), ("row 2", '"lang"', "expected en or zh, found 'de'")),
    ("answerable.jsonl", _line(answerable="perhaps"), ("row 2", '"answerable"', "true or false")),
    ("docs-type.jsonl", _line(doc_ids={"a": 1}), ("row 2", '"doc_ids"', "expected a list", "an object")),
    ("docs-item.jsonl", _line(doc_ids=["a", None, 1.5]), ("row 2", '"doc_ids"', "a number (1.5)")),
    ("docs-json.jsonl", _line(doc_ids='["a"'), ("row 2", '"doc_ids"', "not a valid JSON list")),
    ("domain.jsonl", _line(domain=["finance"]), ("row 2", '"domain"', "a list")),
    ("history-type.jsonl", _line(history="before"), ("row 2", '"history"', "expected a list")),
    ("history-turn.jsonl", _line(history=[{"role": "user"}]), ("row 2", '"history"', "turn 1", "an object")),
    ("history-role.jsonl", _line(history=[{"role": "tool", "content": "x"}]), ("row 2", '"history"', "turn 1", "tool")),
    (
        "history-order.jsonl",
        _line(history=[{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]),
        ("row 2", '"history"', "turn 2: expected the role user, found assistant"),
    ),
    ("history-open.jsonl", _line(history=[{"role": "user", "content": "再问"}]), ("row 2", '"history"', "ends with the user")),
    ("history-empty.jsonl", _line(history=[["q", ""]]), ("row 2", '"history"', "turn 2: the content is empty")),
    ("columns.jsonl", '{"qestion": "q", "answer": "a"}\n', ("no column for the question", 'mean "qestion"', "--map question=")),
    ("conversations.json", '[{"conversations": []}]', ("no column for the question", "it has conversations")),
    ("cells.csv", "question,answer\nq,a\nq,a,more\n", ("row 2", "3 cells, the header has 2")),
    ("quote.csv", 'question,answer\nq,"a\n', ("not valid CSV", "check the quotes")),
    ("header.csv", "question,,answer\nq,x,a\n", ("column 2 of the header has no name",)),
    ("header-twice.csv", "question,answer,answer\nq,a,b\n", ('the column "answer" twice',)),
    ("table.xlsx", b"PK", ("unknown format .xlsx", ".jsonl")),
    ("noending", GOOD, ("unknown format (no ending)",)),
]


@pytest.mark.parametrize(("name", "content", "says"), BAD, ids=[name for name, _, _ in BAD])
def test_a_malformed_file_says_what_is_wrong(tmp_path: Path, name: str, content: str | bytes, says: tuple[str, ...]) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError) as caught:
        read_pairs(path)
    assert name in str(caught.value)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(("make", "says"), [(lambda path: None, "no such file"), (lambda path: path.mkdir(), "is a folder")])
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path / "data.jsonl")
    with pytest.raises(DatasetError, match=says):
        read_pairs(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"qestion": "question"}, 'did you mean "question"'),
        ({"question": "qestion"}, 'no column "qestion"'),
        ({"answer": "answer+x"}, 'no column "x"'),
    ],
)
def test_a_wrong_mapping_names_the_nearest(rows: Callable[..., Path], mapping: dict[str, str], says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        read_pairs(rows({"question": "q", "answer": "a"}), mapping=mapping)


def test_twenty_problems_are_shown_and_the_rest_counted(rows: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError) as caught:
        read_pairs(rows({"question": "q", "answer": "a"}, *[{"question": "问", "answer": n} for n in range(30)]))
    lines = str(caught.value).splitlines()
    assert "30 bad rows" in lines[0]
    assert "--skip-bad" in lines[0]
    assert len(lines) == 1 + dataset.SHOWN + 1
    assert "and 10 more" in lines[-1]


def test_skipping_lists_every_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(
        b'{"question": "a", "answer": 1}\n' + GOOD.encode() + b"\xff\xfe\xfd\n{cut\n" + b'{"question": "\xe9\x97\xae", "answer": "b"}\n'
    )
    read = read_pairs(path, skip_bad=True)
    assert [(item.row, item.field) for item in read.excluded] == [(1, "answer"), (3, ""), (4, "")]
    assert [pair.row for pair in read.pairs] == [2, 5]
    assert len(read.pairs) + len(read.excluded) == 5


def test_skipping_everything_is_an_error(rows: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match=r"no usable row; .*2 bad rows"):
        read_pairs(rows({"question": "q", "answer": 1}, {"question": "q", "answer": 2}), skip_bad=True)


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(GOOD + "x" * 1001, "utf-8")
    (tmp_path / "a.json").write_text("x" * 1001, "utf-8")
    with pytest.raises(DatasetError, match=r"row 2: the line is longer"):
        read_pairs(tmp_path / "a.jsonl")
    with pytest.raises(DatasetError, match=r"convert it to JSON lines"):
        read_pairs(tmp_path / "a.json")
