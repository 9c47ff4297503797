"""A hundred changes of the live adapter under twenty concurrent requests: no answer is lost, and none comes from the wrong version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from fake_engine import ScriptedEngine
from gate_support import Bench, right, rows

from appliance.adapters import life as adapter_life
from appliance.adapters.life import AdapterLife
from appliance.answers.answering import Answering
from appliance.answers.verified import VerifiedAnswers
from appliance.engines.base import Delta, Engine, EngineError, Message, Sampling, Usage
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.costs import CostBook
from appliance.types import Answer, Request
from router.policy import RulePolicy

SWAPS, ASKERS = 100, 20


class Telling(ScriptedEngine):
    """Says which adapter it answers with, in pieces; fails if that one is not there all the time."""

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        for _ in range(4):
            if adapter is not None and adapter not in self.loaded:
                raise EngineError(f"{adapter} was unloaded under an answer")
            yield Delta(f"{adapter} ")
            await asyncio.sleep(0)
        yield Delta("", "stop", Usage(1, 4))


class Pool:
    """The one engine, guarded."""

    def __init__(self, engine: Engine) -> None:
        self.guard = Guarded(engine, TimeLimits(), Breaker(1, 0.0))

    async def named(self, name: str) -> Guarded:
        return self.guard

    of = named


@pytest.mark.slow
def test_a_hundred_swaps_under_load(light: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_life, "_LOOK", 0.0)
    monkeypatch.setattr(adapter_life, "_DRAIN", 0.5)
    bench = Bench(light, tmp_path)
    info = bench.dataset("pairs", rows(0, 4, "train") + rows(4, 4, "train", "zh"))
    versions = [bench.adapter(info, right, number) for number in range(1, 5)]
    engine = Telling(base_hash=bench.base_hash)
    pool, registry = Pool(engine), bench.registry
    answering = Answering(light, pool, registry, VerifiedAnswers(light), RulePolicy(), CostBook())  # type: ignore[arg-type]
    live: list[str] = []
    answers: list[tuple[int, int, Answer]] = []
    answered = asyncio.Event()

    async def ask(number: int) -> None:
        question = ("When may visitors come?", "探视时间是几点？")[number % 2]
        while len(live) < SWAPS:
            since = len(live) - 1
            answer = await answering.ask(Request(question, domain="medical", arm="finetuned"))
            answers.append((since, len(live), answer))
            answered.set()

    async def swap() -> None:
        while len(live) < SWAPS:
            version = versions[len(live) % len(versions)]
            with light.workspace.db.write() as connection:
                live.append(version.name)
                light.workspace.db.move_pointer(connection, "adapter:medical", version.name, "a test")
            for _ in range(2):
                answered.clear()
                await answered.wait()

    async def run() -> None:
        registry.promote(versions[-1].name)
        live.append(versions[-1].name)
        life = AdapterLife(registry, pool)  # type: ignore[arg-type]
        await life.tick()
        running = asyncio.create_task(life.run())
        await asyncio.gather(swap(), *(ask(number) for number in range(ASKERS)))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert len(live) == SWAPS and len(answers) >= 2 * (SWAPS - 1)
    for since, until, answer in answers:
        # One that was live at some moment of the question, and the same from the first word to the last.
        assert answer.adapter in live[since:until] and answer.text.split() == [answer.adapter] * 4
    assert pool.guard.faults.failed == 0 and len({answer.adapter for _, _, answer in answers}) == len(versions)
