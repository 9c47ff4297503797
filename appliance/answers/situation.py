"""From question to decision: the evidence, what each arm could do with it, and the router's choice."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from appliance.adapters.canary import TUNED, Canaries, Side, on_trial
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.adapters.tuned_questions import TunedQuestions
from appliance.answers.availability import adapter_trouble, base_trouble, engine_trouble, forced, readable
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
from router.types import ARMS, GENERATING, AdapterFacts, Arm, Decision, Router, Situation

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
        if request.arm == "base" and request.domain is not None:
            # The plain model reads no passage, and there is no domain to find: a search would only cost time.
            evidence = Evidence(query, (), None)
        else:
            evidence = await asyncio.to_thread(self.knowledge.search, query, scope)
        domain = request.domain or self._best_domain(evidence, caller)
        if request.domain is None and len({p.document.domain for p in evidence.passages}) > 1:
            evidence = await asyncio.to_thread(self.knowledge.search, query, replace(scope, domains=frozenset({domain})))
        started = clock.mark("retrieval")
        within = replace(scope, domains=frozenset({domain}))
        verified, (adapter, side) = await self.look(
            lambda: (self.verified.match(query, within), self._version(request, caller, domain, query))
        )
        if side is not None and side.name == "candidate" and request.arm in ("auto", *TUNED):
            adapter, side = await self._usable(domain, adapter, side)
        near, facts = None if verified is None else 1.0, None
        if request.arm in ("auto", "verified"):
            # In a thread, since approved questions that are alike are embedded.
            verified, near, facts = await asyncio.to_thread(self._compared, caller, within, evidence, adapter, verified)
        situation = await self._situation(request, caller, lang, domain, evidence, adapter, facts, near)
        decision = await self.look(self._chosen, request, situation)
        decision = on_trial(decision, side, adapter, lang)
        clock.mark("decision", started)
        id = f"ans-{secrets.token_hex(8)}"
        return Turn(id, request, caller, query, lang, domain, evidence, adapter, verified, decision, clock, situation, side)

    def _chosen(self, request: Request, situation: Situation) -> Decision:
        """The router's decision, or the caller's own."""
        return self.router.decide(situation) if request.arm == "auto" else forced(request.arm, situation, self.router.version)

    def _version(self, request: Request, caller: Caller, domain: str, query: str) -> tuple[AdapterVersion | None, Side | None]:
        """The version that may answer, and the side of the domain's canary it is on."""
        adapter = self.registry.chosen(domain, request.adapter)
        if self.canaries is None or request.adapter is not None:
            return adapter, None
        return self.canaries.choose(domain, adapter, caller, query)

    async def _usable(self, domain: str, candidate: AdapterVersion | None, side: Side) -> tuple[AdapterVersion | None, Side | None]:
        """The candidate; where the engine cannot use it the live version, and it has failed without anybody's question failing."""
        engine = await self.engines.of(domain)
        if candidate is None or not isinstance(engine, Guarded) or not await engine.rejects(candidate.ref):
            return candidate, side
        if self.canaries is not None:
            self.canaries.note(side, "finetuned", failed=True)
        return await self.look(self.registry.live, domain), None

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

    def _compared(
        self, caller: Caller, within: Scope, evidence: Evidence, adapter: AdapterVersion | None, verified: Verified | None
    ) -> tuple[Verified | None, float | None, AdapterFacts | None]:
        """The approved answer to the question or one like it, how near they are, and what the router must know of the adapter."""
        found = (verified, 1.0) if verified is not None else self.verified.similar(evidence.query, within) or (None, None)
        # How near a question is to an adapter's training questions tells about the documents behind them.
        if adapter is None or not adapter.labels <= caller.scope.labels:
            return *found, None
        near = self._tuned.near(adapter.path, self.knowledge.embedders.of(evidence.generation), evidence.query)
        return *found, self.registry.facts(adapter, evidence, near)

    async def _situation(
        self,
        request: Request,
        caller: Caller,
        lang: str,
        domain: str,
        evidence: Evidence,
        adapter: AdapterVersion | None,
        facts: AdapterFacts | None,
        verified: float | None,
    ) -> Situation:
        unavailable: dict[Arm, str] = {}
        engine = await self.engines.of(domain)
        trouble = await engine_trouble(engine, lang)
        needed = request.arm in GENERATING or (request.arm == "auto" and request.measured)
        if trouble and needed and lang in engine.languages:
            raise EngineDown(trouble)
        settings = self.config.engine_of(domain)[1]
        if not trouble and settings.has_base:
            trouble = base_trouble(await self.look(self.registry.model_at, settings.base), caller)
        for arm in GENERATING if trouble else ():
            unavailable[arm] = trouble
        if not evidence.passages:
            for cited in ("quote", "rag", "hybrid"):
                unavailable.setdefault(cited, "retrieval found no passage")
        elif not self.readable(evidence.passages):
            for reading in ("rag", "hybrid"):
                unavailable.setdefault(reading, "every passage found contains instructions to the model ([retrieval] flagged)")
        reason = await adapter_trouble(adapter, engine, caller)
        for tuned in ("finetuned", "hybrid") if reason else ():
            unavailable.setdefault(tuned, reason)
        if verified is None:
            unavailable["verified"] = "no approved answer to this question"
        return Situation(
            question=evidence.query,
            lang=lang,
            domain=domain,
            evidence=evidence,
            unavailable=unavailable,
            adapter=facts,
            prior=self.config.domain(domain).scenario,
            verified=verified,
            costs=await self.look(self.costs.start if request.measured else self.costs.expected, domain),
            untimed=frozenset() if request.measured else self.costs.untimed(domain),
            constraints=request.constraints,
        )

    def readable(self, passages: Sequence[Passage]) -> list[Passage]:
        """Those that may stand in a generating prompt ([retrieval] flagged)."""
        return readable(passages, self.config.retrieval.flagged)
