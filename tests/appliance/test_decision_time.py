"""What a decision takes beyond retrieval: few reads, as many for an adapter of many pairs, and nothing stale for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from fake_engine import ScriptedEngine
from helpers import answering_with
from test_adapters import make

from appliance.adapters import tuned_questions
from appliance.adapters.registry import Registry
from appliance.answers.verified import VerifiedAnswers
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.types import Caller, Request
from retrieval.types import DocumentKey, Scope

QUESTION = "When may visitors come?"


@contextmanager
def statements(knowledge: Knowledge) -> Iterator[list[str]]:
    """The reads made of the database meanwhile."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            found.append(statement)

    engine = knowledge.workspace.db.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def test_what_an_adapter_was_trained_on_is_read_once(light: Knowledge) -> None:
    version = make(light)
    Registry(light.workspace).promote(version.name)
    tuned_questions.save(version.path, [("q1", QUESTION)], light.embedder, {"q1": 0.5})
    answering = answering_with(light, ScriptedEngine("From 14:00 to 20:00."))
    request, caller = Request(QUESTION, domain="medical"), Caller()
    evidence = light.search(QUESTION, Scope(frozenset({"medical"})))
    light.search = lambda *_: evidence  # type: ignore[method-assign]
    links = f"FROM {schema.adapter_evidence.name}"
    with statements(light) as first:
        turn = asyncio.run(answering.decide(request, caller))
    assert turn.situation.adapter is not None and turn.decision.features["a_nearest"] > 0.99
    assert sum(links in statement for statement in first) == 1
    with statements(light) as then:
        asyncio.run(answering.decide(request, caller))
    # What is left are a few small reads past SQLAlchemy (see `appliance.store.lookup`).
    assert then == []


def test_a_question_changes_threads_once(light: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine each change takes longer than all that there is to look up."""
    version = make(light)
    Registry(light.workspace).promote(version.name)
    answering = answering_with(light, ScriptedEngine("From 14:00 to 20:00."))
    request, caller, changes = Request(QUESTION, domain="medical"), Caller(), list[Any]()
    asyncio.run(answering.decide(request, caller))
    real = asyncio.to_thread
    monkeypatch.setattr("asyncio.to_thread", lambda work, *given: changes.append(work) or real(work, *given))
    turn = asyncio.run(answering.decide(request, caller))
    assert len(changes) == 1 and turn.situation.adapter is not None and set(turn.clock.stages) == {"retrieval", "decision"}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_approved_answers_are_read_when_they_change_however_many_there_are(
    light: Knowledge, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    # The light embedding knows no meanings.
    monkeypatch.setattr("appliance.answers.verified.SIMILAR", -1.0)
    one, other, answer, source = {
        "en": ("When may visitors come?", "At what time may visitors come?", "Visitors may come from 14:00 to 20:00.", "visiting.md"),
        "zh": ("普通门诊挂号费是多少？", "请问普通门诊挂号费是多少？", "普通门诊挂号费为20元。", "zh/registration.md"),
    }[lang]
    scope, table = Scope(frozenset({"medical"}), frozenset()), f"FROM {schema.verified.name}"
    verified, elsewhere = VerifiedAnswers(light), VerifiedAnswers(light)
    assert verified.match(one, scope) is None and verified.similar(one, scope) is None
    made = elsewhere.add("medical", one, answer, [source], "Dr. Moss", 0.6)
    assert verified.match(one, scope) == made and (verified.similar(other, scope) or ("",))[0] == made
    with statements(light) as found:
        assert verified.match("What is a nurse paid?", scope) is None and verified.similar("What is a nurse paid?", scope) is None
    assert not any(table in statement for statement in found)
    newer = elsewhere.add("medical", one, answer, [source], "Dr. Reed", 0.6)
    assert verified.match(one, scope) == newer and (verified.similar(other, scope) or ("",))[0] == newer
    elsewhere.remove(newer.id)
    assert verified.match(one, scope) == made
    elsewhere.remove(made.id)
    assert verified.match(one, scope) is None and verified.similar(other, scope) is None


def test_what_goes_stale_and_who_may_see_it_is_known_at_once(light: Knowledge) -> None:
    """Also where the index is back at a generation that was asked about before, and nobody asked in between."""
    registry, documents = Registry(light.workspace), light.workspace.root.parent / "documents"
    version = make(light)
    before = light.store.live_generation()
    assert before is not None and registry.freshness.of(version.name).counts.stale == 0
    light.ingest([documents / "parking.md"], domain="medical", labels=frozenset({"staff"}))
    light.remove([DocumentKey("medical", "visiting.md")])
    light.rollback(before)
    assert light.store.live_generation() == before
    assert [one.key.id for one in registry.freshness.of(version.name).documents] == ["visiting.md"]
    assert registry.current(version.name).labels == {"staff"}
