"""What a decision takes beyond retrieval: few reads, as many for an adapter of many pairs, and nothing stale for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from fake_engine import ScriptedEngine
from helpers import answering_with
from test_adapters import make

from appliance.adapters import tuned_questions
from appliance.adapters.registry import Registry
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
    tuned_questions.save(version.path, [("q1", QUESTION)], light.embedder)
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
    assert not any(links in statement for statement in then) and len(then) <= 8


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
