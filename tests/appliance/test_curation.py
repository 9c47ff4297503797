"""Pairs from documents: drafted, checked, reviewed, registered, and asked in training as they are asked in serving."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ScriptedEngine
from helpers import OneEngine, answering_with

from appliance import prompts
from appliance.adapters.registry import Registry
from appliance.answers.verified import VerifiedAnswers
from appliance.cli.main import run
from appliance.datasets.drafts import review
from appliance.datasets.from_documents import Drafted, from_documents
from appliance.datasets.pair_patterns import patterned
from appliance.datasets.registry import Datasets
from appliance.engines.base import Delta, EngineBusy, Message, Sampling
from appliance.errors import ApplianceError, UsageError
from appliance.evaluation.runs import items
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.service import Service, open_service
from appliance.training.data import gather
from appliance.training.examples import evidence_links, example, examples, labels_of, outdated, shown
from appliance.types import Caller, Request
from appliance.workspace import Workspace
from finetune.settings import TrainSettings
from finetune.types import Pair
from retrieval.types import DocumentKey, Scope


class Writer(ScriptedEngine):
    """Says the first of `replies` whose key is in what it was asked; fails after `lives` requests."""

    def __init__(self, replies: dict[str, str], languages: Sequence[str] = ("en", "zh"), lives: int = 10**6) -> None:
        super().__init__(languages=languages)
        self.replies, self.lives, self.busy = replies, lives, 0

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        self.lives -= 1
        if self.lives < 0:
            raise KeyboardInterrupt
        if self.busy:
            self.busy -= 1
            raise EngineBusy("full", retry_after=0.0)
        asked = messages[-1]["content"]
        self.reply = next((reply for key, reply in self.replies.items() if key in asked), "")
        async with asyncio.timeout(10):
            async for delta in super().chat(messages, adapter, sampling):
                yield delta


def _service(knowledge: Knowledge, engine: ScriptedEngine | None = None) -> Service:
    engine = engine or ScriptedEngine()
    answering = answering_with(knowledge, engine)
    registry = Registry(knowledge.workspace)
    return Service(knowledge.workspace, knowledge.models, knowledge, registry, VerifiedAnswers(knowledge), OneEngine(engine), answering)  # type: ignore[arg-type]


def _draft(service: Service, file: Path, **settings: Any) -> tuple[Drafted, list[dict[str, Any]]]:
    done = asyncio.run(from_documents(service, "medical", file, **settings))
    return done, [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _text(knowledge: Knowledge, doc_id: str) -> str:
    whole = knowledge.documents.whole_passage(DocumentKey("medical", doc_id))
    assert whole is not None
    return whole.chunk.text


@pytest.fixture(scope="module")
def service(prepared: Path, tmp_path_factory: pytest.TempPathFactory, models: ModelStore) -> Iterator[Service]:
    """A knowledge base that the tests here read and do not change."""
    root = tmp_path_factory.mktemp("curation")
    shutil.copytree(prepared, root / "copy")
    with Workspace(root / "copy" / "workspace") as workspace:
        yield _service(Knowledge(workspace, models))


@pytest.fixture(scope="module")
def drafts(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with answerable.jsonl and withheld.jsonl, still to be reviewed."""
    folder = tmp_path_factory.mktemp("drafts")
    _draft(service, folder / "answerable.jsonl", method="pattern", unanswerable=0.0)
    _draft(service, folder / "withheld.jsonl", method="pattern", unanswerable=1.0)
    return folder


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


@pytest.fixture(scope="module")
def accepted(service: Service, drafts: Path) -> list[Pair]:
    """Both drafts accepted and registered as one data set."""
    rows = [{**row, "review": "accepted"} for name in ("answerable", "withheld") for row in _rows(drafts / f"{name}.jsonl")]
    _write(drafts / "both.jsonl", [{**row, "id": f"{row['id']}-{number}"} for number, row in enumerate(rows)])
    datasets = Datasets(service.workspace)
    return datasets.pairs(datasets.add(drafts / "both.jsonl", domain="medical").info)


def test_patterns_ask_for_what_a_sentence_says() -> None:
    text = (
        "A visitor pass is a card for one person. It costs 3 crowns an hour. The north garage closes at 22:30 on every working day.\n\n"
        "第一条 普通门诊挂号费为20元。医保凭证是指参保人员的电子凭证。取消预约应在三日内办理完毕。"
    )
    found = list(patterned(text, "Rules"))
    assert [(made.kind, made.question, text[made.start : made.end]) for made in found] == [
        ("definition", "What is a visitor pass?", "A visitor pass is a card for one person."),
        ("definition", "什么是医保凭证？", "医保凭证是指参保人员的电子凭证。"),
        ("amount", "普通门诊挂号费是多少？", "普通门诊挂号费为20元。"),
        (
            "gap",
            'Rules: which number belongs in the gap? "The north garage closes at ____ on every working day."',
            "The north garage closes at 22:30 on every working day.",
        ),
        ("gap", "Rules：下面这句话的空白处应填什么数字？“取消预约应在____日内办理完毕。”", "取消预约应在三日内办理完毕。"),
    ]
    assert list(patterned("", "x")) == list(patterned("No sentence here", "x")) == []


def test_pattern_pairs_quote_the_documents_and_carry_their_passages(service: Service, drafts: Path) -> None:
    knowledge, rows = service.knowledge, _rows(drafts / "answerable.jsonl")
    assert len(rows) >= 3
    assert {row["lang"] for row in rows} == {"en", "zh"}
    assert {row["method"] for row in rows} == {"pattern"}
    assert {row["review"] for row in rows} == {"pending"}
    for row in rows:
        roles = [passage["role"] for passage in row["passages"]]
        assert "gold" in roles
        assert "negative" in roles
        for quote in row["quotes"]:
            assert _text(knowledge, quote["doc_id"])[quote["start"] : quote["end"]] == quote["text"]
            info = knowledge.documents.current(DocumentKey("medical", quote["doc_id"]))
            assert info is not None
            assert info.sha256 == quote["sha256"]
            assert any(p["doc_id"] == quote["doc_id"] and p["sha256"] == info.sha256 for p in row["passages"])
    assert sorted(path.name for path in drafts.glob("answerable*")) == ["answerable.jsonl"]


def test_withheld_pairs_are_answered_with_the_agreed_sentence(drafts: Path) -> None:
    rows = _rows(drafts / "withheld.jsonl")
    assert rows
    for row in rows:
        assert row["answerable"] is False
        assert row["answer"] == prompts.NOTHING_FOUND[row["lang"]]
        gold = {passage["sha256"] for passage in row["passages"] if passage["role"] == "withheld"}
        rest = {passage["sha256"] for passage in row["passages"] if passage["role"] == "negative"}
        assert len(gold) == 1
        assert rest
        assert not gold & rest


def test_what_an_engine_writes_is_kept_only_if_it_holds(service: Service, tmp_path: Path) -> None:
    engine = Writer(
        {
            # Questions are written first, then answered from the same passage; the more telling keys come first.
            "parking in the north garage cost": "Parking in the north garage costs 3 crowns an hour.",
            "专家门诊挂号费是多少": "专家门诊挂号费为80元。",
            "When may visitors come": "Visitors may come from 14:00 to 20:00 every day.",
            "North garage": "unused",
            "# Parking": 'Question: "How much does parking in the north garage cost?"\nAnswer: 3 crowns.',
            "Parking\n": "1. How much does parking in the north garage cost?",
            "Visiting rules\n": "When may visitors come to the hospital?",
            "门诊挂号\n": "问题：专家门诊挂号费是多少？",
            "Pay scales\n": "What does the passage say?",
        }
    )
    engine.busy = 2
    done, rows = _draft(_service(service.knowledge, engine), tmp_path / "pairs.jsonl", method="engine", unanswerable=0.0)
    assert {row["question"]: row["answer"] for row in rows} == {
        "How much does parking in the north garage cost?": "Parking in the north garage costs 3 crowns an hour.",
        "When may visitors come to the hospital?": "Visitors may come from 14:00 to 20:00 every day.",
    }
    assert {row["method"] for row in rows} == {"engine:default"}
    assert done.thrown_away == {
        "the passage does not support the answer (engine)": 1,
        "the question is not understood without the passage (engine)": 1,
    }


def test_without_a_chinese_engine_patterns_ask_in_chinese(service: Service, tmp_path: Path) -> None:
    service = _service(service.knowledge, Writer({}, languages=("en",)))
    done, rows = _draft(service, tmp_path / "auto.jsonl", unanswerable=0.0)
    assert done.notes == ("engine default does not declare zh: 1 passages in it were asked about by patterns only",)
    assert any(row["lang"] == "zh" and row["method"] == "pattern" for row in rows)
    assert done.thrown_away["the engine wrote no question"] == 3
    none, _ = _draft(service, tmp_path / "engine.jsonl", method="engine")
    assert none.notes == ("engine default does not declare zh: 1 passages in it were left out",)
    assert none.thrown_away == {"the engine wrote no question": 3, "the engine does not declare zh": 1}


def test_an_interrupted_draft_goes_on_to_the_same_rows(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge = service.knowledge
    monkeypatch.setattr("appliance.datasets.from_documents._AT_A_TIME", 1)
    whole, rows = _draft(_service(knowledge, Writer({})), tmp_path / "whole.jsonl")
    file = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _draft(_service(knowledge, Writer({}, lives=2)), file)
    assert not file.exists()
    part = tmp_path / "cut.jsonl.part"
    # A kill between the two files leaves rows that the state does not know.
    part.write_bytes(part.read_bytes() + b'{"id": "half')
    with pytest.raises(UsageError, match="seed 0, now 5"):
        _draft(_service(knowledge, Writer({})), file, seed=5)
    again, resumed = _draft(_service(knowledge, Writer({})), file)
    assert resumed == rows
    assert (again.pairs, again.passages, again.thrown_away) == (whole.pairs, whole.passages, whole.thrown_away)
    assert sorted(path.name for path in tmp_path.glob("cut*")) == ["cut.jsonl"]
    with pytest.raises(UsageError, match="is there already"):
        _draft(_service(knowledge), file)


def test_count_is_kept_to_and_an_empty_domain_is_an_error(service: Service, tmp_path: Path) -> None:
    done, rows = _draft(service, tmp_path / "two.jsonl", method="pattern", count=2)
    assert done.pairs == len(rows) == 2
    service.workspace.create_domain("empty")
    with pytest.raises(UsageError, match="empty has no documents"):
        asyncio.run(from_documents(service, "empty", tmp_path / "x.jsonl"))


def test_training_asks_as_hybrid_asks(service: Service, accepted: list[Pair]) -> None:
    pairs = accepted
    engine = ScriptedEngine("是。")
    answering = answering_with(service.knowledge, engine)
    scope = Scope(frozenset({"medical"}), service.knowledge.documents.labels("medical"))
    secret = service.workspace.db.secret()
    compared = 0
    for pair, made in zip(pairs, examples(service, "medical", pairs), strict=True):
        assert made.completion == (pair.answer if pair.answerable else prompts.NOTHING_FOUND[pair.lang])
        passages = answering.within_budget(service.knowledge.search(pair.question, scope).passages)
        if not pair.answerable:
            # What serving would find without the withheld document.
            assert not {p.document.id for p in shown(service.knowledge.documents, "medical", pair) or ()} & {
                ref.doc_id for ref in pair.passages if ref.role == "withheld"
            }
            continue
        tag = prompts.passages_tag(secret, passages)
        served = prompts.with_passages("medical", pair.lang, pair.question, (), passages, tag)
        assert served == [Message(role=turn.role, content=turn.content) for turn in made.prompt]
        compared += 1
    assert compared
    assert {pair.lang for pair in pairs} == {"en", "zh"}


def test_a_served_rag_prompt_is_the_trained_one(service: Service, accepted: list[Pair]) -> None:
    pairs = accepted
    engine = ScriptedEngine("是。")
    caller = Caller(Scope(None, service.knowledge.documents.labels()))
    for pair in [next(pair for pair in pairs if pair.answerable and pair.lang == lang) for lang in ("en", "zh")]:
        asyncio.run(answering_with(service.knowledge, engine).ask(Request(pair.question, (), "medical", "rag"), caller))
        served = engine.asked[-1][0]
        (made,) = examples(service, "medical", [pair])
        assert served == [Message(role=turn.role, content=turn.content) for turn in made.prompt]


def test_pairs_of_changed_and_removed_documents_are_left_out(
    knowledge: Knowledge, drafts: Path, accepted: list[Pair], tmp_path: Path
) -> None:
    service, pairs = _service(knowledge), accepted
    assert outdated(service, "medical", pairs) == frozenset()
    links = evidence_links(service, "medical", pairs)
    assert {link.kind for link in links} == {"declared"}
    assert labels_of(service, links) == frozenset({"management"})
    parking = {pair.id for pair in pairs if any(ref.doc_id == "parking.md" for ref in pair.passages)}
    written = {pair.id for pair in pairs if any(ref.doc_id == "parking.md" and ref.role != "negative" for ref in pair.passages)}
    assert parking > written > set()
    plain = [
        {"question": question, "answer": "Yes.", "review": "accepted"}
        for question in ("Is the chapel open?", "手机可以用吗？", "May I bring flowers?")
    ]
    datasets = Datasets(knowledge.workspace)
    info = datasets.add(_write(tmp_path / "more.jsonl", [*_rows(drafts / "both.jsonl"), *plain]), domain="medical").info
    knowledge.remove([DocumentKey("medical", "parking.md")])
    assert outdated(service, "medical", pairs) == parking
    data = gather(service, "medical", "more", TrainSettings(), ("en", "zh"))
    # What was written from it is gone, what was only shown with it is left out.
    assert data.left_out == {"its documents were changed or removed": len(parking - written)}
    assert len(data.train) + len(data.dev) == len(pairs) - len(parking) + 3
    assert {pair.id for pair in datasets.pairs(datasets.get("more"))} & {pair.id for pair in pairs} == {p.id for p in pairs} - written
    assert datasets.get("more").version == info.version


@pytest.mark.parametrize(("name", "said"), [("parking.md", "18 crowns"), ("zh/registration.md", "挂号费为")])
def test_a_deletion_reaches_drafted_pairs_before_and_after_they_are_registered(
    knowledge: Knowledge, drafts: Path, tmp_path: Path, name: str, said: str
) -> None:
    rows = [{**row, "review": "accepted"} for row in _rows(drafts / "answerable.jsonl")]
    file = _write(tmp_path / "pairs.jsonl", rows)
    datasets, folder = Datasets(knowledge.workspace), knowledge.workspace.folder("datasets")
    first = datasets.add(file, domain="medical").info
    # Quotations are kept by reference; what a pair says is its own.
    assert all(set(quote) == {"doc_id", "sha256", "start", "end"} for pair in datasets.pairs(first) for quote in pair.meta["quotes"])
    assert any(said in path.read_text("utf-8") for path in folder.iterdir())
    knowledge.remove([DocumentKey("medical", name)])
    assert not [path for path in folder.iterdir() if said in path.read_text("utf-8")]
    left = datasets.pairs(datasets.get("pairs"))
    assert 0 < len(left) < len(rows) and datasets.get("pairs").counts["pairs"] == len(left)
    with pytest.raises(ApplianceError, match=rf'row \d+, field "passages": was written from "{name}", which was deleted since; reject it'):
        datasets.add(file, domain="medical")
    # A row that names no domain rests on it all the same.
    anywhere = _write(tmp_path / "anywhere.jsonl", [{key: value for key, value in row.items() if key != "domain"} for row in rows])
    added = datasets.add(anywhere, skip_bad=True)
    assert [pair.id for pair in datasets.pairs(added.info)] == [pair.id for pair in left]
    assert {bad.field for bad in added.excluded} == {"passages"} and len(added.excluded) == len(rows) - len(left)
    assert not [path for path in folder.iterdir() if said in path.read_text("utf-8")]
    # What comes in again is legal again.
    knowledge.ingest([tmp_path / "copy" / "documents"], domain="medical")
    assert datasets.add(file, domain="medical").changed
    assert len(datasets.pairs(datasets.get("pairs"))) == len(rows)


def test_a_data_set_of_nothing_but_deleted_documents_is_empty(knowledge: Knowledge, drafts: Path, tmp_path: Path) -> None:
    rows = [{**row, "review": "accepted"} for row in _rows(drafts / "answerable.jsonl") if row["doc_ids"] == ["parking.md"]]
    datasets = Datasets(knowledge.workspace)
    info = datasets.add(_write(tmp_path / "pairs.jsonl", rows), domain="medical").info
    knowledge.remove([DocumentKey("medical", "parking.md")])
    info = datasets.get("pairs")
    assert datasets.pairs(info) == [] and info.path.read_bytes() == b""
    with pytest.raises(UsageError, match="no pair of this data set can train medical"):
        gather(_service(knowledge), "medical", "pairs", TrainSettings(), ("en", "zh"))


def test_what_a_crash_left_of_a_deletion_is_done_the_next_time(
    knowledge: Knowledge, drafts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "review": "accepted"} for row in _rows(drafts / "answerable.jsonl")]
    datasets = Datasets(knowledge.workspace)
    info = datasets.add(_write(tmp_path / "pairs.jsonl", rows), domain="medical").info
    monkeypatch.setattr("appliance.datasets.erasing.write_pairs", lambda pairs, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        knowledge.remove([DocumentKey("medical", "parking.md")])
    monkeypatch.undo()
    assert "18 crowns" in info.path.read_text("utf-8")
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    assert "18 crowns" not in info.path.read_text("utf-8") and datasets.pairs(datasets.get("pairs"))


def test_withheld_questions_are_not_evaluated(accepted: list[Pair]) -> None:
    pairs = accepted
    asked = {item.id for item in items(pairs, None, None)}
    assert asked == {pair.id for pair in pairs if pair.answerable}
    assert len(asked) < len(pairs)


def test_registered_pairs_hold_references_and_come_back_the_same(service: Service, accepted: list[Pair]) -> None:
    pairs = accepted
    datasets = Datasets(service.workspace)
    info = datasets.get("both")
    assert "review" not in info.path.read_text("utf-8")
    again = datasets.add(info.path, name="both")
    assert (again.changed, again.info.version) == (False, info.version)
    assert all(pair.passages for pair in pairs)
    assert example(replace(pairs[0], passages=()), "medical", 4).prompt[0].content.startswith(("You answer", "你为"))


def test_only_reviewed_pairs_can_be_registered(workspace: Workspace, drafts: Path, tmp_path: Path) -> None:
    rows = _rows(drafts / "answerable.jsonl")
    file = _write(tmp_path / "pairs.jsonl", rows)
    datasets = Datasets(workspace)
    with pytest.raises(ApplianceError, match=r'pairs\.jsonl row 1, field "review": is not reviewed yet; accept or reject it'):
        datasets.add(file, domain="medical")
    first, second, *rest = [row["id"] for row in rows]
    with pytest.raises(UsageError, match=f"has no pair '{first[:-1]}' .did you mean \"{first}\""):
        review(file, [first[:-1]], [])
    with pytest.raises(UsageError, match="both accepted and rejected"):
        review(file, [first], [first])
    review(file, [first], [second])
    with pytest.raises(ApplianceError, match="row 3"):
        datasets.add(file, domain="medical")
    added = datasets.add(file, domain="medical", skip_bad=True)
    assert added.info.counts["pairs"] == 1
    assert [excluded.reason for excluded in added.excluded].count("was rejected by its reviewer") == 1
    assert len(added.excluded) == 1 + len(rest)
    review(file, [], ["all"])
    assert [row["review"] for row in review(file, [], [])] == ["accepted", *["rejected"] * (len(rows) - 1)]
    # By hand, with a word that is none.
    file.write_text(file.read_text("utf-8").replace('"accepted"', '"acepted"'), "utf-8")
    with pytest.raises(ApplianceError, match='did you mean "accepted"'):
        datasets.add(file, domain="medical")


def test_a_draft_whose_rows_were_moved_away_is_begun_anew(service: Service, tmp_path: Path) -> None:
    # Killed after the file got its name: the state stays beside it.
    whole = _draft(service, tmp_path / "pairs.jsonl", method="pattern", count=2)
    state = {"made_by": {}, "position": 9, "thrown_away": {}, "bytes": 500}
    (tmp_path / "pairs.jsonl").unlink()
    (tmp_path / "pairs.jsonl.state").write_text(json.dumps(state), "utf-8")
    assert _draft(service, tmp_path / "pairs.jsonl", method="pattern", count=2) == whole
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([{"doc_id": "a", "sha256": "s", "start": 3, "end": 3, "role": "gold"}], "expected 0 <= start < end"),
        ([{"doc_id": "a", "sha256": "s", "start": 0, "end": 3, "role": "golden"}], 'did you mean "gold"'),
        ([{"doc_id": "a", "sha256": "s", "start": 0, "end": 3, "role": "withheld"}], "no passage is shown"),
        ([{"doc_id": "a", "sha256": "s"}], "passage 1: expected"),
    ],
)
def test_bad_references_to_passages(workspace: Workspace, tmp_path: Path, passages: list[dict[str, Any]], message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"question": "费用？", "answer": "20元", "passages": passages}), "utf-8")
    with pytest.raises(ApplianceError, match=message):
        Datasets(workspace).add(file)


def test_foreign_columns_of_the_same_names_are_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "foreign.jsonl"
    file.write_text(json.dumps({"question": "好吗？", "answer": "好。", "passages": ["text"], "review": "I liked it"}), "utf-8")
    added = Datasets(workspace).add(file)
    assert len([note for note in added.notes if "is not read" in note]) == 2
    assert Datasets(workspace).pairs(added.info)[0].meta == {"passages": ["text"], "review": "I liked it"}


def test_from_documents_to_check_on_the_command_line(
    knowledge: Knowledge, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = ("--workspace", str(knowledge.workspace.root))
    monkeypatch.chdir(tmp_path)
    assert run(["dataset", "from-documents", "--method", "pattern", "--count", "3", "--json", *workspace]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["file"], done["pairs"]) == ("medical-pairs.jsonl", 3)
    assert run(["dataset", "review", "medical-pairs.jsonl", *workspace]) == 0
    assert "pending" in capsys.readouterr().out
    assert run(["dataset", "review", "medical-pairs.jsonl", "--accept", "all", "--json", *workspace]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"accepted": 3}
    assert run(["dataset", "add", "medical-pairs.jsonl", "--domain", "medical", *workspace]) == 0
    (tmp_path / "exam.jsonl").write_text(Path("medical-pairs.jsonl").read_text("utf-8"), "utf-8")
    assert run(["dataset", "add", "exam.jsonl", *workspace]) == 0
    capsys.readouterr()
    assert run(["dataset", "check", "medical-pairs", "--json", *workspace]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["coverage"]["documents"] == 4
    assert report["coverage"]["with_pairs"] >= 1
    assert report["coverage"]["outdated"] == []
    assert [item["leak"] for item in report["shared"]] == [False, False, False]
    assert report["compared"] == ["exam"]
    assert run(["dataset", "check", "medical-pairs", "--against", "exam", "--strict", "--html", "page.html", *workspace]) == 4
    out = capsys.readouterr().out
    assert "3 questions are trained on here and measured on in another set" in out
    assert "exam" in Path("page.html").read_text("utf-8")
    assert run(["dataset", "check", "medical-pairs", "--against", "nothing", *workspace]) == 2


@pytest.mark.slow
def test_the_default_engine_writes_pairs_that_hold(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    with Workspace(tmp_path / "copy" / "workspace") as workspace:
        service = open_service(workspace)

        async def draft() -> Drafted:
            try:
                return await from_documents(service, "medical", tmp_path / "pairs.jsonl")
            finally:
                await service.engines.close()

        done = asyncio.run(draft())
    # The small model asks well about few passages; what was kept is supported, and patterns fill in.
    assert done.exhausted
    assert done.passages == 4
    assert done.notes == ("engine default does not declare zh: 1 passages in it were asked about by patterns only",)
    rows = _rows(tmp_path / "pairs.jsonl")
    assert len(rows) == done.pairs >= 3
    assert all(row["quotes"] and row["passages"] for row in rows)
    assert {row["lang"] for row in rows} == {"en", "zh"}
