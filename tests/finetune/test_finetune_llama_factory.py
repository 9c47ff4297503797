"""LLaMA-Factory folders: read as they are, and every malformed registry with the message a person gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import llama_factory_folder
import pytest
from datasets import Dataset

from finetune.dataset import ReadResult
from finetune.llama_factory import Unusable, read_entry, read_registry
from finetune.types import DatasetError, Turn

Entry = Callable[..., ReadResult]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    return llama_factory_folder.build(tmp_path / "data")


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """Read one entry over the file of rows that is given with it."""

    def read(rows: object, name: str = "rows.json", **keys: object) -> ReadResult:
        (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False), "utf-8")
        return read_entry(tmp_path, "e", {"file_name": name, **keys})

    return read


def _read(folder: Path, name: str) -> ReadResult:
    return read_entry(folder, name, read_registry(folder)[name])


def test_alpaca_rows_with_the_default_columns(team: Path) -> None:
    read = _read(team, "identity")
    assert [(pair.id, pair.question, pair.answer) for pair in read.pairs] == [
        ("identity-1", "Who are you?", "The assistant of the claims desk."),
        ("identity-2", "Translate.\n手续费", "Fee."),
    ]
    assert (read.mapping, read.notes) == ({"question": "instruction+input", "answer": "output"}, ())


def test_system_prompts_and_histories_are_kept_and_every_answer_is_trained(team: Path) -> None:
    read = _read(team, "fees_zh")
    first, earlier, last = read.pairs
    assert (first.system, first.question, first.lang) == ("你是柜台助手。", "手续费是多少？\n账户：储蓄", "zh")
    assert (earlier.id, earlier.question, earlier.answer, earlier.history) == ("fees-2#1", "储蓄账户收费吗？", "每年四元。", ())
    assert (last.id, last.question, last.answer) == ("fees-2#2", "那信用卡呢？", "十元。")
    assert last.history == (Turn("user", "储蓄账户收费吗？"), Turn("assistant", "每年四元。"))
    assert earlier.conversation == last.conversation == "fees-2" and first.conversation is None and last.system is None
    assert read.notes == ("fees.jsonl: read as GB18030",)


def test_a_folder_of_conversations(team: Path) -> None:
    pairs = _read(team, "desk").pairs
    assert [(pair.id, pair.question, pair.answer, pair.system) for pair in pairs] == [
        ("a.json-1#1", "Is the desk open?", "Until six.", "Be kind."),
        ("a.json-1#2", "And on Sunday?", "No.", "Be kind."),
        ("b.json-1", "怎么挂失？", "拨打客服电话。", None),
    ]
    assert pairs[1].history == (Turn("user", "Is the desk open?"), Turn("assistant", "Until six."))


def test_openai_messages_in_parquet_without_a_changed_system_prompt(team: Path) -> None:
    read = _read(team, "chat")
    assert [(pair.question, pair.answer, pair.system) for pair in read.pairs] == [("什么是利率？", "资金的价格。", None)]
    assert read.pairs[0].meta == {"source": "forum"}
    assert read.notes == ('not in "columns", and so not trained on: source',)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("prefer_zh", ("卡丢了怎么办？", "请拨打客服电话。", "不知道。")), ("prefer", ("How much?", "Four euros.", "Much."))],
)
def test_preference_pairs(team: Path, name: str, expected: tuple[str, str, str]) -> None:
    (pair,) = _read(team, name).pairs
    assert (pair.question, pair.answer, pair.rejected) == expected


@pytest.mark.parametrize(("name", "reason"), llama_factory_folder.UNUSABLE.items())
def test_what_cannot_be_used_here_says_why(team: Path, name: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        _read(team, name)


# --- aliases and defaults


ALPACA = [{"instruction": "问", "input": "", "output": "答"}]
SHAREGPT = [{"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}]
OPENAI = [{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}]

ALIASES: list[tuple[object, dict[str, Any], tuple[str, ...]]] = [
    (
        [{"q": "问", "a": "答"}],
        {"columns": {"instruction": "q", "output": "a"}},
        ('"instruction" is read as "prompt"', '"output" is read as "response"'),
    ),
    (ALPACA, {"formatting": "prompt_answer"}, ('formatting "prompt_answer" is read as "alpaca"',)),
    (SHAREGPT, {"formatting": "chat"}, ('formatting "chat" is read as "sharegpt"',)),
    (
        OPENAI,
        {"formatting": "chat", "columns": {"conversations": "messages"}, "tags": {"role": "role", "content": "content"}},
        ('"role" is read as "role_tag"', '"content" is read as "content_tag"', "user_tag is not said: read as user or human"),
    ),
    ([{"question": "问", "answer": "答"}], {}, ("no columns named: question=question, answer=answer",)),
    (OPENAI, {"formatting": "openai"}, ('no columns named: messages="messages"', 'role_tag is not said: read as "role"')),
    (ALPACA, {"file_sha1": "0"}, ("file_sha1 is not compared",)),
    (ALPACA, {"hf_hub_url": "team/other"}, ("the file rows.json is read, not the copy elsewhere",)),
    ([{"instruction": "问", "output": "答", "system": "s"}], {}, ('not in "columns", and so not trained on: system',)),
    ('{"instruction": "问", "output": "答"}\n{"instruction": "二", "output": "答"}\n', {}, ("rows.json: read as JSON lines",)),
    (ALPACA, {"num_samples": 3}, ("num_samples: 3 of 1 rows, some of them more than once",)),
]


@pytest.mark.parametrize(("rows", "keys", "notes"), ALIASES)
def test_what_is_found_in_the_wild_is_accepted_and_said(entry: Entry, rows: object, keys: dict[str, Any], notes: tuple[str, ...]) -> None:
    read = entry(rows, **keys)
    assert (read.pairs[0].question, read.pairs[0].answer) == ("问", "答")
    for note in notes:
        assert any(note in said for said in read.notes), read.notes


def test_a_system_message_comes_before_a_system_column(entry: Entry) -> None:
    spoken = [{"from": "system", "value": "message"}, *SHAREGPT[0]["conversations"]]
    rows = [{"conversations": spoken, "system": "column"}, *[{**row, "system": "column"} for row in SHAREGPT]]
    read = entry(rows, formatting="sharegpt", columns={"messages": "conversations", "system": "system"})
    assert [pair.system for pair in read.pairs] == ["message", "column"]
    assert 'a system message of the conversation counts, not the column "system", in rows: 1' in read.notes


def test_the_instruction_may_be_null_where_there_is_an_input(entry: Entry) -> None:
    assert entry([{"instruction": None, "input": "问", "output": "答"}]).pairs[0].question == "问"
    with pytest.raises(DatasetError, match=r'row 1, field "instruction": expected text, found null'):
        entry([{"instruction": None, "input": None, "output": "答"}])


def test_where_no_row_is_sound_each_is_named(entry: Entry) -> None:
    for skip in ({}, {"columns": {"prompt": "q", "response": "a"}}):
        with pytest.raises(DatasetError) as caught:
            entry("{cut\n7\n", "rows.jsonl", **skip)
        assert "rows.jsonl row 1: not valid JSON" in str(caught.value) and "rows.jsonl row 2: expected an object" in str(caught.value)
    with pytest.raises(DatasetError, match=r'it has foo; .* or name it with "columns": \{"prompt": \.\.\.\}'):
        entry([{"foo": "x"}])


def test_a_folder_that_hugging_face_saved_is_said_to_be_one(tmp_path: Path) -> None:
    Dataset.from_list(ALPACA).save_to_disk(tmp_path / "saved")
    with pytest.raises(DatasetError, match=r"as Hugging Face saves it.*add data-00000-of-00001\.arrow"):
        read_registry(tmp_path / "saved")


def test_a_part_of_a_split_and_a_sample_of_it(entry: Entry) -> None:
    rows = [{"instruction": f"Question {number}?", "output": "Yes."} for number in range(20)]
    assert [pair.row for pair in entry(rows, split="train[:10%]+train[18:]").pairs] == [1, 2, 19, 20]
    sampled = entry(rows, num_samples=5)
    assert len(sampled.pairs) == 5 and sampled.pairs == entry(rows, num_samples=5).pairs
    assert [pair.row for pair in sampled.pairs] == sorted(pair.row for pair in sampled.pairs)
    repeated = entry(rows, num_samples=45).pairs
    assert len({pair.id for pair in repeated}) == 45 and {pair.row for pair in repeated} == set(range(1, 21))


def test_own_columns_and_the_task_can_stand_beside_llama_factorys(entry: Entry) -> None:
    rows = [{"instruction": "问", "output": "答", "src": ["a.md"], "part": "test"}]
    columns = {"prompt": "instruction", "response": "output", "doc_ids": "src", "split": "part"}
    (pair,) = entry(rows, columns=columns, task="summary").pairs
    assert (pair.doc_ids, pair.split, pair.task) == (("a.md",), "test", "summary")


def test_arrow_as_the_data_set_library_saves_it(tmp_path: Path, entry: Entry) -> None:
    Dataset.from_list(OPENAI).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.rename(tmp_path / "rows.arrow")
    read = read_entry(tmp_path, "e", {"file_name": "rows.arrow", "formatting": "openai"})
    assert (read.pairs[0].question, read.pairs[0].answer) == ("问", "答")


def test_the_folder_key_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.json").write_text(json.dumps(ALPACA), "utf-8")
    read = read_entry(tmp_path, "e", {"file_name": "a.json", "folder": "inner"})
    assert read.notes == ("read from inner/a.json",)


def test_a_data_set_from_the_hub_is_read_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def load(path: str, **how: object) -> Dataset:
        asked[path] = how
        return Dataset.from_list(ALPACA)

    monkeypatch.setattr("datasets.load_dataset", load)
    read = read_entry(tmp_path, "e", {"hf_hub_url": "team/fees", "subset": "zh", "folder": "v2", "split": "validation"})
    assert asked == {"team/fees": {"name": "zh", "data_dir": "v2", "split": "validation"}}
    assert (read.pairs[0].id, read.pairs[0].file) == ("fees-1", "team/fees")


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(Unusable, match="no route") as caught:
        read_entry(tmp_path, "e", {"hf_hub_url": "team/fees"})
    assert caught.value.no_hub
    with pytest.raises(Unusable, match="which did not answer before"):
        read_entry(tmp_path, "f", {"hf_hub_url": "team/other"}, hub=False)


def test_bad_rows_are_left_out_only_when_asked_to(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*SHAREGPT, {"conversations": SHAREGPT[0]["conversations"][:1]}]), "utf-8")
    raw = {"file_name": "a.json", "formatting": "sharegpt"}
    with pytest.raises(DatasetError, match=r'a\.json row 2, field "conversations": ends with the user'):
        read_entry(tmp_path, "e", raw)
    read = read_entry(tmp_path, "e", raw, skip_bad=True)
    assert (len(read.pairs), [item.row for item in read.excluded]) == (1, [2])


# --- malformed registries: content, what the message must say

REGISTRIES: list[tuple[str, bytes | None, tuple[str, ...]]] = [
    ("missing", None, ("has no dataset_info.json",)),
    ("empty", b"", ("the file is empty",)),
    ("list", b"[]", ("expected an object", "found a list")),
    ("text", b'"fees"', ("expected an object", "found the text 'fees'")),
    ("no-entry", b"{}", ("names no data set",)),
    ("cut", b'{"a": {"file_name": "x.js', ("not valid JSON", "correct it there")),
    ("twice", b'{"a": {"file_name": "x.json"}, "a": {"file_name": "y.json"}}', ('the key "a" appears twice',)),
    ("deep", b'{"a": ' + b"[" * 200_000, ("not valid JSON",)),
    ("nul", b'{"a": \0}', ("contains NUL bytes (first at byte 6)",)),
    ("surrogate", b'{"\\ud83d": {"file_name": "x.json"}}', ("half of a surrogate pair",)),
    ("latin", '{"données": {"file_name": "x.json"}}'.encode("latin-1"), ("not UTF-8 at byte",)),
]


@pytest.mark.parametrize(("content", "says"), [case[1:] for case in REGISTRIES], ids=[case[0] for case in REGISTRIES])
def test_a_malformed_registry_says_what_is_wrong(tmp_path: Path, content: bytes | None, says: tuple[str, ...]) -> None:
    if content is not None:
        (tmp_path / "dataset_info.json").write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        read_registry(tmp_path)
    for part in (str(tmp_path), *says):
        assert part in str(caught.value)


RANKED = [{"instruction": "q", "chosen": "a", "rejected": "b"}]
ENTRIES: list[tuple[str, object, tuple[str, ...]]] = [
    ("text", "rows.json", ("expected an object", "found the text 'rows.json'")),
    ("null", None, ("expected an object", "found null")),
    ("nowhere", {"file_name": None}, ("says nowhere where the data are",)),
    ("key", {"file_nam": "x.json"}, ('unknown key "file_nam"', 'mean "file_name"')),
    ("key-far", {"file_name": "rows.json", "xyz": 1}, ('unknown key "xyz"', "known keys are file_name")),
    ("column-key", {"columns": {"promt": "instruction"}}, ('columns: unknown key "promt"', 'mean "prompt"')),
    ("tag-key", {"tags": {"rol_tag": "role"}}, ('tags: unknown key "rol_tag"', 'mean "role_tag"')),
    ("column-twice", {"columns": {"prompt": "a", "instruction": "b"}}, ('"instruction" says "prompt" a second time',)),
    ("columns-list", {"columns": ["prompt"]}, ("columns: expected an object, found a list",)),
    ("column-type", {"columns": {"prompt": 1}}, ("columns: prompt: expected text, found a number",)),
    ("tags-text", {"tags": "role"}, ("tags: expected an object",)),
    ("formatting", {"formatting": "sharegtp"}, ('unknown formatting "sharegtp"', 'mean "sharegpt"')),
    ("formatting-type", {"formatting": 1}, ("formatting: expected text, found a number",)),
    ("ranking-type", {"ranking": "yes"}, ("ranking: expected true or false, found the text 'yes'",)),
    ("samples-type", {"num_samples": "10"}, ("num_samples: expected a whole number above 0",)),
    ("samples-zero", {"num_samples": 0}, ("num_samples: expected a whole number above 0",)),
    ("samples-truth", {"num_samples": True}, ("num_samples: expected a whole number above 0",)),
    ("task", {"task": "sumary"}, ('unknown task "sumary"', 'mean "summary"')),
    ("split", {"split": "validation"}, ("split: ", 'Unknown split "validation"', "train[:10%]")),
    ("split-form", {"split": "train[:x]"}, ("split: ", "train[:x]")),
    ("split-nothing", {"split": "train[5:]"}, ("no usable row",)),
    ("file", {"file_name": "row.json"}, ("no file 'row.json'",)),
    ("file-long", {"file_name": "长" * 100}, ('entry "e"', "file_name: ", "rename the file")),
    ("up", {"file_name": "../secret.json"}, ("'../secret.json' leads out of",)),
    ("up-inside", {"file_name": "desk/../../secret.json"}, ("leads out of",)),
    ("absolute", {"file_name": "/etc/passwd"}, ("'/etc/passwd' is an absolute path", "dataset add FILE")),
    ("link-out", {"file_name": "link.json"}, ("'link.json' leads out of",)),
    ("folder-up", {"file_name": "secret.json", "folder": ".."}, ("'../secret.json' leads out of",)),
    ("nul", {"file_name": "a\0.json"}, ("contains a NUL character",)),
    ("loop", {"file_name": "loop"}, ("leads in a circle",)),
    ("cycle", {"file_name": "cycle"}, ("cycle holds the folder again",)),
    ("link-inside", {"file_name": "links"}, ("'links/link.json' leads out of",)),
    ("folder-empty", {"file_name": "nothing"}, ("the folder nothing is empty",)),
    ("folder-mixed", {"file_name": "mixed"}, ("files of several kinds (.csv, .json)",)),
    ("ending", {"file_name": "rows.xlsx"}, ("unknown format .xlsx",)),
    ("column", {"columns": {"prompt": "instrction", "response": "output"}}, ('prompt: no column "instrction"', 'mean "instruction"')),
    ("no-prompt", {"columns": {"response": "output"}}, ("no column for the prompt", "instruction, output")),
    ("no-response", {"columns": {"prompt": "instruction", "query": "output"}}, ("no column for the response",)),
    ("no-messages", {"formatting": "sharegpt"}, ("no column for the messages", '"formatting": "alpaca"')),
    ("not-alpaca", {"file_name": "talk.json"}, ("no column for the prompt", 'set "formatting": "sharegpt"')),
    ("not-ranking", {"file_name": "ranked.json", "columns": {"prompt": "instruction", "chosen": "chosen"}}, ('set "ranking": true',)),
    ("ranking", {"ranking": True}, ("ranking: no column for the chosen answer",)),
    (
        "ranking-half",
        {"file_name": "ranked.json", "ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen"}},
        ("rejected",),
    ),
    ("tags", {"file_name": "talk.json", "formatting": "sharegpt", "tags": {"role_tag": "role"}}, ("message 1: has no",)),
    (
        "user-tag",
        {"file_name": "talk.json", "formatting": "sharegpt", "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "user"}},
        ("message 1: unknown 'human'",),
    ),
    ("hub-name", {"file_name": None, "hf_hub_url": "../../etc"}, ('entry "e"', "is no data set's name on the hub")),
    ("hub-here", {"file_name": None, "hf_hub_url": "data/desk"}, ('entry "e"', "'data/desk' is also /", "start from another folder")),
]


@pytest.mark.parametrize(("raw", "says"), [case[1:] for case in ENTRIES], ids=[case[0] for case in ENTRIES])
def test_a_malformed_entry_says_what_is_wrong(tmp_path: Path, raw: Any, says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    for name in ("desk", "nothing", "mixed", "cycle", "links"):
        (folder / name).mkdir(parents=True)
    for path in (folder / "rows.json", folder / "mixed" / "a.json", tmp_path / "secret.json"):
        path.write_text('[{"instruction": "q", "output": "a"}]', "utf-8")
    (folder / "mixed" / "b.csv").write_text("instruction,output\nq,a\n", "utf-8")
    (folder / "rows.xlsx").write_bytes(b"PK")
    (folder / "talk.json").write_text(json.dumps(SHAREGPT), "utf-8")
    (folder / "ranked.json").write_text(json.dumps(RANKED), "utf-8")
    for link in (folder / "link.json", folder / "links" / "link.json"):
        link.symlink_to(tmp_path / "secret.json")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "cycle" / "again").symlink_to(folder / "cycle")
    with pytest.raises(DatasetError) as caught:
        read_entry(folder, "e", {"file_name": "rows.json", **raw} if isinstance(raw, dict) else raw)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"ms_hub_url": "team/x"}, "is on ModelScope"),
        ({"om_hub_url": "team/x"}, "is on Modelers"),
        ({"cloud_file_name": "s3://x"}, "is in a cloud bucket"),
        ({"script_url": "x"}, "code that comes with data is not run"),
        ({"file_name": "k.json", "columns": {"prompt": "p", "response": "r", "kto_tag": "label"}}, "is for KTO"),
        ({"file_name": "k.json", "columns": {"prompt": "p", "response": "r", "tools": "label"}}, "1 of 1 rows have tools"),
        ({"file_name": "k.json", "columns": {"prompt": "p"}}, "is text without answers"),
        ({"file_name": "texts"}, "texts is plain text without answers"),
    ],
)
def test_what_is_right_but_not_for_us(tmp_path: Path, raw: dict[str, Any], says: str) -> None:
    (tmp_path / "k.json").write_text('[{"p": "q", "r": "a", "label": true}]', "utf-8")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Some text.", "utf-8")
    with pytest.raises(Unusable, match=says):
        read_entry(tmp_path, "e", raw)
