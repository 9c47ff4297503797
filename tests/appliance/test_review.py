"""The review queue: what enters it, what its texts depend on, how it is resolved; and training pairs out of feedback."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from expert_support import FEE, command

from appliance.adapters.evidence import Link
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.admin.keys import Keys
from appliance.answers.feedback import Feedback
from appliance.datasets.registry import Datasets
from appliance.engines.base import Usage
from appliance.errors import ApplianceError
from appliance.evaluation.runs import items
from appliance.experts.review import NoSuchReview, ReviewQueue, share_answered
from appliance.experts.review_entry import question_hash
from appliance.experts.tasks import ExpertTasks, prepare
from appliance.knowledge.knowledge import Knowledge
from appliance.prompts import NOTHING_FOUND
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.tables_experts import review
from appliance.types import Answer, Caller, Citation
from eval.run import load, run
from eval.types import Item, Outcome
from finetune.dataset import read_pairs
from retrieval.embed import Embedder
from retrieval.types import DocumentKey, Scope
from router.types import Decision
from tests.retrieval.retrieval_support import HashingEmbedder

KEPT, BARE = FeedbackConfig(retain_hours=24), FeedbackConfig()
ALL, NONE = Scope(None, frozenset({"management"})), Scope(None, frozenset())
PARKING = "Parking in the north garage costs 3 crowns an hour."


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def light(self: Knowledge, reference: str) -> Embedder:
        return HashingEmbedder()

    monkeypatch.setattr(Knowledge, "_open_model", light)


class Desk:
    """Answers as the gateway notes them."""

    def __init__(self, knowledge: Knowledge, settings: FeedbackConfig = KEPT) -> None:
        self.knowledge, self.feedback = knowledge, Feedback(knowledge.workspace.db, settings)
        self.queue = ReviewQueue(knowledge.workspace.db, self.feedback)
        self.number = 0

    def ask(self, question: str, text: str, arm: str = "rag", cites: str | None = None, query: str = "") -> str:
        self.number += 1
        info = None if cites is None else self.knowledge.documents.current(DocumentKey("medical", cites))
        cited = () if info is None else (Citation(info.id, "medical", "", "", 0, 1, "x", None, (), info.sha256, 0, 1),)
        decision = Decision(arm, "medical", "no_evidence", (), {}, {}, {}, "rules-1")  # type: ignore[arg-type]
        facts: dict[str, Any] = {"decision": decision, "engine": None, "adapter": None, "generation": 1}
        answer = Answer(f"ans-{self.number}", text, arm, "medical", cited, (), usage=Usage(1, 1), timings={}, query=query, **facts)  # type: ignore[arg-type]
        self.feedback.remember(answer, question, None, Caller(ALL))
        self.feedback.flush()
        return answer.id

    def rate(self, id: str, rating: str, correction: str | None = None, question: str | None = None, answer: str | None = None) -> None:
        self.feedback.give(Caller(ALL), id, rating, correction=correction, question=question, answer=answer)  # type: ignore[arg-type]

    def texts(self) -> str:
        with self.knowledge.workspace.db.read() as connection:
            return str(connection.execute(sa.select(review)).all())


@pytest.fixture
def desk(light: Knowledge) -> Desk:
    return Desk(light)


def test_refusals_and_bad_ratings_enter_once_each(desk: Desk) -> None:
    desk.ask("手术多少钱？", "我不能回答。", "refuse")
    desk.ask(" 手术多少钱", NOTHING_FOUND["zh"])
    bad = desk.ask("手术多少钱?", "免费。")
    desk.rate(bad, "down")
    desk.rate(bad, "down", correction="五千元。")
    desk.ask("When may visitors come?", "From 14:00.")
    (found,) = desk.queue.questions(NONE)
    assert (found.question, found.refused, found.rated_down, found.state) == ("手术多少钱?", 2, 1, "open")
    assert (found.rule, found.arm, found.answers) == ("no_evidence", "rag", ("ans-1", "ans-2", "ans-3"))
    _, given = desk.queue.show(NONE, found.id)
    assert [one.correction for one in given] == ["五千元。"]
    desk.rate(bad, "up")
    assert desk.queue.questions(NONE)[0].rated_down == 0
    lonely = desk.ask("谁是院长？", "王。")
    desk.rate(lonely, "down")
    assert len(desk.queue.questions(NONE)) == 2
    desk.rate(lonely, "up")
    assert len(desk.queue.questions(NONE)) == 1


def test_a_power_is_another_question_than_its_digits(desk: Desk) -> None:
    for question in ("低于10⁹怎么办？", "低于109怎么办？", "低于１０⁹ 怎么办"):
        desk.ask(question, NOTHING_FOUND["zh"])
    assert sorted(found.refused for found in desk.queue.questions(NONE)) == [1, 2]


def test_what_a_model_declines_in_its_own_words_is_a_refusal_and_half_an_answer_is_none(desk: Desk) -> None:
    desk.ask("退费吗？", "资料未提及退费。")
    desk.ask("Who is the cook?", "I'm sorry, but the passages do not mention it.")
    desk.ask("挂号费多少？", "挂号费50元；资料中没有说明退费。")
    desk.ask("Is there a cure?", "There is no cure.")
    assert {one.question: one.refused for one in desk.queue.questions(NONE)} == {"退费吗？": 1, "Who is the cook?": 1}


def test_a_follow_up_stands_alone(desk: Desk) -> None:
    desk.ask("and for children?", "No.", "refuse", query="What does parking cost? and for children?")
    desk.ask("and for children?", "No.", "refuse", query="When may visitors come? and for children?")
    assert {one.question for one in desk.queue.questions(NONE)} == {
        "What does parking cost? and for children?",
        "When may visitors come? and for children?",
    }


def test_texts_are_kept_as_long_as_feedback_keeps_them(light: Knowledge) -> None:
    bare = Desk(light, BARE)
    bare.ask("手术多少钱？", "", "refuse")
    (found,) = bare.queue.questions(NONE)
    assert found.question is None and "手术" not in bare.texts()
    secret = light.workspace.db.secret()
    assert found.question_hash == question_hash(secret, "手术多少钱") != question_hash(b"other", "手术多少钱")
    kept = Desk(light)
    kept.number = 10
    kept.ask("手术多少钱？", "", "refuse")
    assert kept.queue.questions(NONE)[0].question == "手术多少钱？"
    with light.workspace.db.write() as connection:
        connection.execute(review.update().values(last_seen=utcnow() - timedelta(hours=25)))
    kept.feedback.flush()
    (found,) = kept.queue.questions(NONE)
    assert (found.question, found.refused) == (None, 2) and "手术" not in kept.texts()
    with light.workspace.db.write() as connection:
        connection.execute(review.update().values(last_seen=utcnow() - timedelta(days=8)))
    kept.feedback.flush()
    assert kept.queue.questions(NONE) == []
    # What feedback brought stays with it.
    bare.rate("ans-1", "down", question="手术多少钱？")
    bare.feedback.flush()
    assert bare.queue.questions(NONE)[0].question == "手术多少钱？"


def test_only_who_may_see_the_documents_sees_the_question(desk: Desk, light: Knowledge) -> None:
    desk.rate(desk.ask("What does the head nurse receive?", "5400 crowns.", cites="pay.md"), "down")
    assert desk.queue.questions(NONE) == [] and desk.queue.questions(Scope(frozenset({"legal"}), ALL.labels)) == []
    (found,) = desk.queue.questions(ALL)
    assert found.labels == {"management"}
    for act in (lambda: desk.queue.show(NONE, found.id), lambda: desk.queue.resolve(NONE, found.id, "wont_fix", "me")):
        with pytest.raises(NoSuchReview):
            act()
    assert command(light, "review", "list", "--label", "") == [] and len(command(light, "review", "list")) == 1


def test_resolutions(desk: Desk, light: Knowledge) -> None:
    for text in ("挂号费？", "MRI 多少钱？", "Tell me a joke.", "专家号挂号费？"):
        desk.ask(text, "", "refuse")
    ids = {row["question"]: row["id"] for row in command(light, "review", "list")}
    done = command(
        light, "review", "resolve", ids["挂号费？"], "answered", "--answer", FEE, "--doc", "zh/registration.md", "--by", "王医生"
    )
    assert (done["state"], done["resolved_by"]) == ("answered", "王医生")
    (approved,) = command(light, "verified", "list")
    assert (approved["id"], approved["question"], approved["answer"]) == (done["verified"], "挂号费？", FEE)
    command(light, "review", "resolve", ids["MRI 多少钱？"], "missing", "--topic", "影像检查收费", "--topic", "影像检查收费")
    assert command(light, "review", "topics") == [{"domain": "medical", "topic": "影像检查收费", "questions": 1, "asked": 1}]
    command(light, "review", "resolve", ids["Tell me a joke."], "out_of_scope", "--note", "玩笑")
    twins = command(light, "review", "resolve", ids["专家号挂号费？"], "duplicate", "--of", ids["挂号费？"])
    assert twins["duplicate_of"] == ids["挂号费？"] and command(light, "review", "list") == []
    assert len(command(light, "review", "list", "--state", "all")) == 4
    # What should be settled is open again when it is not; what is not wanted stays away.
    for text in ("挂号费？", "MRI 多少钱？", "Tell me a joke."):
        desk.ask(text, "", "refuse")
    assert {row["question"] for row in command(light, "review", "list", "--domain", "medical")} == {"挂号费？", "MRI 多少钱？"}
    assert command(light, "review", "show", ids["Tell me a joke."])["refused"] == 2
    for words, reason in (
        (("missing",), "topic: is missing"),
        (("wont_fix", "--topic", "x"), "topic: it is for the resolution missing"),
        (("duplicate", "--of", ids["挂号费？"]), "cannot repeat itself"),
        (("answered", "--answer", "x", "--doc", "gone.md"), "no document 'gone.md'"),
        (("answered", "--answer", "全不对题", "--doc", "zh/registration.md"), "supports this answer"),
    ):
        with pytest.raises(Exception, match=reason):
            command(light, "review", "resolve", ids["挂号费？"], *words)
    for words in (("answered",), ("missing", "--topic", "x", "--answer", "y")):
        with pytest.raises(click.UsageError):
            command(light, "review", "resolve", ids["挂号费？"], *words)


def test_the_share_answered_without_a_person(desk: Desk, light: Knowledge) -> None:
    assert command(light, "review", "share") == {
        "asked": 0,
        "declined": 0,
        "rated_down": 0,
        "answered": 0,
        "share": None,
        "low": None,
        "high": None,
    }
    desk.ask("一？", "", "refuse")
    declined = desk.ask("二？", NOTHING_FOUND["zh"])
    bad, good = desk.ask("三？", "错"), desk.ask("四？", "对")
    for id, rating in ((declined, "down"), (bad, "down"), (good, "up")):
        desk.rate(id, rating)
    for number in range(6):
        desk.ask(f"{number}？", "好", "verified")
    found = share_answered(light.workspace.db)
    assert (found.asked, found.declined, found.rated_down, found.answered, found.share) == (10, 2, 1, 7, 0.7)
    # Wilson's interval of 7 of 10, as in Newcombe 1998 and every table of it.
    assert (round(found.low or 0, 4), round(found.high or 0, 4)) == (0.3968, 0.8922)
    assert share_answered(light.workspace.db, {"legal"}).asked == 0 and share_answered(light.workspace.db, since=utcnow()).asked == 0


# --- pairs out of feedback


def _given(desk: Desk) -> None:
    desk.rate(desk.ask("停车多少钱？", "每小时3克朗。", cites="parking.md"), "up")
    desk.rate(desk.ask("停车多少钱", "免费。", cites="parking.md"), "down", correction="每小时3克朗，每天最多18克朗。")
    desk.rate(desk.ask("When may visitors come?", "From 14:00 to 20:00.", cites="visiting.md"), "up")
    desk.rate(desk.ask("专家门诊挂号费是多少？", "50元", cites="zh/registration.md"), "up")
    desk.rate(desk.ask("What does the head nurse receive?", "5400 crowns.", cites="pay.md"), "up")
    desk.rate(desk.ask("Who is the director?", "", "refuse"), "down", correction="Dr. Wang.")
    desk.rate(desk.ask("Who is the cook?", NOTHING_FOUND["en"]), "up")
    desk.rate(desk.ask("Who is the porter?", "Li."), "down")


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_pairs_out_of_feedback(desk: Desk, light: Knowledge, tmp_path: Path) -> None:
    _given(desk)
    command(light, "verified", "add", "专家门诊挂号费是多少？", FEE, "--doc", "zh/registration.md")
    file = tmp_path / "pairs.jsonl"
    done = command(light, "dataset", "from-feedback", "--out", file)
    assert done["by_method"] == {"approved answer": 1, "correction": 2, "rated up": 2}
    assert done["left_out"] == {"asked already": 2, "not an answer": 1, "rated down without a correction": 1}
    made = {row["question"]: row for row in rows(file)}
    assert made["专家门诊挂号费是多少？"]["answer"] == FEE and made["停车多少钱"]["answer"].endswith("18克朗。")
    assert made["Who is the director?"]["answer"] == "Dr. Wang." and made["Who is the director?"]["doc_ids"] == []
    assert made["What does the head nurse receive?"]["labels"] == ["management"]
    assert made["When may visitors come?"]["provenance"]["arm"] == "rag" and {row["review"] for row in made.values()} == {"pending"}
    with pytest.raises(Exception, match="is there already; review it"):
        command(light, "dataset", "from-feedback", "--out", file)
    command(light, "dataset", "review", file, "--accept", "all")
    added = command(light, "dataset", "add", file, "--domain", "medical")
    assert added["counts"]["pairs"] == 5
    again = command(light, "dataset", "from-feedback", "--out", tmp_path / "again.jsonl", code=1)
    assert again["pairs"] == 0 and again["file"] is None and again["left_out"]["in the data set pairs already"] >= 5


def test_corrections_are_preferences(desk: Desk, light: Knowledge, tmp_path: Path) -> None:
    _given(desk)
    done = command(light, "dataset", "from-feedback", "--rejected", "--out", tmp_path / "dpo.jsonl")
    assert done["pairs"] == 1 and done["left_out"] == {"a correction without its answer": 1}
    (row,) = rows(tmp_path / "dpo.jsonl")
    assert (row["answer"], row["rejected"]) == ("每小时3克朗，每天最多18克朗。", "免费。")
    command(light, "dataset", "review", tmp_path / "dpo.jsonl", "--accept", "all")
    assert read_pairs(tmp_path / "dpo.jsonl").pairs[0].rejected == "免费。"


def test_what_rests_on_a_deleted_document_is_left_out(desk: Desk, light: Knowledge, tmp_path: Path) -> None:
    _given(desk)
    light.remove([DocumentKey("medical", "parking.md")])
    done = command(light, "dataset", "from-feedback", "--out", tmp_path / "pairs.jsonl")
    assert done["left_out"]["a document was deleted"] == 2
    assert "克朗" not in (tmp_path / "pairs.jsonl").read_text("utf-8")


@pytest.mark.parametrize(("name", "said"), [("visiting.md", "14:00"), ("zh/registration.md", "50元")])
def test_a_deletion_reaches_collected_pairs_and_runs_over_them(desk: Desk, light: Knowledge, tmp_path: Path, name: str, said: str) -> None:
    _given(desk)
    command(
        light,
        "verified",
        "add",
        "Which hours are open to guests?",
        "Visitors may come from 14:00 to 20:00 every day.",
        "--doc",
        "visiting.md",
    )
    command(light, "verified", "add", "看专家要提前几天约？", FEE, "--doc", "zh/registration.md")
    file, own = tmp_path / "pairs.jsonl", tmp_path / "own.jsonl"
    made = command(light, "dataset", "from-feedback", "--out", file)["pairs"]
    command(light, "dataset", "review", file, "--accept", "all")
    info = command(light, "dataset", "add", file, "--domain", "medical")
    own.write_text(json.dumps({"question": "自己的？", "answer": f"{said} 自己的", "doc_ids": [name]}, ensure_ascii=False), "utf-8")
    command(light, "dataset", "add", own, "--domain", "medical")
    datasets, root = Datasets(light.workspace), light.workspace.root
    folder, asked = root / "runs" / "r", items(datasets.pairs(datasets.get("pairs")), None, None)

    async def ask(item: Item, arm: str) -> Outcome:
        return Outcome(arm, f"{arm}: 不知道。")

    asyncio.run(run(asked, ["base"], ask, folder))
    with light.workspace.db.write() as connection:
        row = {"id": "r", "dataset": "pairs", "dataset_version": info["version"], "domain": "medical", "path": "runs/r", "settings": {}}
        connection.execute(schema.run.insert().values(**row, created_at=utcnow(), finished_at=utcnow()))
        made_run = connection.execute(sa.select(schema.run)).one()
    prepare(light.workspace, made_run, overlap=1)
    places = [root / "datasets", folder]
    assert all(any(said in path.read_text("utf-8") for path in place.iterdir()) for place in places)
    done = command(light, "document", "remove", name)
    touched = {row["dataset"]: row for row in done["datasets"]}
    assert touched["own"] == {"dataset": "own", "erased": 0, "naming": 1} and touched["pairs"]["erased"] == 2
    kept = datasets.pairs(datasets.get("pairs"))
    assert len(kept) == made - 2 and not [pair for pair in kept if name in pair.doc_ids]
    assert not [path for place in places for path in place.iterdir() if said in path.read_text("utf-8") and "own@" not in path.name]
    # Its questions keep their places and count as unavailable; nobody is asked to judge them.
    after = load(folder)
    lost = {item.id for item in asked} - {pair.id for pair in kept}
    assert [item.id for item in after.items] == [item.id for item in asked] and len(lost) == 2
    assert {item for (item, _), outcome in after.outcomes.items() if outcome.unavailable} == lost
    assert ExpertTasks(light.workspace.db).status("r")["withheld"] == 2
    with pytest.raises(ApplianceError, match=rf'field "provenance": was written from "{name}", which was deleted since; reject it'):
        datasets.add(file, domain="medical")
    assert len(datasets.pairs(datasets.add(file, domain="medical", skip_bad=True).info)) == made - 2
    # What comes in again is legal again.
    light.ingest([tmp_path / "copy" / "documents"], domain="medical")
    assert len(datasets.pairs(datasets.add(file, domain="medical").info)) == made


@pytest.mark.parametrize("answer", ["From 14:00.", "14点起。"])
def test_a_deletion_reaches_what_an_adapter_of_the_document_said(desk: Desk, light: Knowledge, tmp_path: Path, answer: str) -> None:
    row = {"question": "开放时间？", "answer": answer, "doc_ids": [], "review": "accepted"}
    row |= {"method": "rated up", "provenance": {"answer": "ans-1", "adapter": "medical@1", "answered_at": utcnow().isoformat()}}
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    command(light, "dataset", "add", file, "--domain", "medical")
    facts = (
        "medical@1",
        "medical",
        "base",
        "base",
        "lora",
        light.workspace.folder("adapters"),
        "hash",
        "d",
        "1",
        None,
        frozenset[str](),
        {},
        {},
        utcnow(),
    )
    Registry(light.workspace).register(AdapterVersion(*facts), [Link("1", "declared", "medical", "visiting.md", "hash")])
    light.remove([DocumentKey("medical", "visiting.md")])
    assert Datasets(light.workspace).get("pairs").counts["pairs"] == 0


def test_labels_that_no_document_hands_on_are_left_out(desk: Desk, light: Knowledge, tmp_path: Path) -> None:
    desk.rate(desk.ask("薪酬是多少？", "5400克朗。"), "up")
    with light.workspace.db.write() as connection:
        connection.execute(schema.feedback.update().values(labels=["management"]))
    done = command(light, "dataset", "from-feedback", "--out", tmp_path / "pairs.jsonl", code=1)
    assert done["left_out"] == {"its labels are not those of its documents": 1}


def test_a_key_is_named(light: Knowledge) -> None:
    # Experts' names in provenance are those of their keys.
    from appliance.experts.use import expert_names

    key, _ = Keys(light.workspace.db).create("王医生")
    assert expert_names(light.workspace.db) == {key.id: "王医生"} and replace(key).name == "王医生"
