"""The routers of a workspace: trained versions by domain, the rules where none is live, and which one decides a question."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import EllipsisType
from typing import Any

import sqlalchemy as sa

from appliance.errors import ApplianceError, UsageError
from appliance.routing.costs import newest_run
from appliance.store.database import Database, utcnow
from appliance.store.pointers import ROLLBACK, named
from appliance.store.tables_router import router as table
from router.learned import LearnedRouter
from router.model import ModelError, RouterModel, model_from_json
from router.policy import RulePolicy
from router.settings import Prices
from router.types import ARMS, Arm, Costs, Decision, Router, Situation

logger = logging.getLogger("appliance.router")

# A new live version is noticed within this many seconds.
_LOOK = 0.5


@dataclass(frozen=True, slots=True)
class RouterVersion:
    """One trained router. `training` tells the runs, the data and the distributions it learnt from, `gate` what was measured."""

    name: str
    domain: str
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    gate: Mapping[str, Any]
    created_at: datetime

    @property
    def passed(self) -> bool:
        """Whether it beat the best single arm."""
        return bool(self.gate["passed"])


class Routers:
    """Trained versions of a workspace; pointer `router:DOMAIN` names the live one, none means that the rules decide."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, domain: str, model: RouterModel, training: Mapping[str, Any], gate: Mapping[str, Any]) -> RouterVersion:
        """Keep a version under the hash of what decides and where it comes from; the same again is measured anew, not kept twice."""
        data = model.to_json()
        digest = hashlib.sha256(json.dumps([data, training], sort_keys=True).encode()).hexdigest()
        version = RouterVersion(f"{domain}@{digest[:8]}", domain, data, dict(training), dict(gate), utcnow())
        with self._database.write() as connection:
            known = connection.execute(sa.select(table.c.created_at).where(table.c.name == version.name)).scalar_one_or_none()
            if known is None:
                values = {"model": data, "training": version.training, "gate": version.gate, "created_at": version.created_at}
                connection.execute(table.insert().values(name=version.name, domain=domain, **values))
                self._database.audit(connection, "router.train", {"name": version.name, "domain": domain, "runs": training.get("runs", [])})
            else:
                connection.execute(table.update().where(table.c.name == version.name).values(gate=version.gate))
        return version

    def versions(self, domain: str | None = None) -> list[RouterVersion]:
        """Every version, oldest first."""
        query = sa.select(table).order_by(table.c.created_at, table.c.name)
        with self._database.read() as connection:
            rows = connection.execute(query if domain is None else query.where(table.c.domain == domain))
            return [RouterVersion(**row._mapping) for row in rows]

    def get(self, name: str) -> RouterVersion:
        """The version called `name`. Raises UsageError that lists what there is."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.name == name)).one_or_none()
        if row is None:
            known = ", ".join(version.name for version in self.versions())
            raise UsageError(f"no router {name!r}; known: {known or 'none yet, train one with `appliance router train`'}")
        return RouterVersion(**row._mapping)

    def live(self, domain: str) -> str | None:
        """The name of the live version; None where the rules decide."""
        return self._database.pointer(f"router:{domain}")

    def promote(self, name: str, why: str, *, over: str | EllipsisType | None = ...) -> RouterVersion:
        """Make a version decide in its domain; with `over` only while that version does (None: while the rules do).

        Raises UsageError (unknown, or of another release's features), ApplianceError (another one decides).
        """
        version = self.get(name)
        loaded(version)
        with self._database.write() as connection:
            live = self._database.pointer(f"router:{version.domain}", connection)
            if over is not ... and live != over:
                raise ApplianceError(
                    f"{live or 'the rule policy'} came to decide in {version.domain} while {name} was compared with "
                    f"{over or 'the rule policy'}; train again, it will be compared with what decides now"
                )
            self._database.move_pointer(connection, f"router:{version.domain}", name, f"promote: {why}")
        return version

    def rollback(self, domain: str) -> str | None:
        """Go back to what decided before the live one was promoted, past those that cannot be used any more; None: the rules.

        A rollback is no promotion: the next one goes further back. Raises UsageError where no promotion is left to take back.
        """
        with self._database.write() as connection:
            before = named(connection, f"router:{domain}")[:-1]
            if not before:
                raise UsageError(f"{domain} has no promoted router to roll back; the rules decide")
            name = next(name for name in reversed(before) if name is None or not self.trouble(name))
            self._database.move_pointer(connection, f"router:{domain}", name, ROLLBACK)
        return name

    def trouble(self, name: str) -> str:
        """Why the version called `name` cannot decide; '' if it can."""
        try:
            loaded(self.get(name))
        except UsageError as error:
            return str(error)
        return ""


def loaded(version: RouterVersion) -> RouterModel:
    """The model of a version. Raises UsageError where this release cannot use it."""
    try:
        return model_from_json(version.model)
    except ModelError as error:
        raise UsageError(f"router {version.name} cannot be used: {error}") from error


class Routing:
    """Decides each question by its domain's live router, the rules where there is none or it cannot be used. Thread-safe."""

    def __init__(
        self, database: Database, domains: Callable[[], list[str]], policy: RulePolicy, prices: Prices, target_risk: float | None
    ) -> None:
        self.policy = policy
        self.prices = prices
        self.target_risk = target_risk
        self._routers = Routers(database)
        self._domains = domains
        self._database = database
        # By domain: when it was looked up, the live name, and the router.
        self._live: dict[str, tuple[float, str | None, Router]] = {}
        # By domain: the version of the router they were looked up for, and the costs.
        self._costs: dict[str, tuple[str, Mapping[Arm, Costs]]] = {}

    @property
    def version(self) -> str:
        """The rules' version, and those of all trained routers that are live: what decides in this workspace."""
        live = [self.of(domain).version for domain in self._domains()]
        return "+".join([self.policy.version, *(name for name in live if name != self.policy.version)])

    def of(self, domain: str) -> Router:
        """What decides in a domain now."""
        now = time.monotonic()
        known = self._live.get(domain)
        if known is not None and now < known[0] + _LOOK:
            return known[2]
        name = self._routers.live(domain)
        router = known[2] if known is not None and known[1] == name else self._open(name)
        self._live[domain] = (now, name, router)
        return router

    def decide(self, situation: Situation) -> Decision:
        """The decision of the domain's router."""
        return self.of(situation.domain).decide(situation)

    def costs(self, domain: str) -> Mapping[Arm, Costs]:
        """What each arm cost in the runs that the live router learnt from and was measured with, else in the newest evaluation run."""
        router = self.of(domain)
        known = self._costs.get(domain)
        if known is None or known[0] != router.version:
            training = {} if router is self.policy else self._routers.get(router.version).training
            learnt = {arm: Costs(**training["costs"][arm]) for arm in ARMS if arm in training.get("costs", {})}
            known = self._costs[domain] = (router.version, learnt or newest_run(self._database, domain))
        return known[1]

    def _open(self, name: str | None) -> Router:
        if name is None:
            return self.policy
        try:
            return LearnedRouter(name, loaded(self._routers.get(name)).at_risk(self.target_risk), self.policy, self.prices)
        except UsageError as error:
            logger.error("the rules decide instead of the live router: %s", error)
            return self.policy
