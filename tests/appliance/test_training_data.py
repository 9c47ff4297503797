"""What a method gets of a data set: the same border between train and dev for all of them, and nothing that is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from appliance.datasets.checks import examine
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.service import Service, open_service
from appliance.training.data import TrainingData, gather
from finetune.settings import TrainSettings

BOTH = ("en", "zh")


@pytest.fixture
def service(knowledge: Knowledge) -> Service:
    return replace(open_service(knowledge.workspace), knowledge=knowledge)


def _add(service: Service, folder: Path, rows: Sequence[dict[str, Any]]) -> DatasetInfo:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return Datasets(service.workspace).add(file, domain="medical").info


def _gather(service: Service, method: str = "lora", languages: Sequence[str] = BOTH) -> TrainingData:
    return gather(service, "medical", "pairs", TrainSettings(method=method), languages)


def _ids(data: TrainingData) -> tuple[set[str], set[str]]:
    return {example.id for example in data.train}, {example.id for example in data.dev}


def _rows(count: int) -> list[dict[str, Any]]:
    """Questions that are not alike, every second one in Chinese."""
    zh, en = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳", ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")
    rows: list[dict[str, Any]] = []
    for n in range(count):
        question = f"{zh[n % 16] * 2}科在几楼？" if n % 2 else f"Where is the {en[n // 2 % 8]} ward?"
        rows.append({"id": f"q{n}", "question": question, "answer": f"{n}楼。" if n % 2 else f"On floor {n}."})
    return rows


def test_what_is_like_a_test_question_is_not_trained_on(service: Service, tmp_path: Path) -> None:
    rows = _rows(12)
    asked = [
        {"id": "test-en", "question": "Which floor is the blood bank on?", "answer": "4", "split": "test"},
        {"id": "like-en", "question": "Which floor is our blood bank on?", "answer": "On 4."},
        {"id": "test-zh", "question": "血库在哪一层楼？", "answer": "四层。", "split": "test"},
        {"id": "like-zh", "question": "血库在哪一层楼呢？", "answer": "在四层。"},
    ]
    info = _add(service, tmp_path, [*asked, *rows])
    data = _gather(service)
    train, dev = _ids(data)
    assert train | dev == {row["id"] for row in rows} and dev
    assert data.left_out == {"test split": 4}
    # What the check plans is what is trained.
    planned = examine(service, info, seed=TrainSettings().seed, searched=0).planned
    assert planned == {"train": len(train), "dev": len(dev), "test": 4}


def test_methods_and_languages_take_from_the_same_sides(service: Service, tmp_path: Path) -> None:
    _add(service, tmp_path, [{**row, "rejected": "不知道。"} for row in _rows(16)])
    train, dev = _ids(_gather(service))
    assert len(train | dev) == 16 and _ids(_gather(service, "dpo")) == (train, dev)
    for lang in BOTH:
        data = _gather(service, languages=(lang,))
        some_train, some_dev = _ids(data)
        other = "en" if lang == "zh" else "zh"
        assert len(data.train) + len(data.dev) == 8 and data.left_out == {f"language {other} not declared by the engine": 8}
        # Where none for dev is among them, a part of the others is held out.
        assert some_dev and ((some_train <= train and some_dev <= dev) or not (some_train | some_dev) & dev)


def test_where_all_is_declared_train_conversations_are_held_out_whole(service: Service, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**row, "split": "train"} for row in _rows(10)]
    for row in _rows(16)[10:]:
        for turn, question in enumerate((row["question"], f"{row['question']} And who works there? {row['id']}")):
            name = {"id": f"{row['id']}#{turn}", "conversation_id": row["id"], "split": "train"}
            rows.append({"question": question, "answer": row["answer"], **name})
    _add(service, tmp_path, rows)
    sides = [{name.partition("#")[0] for name in side} for side in _ids(_gather(service))]
    assert sides[1] and not sides[0] & sides[1]


def _several(service: Service, folder: Path) -> list[DatasetInfo]:
    """Two sets with the same ids, one of them with conversations, and a small third one to measure on."""
    rows = _rows(16)
    talks = [
        {"id": f"{row['id']}#{turn}", "conversation_id": row["id"], "question": f"{row['question']} {turn}", "answer": row["answer"]}
        for row in rows[10:14]
        for turn in (0, 1)
    ]
    sets = {"identity": rows[:10], "对话": talks, "exam": [{**row, "id": f"exam-{row['id']}"} for row in rows[14:]]}
    made = []
    for name, content in sets.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
        made.append(Datasets(service.workspace).add(file, domain="medical").info)
    return made


def test_several_data_sets_are_trained_together(service: Service, tmp_path: Path) -> None:
    first, talks, exam = _several(service, tmp_path)
    datasets = Datasets(service.workspace)

    def of(dataset: str, **settings: Any) -> tuple[TrainingData, set[str], set[str]]:
        data = gather(service, "medical", dataset, TrainSettings(**settings), BOTH)
        return data, *_ids(data)

    data, train, dev = of("identity, 对话")
    assert (data.dataset, data.version) == ("identity,对话", f"{first.version[:8]},{talks.version[:8]}")
    assert len(train | dev) == 18 and {name.partition("/")[0] for name in train | dev} == {"identity", "对话"}
    # The first rows of each; a conversation is one.
    _, train, dev = of("identity,对话", max_samples=3)
    assert train | dev == {*(f"identity/q{n}" for n in range(3)), *(f"对话/q{n}#{turn}" for n in (10, 11, 12) for turn in (0, 1))}
    _, train, dev = of("identity", max_samples=4)
    assert train | dev == {f"q{n}" for n in range(4)}
    # So many are held out, or this share.
    assert len(of("identity", val_size=4)[2]) == 4 and len(of("identity", val_size=0.3)[2]) == 3
    assert len(of("identity", val_size=1000)[1]) == 1
    # What is measured on is all that is held out.
    data, train, dev = of("identity", eval_dataset="exam")
    assert dev == {"exam/exam-q14", "exam/exam-q15"} and len(train) == 10
    assert (data.dataset, data.version) == ("identity,exam", f"{first.version[:8]},{exam.version[:8]}")
    with pytest.raises(UsageError, match="exam: named as dataset and as eval_dataset"):
        of("identity,exam", eval_dataset="exam")
    with pytest.raises(UsageError, match="no data set 'nothing'; known: exam, identity, 对话"):
        of("identity", eval_dataset="nothing")
    (tmp_path / "exam.jsonl").write_text(json.dumps(_rows(2)[1], ensure_ascii=False) + "\n", "utf-8")
    datasets.add(tmp_path / "exam.jsonl", domain="medical")
    with pytest.raises(UsageError, match="no pair of the eval_dataset exam can measure medical"):
        gather(service, "medical", "identity", TrainSettings(eval_dataset="exam"), ("en",))
    # The state that was trained on is found again after one of them has changed.
    (tmp_path / "identity.jsonl").write_text(json.dumps(_rows(1)[0]) + "\n", "utf-8")
    datasets.add(tmp_path / "identity.jsonl", domain="medical")
    before, now = datasets.state(data.dataset, data.version), datasets.get(data.dataset)
    assert len(datasets.pairs(before)) == 12 and len(datasets.pairs(now)) == 2
    assert before.version == data.version != now.version and before.counts["pairs"] == 12


def test_what_does_not_go_together_is_named(service: Service, tmp_path: Path) -> None:
    _several(service, tmp_path)
    datasets = Datasets(service.workspace)
    file = tmp_path / "summaries.jsonl"
    file.write_text(json.dumps({"question": "概括：今日无事。", "answer": "无事。"}) + "\n", "utf-8")
    datasets.add(file, task="summary")
    with pytest.raises(UsageError, match=r"identity,summaries: data sets of different tasks \(qa, summary\) do not go together"):
        datasets.get("identity,summaries")
    for number in range(8):
        datasets.add(tmp_path / "exam.jsonl", name=f"exam{number}")
    with pytest.raises(UsageError, match="these are too many data sets"):
        datasets.get(",".join(f"exam{number}" for number in range(8)))


def test_documents_are_read_instead_of_a_data_set_only_if_none_is_named(service: Service, tmp_path: Path) -> None:
    _add(service, tmp_path, _rows(4))
    with pytest.raises(UsageError, match="method pretrain reads the documents of medical, not the data set pairs; leave the data set out"):
        _gather(service, "pretrain")
    assert gather(service, "medical", None, TrainSettings(method="pretrain"), BOTH).dataset == "documents"


def test_a_template_that_refuses_the_prompts_is_a_note_of_the_check(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jinja2 import TemplateError

    class Refusing:
        chat_template = ""
        added_tokens_decoder: ClassVar[dict[int, object]] = {}

        def apply_chat_template(self, chats: object, **more: object) -> object:
            raise TemplateError("System role not supported")

    monkeypatch.setattr("appliance.datasets.checks.load_tokenizer", lambda base, template: Refusing())
    monkeypatch.setattr(type(service.models), "path", lambda self, reference: tmp_path)
    report = examine(service, _add(service, tmp_path, _rows(3)), searched=0)
    assert report.tokens is None
    assert any("refuses these messages (System role not supported)" in note for note in report.notes)


def test_a_registered_file_that_was_altered_is_not_trained_on(service: Service, tmp_path: Path) -> None:
    info = _add(service, tmp_path, _rows(4))
    info.path.write_text(info.path.read_text("utf-8").replace("floor", "flour"), "utf-8")
    with pytest.raises(ApplianceError, match="was altered after it was registered"):
        _gather(service)
