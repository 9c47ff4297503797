"""Versions on trial: who gets them, what is counted, and when they are rolled back or promoted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gate_support import Bench, Speaker, right, rows
from helpers import answering_with

from appliance.adapters import canary as canaries
from appliance.adapters.canary import Canaries, Canary, Side, place
from appliance.adapters.canary_watch import judge, watch, worse
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.admin.audit import find
from appliance.answers.answering import Answering
from appliance.answers.feedback import Feedback
from appliance.cli.main import run
from appliance.engines.base import EngineError
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.errors import DatabaseFailed, GateMissed, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.settings import CanaryConfig, FeedbackConfig
from appliance.types import Answer, Caller, Request
from appliance.workspace import Workspace
from retrieval.types import Scope

CALLER = Caller(Scope(), "key-1")
QUESTIONS = [row["question"] for lang in ("en", "zh") for row in rows(0, 28, "train", lang)]


@pytest.fixture
def bench(light: Knowledge, tmp_path: Path) -> Bench:
    made = Bench(light, tmp_path)
    for name, count in (("min_answers", 10), ("min_feedback", 8)):
        made.workspace.save_setting(f"domains.medical.canary.{name}", count)
    return made


@pytest.fixture
def versions(bench: Bench) -> tuple[AdapterVersion, AdapterVersion]:
    """The live version and another one, which say the same."""
    info = bench.dataset("pairs", [*rows(0, 28, "train"), *rows(0, 28, "train", "zh")])
    live, other = bench.adapter(info, right, 1), bench.adapter(info, right, 2)
    bench.registry.promote(live.name)
    return live, other


@pytest.fixture
def answering(bench: Bench, versions: tuple[AdapterVersion, AdapterVersion]) -> Iterator[Answering]:
    made = bench.service().answering
    made.canaries = Canaries(made.registry)
    yield made


def ask(answering: Answering, question: str, caller: Caller = CALLER) -> Answer:
    return asyncio.run(answering.ask(Request(question, domain="medical", arm="finetuned"), caller))


def canary_of(workspace: Workspace) -> Canary:
    [found] = canaries.running(workspace.db)
    return found


def test_the_share_the_sides_and_the_words(bench: Bench, answering: Answering, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    live, other = versions
    assert answering.canaries is not None
    canaries.start(bench.registry, other.name, 0.4, "to see")
    answering.canaries.tend()
    first = {question: ask(answering, question) for question in QUESTIONS}
    tried = [question for question, answer in first.items() if answer.adapter == other.name]
    assert {answer.adapter for answer in first.values()} == {live.name, other.name}
    assert 8 <= len(tried) <= 37
    # The same question has the same version, in other clothes too; another caller's may have another.
    assert all(ask(answering, f"  {question} ").adapter == first[question].adapter for question in QUESTIONS[::8])
    others = [ask(answering, question, Caller(Scope(), "key-2")).adapter for question in QUESTIONS[:28]]
    assert others != [first[question].adapter for question in QUESTIONS[:28]]
    said = {answer.decision.reasons[-1] for question, answer in first.items() if question in tried}
    assert said == {f"{other.name} is on trial and answers a share of the questions.", f"{other.name} 正在试用，回答一部分问题。"}
    answering.canaries.tend()
    figures = canaries.figures(bench.workspace.db, canary_of(bench.workspace))
    assert figures["candidate"]["answered"] + figures["live"]["answered"] == 56 + 7 + 28
    assert answering.canaries.shares() == [("medical", other.name, 0.4)]
    # Measuring means the live version.
    answering.canaries = None
    assert {ask(answering, question).adapter for question in tried[:5]} == {live.name}


def test_places_are_spread_evenly() -> None:
    places = [place("can-1", "k", f"问题{n}") for n in range(2000)]
    assert abs(sum(where < 0.1 for where in places) / 2000 - 0.1) < 0.03
    assert place("can-1", "k", "费用是多少？") == place("can-1", "k", " 费用是多少 ?") != place("can-2", "k", "费用是多少？")
    assert place("can-1", "k", "低于10⁹怎么办？") == place("can-1", "k", "低于１０⁹ 怎么办") != place("can-1", "k", "低于109怎么办？")


def test_who_may_not_see_it_stays_with_the_live_version(bench: Bench, answering: Answering) -> None:
    info = bench.dataset("more", rows(50, 20, "train"))
    secret = bench.adapter(info, right, 3, labels=frozenset({"management"}))
    canaries.start(bench.registry, secret.name, 1.0, "to see")
    assert answering.canaries is not None
    answering.canaries.tend()
    question = QUESTIONS[0]
    assert ask(answering, question).adapter != secret.name
    assert ask(answering, question, Caller(Scope(labels=frozenset({"management"})), "boss")).adapter == secret.name
    answering.canaries.tend()
    figures = canaries.figures(bench.workspace.db, canary_of(bench.workspace))
    assert (figures["candidate"]["answered"], figures["live"]["answered"]) == (1, 0)


def test_failures_are_counted_and_roll_back(bench: Bench, answering: Answering, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    live, other = versions
    canaries.start(bench.registry, other.name, 0.5, "to see")
    assert answering.canaries is not None
    answering.canaries.tend()

    def broken(gold: str) -> str:
        raise EngineError("the adapter breaks it")

    bench.script[other.name] = broken
    failed = 0
    for question in QUESTIONS:
        try:
            ask(answering, question)
        except EngineError:
            failed += 1
    assert failed >= 10
    answering.canaries.tend()
    [ended] = watch(bench.registry)
    assert ended["state"] == "rolled_back" and f"{failed} of {failed} of the candidate" in ended["why"]
    assert canaries.running(bench.workspace.db) == [] and bench.registry.live("medical").name == live.name  # type: ignore[union-attr]
    answering.canaries.tend()
    assert {ask(answering, question).adapter for question in QUESTIONS} == {live.name}
    assert [entry["action"] for entry in find(bench.workspace.db, "canary")] == ["canary.end", "canary.start"]


@pytest.mark.parametrize("trouble", ["refused", "altered template"])
def test_a_candidate_that_the_engine_cannot_use_is_rolled_back_and_fails_nobody(
    bench: Bench, versions: tuple[AdapterVersion, AdapterVersion], trouble: str
) -> None:
    live, other = versions

    def unfit(folder: Path) -> list[str]:
        return ["another chat template"] if folder == other.path and trouble != "refused" else []

    guard = Guarded(Speaker(bench.gold, bench.script, bench.base_hash), TimeLimits(), Breaker(3, 5.0), unfit)
    guard.refused |= {other.name} if trouble == "refused" else set()
    answering = answering_with(bench.knowledge, guard)
    answering.canaries = Canaries(answering.registry)
    canaries.start(bench.registry, other.name, 0.5, "to see")
    answering.canaries.tend()
    assert {ask(answering, question).adapter for question in QUESTIONS} == {live.name}
    answering.canaries.tend()
    [ended] = watch(bench.registry)
    assert ended["state"] == "rolled_back" and ended["why"].startswith("failed answers: ")
    assert ended["figures"]["candidate"]["failed"] >= 10 and ended["figures"]["candidate"]["answered"] == 0


def test_bad_feedback_rolls_back(bench: Bench, answering: Answering, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    _, other = versions
    canaries.start(bench.registry, other.name, 0.5, "to see")
    assert answering.canaries is not None
    answering.canaries.tend()
    book = Feedback(bench.workspace.db, FeedbackConfig())
    for question in QUESTIONS:
        answer = ask(answering, question)
        book.remember(answer, question, None, CALLER)
        rating = "down" if answer.adapter == other.name else "up"
        book.give(CALLER, answer.id, rating, correction=None, question=None, answer=None)  # type: ignore[arg-type]
    [ended] = watch(bench.registry)
    assert ended["state"] == "rolled_back" and ended["why"].startswith("ratings down: ")
    assert ended["figures"]["live"]["up"] > 8 and ended["figures"]["candidate"]["up"] == 0


def test_promoted_only_if_asked_and_after_the_gate(
    bench: Bench, versions: tuple[AdapterVersion, AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = versions
    bench.workspace.save_setting("domains.medical.canary.promote_after_answers", 30)
    bench.workspace.save_setting("domains.medical.canary.promote_after_hours", 2)
    made = canaries.start(bench.registry, other.name, 0.5, "to see")
    side = Side(made.id, "candidate", True)
    counting = Canaries(bench.registry)
    for _ in range(30):
        counting.note(side, "hybrid", failed=False)
    # What another arm answered tells nothing.
    counting.note(side, "quote", failed=True)
    counting.tend()
    later = made.started_at + timedelta(hours=3)
    # Forced into the trial, it waits for a person.
    assert watch(bench.registry, later) == []
    asyncio.run(_gate(bench, other.name))
    assert watch(bench.registry, made.started_at + timedelta(hours=1)) == []
    # A database that is in trouble for a moment ends no trial.
    with monkeypatch.context() as broken, pytest.raises(DatabaseFailed):
        broken.setattr(Registry, "promote", _fails)
        watch(bench.registry, later)
    [ended] = watch(bench.registry, later)
    assert ended["state"] == "promoted" and "30 answers in 3.0 hours" in ended["why"]
    assert bench.registry.live("medical").name == other.name  # type: ignore[union-attr]


def _fails(*_: object, **__: object) -> None:
    raise DatabaseFailed("the database is locked")


def test_what_cannot_be_served_or_has_answered_nothing_is_not_promoted(
    bench: Bench, versions: tuple[AdapterVersion, AdapterVersion]
) -> None:
    live, other = versions
    bench.workspace.save_setting("domains.medical.canary.promote_after_hours", 2)
    made = canaries.start(bench.registry, other.name, 0.5, "to see")
    asyncio.run(_gate(bench, other.name))
    later = made.started_at + timedelta(hours=3)
    assert watch(bench.registry, later) == []
    counting = Canaries(bench.registry)
    counting.note(Side(made.id, "candidate", True), "hybrid", failed=False)
    counting.tend()
    # The engine takes less than when the trial began.
    for name, value in (("kind", "vllm"), ("max_lora_rank", 1)):
        bench.workspace.save_setting(f"engines.default.{name}", value)
    [ended] = watch(bench.registry, later)
    assert ended["state"] == "stopped" and "cannot go live" in ended["why"] and "rank" in ended["why"]
    assert bench.registry.live("medical").name == live.name  # type: ignore[union-attr]
    # One that somebody makes live by hand is told as that.
    canaries.start(bench.registry, other.name, 0.5, "to see")
    bench.registry.promote(other.name)
    assert [ended["why"] for ended in watch(bench.registry)] == ["the candidate became live"]


async def _gate(bench: Bench, name: str) -> None:
    from appliance.adapters.gates import measure

    bench.dataset("exam", rows(60, 12, "test"))
    settings = bench.workspace.config.domain("medical").gate.model_copy(update={"dataset": "exam", "latency_questions": 0})
    version = bench.registry.get(name)
    assert (await measure(bench.service(), version, bench.registry.live("medical"), settings, lambda *_: None)).passed


def test_what_stands_in_the_way_of_a_trial(bench: Bench, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    live, other = versions
    with pytest.raises(GateMissed, match="has not been through the gate"):
        canaries.start(bench.registry, other.name, 0.1)
    with pytest.raises(UsageError, match="is live in medical already"):
        canaries.start(bench.registry, live.name, 0.1, "why")
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(UsageError, match="a share is"):
            canaries.start(bench.registry, other.name, share, "why")
    with pytest.raises(UsageError, match="no version is on trial"):
        canaries.stop(bench.workspace.db, "medical")
    canaries.start(bench.registry, other.name, 0.1, "why")
    with pytest.raises(UsageError, match="is on trial in medical; stop it first"):
        canaries.start(bench.registry, other.name, 0.1, "why")
    with pytest.raises(UsageError, match="on trial"):
        bench.registry.remove(other.name)
    # Somebody makes another version live.
    bench.registry.rollback("medical")
    [ended] = watch(bench.registry)
    assert (ended["state"], ended["why"]) == ("stopped", "another version became live")


def test_a_removed_candidate_ends_the_trial(bench: Bench, answering: Answering, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    live, other = versions
    canaries.start(bench.registry, other.name, 1.0, "why")
    assert answering.canaries is not None
    answering.canaries.tend()
    bench.registry.remove(other.name, force=True)
    assert ask(answering, QUESTIONS[0]).adapter == live.name
    assert [ended["why"] for ended in watch(bench.registry)] == ["the candidate was removed"]


FEW = {"answered": 0, "failed": 0, "up": 0, "down": 0}


TOO_MUCH = [
    ((9, 10), (0, 100), False),  # too few to look
    ((20, 20), (0, 100), True),
    ((20, 20), (0, 0), True),  # the ceiling needs no other side
    ((4, 20), (0, 100), True),  # at the ceiling, but far worse than the live version
    ((1, 20), (0, 100), False),
    ((4, 20), (3, 20), False),
    ((20, 20), (60, 60), False),  # an outage of the engine itself
    ((0, 20), (50, 100), False),
]


def test_what_is_too_much(bench: Bench, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    canary = canaries.start(bench.registry, versions[1].name, 0.5, "why")
    settings = CanaryConfig(min_answers=20, min_feedback=20, max_bad=0.2)
    for bad, good, name in (("failed", "answered", "failed answers"), ("down", "up", "ratings down")):
        for ours, theirs, rolled in TOO_MUCH:
            sides = {"candidate": ours, "live": theirs}
            found = {side: FEW | {bad: count[0], good: count[1] - count[0]} for side, count in sides.items()}
            state, why, _ = judge(bench.registry, canary, settings, found, canary.started_at)
            assert (state == "rolled_back") == why.startswith(name) == rolled, (name, ours, theirs, why)


def test_looks_are_few_and_ever_stricter(bench: Bench, versions: tuple[AdapterVersion, AdapterVersion]) -> None:
    canary = canaries.start(bench.registry, versions[1].name, 0.5, "why")
    sizes = []
    for answered in range(0, 200):
        found = {"candidate": FEW | {"answered": answered}, "live": FEW}
        _, _, looks = judge(bench.registry, canary, CanaryConfig(), found, canary.started_at)
        if looks != canary.looks:
            sizes.append(looks["failed"])
            canary = replace(canary, looks=looks)
    assert sizes == [[1, 20], [2, 40], [3, 80], [4, 160]]
    # 5 of 20 against 2 of 60: p = 0.0086, enough for a first look at 5 %, not for a fifth.
    assert worse((5, 20), (2, 60), 0.9, 0.05 / 2) and not worse((5, 20), (2, 60), 0.9, 0.05 / 30)


def test_on_the_command_line(bench: Bench, versions: tuple[AdapterVersion, AdapterVersion], capsys: pytest.CaptureFixture[str]) -> None:
    live, other = versions
    base = ["--workspace", str(bench.workspace.root), "adapter", "canary"]

    def call(*arguments: str) -> tuple[int, Any]:
        code = run([*base, *arguments])
        out = capsys.readouterr().out
        return code, json.loads(out) if "--json" in arguments else out

    assert run([*base, "start", other.name, "--share", "0%"]) == 2
    assert run([*base, "start", other.name, "--force"]) == 2
    capsys.readouterr()
    code, data = call("start", other.name, "--share", "25%", "--force", "--why", "试一试", "--json")
    assert code == 0 and data["canary"]["share"] == 0.25 and data["canary"]["live"] == live.name
    code, data = call("status", "--json")
    assert code == 0 and data[0]["figures"]["candidate"] == FEW and data[0]["why"] == "forced: 试一试"
    assert call("stop", "--json")[1]["state"] == "stopped"
    assert call("status", "--json") == (0, []) and len(call("status", "--all", "--json")[1]) == 1
    assert run([*base, "stop"]) == 2
