"""One function from question to answer: evidence, route, arm, checked citations.

The gateway, `appliance ask` and evaluation all call `Answering.stream`, so that what is evaluated is what is served.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from appliance import prompts
from appliance.adapters import AdapterVersion, Registry
from appliance.availability import (
    adapter_trouble,
    base_trouble,
    engine_trouble,
    fallback_reason,
    flag_warnings,
    forced,
    index_warnings,
    load_adapter,
    readable,
)
from appliance.citations import align, quote
from appliance.costs import CostBook
from appliance.engines.base import Engine, EngineDown, EngineError, Message, Sampling, Usage
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.errors import ApplianceError, UsageError
from appliance.knowledge import Knowledge, state
from appliance.rewrite import self_contained
from appliance.tuned_questions import nearest_question
from appliance.types import Answer, Caller, Citation, Clock, Decided, Event, Finished, Request, Text
from appliance.verified import Verified, VerifiedAnswers
from retrieval.text import detect_lang
from retrieval.types import DocumentKey, Evidence, Passage, RetrievalError, Scope
from router.types import ARMS, GENERATING, Arm, Decision, Router, Situation

_NO_USAGE = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class _Turn:
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


@dataclass(frozen=True, slots=True)
class _Draft:
    """What an arm produced, before it becomes an `Answer`; `arm` where another one had to step in."""

    text: str
    citations: Sequence[Citation] = ()
    unsupported: Sequence[str] = ()
    usage: Usage = _NO_USAGE
    finish_reason: str = "stop"
    engine: str | None = None
    adapter: str | None = None
    arm: Arm | None = None


class Answering:
    """Answers questions over one workspace."""

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
        self._secret = knowledge.workspace.db.secret()

    # --- what the gateway asks besides answers

    def domains(self, caller: Caller) -> list[str]:
        """The domains the caller may ask, by name."""
        allowed = caller.scope.domains
        return [name for name in self.knowledge.workspace.domains() if allowed is None or name in allowed]

    def arms(self, domain: str, caller: Caller) -> list[str]:
        """The arms that can be named in a request: those of adapters only where one is live that the caller may use."""
        live = self.registry.live(domain)
        tuned = live is not None and live.labels <= caller.scope.labels
        return [arm for arm in ARMS if tuned or arm not in ("finetuned", "hybrid")]

    async def warm(self) -> None:
        """Load index, embedding model and every engine in use, so that the first question does not wait.

        Raises ApplianceError; what is wrong is also what the first question would say.
        """
        try:
            await self._warm()
        except RetrievalError as error:
            raise ApplianceError(str(error)) from error

    async def _warm(self) -> None:
        await asyncio.to_thread(self.knowledge.search, "warm up", Scope(), 1)
        for name in dict.fromkeys(self.config.engine_of(domain)[0] for domain in self.knowledge.workspace.domains()):
            engine = await self.engines.named(name)
            async for _ in engine.chat([Message(role="user", content="warm up")], None, Sampling(max_tokens=1)):
                pass

    async def health(self) -> dict[str, Any]:
        """State of index, database and engines: {"index": {...}, "database": {...}, "engines": {name: {...}}}.

        An index with a `problem` is searched in an older generation, because the live one is damaged.
        """
        return {**await asyncio.to_thread(state, self.knowledge), "engines": await self.engines.health()}

    def guards(self) -> Mapping[str, Guarded]:
        """The engines that run, with their circuit breakers and what went wrong."""
        return self.engines.started()

    async def close(self) -> None:
        await self.engines.close()

    # --- answering

    async def stream(self, request: Request, caller: Caller | None = None) -> AsyncGenerator[Event]:
        """Answer one question as events: Decided, Text…, Finished. Closing the iterator stops the engine.

        Raises UsageError (empty or too long question, unknown domain or arm), ArmUnavailable, EngineBusy, EngineError.
        """
        turn = await self._decide(request, (caller or Caller()).narrowed(request.labels))
        yield Decided(turn.id, turn.decision, turn.evidence)
        checked = turn.request.constraints.must_cite and turn.decision.arm in ("rag", "hybrid")
        # What is not generated is there at once; it leaves after its citations were compared with the stored text.
        held = checked or turn.decision.arm not in GENERATING
        draft = _Draft("")
        # aclosing, so that a client that goes stops the engine at once and not at the next garbage collection.
        async with aclosing(self._run(turn)) as pieces:
            async for piece in pieces:
                if isinstance(piece, _Draft):
                    draft = piece
                    continue
                if "first_token" not in turn.clock.stages:
                    turn.clock.mark("first_token")
                if not held:
                    yield Text(piece)
        arm = draft.arm or turn.decision.arm
        if checked and (draft.unsupported or not draft.citations):
            arm, draft = await self._fall_back(turn, draft)
        answer = await asyncio.to_thread(self._finish, turn, arm, draft)
        if held:
            yield Text(answer.text)
        self.costs.record(arm, answer)
        yield Finished(answer)

    async def ask(self, request: Request, caller: Caller | None = None) -> Answer:
        """The finished answer, without the events before it."""
        async for event in self.stream(request, caller):
            if isinstance(event, Finished):
                return event.answer
        raise EngineError("the answer ended before it was finished; ask again")

    async def _decide(self, request: Request, caller: Caller) -> _Turn:
        clock = Clock()
        self._check(request, caller)
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
        # One thread for both: each change of threads costs a busy server more than the look itself.
        chosen = self.registry.chosen
        verified, adapter = await asyncio.to_thread(lambda: (self.verified.match(query, within), chosen(domain, request.adapter)))
        situation = await self._situation(request, caller, query, lang, domain, evidence, adapter, verified)
        decision = self.router.decide(situation) if request.arm == "auto" else forced(request.arm, situation, self.router.version)
        clock.mark("decision", started)
        return _Turn(f"ans-{secrets.token_hex(8)}", request, caller, query, lang, domain, evidence, adapter, verified, decision, clock)

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

    async def _situation(
        self,
        request: Request,
        caller: Caller,
        query: str,
        lang: str,
        domain: str,
        evidence: Evidence,
        adapter: AdapterVersion | None,
        verified: Verified | None,
    ) -> Situation:
        unavailable: dict[Arm, str] = {}
        engine = await self.engines.of(domain)
        trouble = await engine_trouble(engine, lang)
        if trouble and request.arm in GENERATING and lang in engine.languages:
            raise EngineDown(trouble)
        settings = self.config.engine_of(domain)[1]
        if not trouble and settings.kind == "local":
            trouble = base_trouble(await asyncio.to_thread(self.registry.model_at, settings.base), caller)
        for arm in GENERATING if trouble else ():
            unavailable[arm] = trouble
        if not evidence.passages:
            for cited in ("quote", "rag", "hybrid"):
                unavailable.setdefault(cited, "retrieval found no passage")
        elif not self._readable(evidence.passages):
            for reading in ("rag", "hybrid"):
                unavailable.setdefault(reading, "every passage found contains instructions to the model ([retrieval] flagged)")
        reason = adapter_trouble(adapter, engine, caller)
        for tuned in ("finetuned", "hybrid") if reason else ():
            unavailable.setdefault(tuned, reason)
        if verified is None:
            unavailable["verified"] = "no approved answer to this question"
        facts = None
        # How near a question is to an adapter's training questions tells about the documents behind them.
        if adapter is not None and adapter.labels <= caller.scope.labels:
            nearest = await asyncio.to_thread(nearest_question, adapter.path, self.knowledge.embedder, query)
            facts = await asyncio.to_thread(self.registry.facts, adapter, evidence, nearest)
        return Situation(
            question=query,
            lang=lang,
            domain=domain,
            evidence=evidence,
            unavailable=unavailable,
            adapter=facts,
            prior=self.config.domain(domain).scenario,
            verified=1.0 if verified is not None else None,
            costs=self.costs.expected(),
            constraints=request.constraints,
        )

    # --- the arms

    async def _run(self, turn: _Turn) -> AsyncGenerator[str | _Draft]:
        """Pieces of text, then one draft."""
        arm = turn.decision.arm
        if arm in GENERATING:
            async with aclosing(self._generate(turn)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        draft = await asyncio.to_thread(self._without_engine, turn, arm)
        yield draft.text
        yield draft

    def _without_engine(self, turn: _Turn, arm: Arm) -> _Draft:
        if arm == "verified" and turn.verified is not None:
            return _Draft(turn.verified.answer, turn.verified.citations)
        if arm == "quote":
            text, cited = self._quote(turn)
            if text:
                return _Draft(text, cited)
        return _Draft(prompts.refusal(turn.lang, turn.decision.reasons[-1] if turn.decision.reasons else ""), arm="refuse")

    def _quote(self, turn: _Turn) -> tuple[str, list[Citation]]:
        return quote(turn.query, turn.evidence.passages, self.knowledge.similarity, flagged=self.config.retrieval.flagged)

    async def _generate(self, turn: _Turn) -> AsyncGenerator[str | _Draft]:
        arm, request = turn.decision.arm, turn.request
        engine = await self.engines.of(turn.domain)
        sampling = request.sampling or Sampling(max_tokens=self.config.answering.max_tokens)
        adapter = turn.adapter.name if arm in ("finetuned", "hybrid") and turn.adapter is not None else None
        if adapter is not None and turn.adapter is not None:
            await load_adapter(self.registry, engine, turn.adapter, alone=request.adapter is None)
        messages, passages = await self._messages(turn, engine, sampling)
        parts: list[str] = []
        usage, finish = Usage(0, 0), "stop"
        async with aclosing(engine.chat(messages, adapter, sampling)) as deltas:
            async for delta in deltas:
                if delta.text:
                    parts.append(delta.text)
                    yield delta.text
                usage = delta.usage or usage
                finish = delta.finish_reason or finish
        text = "".join(parts)
        cited: list[Citation] = []
        unsupported: list[str] = []
        if passages and not prompts.says_nothing_found(text):
            cited, unsupported = await asyncio.to_thread(align, text, passages, self.config.answering.support)
        yield _Draft(text, cited, unsupported, usage, finish, engine.name, adapter)

    async def _messages(self, turn: _Turn, engine: Engine, sampling: Sampling) -> tuple[list[Message], Sequence[Passage]]:
        """The prompt within the engine's window."""
        request, arm = turn.request, turn.decision.arm
        history = prompts.recent(request.history, self.config.answering.max_history_messages)
        task = request.task or (turn.adapter.task if turn.adapter is not None and arm in ("finetuned", "hybrid") else "qa")
        passages = self.within_budget(self._readable(turn.evidence.passages)) if arm in ("rag", "hybrid") else []
        room, abstain = engine.context_window - sampling.max_tokens, self.config.engines[engine.name].abstain

        def build(history: Sequence[Message], passages: Sequence[Passage]) -> list[Message]:
            if not passages:
                return prompts.direct(turn.domain, turn.lang, turn.query, history, request.system, task)
            tag = prompts.passages_tag(self._secret, passages)
            return prompts.with_passages(
                turn.domain, turn.lang, turn.query, history, passages, tag, request.system, abstain=abstain, task=task
            )

        return await prompts.fitted(build, history, passages, engine.count_tokens, room)

    def _readable(self, passages: Sequence[Passage]) -> list[Passage]:
        return readable(passages, self.config.retrieval.flagged)

    def within_budget(self, passages: Sequence[Passage]) -> list[Passage]:
        """The best passages up to [answering] passage_tokens, at least one."""
        counts = self.knowledge.embedder.count_tokens([passage.chunk.text for passage in passages])
        kept: list[Passage] = []
        spent = 0
        for passage, count in zip(passages, counts, strict=True):
            if kept and spent + count > self.config.answering.passage_tokens:
                break
            kept.append(passage)
            spent += count
        return kept

    async def _fall_back(self, turn: _Turn, draft: _Draft) -> tuple[Arm, _Draft]:
        """Under `must_cite`, what the check rejected becomes a quote, else a refusal."""
        text, cited = await asyncio.to_thread(self._quote, turn)
        if text:
            return "quote", replace(draft, text=text, citations=cited, unsupported=())
        reason = "资料无法支持这个回答。" if turn.lang == "zh" else "The documents do not support an answer."
        return "refuse", replace(draft, text=prompts.refusal(turn.lang, reason), citations=(), unsupported=())

    def _finish(self, turn: _Turn, arm: Arm, draft: _Draft) -> Answer:
        """The answer with every citation compared with the stored text; one that differs never leaves."""
        kept = [citation for citation in draft.citations if self._holds(citation, turn.caller)]
        dropped = [draft.text[c.answer_start : c.answer_end] for c in draft.citations if c not in kept]
        text, unsupported = draft.text, [*draft.unsupported, *dropped]
        if dropped and (arm in ("quote", "verified") or (turn.request.constraints.must_cite and not kept)):
            reason = (
                "所引用的资料刚刚发生了变化，请再问一次。" if turn.lang == "zh" else "The cited documents have just changed; ask again."
            )
            arm, text, kept, unsupported = "refuse", prompts.refusal(turn.lang, reason), [], []
        decision = turn.decision
        if arm != decision.arm:
            decision = replace(decision, reasons=(*decision.reasons, fallback_reason(decision.arm, arm, turn.lang)))
        turn.clock.mark("total")
        return Answer(
            id=turn.id,
            text=text,
            arm=arm,
            domain=turn.domain,
            citations=tuple(kept),
            unsupported=tuple(unsupported),
            decision=decision,
            engine=draft.engine,
            adapter=draft.adapter,
            generation=turn.evidence.generation,
            usage=draft.usage,
            timings=dict(turn.clock.stages),
            finish_reason="length" if draft.finish_reason == "length" else "stop",
            query=turn.query,
            warnings=()
            if arm in ("base", "finetuned", "verified")
            else (*index_warnings(turn.evidence, turn.lang), *flag_warnings(turn.evidence.passages, turn.lang)),
        )

    def _holds(self, citation: Citation, caller: Caller) -> bool:
        """Whether the cited text is still there, and still for this caller."""
        documents, key = self.knowledge.documents, DocumentKey(citation.domain, citation.doc_id)
        info = documents.current(key)
        if info is None or not info.labels <= caller.scope.labels:
            return False
        return documents.text_slice(key, citation.sha256, citation.start, citation.end) == citation.quote
