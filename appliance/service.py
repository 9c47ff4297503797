"""The parts of a workspace put together; the only place that decides which implementation is used."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches

from appliance.adapters.registry import Registry
from appliance.answers.answering import Answering
from appliance.answers.verified import VerifiedAnswers
from appliance.engines.pool import EnginePool
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.routing.costs import CostBook
from appliance.routing.routers import Routing
from appliance.workspace import Workspace
from router.policy import RulePolicy
from router.settings import PolicySettings, Prices


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that serves one workspace."""

    workspace: Workspace
    models: ModelStore
    knowledge: Knowledge
    registry: Registry
    verified: VerifiedAnswers
    engines: EnginePool
    answering: Answering


def open_service(workspace: Workspace, patient: bool = True) -> Service:
    """Build the parts; models are loaded on first use. `patient`: see `EnginePool`."""
    models = ModelStore.default()
    knowledge = Knowledge(workspace, models)
    registry = Registry(workspace)
    verified = VerifiedAnswers(knowledge)
    engines = EnginePool(workspace, models, patient)
    router = router_of(workspace)
    answering = Answering(knowledge, engines, registry, verified, router, CostBook(router.costs))
    return Service(workspace, models, knowledge, registry, verified, engines, answering)


def router_of(workspace: Workspace) -> Routing:
    """What decides: trained routers where they are live, else the rules. Raises UsageError for an unknown threshold."""
    settings = workspace.config.router
    prices = Prices(settings.token_price, settings.second_price)
    return Routing(workspace.db, workspace.domains, RulePolicy(thresholds(workspace)), prices, settings.target_risk)


def thresholds(workspace: Workspace) -> PolicySettings:
    """The rule policy's settings. Raises UsageError naming an unknown or impossible one."""
    given = workspace.config.router.thresholds
    known = [field.name for field in fields(PolicySettings)]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"[router.thresholds] {name}: unknown; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
            )
    try:
        return PolicySettings(**given)
    except ValueError as error:
        raise UsageError(f"[router.thresholds] {error}") from error
