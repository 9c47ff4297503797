"""Malformed files, each with the message a person gets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune import dataset, reading
from finetune.dataset import read_pairs
from finetune.types import DatasetError

GOOD = '{"question": "q", "answer": "a"}\n'
LONG = "x" * 200_001


def _line(**changes: object) -> str:
    return GOOD + json.dumps({"question": "q", "answer": "a"} | changes, ensure_ascii=False) + "\n"


def _chat(*roles: str, said: object = "text") -> str:
    return json.dumps([{"messages": [{"role": role, "content": said} for role in roles]}])


# name, content, what the message must say
BAD: list[tuple[str, str | bytes, tuple[str, ...]]] = [
    ("empty.jsonl", "", ("the file is empty",)),
    ("blank.jsonl", "\n\n  \n", ("no usable row", "expected at least one row")),
    ("empty.json", "[]", ("no usable row",)),
    ("empty.csv", "question,answer\n", ("no usable row",)),
    ("utf16-cut.jsonl", GOOD.encode("utf-16")[:-1], ("not UTF-16 at byte", "damaged")),
    ("utf16-nameless.jsonl", GOOD.encode("utf-16-le"), ("row 1", "NUL bytes")),
    ("utf32.jsonl", GOOD.encode("utf-32"), ("UTF-32", "iconv")),
    (
        "gbk-cut.json",
        '[{"question": "手续费是多少，怎么收取？", "answer": "按照合同约定收取手续费。"}]'.encode("gb18030") + b"\xb0",
        ("not GB18030 at byte", "damaged"),
    ),
    ("big5.csv", "question,answer\n手續費是多少，怎麼收取？,按照合約收取手續費。\n".encode("big5"), ("not UTF-8 at byte 16", "iconv")),
    ("latin.jsonl", GOOD.encode() + '{"question": "Où?", "answer": "là"}\n'.encode("latin-1"), ("row 2", "not UTF-8", "iconv")),
    ("latin.json", '[{"question": "Où?", "answer": "là"}]'.encode("latin-1"), ("not UTF-8",)),
    ("nul.jsonl", GOOD.encode() + b'{"question": "q\0", "answer": "a"}\n', ("row 2", "NUL bytes")),
    ("nul.csv", b"question,answer\nq\0,a\n", ("NUL bytes", "byte 17")),
    ("escaped-nul.jsonl", _line(answer="a\0b"), ("row 2", '"answer"', "NUL character")),
    ("surrogate.jsonl", GOOD + '{"question": "\\ud83d", "answer": "a"}\n', ("row 2", '"question"', "surrogate")),
    ("surrogate-aside.jsonl", GOOD + '{"question": "q", "answer": "a", "note": ["\\ud83d"]}\n', ("row 2", '"note"', "surrogate")),
    ("surrogate-name.jsonl", GOOD + '{"question": "q", "answer": "a", "\\ud83d": 1}\n', ("row 2", r'"\ud83d"', "its name contains half")),
    ("surrogate.json", '[{"question": "q", "answer": "a", "note": "\\ude00"}]', ("row 1", '"note"', "surrogate")),
    ("empty-object.jsonl", GOOD + "{}\n", ("row 2", "expected an object", "found an empty one")),
    ("empty-objects.json", "[{}]", ("row 1", "found an empty one")),
    ("cut.jsonl", GOOD + '{"question": "q", "answ', ("row 2", "not valid JSON", "complete it")),
    ("cut.json", '[{"question": "q", "answer": "a"}, {"que', ("not valid JSON", "cut off")),
    ("lines.json", GOOD + GOOD + '{"question": "q", "answ', ("row 3", "not valid JSON")),
    ("deep.jsonl", GOOD + "[" * 200_000 + "\n", ("row 2", "not valid JSON")),
    ("infinity.jsonl", GOOD + '{"question": "q", "answer": "a", "x": -Infinity}\n', ("row 2", "-Infinity")),
    ("large.jsonl", _line() + '{"question": "q", "answer": "a", "x": [1e999]}\n', ("row 3", "the number 1e999 is too large")),
    ("large.json", '[{"question": "q", "answer": "a", "x": -1e999}]', ("the number -1e999 is too large", "in quotes")),
    ("twice.jsonl", GOOD + '{"question": "q", "answer": "a", "answer": "b"}\n', ("row 2", '"answer" appears twice')),
    ("object.json", '{"question": "q", "answer": "a"}', ("expected a list of rows, found an object",)),
    ("text.jsonl", GOOD + '"just text"\n', ("row 2", "expected an object", "just text")),
    ("list.json", '[["q", "a"]]', ("row 1", "expected an object", "a list")),
    ("number.jsonl", _line(answer=42), ("row 2", '"answer"', "expected text, found a number (42)", "quotes")),
    ("truth.jsonl", _line(question=True), ("row 2", '"question"', "true/false")),
    ("null.jsonl", _line(answer=None), ("row 2", '"answer"', "found null; write it or remove the row")),
    ("list.jsonl", _line(answer=["a"]), ("row 2", '"answer"', "expected text, found a list; write one text")),
    ("missing.jsonl", GOOD + '{"question": "q"}\n', ("row 2", '"answer"', "missing")),
    ("no-answer.jsonl", _line(answer="  "), ("row 2", '"answer"', "empty", '"answerable": false')),
    ("no-question.jsonl", _line(question=""), ("row 2", '"question"', "empty")),
    ("huge.jsonl", _line(answer=LONG), ("row 2", '"answer"', "200,001 characters")),
    ("ids.jsonl", _line(id="x") + _line(id="x"), ("row 4", '"id"', "already the id of row 2")),
    ("id-type.jsonl", _line(id=["x"]), ("row 2", '"id"', "found a list")),
    ("id-long.jsonl", _line(id="i" * 201), ("row 2", '"id"', "201 characters", "shorten it, or rename the column")),
    (
        "id-numbered.jsonl",
        json.dumps({"id": "i" * 199, "messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}),
        ("row 1", '"id"', "has 201 characters with its number"),
    ),
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
    ("columns-wrong.json", '[{"dialogue": []}]', ("no column for the question", "it has dialogue")),
    ("conversation-empty.json", '[{"conversations": []}]', ("row 1", '"conversations"', "the conversation is empty")),
    ("conversation-null.json", '[{"messages": null}]', ("row 1", '"messages"', "the conversation is missing")),
    ("conversation-text.json", '[{"messages": "hello"}]', ("row 1", '"messages"', "expected a list", "hello")),
    ("conversation-item.json", '[{"messages": ["hello"]}]', ("row 1", "message 1", "expected {", "hello")),
    ("conversation-key.json", '[{"messages": [{"role": "user", "text": "q"}]}]', ("message 1", 'has no "content"', "role, text")),
    ("conversation-role.json", '[{"messages": [{"role": "doctor", "content": "q"}]}]', ("message 1", "unknown 'doctor'", "user")),
    ("conversation-role-type.json", '[{"messages": [{"role": ["user"], "content": "q"}]}]', ("message 1", "unknown a list")),
    ("conversation-open.json", '[{"messages": [{"role": "user", "content": "问"}]}]', ("row 1", "ends with the user", "add the answer")),
    ("conversation-order.json", _chat("user", "user", "assistant"), ("message 2: expected the role assistant, found user",)),
    ("conversation-greeting.json", _chat("assistant", "user"), ("message 1: expected the role user, found assistant",)),
    ("conversation-system.json", _chat("user", "assistant", "system"), ("message 3: expected the role user, found system",)),
    ("conversation-systems.json", _chat("system", "system", "user", "assistant"), ("message 2: expected the role user, found system",)),
    ("conversation-tool.json", _chat("user", "tool", "assistant"), ("message 2", "tool calls cannot be trained")),
    ("conversation-silent.json", _chat("user", "assistant", said=" "), ("message 1: the content is empty",)),
    ("conversation-number.json", _chat("user", "assistant", said=7), ("message 1: expected text, found a number (7)",)),
    (
        "conversation-image.json",
        _chat("user", "assistant", said=[{"type": "image_url", "image_url": {"url": "x"}}]),
        ("message 1: holds something other than text",),
    ),
    (
        "system-twice.json",
        '[{"system": "s", "messages": [{"role": "system", "content": "t"}, {"role": "user", "content": "q"}, '
        '{"role": "assistant", "content": "a"}]}]',
        ("row 1", '"system"', "leave one of them out"),
    ),
    ("task.jsonl", _line(task="qa") + _line(task="summary"), ("row 4", '"task"', "task is qa, this row's is summary")),
    ("task-unknown.jsonl", _line(task="qa") + _line(task="sumary"), ("row 4", '"task"', 'mean "summary"')),
    ("rejected-missing.jsonl", _line(rejected="b"), ("row 1", '"rejected"', "the rejected answer is missing")),
    ("rejected-empty.jsonl", _line(rejected=" "), ("row 2", '"rejected"', "the rejected answer is empty")),
    ("rejected-same.json", '[{"question": "q", "chosen": "a", "rejected": "a"}]', ("row 1", '"rejected"', "same as the chosen answer")),
    ("rejected-alone.json", '[{"messages": [], "rejected": "a"}]', ("no column for the chosen answer", "--map answer=")),
    ("huge.csv", f"question,answer\nq,a\n问,{LONG}\n", ("row 2", '"answer"', "200,001 characters", "shorten it or split the row")),
    ("cells.csv", "question,answer\nq,a\nq,a,more\n", ("row 2", "3 cells, the header has 2")),
    ("quote.csv", 'question,answer\nq,"a\n', ("not valid CSV", "check the quotes")),
    ("header.csv", "question,,answer\nq,x,a\n", ("column 2 of the header has no name",)),
    ("header-twice.csv", "question,answer,answer\nq,a,b\n", ('the column "answer" twice',)),
    ("table.xlsx", b"PK", ("unknown format .xlsx", ".jsonl")),
    ("noending", GOOD, ("unknown format (no ending)",)),
]


def _parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


TABLES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("text.parquet", GOOD.encode(), ("not a readable parquet file", "export it again")),
    ("cut.parquet", _parquet(question=["q"], answer=["a"])[:-20], ("not a readable parquet file",)),
    ("text.arrow", GOOD.encode(), ("not a readable arrow file",)),
    ("nested.parquet", _parquet(question=[{"text": "q"}], answer=["a"]), ("row 1", '"question"', "expected text, found an object")),
    ("lists.parquet", _parquet(question=["q"], answer=[["a", "b"]]), ("row 1", '"answer"', "expected text, found a list")),
    ("bytes.parquet", _parquet(question=["q"], answer=[b"a"]), ("row 1", '"answer"', "expected text, found binary data")),
    ("dates.parquet", _parquet(question=["q"], answer=[date(2026, 1, 1)]), ("row 1", '"answer"', "expected text, found a date")),
    ("missing.parquet", _parquet(question=["q", "问"], answer=["a", None]), ("row 2", '"answer"', "found null")),
    ("nan.parquet", _parquet(question=["q"], answer=[float("nan")]), ("row 1", '"answer"', "found null")),
    ("no-rows.parquet", _parquet(question=pa.array([], pa.string()), answer=pa.array([], pa.string())), ("no usable row",)),
    ("columns.parquet", _parquet(text=["q"]), ("no column for the question", "it has text")),
    ("messages.parquet", _parquet(messages=[[{"role": "user", "content": "q"}]]), ("row 1", '"messages"', "ends with the user")),
]


@pytest.mark.parametrize(("name", "content", "says"), TABLES, ids=[name for name, _, _ in TABLES])
def test_a_malformed_table_says_what_is_wrong(tmp_path: Path, name: str, content: bytes, says: tuple[str, ...]) -> None:
    test_a_malformed_file_says_what_is_wrong(tmp_path, name, content, says)


def test_a_table_that_unpacks_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_TABLE_BYTES", 1000)
    (tmp_path / "a.parquet").write_bytes(_parquet(question=["q" * 2000], answer=["a"]))
    with pytest.raises(DatasetError, match=r"unpacked, more than the .* split the file"):
        read_pairs(tmp_path / "a.parquet")


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


def test_a_huge_cell_of_a_table_is_one_row_of_it(tmp_path: Path) -> None:
    """Also one above the limit of the csv module, which is lower than ours."""
    path = tmp_path / "data.csv"
    path.write_text(f'question,answer\n费用？,"{"长" * 150_000}"\nq,{LONG}\nWhen?,"{"x" * 199_999}"\n', "utf-8")
    read = read_pairs(path, skip_bad=True)
    assert [(item.row, item.field) for item in read.excluded] == [(2, "answer")]
    assert [len(pair.answer) for pair in read.pairs] == [150_000, 199_999]


def test_a_line_that_is_too_long_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD + _line(answer="x" * 5000) + GOOD.strip() + "y" * 2500, "utf-8")
    read = read_pairs(path, skip_bad=True)
    assert [pair.row for pair in read.pairs] == [1, 2]
    assert [(item.row, item.reason[:23]) for item in read.excluded] == [(3, "the line is longer than"), (4, "the line is longer than")]


@pytest.mark.parametrize("more", ['"note": "\\ud83d"', '"\\ud83d": "x"', '"x": 1e999'])
def test_what_cannot_be_stored_costs_one_row(tmp_path: Path, more: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD + f'{{"question": "q", "answer": "a", {more}}}\n', "utf-8")
    read = read_pairs(path, skip_bad=True)
    dataset.write_pairs(read.pairs, tmp_path / "again.jsonl")
    assert ([pair.row for pair in read.pairs], [item.row for item in read.excluded], read.unused) == ([1], [2], ())
    str(read.excluded[0]).encode()


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
