"""From question to decision: the evidence, what each arm could do with it, and the router's choice."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from appliance.adapters.canary import Canaries, Side, on_trial
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.adapters.tuned_questions import TunedQuestions
from appliance.answers.availability import adapter_trouble, base_trouble, engine_trouble, forced, readable, why
from appliance.answers.rewrite import self_contained
from appliance.answers.verified import Verified, VerifiedAnswers
from appliance.engines.base import EngineDown, Usage
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.costs import CostBook
from appliance.types import Caller, Citation, Clock, Request
from retrieval.text import detect_lang
from retrieval.types import Evidence, Passage, Scope
from router.types import ARMS, GENERATING, TUNED, AdapterFacts, Arm, Costs, Decision, Router, Situation
from router.wording import say

T = TypeVar("T")
_NO_USAGE = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question on its way through."""

    id: str
    request: Request
    caller: Caller
    query: str
    lang: str
    domain: str
    evidence: Evidence
    adapter: AdapterVersion | None
    verified: Verified | None
    decision: Decision
    clock: Clock
    situation: Situation
    side: Side | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What there is for a question before any engine is asked how it is: the evidence, who may answer from what, and at which cost.

    `near` is how near the question is to that of `verified` (None without one), `base` the model version that the engine runs, if it is
    one of ours.
    """

    domain: str
    evidence: Evidence
    adapter: AdapterVersion | None
    side: Side | None
    verified: Verified | None
    near: float | None
    facts: AdapterFacts | None
    base: AdapterVersion | None
    costs: Mapping[Arm, Costs]
    untimed: frozenset[Arm]


@dataclass(frozen=True, slots=True)
class Draft:
    """What an arm produced, before it becomes an `Answer`; `arm` where another one had to step in.

    `cached` tells whether it was found in the cache, None where that was not looked for.
    """

    text: str
    citations: Sequence[Citation] = ()
    unsupported: Sequence[str] = ()
    usage: Usage = _NO_USAGE
    finish_reason: str = "stop"
    engine: str | None = None
    adapter: str | None = None
    arm: Arm | None = None
    cached: bool | None = None


class Deciding:
    """What happens to a question before it is answered, over one workspace."""

    def __init__(
        self, knowledge: Knowledge, engines: EnginePool, registry: Registry, verified: VerifiedAnswers, router: Router, costs: CostBook
    ) -> None:
        self.knowledge = knowledge
        self.engines = engines
        self.registry = registry
        self.verified = verified
        self.router = router
        self.costs = costs
        self.config = knowledge.workspace.config
        self._tuned = TunedQuestions()
        # Only a gateway tries candidates: whoever measures or asks on the command line means the live version.
        self.canaries: Canaries | None = None

    async def look(self, work: Callable[..., T], *args: Any) -> T:
        """See `appliance.store.database.Database.look`."""
        return await self.knowledge.workspace.db.look(work, *args)

    def domains(self, caller: Caller) -> list[str]:
        """The domains the caller may ask, by name."""
        allowed = caller.scope.domains
        return [name for name in self.knowledge.workspace.domains() if allowed is None or name in allowed]

    async def decide(self, request: Request, caller: Caller) -> Turn:
        """Find the evidence and choose the arm; nothing is generated. Raises as `Answering.stream` does."""
        clock = Clock()
        await self.look(self._check, request, caller)
        query = self_contained(request.question.strip(), request.history)
        lang = detect_lang(request.question)
        scope = caller.scope if request.domain is None else replace(caller.scope, domains=frozenset({request.domain}))
        # The plain model reads no passage, and with a domain there is none to find: a search would only cost time.
        plain = request.arm == "base" and request.domain is not None
        # All in one go: on a busy machine a change of threads takes longer than all that there is to look up.
        found = await (self.look if plain else asyncio.to_thread)(self._found, request, caller, query, scope, clock, plain)
        if found.side is not None and found.side.name == "candidate" and request.arm in ("auto", *TUNED):
            found = await self._usable(request, caller, found, found.side)
        situation = await self._situation(request, caller, lang, found)
        decision = await self.look(self._chosen, request, situation)
        decision = on_trial(decision, found.side, found.adapter, lang)
        clock.mark("decision", clock.stages["retrieval"])
        return Turn(
            id=f"ans-{secrets.token_hex(8)}",
            request=request,
            caller=caller,
            query=query,
            lang=lang,
            domain=found.domain,
            evidence=found.evidence,
            adapter=found.adapter,
            verified=found.verified,
            decision=decision,
            clock=clock,
            situation=situation,
            side=found.side,
        )

    def _found(self, request: Request, caller: Caller, query: str, scope: Scope, clock: Clock, plain: bool) -> Found:
        """The evidence, none where the answer is to be `plain`, and what the router must know."""
        evidence = Evidence(query, (), None) if plain else self.knowledge.search(query, scope)
        domain = request.domain or self._best_domain(evidence, caller)
        within = replace(scope, domains=frozenset({domain}))
        if request.domain is None and len({p.document.domain for p in evidence.passages}) > 1:
            evidence = self.knowledge.search(query, within)
        clock.mark("retrieval")
        verified, near = self.verified.match(query, within), None
        adapter, side = self._version(request, caller, domain, query)
        if verified is not None:
            near = 1.0
        elif request.arm in ("auto", "verified"):
            verified, near = self.verified.similar(query, within) or (None, None)
        facts = self._facts(request, caller, adapter, evidence)
        engine = self.config.engine_of(domain)[1]
        return Found(
            domain=domain,
            evidence=evidence,
            adapter=adapter,
            side=side,
            verified=verified,
            near=near,
            facts=facts,
            base=self.registry.model_at(engine.base) if engine.has_base else None,
            costs=self.costs.start(domain) if request.measured else self.costs.expected(domain),
            untimed=frozenset() if request.measured else self.costs.untimed(domain),
        )

    def _chosen(self, request: Request, situation: Situation) -> Decision:
        """The router's decision, or the caller's own."""
        return self.router.decide(situation) if request.arm == "auto" else forced(request.arm, situation, self.router.version)

    def _version(self, request: Request, caller: Caller, domain: str, query: str) -> tuple[AdapterVersion | None, Side | None]:
        """The version that may answer, and the side of the domain's canary it is on."""
        adapter = self.registry.chosen(domain, request.adapter)
        if self.canaries is None or request.adapter is not None:
            return adapter, None
        return self.canaries.choose(domain, adapter, caller, query)

    def _facts(self, request: Request, caller: Caller, adapter: AdapterVersion | None, evidence: Evidence) -> AdapterFacts | None:
        """What the router must know of the adapter; None where it is not asked or the caller may not use it."""
        if adapter is None or not adapter.labels <= caller.scope.labels or request.arm not in ("auto", "verified"):
            return None
        # How near a question is to an adapter's training questions tells about the documents behind them.
        near = self._tuned.near(adapter.path, self.knowledge.embedders.of(evidence.generation), evidence.query)
        return self.registry.facts(adapter, evidence, near)

    async def _usable(self, request: Request, caller: Caller, found: Found, side: Side) -> Found:
        """With the candidate; where the engine cannot use it the live version: it has failed, and nobody's question has."""
        engine = await self.engines.of(found.domain)
        if found.adapter is None or not isinstance(engine, Guarded) or not await engine.rejects(found.adapter.ref):
            return found
        if self.canaries is not None:
            self.canaries.note(side, "finetuned", failed=True)

        def with_live() -> Found:
            live = self.registry.live(found.domain)
            return replace(found, adapter=live, side=None, facts=self._facts(request, caller, live, found.evidence))

        return await asyncio.to_thread(with_live)

    def _check(self, request: Request, caller: Caller) -> None:
        limit = self.config.answering.max_question_chars
        if not request.question.strip():
            raise UsageError("the question is empty")
        if len(request.question) > limit:
            raise UsageError(
                f"the question has {len(request.question)} characters, at most {limit} are taken ([answering] max_question_chars); "
                "put long material into the knowledge base with `appliance ingest` and ask about it"
            )
        if request.arm not in ("auto", *ARMS):
            raise UsageError(f"unknown arm {request.arm!r}; known: auto, {', '.join(ARMS)}")
        known = self.domains(caller)
        if request.domain is not None and request.domain not in known:
            raise UsageError(f"unknown domain {request.domain!r}; known: {', '.join(known) or 'none yet'}")
        if not known:
            raise UsageError("there is no domain yet; `appliance ingest PATH --domain NAME` creates one")

    def _best_domain(self, evidence: Evidence, caller: Caller) -> str:
        """The domain with the most support: each passage counts 1 / (its place + 1)."""
        support: dict[str, float] = defaultdict(float)
        for place, passage in enumerate(evidence.passages):
            support[passage.document.domain] += 1 / (place + 1)
        return max(support, key=lambda name: support[name]) if support else self.domains(caller)[0]

    async def _situation(self, request: Request, caller: Caller, lang: str, found: Found) -> Situation:
        unavailable: dict[Arm, str] = {}
        engine = await self.engines.of(found.domain)
        trouble = await engine_trouble(engine, lang)
        needed = request.arm in GENERATING or (request.arm == "auto" and request.measured)
        if trouble and needed and lang in engine.languages:
            raise EngineDown(trouble)
        trouble = trouble or base_trouble(found.base, caller, lang)
        for arm in GENERATING if trouble else ():
            unavailable[arm] = trouble
        if not found.evidence.passages:
            for cited in ("quote", "rag", "hybrid"):
                unavailable.setdefault(cited, say("no_passages", lang))
        elif not self.readable(found.evidence.passages):
            for reading in ("rag", "hybrid"):
                unavailable.setdefault(reading, why("flagged", lang))
        reason = await adapter_trouble(found.adapter, engine, caller, lang)
        for tuned in TUNED if reason else ():
            unavailable.setdefault(tuned, reason)
        if found.verified is None:
            unavailable["verified"] = say("no_verified", lang)
        return Situation(
            question=found.evidence.query,
            lang=lang,
            domain=found.domain,
            evidence=found.evidence,
            unavailable=unavailable,
            adapter=found.facts,
            prior=self.config.domain(found.domain).scenario,
            verified=found.near,
            costs=found.costs,
            untimed=found.untimed,
            constraints=request.constraints,
        )

    def readable(self, passages: Sequence[Passage]) -> list[Passage]:
        """Those that may stand in a generating prompt ([retrieval] flagged)."""
        return readable(passages, self.config.retrieval.flagged)
