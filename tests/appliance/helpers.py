"""An `Answering` over a real knowledge base with an engine that the test controls."""

from __future__ import annotations

from appliance.adapters.registry import Registry
from appliance.answers.answering import Answering
from appliance.answers.verified import VerifiedAnswers
from appliance.engines.base import Engine
from appliance.engines.guard import Guarded
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.costs import CostBook
from router.policy import RulePolicy


class OneEngine:
    """A pool with the one engine that a test controls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def of(self, domain: str) -> Engine:
        return self.engine

    async def named(self, name: str) -> Engine:
        return self.engine

    async def health(self) -> dict[str, object]:
        state = await self.engine.health()
        return {self.engine.name: {"ok": state.ok, "detail": state.detail}}

    def started(self) -> dict[str, Guarded]:
        return {}

    async def close(self) -> None:
        await self.engine.close()


def answering_with(knowledge: Knowledge, engine: Engine) -> Answering:
    registry = Registry(knowledge.workspace)
    return Answering(knowledge, OneEngine(engine), registry, VerifiedAnswers(knowledge), RulePolicy(), CostBook())  # type: ignore[arg-type]
