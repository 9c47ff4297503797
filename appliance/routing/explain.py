"""`appliance router explain`: the decision for a question, without answering it."""

from __future__ import annotations

from typing import Any

from appliance.service import Service, router_of
from appliance.types import Caller, Request, decision_json
from router.explain import explain, explanation_json
from router.learned import LearnedRouter
from router.policy import RulePolicy


async def explained(service: Service, request: Request, caller: Caller) -> dict[str, Any]:
    """The JSON of `router explain`: what is decided where the router chooses. Raises as `Answering.stream` does."""
    try:
        situation = (await service.answering.decide(request, caller)).situation
        router = router_of(service.workspace).of(situation.domain)
        assert isinstance(router, RulePolicy | LearnedRouter)
        found = explain(router, situation)
    finally:
        await service.answering.close()
    return {"question": request.question, "lang": situation.lang, "decision": decision_json(found.decision), **explanation_json(found)}
