"""Generated answers that are kept: found again, never foreign, never stale, and gone when they must be."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.admin.keys import Keys
from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.answers.cache import AnswerCache
from appliance.answers.situation import Draft
from appliance.engines.base import EngineDown, Sampling
from appliance.knowledge.knowledge import Knowledge
from appliance.types import Answer, Caller, Decided, Finished, Request, Text, answer_json
from retrieval.types import DocumentKey, Scope
from router.types import Constraints

sys.path.append(str(Path(__file__).parent.parent / "gateway"))
from gateway_real import make_knowledge, real_answering
from gateway_server import running
from lying_engine import lying

ASKED = Request("When may visitors come?", domain="medical", arm="rag")
ZH = Request("普通门诊挂号费是多少？", domain="medical", arm="rag")
MANAGER = Caller(Scope(None, frozenset({"management"})), "manager")


@pytest.fixture
def knowledge(tmp_path: Path) -> Iterator[Knowledge]:
    made = make_knowledge(tmp_path)
    yield made
    made.workspace.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine("Visitors may come from 14:00 to 20:00 every day.")


@pytest.fixture
def answering(knowledge: Knowledge, engine: ScriptedEngine) -> Answering:
    made = answering_with(knowledge, engine)
    made.cache = AnswerCache(knowledge.workspace.db, 1 << 20)
    return made


def ask(answering: Answering, request: Request = ASKED, caller: Caller | None = None) -> Answer:
    return asyncio.run(answering.ask(request, caller))


def test_the_same_question_is_generated_once_and_has_an_id_of_its_own(answering: Answering, engine: ScriptedEngine) -> None:
    first = ask(answering)
    again = ask(answering, replace(ASKED, question=" when may  VISITORS come"))
    assert len(engine.asked) == 1 and (first.cached, again.cached) == (False, True)
    assert (again.text, again.arm, again.usage) == (first.text, first.arm, first.usage) and again.id != first.id
    assert [c.quote for c in again.citations] == [c.quote for c in first.citations] and first.citations
    assert answer_json(again)["cached"] is True and answer_json(first)["cached"] is False


def test_the_decision_tells_whether_a_model_answers(answering: Answering, engine: ScriptedEngine) -> None:
    async def generates(request: Request) -> bool:
        async for event in answering.stream(request):
            if isinstance(event, Decided):
                told = event.generates
        return told

    asked = (ASKED, ASKED, replace(ASKED, arm="quote"), replace(ASKED, sampling=Sampling(temperature=0.7)))
    assert [asyncio.run(generates(request)) for request in asked] == [True, False, False, True]


def test_what_is_answered_while_the_very_same_waits_is_not_generated_again(answering: Answering, engine: ScriptedEngine) -> None:
    async def both() -> list[bool | None]:
        waiting = answering.stream(ASKED)
        assert isinstance(decided := await anext(waiting), Decided) and decided.generates
        first = await answering.ask(ASKED)
        rest = [event async for event in waiting]
        assert isinstance(rest[-1], Finished)
        return [first.cached, rest[-1].answer.cached]

    assert asyncio.run(both()) == [False, True] and len(engine.asked) == 1


def test_an_answer_that_was_found_is_given_though_everything_is_forgotten_then(answering: Answering, engine: ScriptedEngine) -> None:
    """Who was told that no model is needed asks none."""
    ask(answering)

    async def forgotten() -> Answer:
        events = answering.stream(ASKED)
        await anext(events)
        assert answering.cache is not None
        answering.cache.clear()
        *_, last = [event async for event in events]
        assert isinstance(last, Finished)
        return last.answer

    assert asyncio.run(forgotten()).cached is True and len(engine.asked) == 1


def test_also_in_chinese_and_as_a_stream(answering: Answering, engine: ScriptedEngine) -> None:
    engine.reply = "普通门诊挂号费为20元。"

    async def texts() -> tuple[str, bool | None]:
        pieces, cached = [], None
        async for event in answering.stream(ZH):
            if isinstance(event, Text):
                pieces.append(event.text)
            elif isinstance(event, Finished):
                cached = event.answer.cached
        return "".join(pieces), cached

    assert asyncio.run(texts()) == ("普通门诊挂号费为20元。", False)
    assert asyncio.run(texts()) == ("普通门诊挂号费为20元。", True)


@pytest.mark.parametrize(
    "other",
    [
        {"question": "When may visitors not come?"},
        {"history": ({"role": "user", "content": "Where is ward 4?"}, {"role": "assistant", "content": "Upstairs."})},
        {"arm": "base"},
        {"constraints": Constraints(must_cite=True)},
        {"sampling": Sampling(max_tokens=7)},
        {"sampling": Sampling(stop=("day",))},
        {"system": "Answer like a pirate."},
        {"task": "summary"},
    ],
)
def test_whatever_differs_is_another_question(answering: Answering, engine: ScriptedEngine, other: dict[str, Any]) -> None:
    ask(answering)
    assert ask(answering, replace(ASKED, **other)).cached is False and len(engine.asked) == 2


def test_a_power_is_another_number(answering: Answering, engine: ScriptedEngine) -> None:
    ten, power = (replace(ASKED, question=f"May visitors come at {number} platelets?") for number in ("109", "10⁹"))
    ask(answering, ten)
    assert ask(answering, power).cached is False and ask(answering, power).cached is True and len(engine.asked) == 2


def test_no_answer_is_another_callers(answering: Answering, engine: ScriptedEngine) -> None:
    ask(answering, caller=MANAGER)
    assert ask(answering).cached is False
    assert ask(answering, replace(ASKED, labels=frozenset()), MANAGER).cached is True, "narrowed to what everybody sees"


@pytest.mark.parametrize(
    ("sampling", "kept"), [(Sampling(temperature=0.7), None), (Sampling(temperature=0.7, seed=3), True), (Sampling(), True)]
)
def test_what_is_left_to_chance_is_not_kept(answering: Answering, sampling: Sampling, kept: bool | None) -> None:
    request = replace(ASKED, sampling=sampling)
    ask(answering, request)
    assert ask(answering, request).cached is kept


def test_an_answer_without_an_engine_is_none_of_its_business(answering: Answering) -> None:
    quote = replace(ASKED, arm="quote")
    assert [ask(answering, quote).cached for _ in range(2)] == [None, None] and answering.cache is not None and not len(answering.cache)


def test_a_failed_or_abandoned_answer_is_not_kept(answering: Answering, engine: ScriptedEngine) -> None:
    engine.error = EngineDown("it broke")
    with pytest.raises(EngineDown):
        ask(answering)
    engine.error = None

    async def leave() -> None:
        events = answering.stream(ASKED)
        async for event in events:
            if isinstance(event, Text):
                break
        await events.aclose()

    asyncio.run(leave())
    assert answering.cache is not None and not len(answering.cache) and ask(answering).cached is False


def test_an_empty_answer_is_not_kept_and_a_kept_one_tells_nothing_about_a_version(answering: Answering, engine: ScriptedEngine) -> None:
    noted: list[bool] = []
    answering._count = lambda turn, *, failed: noted.append(failed)  # type: ignore[method-assign]
    said, engine.reply = engine.reply, ""
    assert ask(answering).cached is False and answering.cache is not None and not len(answering.cache)
    engine.reply = said
    assert [ask(answering).cached for _ in range(3)] == [False, True, True]
    assert noted == [True, False]


def test_changed_removed_restored_and_relabelled_documents(answering: Answering, knowledge: Knowledge, tmp_path: Path) -> None:
    file = tmp_path / "documents" / "visiting.md"
    before = file.read_text("utf-8")
    assert [ask(answering).cached for _ in range(2)] == [False, True]
    first = knowledge.serving().index.generation
    file.write_text(before.replace("20:00", "19:00"), "utf-8")
    knowledge.ingest([tmp_path / "documents"], domain="medical")
    assert ask(answering).cached is False
    knowledge.rollback(first)
    old = ask(answering)
    assert all(c.quote in before for c in old.citations)
    knowledge.ingest([tmp_path / "documents"], domain="medical", labels=frozenset({"management"}))
    with pytest.raises(ArmUnavailable):
        # It is for the management now.
        ask(answering)
    ask(answering, caller=MANAGER)
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    gone = ask(answering, caller=MANAGER)
    assert gone.cached is not True and not any(c.doc_id == "visiting.md" for c in gone.citations)


def test_a_pruned_document(answering: Answering, knowledge: Knowledge, tmp_path: Path) -> None:
    ask(answering)
    (tmp_path / "documents" / "visiting.md").unlink()
    knowledge.ingest([tmp_path / "documents"], domain="medical", prune=True)
    assert ask(answering).cached is not True


def test_a_deletion_empties_it_though_nobody_asks(answering: Answering, knowledge: Knowledge) -> None:
    cache = answering.cache
    assert cache is not None
    ask(answering)

    async def follow() -> tuple[int, int]:
        cache._state = cache._look()
        running = asyncio.create_task(cache.run())
        await asyncio.sleep(0.05)
        before = len(cache)
        await asyncio.to_thread(knowledge.remove, [DocumentKey("medical", "visiting.md")])
        for _ in range(300):
            if not len(cache):
                break
            await asyncio.sleep(0.01)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return before, len(cache)

    assert asyncio.run(follow()) == (1, 0)


def test_an_answer_begun_before_a_deletion_is_not_kept(knowledge: Knowledge) -> None:
    cache = AnswerCache(knowledge.workspace.db, 1 << 20)
    epoch = cache.epoch
    cache.clear()
    cache.keep("key", Draft("text"), epoch)
    assert not len(cache)


def test_it_is_bounded_and_the_least_used_leave_first(knowledge: Knowledge) -> None:
    cache = AnswerCache(knowledge.workspace.db, 10_000)
    for number in range(3):
        cache.keep(number, Draft("药" * 300), 0)
    assert cache.find(0) is not None
    cache.keep(3, Draft("药" * 300), 0)
    assert [cache.find(key) is not None for key in range(4)] == [True, False, True, True]
    cache.keep("large", Draft("x" * 10_000), 0)
    assert cache.find("large") is None and len(cache) == 3


def test_over_http_it_is_marked_counted_and_takes_feedback(tmp_path: Path) -> None:
    with lying() as server:
        knowledge = make_knowledge(tmp_path, server.url)
        answering = real_answering(knowledge)
        answering.cache = AnswerCache(knowledge.workspace.db, 1 << 20)
        with running(Keys(knowledge.workspace.db), answering, passage=knowledge.passage) as served, served.http() as http:
            body = {"model": "medical/rag", "messages": [{"role": "user", "content": ZH.question}]}
            first, second = (http.post("/v1/chat/completions", json=body).json() for _ in range(2))
            stream = http.post("/v1/chat/completions", json={**body, "stream": True}).text
            # A stream is counted when its connection ends, which may be after its last line was read.
            wanted = 'appliance_answer_cache_total{domain="medical",outcome="hit"} 2.0'
            end = time.monotonic() + 10
            while wanted not in (metrics := http.get("/metrics").text) and time.monotonic() < end:
                time.sleep(0.05)
            rated = http.post("/v1/feedback", json={"id": second["id"], "rating": "up"})
        knowledge.workspace.close()
    said = [one["choices"][0]["message"]["content"] for one in (first, second)]
    assert said[0] == said[1] and "第4词" in stream and stream.endswith("data: [DONE]\n\n")
    assert (first["appliance"]["cached"], second["appliance"]["cached"]) == (False, True) and '"cached":true' in stream
    assert wanted in metrics
    assert 'appliance_answer_cache_total{domain="medical",outcome="miss"} 1.0' in metrics
    assert first["id"] != second["id"] and rated.status_code < 300, rated.text
