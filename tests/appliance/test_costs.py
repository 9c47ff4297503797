"""What arms cost: known before the first answer, counted where the choice was made, and never a lock-out."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.knowledge.knowledge import Knowledge
from appliance.routing.costs import CostBook
from appliance.routing.routers import Routers
from appliance.service import router_of
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.types import Answer, Request
from router.features import NAMES
from router.fit import Labelled, families, train
from router.types import Constraints, Costs

ASKED = "When may visitors come?"


class Hours:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_fall_back_is_the_cost_of_the_arm_that_was_chosen(knowledge: Knowledge) -> None:
    answering = answering_with(knowledge, ScriptedEngine("The moon is made of cheese."))
    request = Request(ASKED, domain="medical", arm="rag", constraints=Constraints(must_cite=True))
    answer = asyncio.run(answering.ask(request))
    assert answer.decision.arm == "rag" and answer.arm == "quote"
    seen = answering.costs.expected("medical")
    assert set(seen) == {"rag"} and seen["rag"].latency_ms == answer.timings["total"]
    assert answering.costs.expected("legal") == {}


def test_a_limit_does_not_keep_an_arm_from_being_timed_again(knowledge: Knowledge) -> None:
    clock = Hours()
    answering = answering_with(knowledge, ScriptedEngine("Visitors may come from 14:00 to 20:00 every day."))
    answering.costs = CostBook(lambda domain: {"rag": Costs(7000, 800)}, clock)

    def ask(arm: str = "auto") -> Answer:
        limit = Constraints(max_latency_ms=3000)
        return asyncio.run(answering.ask(Request(ASKED, domain="medical", arm=arm, constraints=limit if arm == "auto" else Constraints())))  # type: ignore[arg-type]

    assert "7000 ms" in ask().decision.unavailable["rag"]
    clock.now = 601
    assert "rag" in ask().decision.predicted
    took = ask("rag").timings["total"]
    assert answering.costs.expected("medical")["rag"].latency_ms == took < 3000
    assert "rag" in ask().decision.predicted and "rag" not in answering.costs.untimed("medical")


def test_costs_start_from_the_live_router_else_from_the_newest_run(knowledge: Knowledge) -> None:
    workspace = knowledge.workspace
    routing = router_of(workspace)
    assert routing.costs("legal") == {}
    for number, gate in enumerate(({}, {"gate": "g"})):
        arms = {"rag": {"latency_p50_ms": 500.0 + number, "tokens": 700.0}, "finetuned": {"n": 0.0}}
        values = {"id": f"run{number}", "dataset": "d", "dataset_version": "1", "domain": "medical", "path": "runs/x", "settings": gate}
        with workspace.db.write() as connection:
            connection.execute(schema.run.insert().values(**values, summary={"arms": arms}, created_at=utcnow(), finished_at=utcnow()))
    assert routing.costs("medical") == {"rag": Costs(500, 700)}

    questions = [Labelled(str(n), str(n), "en", (0.0,) * len(NAMES), {"rag": n % 2, "refuse": 0.0}) for n in range(40)]
    model = train(questions, families()[:1])
    costs = {"rag": asdict(Costs(400, 600))}
    routers = Routers(workspace.db)
    routers.promote(routers.save("medical", model, {"costs": costs}, {"passed": True}).name, "for the test")
    assert router_of(workspace).costs("medical") == {"rag": Costs(400, 600)}
    assert CostBook(router_of(workspace).costs).expected("medical") == {"rag": Costs(400, 600)}
