"""Encodings, tables and conversations through the own registration, and what is stored of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.dataset import dataset_version, read_pairs, split_pairs, write_pairs
from finetune.types import DatasetError, Pair, Turn

Rows = Callable[..., Path]
ROWS = [
    {"question": "手续费是多少，怎么收取？", "answer": "按照合同约定收取。"},
    {"question": "What is the fee?", "answer": "Four euros, “yearly”."},
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_encodings_are_recognised_and_said(tmp_path: Path, encoding: str, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".csv":
        text = "question,answer\n" + "".join(f'"{row["question"]}","{row["answer"]}"\n' for row in ROWS)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        text = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_bytes(text.encode(encoding))
    read = read_pairs(path)
    assert [(pair.question, pair.answer) for pair in read.pairs] == [(row["question"], row["answer"]) for row in ROWS]
    taken = encoding.upper().removesuffix("-SIG")
    assert read.notes == (() if taken == "UTF-8" else (f"data{suffix}: read as {taken}",))


def test_a_long_english_file_with_chinese_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    english = json.dumps(ROWS[1] | {"answer": "yes " * 2000, "question": "Really?"}) + "\n"
    chinese = json.dumps(ROWS[0], ensure_ascii=False)
    path.write_bytes(english.encode() * 200 + chinese.encode("gb18030"))
    assert read_pairs(path).pairs[-1].question == ROWS[0]["question"]


def test_json_under_the_other_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS, indent=1), "utf-8")
    (tmp_path / "b.json").write_text("\n\n".join(map(json.dumps, ROWS)), "utf-8")
    first, second = read_pairs(tmp_path / "a.jsonl"), read_pairs(tmp_path / "b.json")
    assert [pair.row for pair in first.pairs] == [1, 2] and first.notes == ("a.jsonl: read as one JSON list",)
    assert [pair.row for pair in second.pairs] == [1, 3] and second.notes == ("b.json: read as JSON lines, one object a line",)


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow", "footer.arrow"])
def test_tables_give_the_same_pairs_as_json(tmp_path: Path, name: str) -> None:
    rows = [row | {"doc_ids": ["a.md"], "score": score} for row, score in zip(ROWS, (0.5, float("nan")), strict=True)]
    table = pa.Table.from_pylist(rows)
    if name == "data.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        opened = pa.ipc.new_stream if name == "data.arrow" else pa.ipc.new_file
        with opened(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    pairs = read_pairs(tmp_path / name).pairs
    assert [(pair.question, pair.doc_ids, dict(pair.meta)) for pair in pairs] == [
        (ROWS[0]["question"], ("a.md",), {"score": 0.5}),
        (ROWS[1]["question"], ("a.md",), {}),
    ]


TALK = [
    {"role": "system", "content": "你是柜台助手。"},
    {"role": "user", "content": "挂号费是多少？"},
    {"role": "assistant", "content": "二十元。"},
    {"role": "user", "content": [{"type": "text", "text": "儿童呢？"}]},
    {"role": "assistant", "content": "十元。"},
]


def test_every_answer_of_a_conversation_is_a_pair(rows: Rows) -> None:
    read = read_pairs(rows({"messages": TALK, "id": "c7", "doc_ids": "fees.md"}))
    first, second = read.pairs
    assert (first.id, first.question, first.answer, first.history) == ("c7#1", "挂号费是多少？", "二十元。", ())
    assert (second.id, second.question, second.answer) == ("c7#2", "儿童呢？", "十元。")
    assert second.history == (Turn("user", "挂号费是多少？"), Turn("assistant", "二十元。"))
    assert {pair.system for pair in read.pairs} == {"你是柜台助手。"} and {pair.conversation for pair in read.pairs} == {"c7"}
    assert read.mapping["messages"] == "messages"


def test_an_answer_of_no_weight_is_context_only(rows: Rows) -> None:
    spoken = [message | ({"weight": 0} if place == 2 else {}) for place, message in enumerate(TALK)]
    read = read_pairs(rows({"messages": spoken, "id": "c7"}, {"messages": spoken[:3], "id": "c8"}))
    (pair,) = read.pairs
    assert (pair.id, pair.answer, pair.history[-1].content) == ("c7#2", "十元。", "二十元。")
    assert read.notes == ('answers with "weight": 0 are context only, not trained: 2',)


def test_a_conversation_beside_question_and_answer_is_not_read(rows: Rows) -> None:
    read = read_pairs(rows(ROWS[0] | {"messages": TALK}))
    assert len(read.pairs) == 1 and read.unused == ("messages",)
    assert len(read_pairs(rows(ROWS[0] | {"messages": TALK}), mapping={"messages": "messages"}).pairs) == 2


def test_preferences_with_endings_as_messages_or_text(rows: Rows) -> None:
    ask = {"messages": TALK[:2]}
    endings = {"chosen": {"role": "assistant", "content": "二十元。"}, "rejected": "不知道。"}
    (pair,) = read_pairs(rows(ask | endings)).pairs
    assert (pair.question, pair.answer, pair.rejected, pair.system) == ("挂号费是多少？", "二十元。", "不知道。", "你是柜台助手。")
    (plain,) = read_pairs(rows({"prompt": "Fee?", "chosen": "Four.", "rejected": "Much."})).pairs
    assert (plain.question, plain.answer, plain.rejected) == ("Fee?", "Four.", "Much.")


def test_a_system_message_in_the_history_is_the_pairs(rows: Rows) -> None:
    (pair,) = read_pairs(rows(ROWS[0] | {"history": TALK[:3]})).pairs
    assert (pair.system, len(pair.history)) == ("你是柜台助手。", 2)


def test_everything_is_stored_and_read_back(rows: Rows, tmp_path: Path) -> None:
    many = [
        {"messages": TALK, "split": "test", "question": "kept aside", "meta": {"task": "other", "source": "desk"}},
        {"messages": TALK[1:3], "task": "extract", "note": 1},
    ]
    pairs = read_pairs(rows(*many), mapping={"messages": "messages"}, task="extract").pairs
    assert pairs[0].meta == {"question": "kept aside", "task": "other", "source": "desk"}
    preferred = read_pairs(rows({"prompt": "Fee?", "chosen": "Four.", "rejected": "Much.", "system": "s"})).pairs
    for some in (pairs, preferred):
        write_pairs(some, tmp_path / "again.jsonl")
        again = read_pairs(tmp_path / "again.jsonl").pairs
        assert [replace(pair, file="", row=0) for pair in again] == [replace(pair, file="", row=0) for pair in some]
        assert dataset_version(again) == dataset_version(some)


def test_the_task_is_the_rows_or_the_one_given(rows: Rows) -> None:
    assert {pair.task for pair in read_pairs(rows(ROWS[0] | {"task": "Classify"}, ROWS[1])).pairs} == {"classify"}
    assert {pair.task for pair in read_pairs(rows(*ROWS), task="summary").pairs} == {"summary"}
    read = read_pairs(rows(ROWS[0] | {"task": "task042_qa"}))
    assert read.pairs[0].task == "qa" and "holds no tasks of ours" in read.notes[0] and read.pairs[0].meta == {"task": "task042_qa"}
    with pytest.raises(DatasetError, match="the data set's task is classify, this row's is qa"):
        read_pairs(rows(ROWS[0] | {"task": "qa"}), task="classify")


def test_conversations_never_straddle_the_split() -> None:
    words = ("甘露", "青松", "明月", "长江", "泰山", "黄河", "白云", "红梅", "翠竹", "金桂")
    pairs = [
        Pair(f"{word}#{turn}", f"{word}项目{what}", "a", "zh", conversation=word)
        for word in words
        for turn, what in enumerate(("报销上限多少", "由谁审批", "何时到账"), 1)
    ]
    split = split_pairs(pairs, seed=1)
    assert {pair.split for pair in split} == {"train", "dev"}
    assert all(len({pair.split for pair in split if pair.conversation == word}) == 1 for word in words)
