from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.engines.base import EngineBusy, EngineError, Health, Message, Sampling
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.types import Answer, Caller, Decided, Finished, Prompted, Request, Text
from retrieval.types import DocumentKey, Scope
from router.types import Constraints


def ask(answering: Answering, question: str, caller: Caller | None = None, **fields: object) -> Answer:
    return asyncio.run(answering.ask(Request(question, **fields), caller))  # type: ignore[arg-type]


def check_citations(knowledge: Knowledge, answer: Answer) -> None:
    for citation in answer.citations:
        text = knowledge.documents.text_slice(DocumentKey(citation.domain, citation.doc_id), citation.sha256, citation.start, citation.end)
        assert citation.quote == text
        assert answer.text[citation.answer_start : citation.answer_end]


@pytest.mark.parametrize(
    ("question", "words", "doc_id"),
    [
        ("At what times may visitors come?", "14:00 to 20:00", "visiting.md"),
        ("专家门诊的挂号费是多少？", "50元", "zh/registration.md"),
    ],
)
def test_a_quote_is_verbatim_and_cited_in_both_languages(knowledge: Knowledge, question: str, words: str, doc_id: str) -> None:
    answer = ask(answering_with(knowledge, ScriptedEngine()), question, arm="quote")
    assert words in answer.text and answer.arm == "quote"
    assert answer.citations[0].doc_id == doc_id
    check_citations(knowledge, answer)


def test_generated_answers_are_aligned_with_what_they_rest_on(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Visitors may come from 14:00 to 20:00 every day. They must bring flowers for the nurses.")
    answer = ask(answering_with(knowledge, engine), "When may visitors come?", arm="rag")
    assert [answer.text[c.answer_start : c.answer_end].strip() for c in answer.citations] == [
        "Visitors may come from 14:00 to 20:00 every day."
    ]
    assert answer.unsupported == ("They must bring flowers for the nurses.",)
    check_citations(knowledge, answer)
    messages, adapter, _ = engine.asked[0]
    assert adapter is None and "14:00 to 20:00" in messages[-1]["content"]


def test_the_passages_tag_is_secret_and_stable(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Yes.")
    for _ in range(2):
        ask(answering_with(knowledge, engine), "When may visitors come?", arm="rag")
    first, second = (asked[0][-1]["content"] for asked in engine.asked)
    assert first == second and first.startswith("<passages-")


def test_events_come_in_order_and_make_up_the_answer(knowledge: Knowledge) -> None:
    answering = answering_with(knowledge, ScriptedEngine("Visitors may come from 14:00 to 20:00 every day."))

    async def collect() -> list[object]:
        return [event async for event in answering.stream(Request("When may visitors come?", arm="rag"))]

    events = asyncio.run(collect())
    assert isinstance(events[0], Decided) and isinstance(events[1], Prompted) and isinstance(events[-1], Finished)
    assert events[1].tokens > 10
    assert "".join(event.text for event in events if isinstance(event, Text)) == events[-1].answer.text
    assert {"retrieval", "decision", "first_token", "total"} <= set(events[-1].answer.timings)


def test_must_cite_holds_the_answer_back_and_falls_back_to_a_quote(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Visitors may come from 09:00 to 23:00 every day.")
    answering = answering_with(knowledge, engine)

    async def collect() -> list[object]:
        request = Request("When may visitors come?", arm="rag", constraints=Constraints(must_cite=True))
        return [event async for event in answering.stream(request)]

    events = asyncio.run(collect())
    texts = [event.text for event in events if isinstance(event, Text)]
    assert len(texts) == 1 and "23:00" not in texts[0]
    answer = events[-1].answer  # type: ignore[attr-defined]
    assert answer.arm == "quote" and "14:00 to 20:00" in answer.text
    assert any("citation check" in reason for reason in answer.decision.reasons)
    check_citations(knowledge, answer)


def test_must_cite_lets_a_supported_answer_through(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Visitors may come from 14:00 to 20:00 every day.")
    answer = ask(answering_with(knowledge, engine), "When may visitors come?", arm="rag", constraints=Constraints(must_cite=True))
    assert answer.arm == "rag" and len(answer.citations) == 1


def test_labels_hide_documents_from_every_arm(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("The head nurse receives 5400 crowns a month.")
    answering = answering_with(knowledge, engine)
    question = "What does the head nurse receive a month?"
    for arm in ("quote", "rag", "auto"):
        answer = ask(answering, question, arm=arm)
        assert all(citation.doc_id != "pay.md" for citation in answer.citations)
        if arm == "quote":
            assert "5400" not in answer.text
    assert all("5400" not in message["content"] for messages, _, _ in engine.asked for message in messages)
    manager = Caller(Scope(None, frozenset({"management"})))
    assert "5400" in ask(answering, question, manager, arm="quote").text


def test_a_language_the_engine_does_not_declare_is_not_generated(knowledge: Knowledge) -> None:
    answering = answering_with(knowledge, ScriptedEngine("x", languages=["en"]))
    with pytest.raises(ArmUnavailable, match="只用 en 回答，而问题的语言是 zh"):
        ask(answering, "普通门诊挂号费是多少？", arm="rag")
    answer = ask(answering, "普通门诊挂号费是多少？")
    assert answer.arm == "quote" and "20元" in answer.text
    assert "zh" in answer.decision.unavailable["rag"]


def test_a_dead_engine_leaves_quotes(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("x")
    engine.state = Health(False, "the process has ended")
    answer = ask(answering_with(knowledge, engine), "When may visitors come?")
    assert answer.arm == "quote" and "the process has ended" in answer.decision.unavailable["rag"]


@pytest.mark.parametrize("error", [EngineError("broken"), EngineBusy("full", 3)])
def test_an_engine_that_fails_in_the_middle_is_an_error_not_an_answer(knowledge: Knowledge, error: EngineError) -> None:
    engine = ScriptedEngine("Visitors may come")
    engine.error = error
    with pytest.raises(type(error)):
        ask(answering_with(knowledge, engine), "When may visitors come?", arm="rag")


def test_closing_the_stream_stops_the_engine(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("one two three four five")
    answering = answering_with(knowledge, engine)

    async def leave() -> None:
        stream = answering.stream(Request("When may visitors come?", arm="rag"))
        async for event in stream:
            if isinstance(event, Text):
                break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert engine.cancelled == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "   "}, "the question is empty"),
        ({"question": "药" * 100_000}, "100000 characters, at most 8000"),
        ({"question": "x", "domain": "law"}, "unknown domain 'law'; known: medical"),
        ({"question": "x", "arm": "magic"}, "unknown arm 'magic'; known: auto, base"),
        ({"question": "When may visitors come?", "arm": "finetuned"}, "there is no adapter for this domain"),
        ({"question": "When may visitors come?", "arm": "verified"}, "there is no verified answer"),
        ({"question": "When may visitors come?", "arm": "base", "constraints": Constraints(must_cite=True)}, "cannot cite"),
    ],
)
def test_what_cannot_be_answered_says_why(knowledge: Knowledge, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asyncio.run(answering_with(knowledge, ScriptedEngine()).ask(Request(**fields)))  # type: ignore[arg-type]


def test_a_chinese_question_gets_every_reason_in_chinese(knowledge: Knowledge) -> None:
    engine = ScriptedEngine()
    engine.languages = frozenset({"en"})
    answer = ask(answering_with(knowledge, engine), "专家门诊的挂号费是多少？")
    assert set(answer.decision.unavailable) >= {"base", "rag", "finetuned", "hybrid", "verified"}
    for reason in (*answer.decision.reasons, *answer.decision.unavailable.values()):
        assert re.search("[\u4e00-\u9fff]", reason), reason
    with pytest.raises(UsageError, match="rag 不能回答这个问题"):
        ask(answering_with(knowledge, engine), "专家门诊的挂号费是多少？", arm="rag")


def test_a_key_for_another_domain_sees_none(knowledge: Knowledge) -> None:
    with pytest.raises(UsageError, match="unknown domain 'medical'"):
        ask(answering_with(knowledge, ScriptedEngine()), "x", Caller(Scope(frozenset({"legal"}))), domain="medical")


def test_a_follow_up_is_searched_with_what_it_leans_on(knowledge: Knowledge) -> None:
    history: Sequence[Message] = (Message(role="user", content="专家门诊的挂号费是多少？"), Message(role="assistant", content="50元。"))
    answer = ask(answering_with(knowledge, ScriptedEngine()), "那普通门诊呢？", history=tuple(history), arm="quote")
    assert answer.query == "专家门诊的挂号费是多少？ 那普通门诊呢？"
    assert "挂号费为20元" in answer.text


def test_a_long_history_is_cut_from_its_beginning(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Fine.", window=700)
    turn = (Message(role="user", content="old " * 100), Message(role="assistant", content="reply " * 100))
    ask(
        answering_with(knowledge, engine),
        "When may visitors come to the ward?",
        history=turn * 8,
        arm="base",
        sampling=Sampling(max_tokens=64),
    )
    assert len(engine.asked[0][0]) == 2 + 3 * 2


def test_a_long_answer_that_is_allowed_costs_no_history_and_no_passage(knowledge: Knowledge) -> None:
    engine = ScriptedEngine("Fine.", window=2000)
    turn = (Message(role="user", content="old " * 10), Message(role="assistant", content="reply " * 10))
    for wanted in (64, 1900, 2000, 1_000_000):
        ask(
            answering_with(knowledge, engine),
            "When may visitors come to the ward?",
            history=turn * 2,
            arm="rag",
            sampling=Sampling(max_tokens=wanted),
        )
    short, *long = [messages for messages, _, _ in engine.asked]
    assert len(short) == 6 and long == [short] * 3
    assert engine.asked[-1][2].max_tokens == 1_000_000


def test_a_verified_answer_is_served_as_is_until_its_document_changes(knowledge: Knowledge) -> None:
    answering = answering_with(knowledge, ScriptedEngine("something else"))
    approved = "Visitors may come from 14:00 to 20:00 every day."
    answering.verified.add("medical", "When may visitors come?", approved, ["visiting.md"], "Dr. Moss", 0.6)
    answer = ask(answering, "when may visitors come")
    assert (answer.arm, answer.text) == ("verified", approved)
    check_citations(knowledge, answer)
    file = knowledge.workspace.root.parent / "documents" / "visiting.md"
    file.write_text(file.read_text("utf-8").replace("20:00", "18:00"), "utf-8")
    knowledge.ingest([file.parent], domain="medical")
    assert answering.verified.all()[0].suspended == "changed or removed since: visiting.md"
    answer = ask(answering, "When may visitors come?", arm="quote")
    assert "18:00" in answer.text


def test_a_removed_document_never_comes_back(knowledge: Knowledge) -> None:
    answering = answering_with(knowledge, ScriptedEngine("x"))
    answering.verified.add("medical", "What does parking cost?", "Parking costs 3 crowns an hour.", ["parking.md"], "desk", 0.5)
    knowledge.remove([DocumentKey("medical", "parking.md")])
    answer = ask(answering, "What does parking in the north garage cost?", arm="quote")
    assert "crowns" not in answer.text
    with pytest.raises(ArmUnavailable):
        ask(answering, "What does parking cost?", arm="verified")


def test_a_citation_that_no_longer_holds_never_leaves(knowledge: Knowledge) -> None:
    class ChangesUnderneath(ScriptedEngine):
        async def count_tokens(self, messages: Sequence[Message]) -> int:
            await asyncio.to_thread(knowledge.remove, [DocumentKey("medical", "visiting.md")])
            self.count_tokens = super().count_tokens  # type: ignore[method-assign]
            return await super().count_tokens(messages)

    engine = ChangesUnderneath("Visitors may come from 14:00 to 20:00 every day.")
    answer = ask(answering_with(knowledge, engine), "When may visitors come?", arm="rag")
    assert answer.citations == () and answer.unsupported == ("Visitors may come from 14:00 to 20:00 every day.",)


def test_state_of_the_parts(knowledge: Knowledge, tmp_path: Path) -> None:
    answering = answering_with(knowledge, ScriptedEngine("x"))
    health = asyncio.run(answering.health())
    assert health["index"]["ok"] and health["database"]["ok"] and health["engines"]["default"]["ok"]
