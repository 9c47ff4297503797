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
EN = {"question": "What is the fee?", "answer": "Four euros."}
ZH = {"question": "手续费是多少？", "answer": "四欧元。"}


def test_own_format_is_read_whole(rows: Rows) -> None:
    row = {
        "id": "q1",
        "question": "And abroad?",
        "answer": "",
        "doc_ids": ["fees.md", "fees.md", "abroad.md"],
        "lang": "en",
        "domain": "finance",
        "split": "test",
        "answerable": False,
        "history": [{"role": "user", "content": "What is the fee?"}, {"role": "assistant", "content": "Four euros."}],
        "source": "desk",
    }
    read = read_pairs(rows(row, ZH))
    first, second = read.pairs
    assert (first.id, first.lang, first.domain, first.split, first.answerable) == ("q1", "en", "finance", "test", False)
    assert first.doc_ids == ("fees.md", "abroad.md")
    assert first.history == (Turn("user", "What is the fee?"), Turn("assistant", "Four euros."))
    assert first.meta == {"source": "desk"}
    assert (second.id, second.lang, second.row, second.file) == ("data-2", "zh", 2, "data.jsonl")
    assert read.unused == ("source",)
    assert read.excluded == []


@pytest.mark.parametrize(
    ("row", "expected", "question"),
    [
        (
            {"instruction": "Translate.", "input": "Hello", "output": "你好"},
            {"question": "instruction+input", "answer": "output"},
            "Translate.\nHello",
        ),
        ({"instruction": "Say hi.", "input": "", "output": "Hi"}, {"question": "instruction+input", "answer": "output"}, "Say hi."),
        ({"prompt": "Q", "query": "more", "response": "A"}, {"question": "prompt+query", "answer": "response"}, "Q\nmore"),
        ({"query": "Q", "completion": "A"}, {"question": "query", "answer": "completion"}, "Q"),
        ({"input": "Q", "target": "A"}, {"question": "input", "answer": "target"}, "Q"),
        ({"问题": "什么是利率？", "答案": "资金的价格。"}, {"question": "问题", "answer": "答案"}, "什么是利率？"),
    ],
)
def test_columns_are_guessed_and_reported(rows: Rows, row: dict[str, str], expected: dict[str, str], question: str) -> None:
    read = read_pairs(rows(row))
    assert read.mapping == expected
    assert read.pairs[0].question == question
    assert read.unused == ()


def test_an_explicit_mapping_wins(rows: Rows) -> None:
    path = rows({"question": "wrong", "q": "Right?", "answer": "wrong", "a": "Yes.", "more": "Really?"})
    read = read_pairs(path, mapping={"question": "q+more", "answer": "a"})
    assert (read.pairs[0].question, read.pairs[0].answer) == ("Right?\nReally?", "Yes.")
    assert set(read.unused) == {"question", "answer"}


def test_json_and_csv_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([EN | {"doc_ids": ["x", "y"]}, ZH]), "utf-8")
    (tmp_path / "a.csv").write_text('question,answer,doc_ids\n"What is the fee?",Four euros.,x;y\n手续费是多少？,四欧元。,\n', "utf-8")
    (tmp_path / "b.csv").write_text(
        '\ufeffquestion;answer;doc_ids\r\nWhat is the fee?;Four euros.;"[""x"",""y""]"\r\n手续费是多少？;四欧元。;\r\n', "utf-8"
    )
    (tmp_path / "a.tsv").write_text("question\tanswer\tdoc_ids\nWhat is the fee?\tFour euros.\tx;y\n手续费是多少？\t四欧元。\t\n", "utf-8")
    versions = set()
    for name in ("a.json", "a.csv", "b.csv", "a.tsv"):
        pairs = [replace(pair, id=f"p{pair.row}") for pair in read_pairs(tmp_path / name).pairs]
        versions.add(dataset_version(pairs))
    assert len(versions) == 1


def test_csv_cells_hold_truth_and_history(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer,answerable,history\nQ,,no,\n"后来呢？",好。,yes,"[[""先问"", ""先答""]]"\n', "utf-8")
    first, second = read_pairs(path).pairs
    assert first.answerable is False
    assert second.history == (Turn("user", "先问"), Turn("assistant", "先答"))


def test_lenient_where_it_is_safe(rows: Rows, tmp_path: Path) -> None:
    read = read_pairs(rows(EN | {"id": 7, "lang": "zh-CN", "split": "Validation", "domain": None}))
    assert (read.pairs[0].id, read.pairs[0].lang, read.pairs[0].split, read.pairs[0].domain) == ("7", "zh", "dev", None)
    path = tmp_path / "bom.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(EN).encode() + b"\n\n" + b'{"question": "\xe5\x93\xaa\xef\xbc\x9f", "answer": "x", "score": NaN}\n'
    )
    assert [pair.row for pair in read_pairs(path).pairs] == [1, 3]


def test_what_is_written_is_read_back(rows: Rows, tmp_path: Path) -> None:
    history = [["先问", "先答"]]
    pairs = read_pairs(rows(EN | {"note": "n", "split": "dev", "doc_ids": "a;b"}, ZH | {"answerable": False, "history": history})).pairs
    write_pairs(pairs, tmp_path / "again.jsonl")
    again = read_pairs(tmp_path / "again.jsonl").pairs
    assert [replace(pair, file="", row=0) for pair in again] == [replace(pair, file="", row=0) for pair in pairs]
    assert dataset_version(again) == dataset_version(pairs)


@pytest.mark.parametrize(
    "more",
    [
        {"meta": {"source": None, "url": ""}},
        {"meta": {"source": "desk", "url": None, "inner": {"a": None, "b": ["", "c"]}}, "note": ""},
        {"meta": {"task": "", "lang": "de", "meta": {"x": None}}},
        {"source": "", "meta": {"source": "desk"}},
        {"meta": None, "unset": None},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_beside_the_fields_is_read_back(tmp_path: Path, more: dict[str, object], suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps(EN | more), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist([EN | more]), path)
    pairs = read_pairs(path).pairs
    write_pairs(pairs, tmp_path / "again.jsonl")
    again = read_pairs(tmp_path / "again.jsonl").pairs
    assert dict(again[0].meta) == dict(pairs[0].meta)
    assert dataset_version(again) == dataset_version(pairs)


def test_a_map_with_nan_is_read_back(tmp_path: Path) -> None:
    scores = pa.array([[("a", float("nan")), ("b", 0.5)]], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"], "scores": scores}), tmp_path / "data.parquet")
    (pair,) = read_pairs(tmp_path / "data.parquet").pairs
    write_pairs([pair], tmp_path / "again.jsonl")
    assert read_pairs(tmp_path / "again.jsonl").pairs[0].meta == pair.meta == {"scores": [["a", None], ["b", 0.5]]}


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("documents", ["x" * 300], "holds no ids of documents"),
        ("sources", [{"title": "Fees"}], "holds no ids of documents"),
        ("language", "python", "holds no language of ours"),
    ],
)
def test_a_column_that_only_shares_a_name_is_not_read(rows: Rows, column: str, value: object, says: str) -> None:
    read = read_pairs(rows(EN | {column: value}, ZH))
    assert len(read.notes) == 1 and read.notes[0].startswith(f'column "{column}" {says}')
    assert (read.unused, dict(read.pairs[0].meta)) == ((column,), {column: value})
    # Where some rows fit, the others are mistakes.
    fitting = {"language": "en"}.get(column, ["fees.md"])
    with pytest.raises(DatasetError, match=f'row 1, field "{column}"'):
        read_pairs(rows(EN | {column: value}, ZH | {column: fitting}))
    field = "lang" if column == "language" else "doc_ids"
    left_out = read_pairs(rows(EN | {column: value}, ZH | {column: fitting}), mapping={field: ""})
    assert len(left_out.pairs) == 2 and field not in left_out.mapping


def test_the_own_name_means_the_field(rows: Rows) -> None:
    with pytest.raises(DatasetError, match=r'field "doc_ids".*rename the column'):
        read_pairs(rows(EN | {"doc_ids": ["x" * 300]}))


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nquestion;answer\r\nFee?;Four, yearly\r\n",
        "SEP=|\nquestion|answer\nFee?|Four, yearly\n",
        'question;answer;"note, date, time"\nFee?;Four, yearly;x\n',
    ],
)
def test_delimiters_of_spreadsheets(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    (pair,) = read_pairs(tmp_path / "a.csv").pairs
    assert (pair.question, pair.answer, pair.row) == ("Fee?", "Four, yearly", 1)


def test_the_version_changes_with_the_content_only(rows: Rows) -> None:
    one = read_pairs(rows(EN, ZH)).pairs
    assert dataset_version(one) == dataset_version([replace(pair, row=pair.row + 5, file="other") for pair in one])
    assert dataset_version(one) != dataset_version([replace(one[0], answer="Five euros."), one[1]])
    assert dataset_version(one) != dataset_version(one[::-1])


def _pairs(questions: list[str]) -> list[Pair]:
    return [Pair(f"p{number}", question, "a", "en") for number, question in enumerate(questions)]


def test_unsplit_pairs_go_nine_to_one_and_near_duplicates_stay_together() -> None:
    subjects = [
        f"{first}{second}" for first in ("alpha", "beta", "gamma", "delta", "omega") for second in ("blade", "stone", "river", "cloud")
    ]
    english = [f"Please tell me the {name} tariff limit, exactly" for name in subjects]
    variants = [f"Please tell me the {name.upper()} tariff limit exactly?" for name in subjects]
    chinese = [f"{name}项目的报销上限是多少" for name in ("甘露", "青松", "明月", "长江", "泰山", "黄河", "白云", "红梅")]
    pairs = _pairs(english + variants + chinese + [text + "？" for text in chinese])
    split = split_pairs(pairs, seed=3)
    assert [replace(pair, split=None) for pair in split] == pairs
    dev = [pair for pair in split if pair.split == "dev"]
    assert len(dev) == round(0.1 * len(pairs))
    of = {pair.question: pair.split for pair in split}
    assert all(of[a] == of[b] for a, b in zip(english, variants, strict=True))
    assert all(of[text] == of[text + "？"] for text in chinese)
    assert split == split_pairs(pairs, seed=3)
    assert split != split_pairs(pairs, seed=4)


def test_declared_splits_stay_and_draw_their_duplicates() -> None:
    pairs = _pairs(["What is the fee for cards?", "what is the fee for cards", "Where is the branch?", "Who is the director?"])
    pairs[0] = replace(pairs[0], split="test")
    split = split_pairs(pairs, seed=0)
    assert [split[0].split, split[1].split] == ["test", "test"]
    assert sorted(str(pair.split) for pair in split[2:]) == ["dev", "train"]


@pytest.mark.parametrize(("questions", "expected"), [([], []), (["one?"], ["train"]), (["one?", "One"], ["train", "train"])])
def test_too_few_to_split(questions: list[str], expected: list[str]) -> None:
    assert [pair.split for pair in split_pairs(_pairs(questions), seed=1)] == expected


def test_a_large_group_does_not_swallow_dev() -> None:
    pairs = _pairs(["How much is it?"] * 30 + ["Where is the bank?", "Who signs the contract?"])
    split = split_pairs(pairs, seed=5)
    assert {pair.split for pair in split[:30]} == {"train"}
    assert "dev" in {pair.split for pair in split[30:]}
