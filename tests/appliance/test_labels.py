"""Access labels: what a caller may not see shows nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with
from starlette.testclient import TestClient
from test_adapters import make

from appliance.adapters.registry import Registry
from appliance.admin.keys import Keys
from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.answers.feedback import Feedback
from appliance.answers.verified import VerifiedAnswers
from appliance.cli.main import run
from appliance.engines.base import Message
from appliance.gateway.app import create_app
from appliance.knowledge.knowledge import Knowledge
from appliance.settings import FeedbackConfig
from appliance.types import Caller, Event, Request
from retrieval.index import Index
from retrieval.types import DocumentKey, Scope
from router.types import ARMS
from tests.retrieval.retrieval_support import Knowledge as Small
from tests.retrieval.retrieval_support import write

MANAGEMENT = frozenset({"management"})
MANAGER = Caller(Scope(None, MANAGEMENT), "manager")
OUTSIDER = Caller(Scope(), "outsider")
QUESTIONS = ("What does the head nurse receive a month?", "护士长每月领取多少？")
# What only the labelled documents say or are called.
TRACES = ("5400 crowns", "5400克朗", "Pay scales", "pay.md", "薪酬", "management")


@pytest.fixture
def base(knowledge: Knowledge) -> Knowledge:
    """The prepared base with a Chinese document for managers beside the English one."""
    write(knowledge.workspace.root.parent / "secret-zh" / "薪酬.md", "# 薪酬标准\n\n护士长每月领取5400克朗。\n")
    knowledge.ingest([knowledge.workspace.root.parent / "secret-zh"], domain="medical", labels=MANAGEMENT)
    return knowledge


def events(answering: Answering, caller: Caller, question: str, **fields: object) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in answering.stream(Request(question, domain="medical", **fields), caller)]  # type: ignore[arg-type]

    return asyncio.run(collect())


def leaks(*things: object) -> list[str]:
    text = " ".join(map(repr, things))
    return [trace for trace in TRACES if trace in text]


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_arm_shows_a_labelled_document(base: Knowledge, question: str) -> None:
    engine = ScriptedEngine("Nothing is known about that.")
    answering = answering_with(base, engine)
    Registry(base.workspace).promote(make(base).name)
    assert "5400" in repr(events(answering, MANAGER, question, arm="quote"))
    assert "5400" in repr((events(answering, MANAGER, question, arm="rag"), engine.asked))
    engine.asked.clear()
    for arm in ("auto", *ARMS):
        try:
            found: object = events(answering, OUTSIDER, question, arm=arm)
        except ArmUnavailable as error:
            found = error
        assert leaks(found, engine.asked) == [], arm


def test_an_approved_answer_has_the_labels_of_what_it_cites_now(base: Knowledge) -> None:
    approved = VerifiedAnswers(base)
    approved.add("medical", QUESTIONS[0], "The head nurse receives 5400 crowns a month.", ["pay.md"], "board", 0.6)
    approved.add("medical", "When may visitors come?", "Visitors may come from 14:00 to 20:00 every day.", ["visiting.md"], "desk", 0.6)
    answering = answering_with(base, ScriptedEngine("x"))
    assert "5400" in repr(events(answering, MANAGER, QUESTIONS[0], arm="verified"))
    with pytest.raises(ArmUnavailable) as error:
        events(answering, OUTSIDER, QUESTIONS[0], arm="verified")
    assert leaks(error.value) == []
    events(answering, OUTSIDER, "When may visitors come?", arm="verified")
    base.ingest([base.workspace.root.parent / "documents"], domain="medical", labels=MANAGEMENT)
    with pytest.raises(ArmUnavailable):
        events(answering, OUTSIDER, "When may visitors come?", arm="verified")


def test_an_adapter_takes_the_labels_its_documents_get_later(base: Knowledge) -> None:
    registry = Registry(base.workspace)
    registry.promote(make(base).name)
    engine = ScriptedEngine("Yes.")
    answering = answering_with(base, engine)
    assert "finetuned" in answering.arms("medical", OUTSIDER)
    events(answering, OUTSIDER, "When may visitors come?", arm="hybrid")
    base.ingest([base.workspace.root.parent / "documents"], domain="medical", labels=MANAGEMENT)
    assert answering.arms("medical", OUTSIDER) == ["base", "quote", "rag", "verified", "refuse"]
    assert "finetuned" in answering.arms("medical", MANAGER)
    for arm in ("finetuned", "hybrid"):
        with pytest.raises(ArmUnavailable, match=r"may not see|no passage"):
            events(answering, OUTSIDER, "When may visitors come?", arm=arm)
    # How near the question is to the training questions is not told either.
    decided = events(answering, OUTSIDER, "When may visitors come?")[0].decision  # type: ignore[union-attr]
    assert not [name for name in decided.features if name.startswith("a_") and decided.features[name]]


def test_a_relabelled_document_is_gone_at_once_and_stays_gone(base: Knowledge) -> None:
    question, folder = "At what times may visitors come?", base.workspace.root.parent / "documents"
    answering = answering_with(base, ScriptedEngine("x"))
    before = base.store.live_generation()
    pinned: Index = base.index()
    citation = events(answering, OUTSIDER, question, arm="quote")[-1].answer.citations[0]  # type: ignore[union-attr]
    place = (citation.domain, citation.doc_id, citation.start, citation.end)
    assert base.passage(*place, OUTSIDER) is not None
    base.ingest([folder], domain="medical", labels=MANAGEMENT)

    def hidden() -> bool:
        found = [passage.document.id for passage in base.search(question, Scope()).passages]
        return not found and base.passage(*place, OUTSIDER) is None

    assert hidden()
    # An index that was opened before, and an older generation, follow the labels of now.
    assert pinned.search(question, Scope()).passages == ()
    assert before is not None and Index.open(base.store, base.vectors, base.embedder, before).search(question, Scope()).passages == ()
    base.rollback(before)
    assert hidden()
    assert base.search(question, Scope(None, MANAGEMENT)).passages
    base.ingest([folder], domain="medical")
    assert not hidden()


def test_a_citation_of_a_document_relabelled_meanwhile_never_leaves(base: Knowledge) -> None:
    class RelabelsUnderneath(ScriptedEngine):
        async def count_tokens(self, messages: Sequence[Message]) -> int:
            await asyncio.to_thread(base.ingest, [base.workspace.root.parent / "documents"], domain="medical", labels=MANAGEMENT)
            return await super().count_tokens(messages)

    engine = RelabelsUnderneath("Visitors may come from 14:00 to 20:00 every day.")
    found = events(answering_with(base, engine), OUTSIDER, "When may visitors come?", arm="rag")
    assert found[-1].answer.citations == ()  # type: ignore[union-attr]


def test_scores_do_not_depend_on_what_is_hidden(tmp_path: Path) -> None:
    public = {
        "a.md": "# Fees\n\nThe fee is 5 crowns.\n",
        "b.md": "# 收费\n\n挂号费为20元。\n",
        "c.md": "# Beds\n\nA bed costs 9 crowns a night.\n",
    }
    alone, beside = Small(tmp_path / "alone"), Small(tmp_path / "beside")
    for name, text in public.items():
        write(tmp_path / "public" / name, text)
    for number in range(5):
        write(
            tmp_path / "hidden" / f"{number}.md", f"# Fee {number}\n\nThe fee fee fee of nurse {number} is 5 crowns. 挂号费{number}元。\n"
        )
    beside.ingest(tmp_path / "hidden", labels=frozenset({"board"}))
    for made in (alone, beside):
        made.ingest(tmp_path / "public")
    for query in ("What is the fee?", "挂号费是多少？", "nurse 3"):
        one, two = alone.search(query), beside.search(query)
        assert [(p.document.id, p.score, p.dense_score, p.lexical_score) for p in one.passages] == [
            (p.document.id, p.score, p.dense_score, p.lexical_score) for p in two.passages
        ]
        ages = ("newest_days", "oldest_days")
        assert {k: v for k, v in one.signals.items() if k not in ages} == pytest.approx(
            {k: v for k, v in two.signals.items() if k not in ages}, abs=1e-5
        )
    for made in (alone, beside):
        made.db.close()


def test_equal_text_with_other_labels_stays_apart(tmp_path: Path) -> None:
    made = Small(tmp_path / "workspace")
    text = "# Fees\n\nThe fee is 5 crowns. 挂号费为20元。\n"
    write(tmp_path / "open" / "brochure.md", text)
    write(tmp_path / "closed" / "board-minutes.md", text)
    made.ingest(tmp_path / "open")
    made.ingest(tmp_path / "closed", labels=frozenset({"board"}))
    everybody = repr(made.search("What is the fee? 挂号费", Scope()))
    assert "brochure" in everybody and "board" not in everybody
    made.ingest(tmp_path / "open", labels=frozenset({"staff"}))
    assert made.search("What is the fee? 挂号费", Scope()).passages == ()
    staff = repr(made.search("What is the fee? 挂号费", Scope(None, frozenset({"staff"}))))
    assert "brochure" in staff and "board" not in staff
    made.db.close()


def test_nothing_is_kept_from_one_caller_for_the_next(base: Knowledge) -> None:
    answering = answering_with(base, ScriptedEngine("Unknown."))
    for question in QUESTIONS:
        events(answering, MANAGER, question, arm="quote")
        assert leaks(events(answering, OUTSIDER, question)) == []
    history = (Message(role="user", content=QUESTIONS[0]), Message(role="assistant", content="I cannot say."))
    assert leaks(events(answering, replace(OUTSIDER), "And in crowns?", history=history)) in ([], ["management"])


def test_a_request_can_only_narrow(base: Knowledge) -> None:
    answering = answering_with(base, ScriptedEngine("x"))
    assert leaks(events(answering, MANAGER, QUESTIONS[0], labels=frozenset())) == []
    assert leaks(events(answering, OUTSIDER, QUESTIONS[0], labels=MANAGEMENT)) == []
    both = write(base.workspace.root.parent / "board" / "plan.md", "# Closure\n\nThe north ward closes on 1 May.\n")
    base.ingest([both], domain="medical", labels=frozenset({"management", "board"}))
    question = "When does the north ward close?"
    assert "1 May" not in repr(events(answering, MANAGER, question, arm="quote"))
    full = Caller(Scope(None, frozenset({"management", "board", "other"})))
    assert "1 May" in repr(events(answering, full, question, arm="quote"))
    assert "1 May" not in repr(events(answering, full, question, arm="quote", labels=MANAGEMENT))


def test_the_gateway(base: Knowledge, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(base.workspace.db)
    _, manager = keys.create("manager", labels=["management"])
    _, outsider = keys.create("outsider")
    Registry(base.workspace).promote(make(base, labels=MANAGEMENT).name)
    answering = answering_with(base, ScriptedEngine("Unknown."))
    parts: Any = {"passage": base.passage, "embedding": lambda: base.embedder, "feedback": Feedback(base.workspace.db, FeedbackConfig())}
    app = create_app(answering, keys, **parts, auth_required=True, version="test")
    logging.getLogger("appliance.access").setLevel(logging.INFO)
    caplog.set_level(logging.INFO)
    http = TestClient(app)

    def ask(secret: str, path: str, body: dict[str, object]) -> tuple[int, str]:
        reply = http.post(path, json=body, headers={"Authorization": f"Bearer {secret}"})
        return reply.status_code, reply.text

    question = {"question": QUESTIONS[0], "domain": "medical", "arm": "quote"}
    chat = {"model": "medical/quote", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    code, text = ask(manager, "/v1/answer", question)
    assert code == 200 and "5400" in text
    citation = json.loads(text)["citations"][0]
    for path, body in (
        ("/v1/answer", question),
        ("/v1/answer", {**question, "arm": "auto"}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/chat/completions", {**chat, "model": "auto"}),
    ):
        assert leaks(ask(outsider, path, body)[1]) == []
        assert leaks(ask(manager, path, {**body, "labels": []} if path == "/v1/answer" else {**body, "appliance": {"labels": []}})[1]) == []
    assert ask(outsider, "/v1/answer", {**question, "labels": ["management"]})[0] == 403
    assert ask(outsider, "/v1/chat/completions", {**chat, "appliance": {"labels": ["management"]}})[0] == 403

    def see(secret: str, path: str) -> tuple[int, str]:
        reply = http.get(path, headers={"Authorization": f"Bearer {secret}"})
        return reply.status_code, reply.text

    place = f"?start={citation['start']}&end={citation['end']}"
    assert see(manager, f"/v1/documents/medical/pay.md{place}")[0] == 200
    hidden, missing = (see(outsider, f"/v1/documents/medical/{name}{place}") for name in ("pay.md", "xyz.md"))
    assert hidden[0] == 404 and hidden[1].replace("pay.md", "xyz.md") == missing[1]
    assert "medical/finetuned" in see(manager, "/v1/models")[1] and "finetuned" not in see(outsider, "/v1/models")[1]
    assert ask(outsider, "/v1/chat/completions", {**chat, "model": "medical/finetuned"})[0] == 404
    assert leaks(see(outsider, "/metrics")[1], see(outsider, "/v1/models")[1]) == []
    assert not [
        record for record in caplog.records if "head nurse" in record.getMessage() or leaks(record.getMessage().replace("pay.md", ""))
    ]


def test_the_command_line_can_look_as_somebody_else(base: Knowledge, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(base.workspace.root)

    def out(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["--workspace", root, *arguments]) == 0
        return capsys.readouterr().out

    assert "5400" in out("search", QUESTIONS[1], "--json") and "5400" in out("search", QUESTIONS[0], "--label", "management", "--json")
    assert leaks(out("search", QUESTIONS[0], "--label", "", "--json"), out("search", QUESTIONS[1], "--label", "other", "--json")) == []
    assert "5400" in out("ask", QUESTIONS[0], "--arm", "quote", "--json")
    assert leaks(out("ask", QUESTIONS[0], "--arm", "quote", "--label", "", "--json")) == []


def test_runs_say_which_labels_they_saw(base: Knowledge) -> None:
    from appliance.evaluation.runs import state_of
    from appliance.service import open_service

    assert state_of(open_service(base.workspace), ["quote"], None, None, 8)["labels"] == ["management"]
    assert base.documents.current(DocumentKey("medical", "pay.md")) is not None
