"""One function from question to answer: evidence, route, arm, checked citations.

The gateway, `appliance ask` and evaluation all call `Answering.stream`, so that what is evaluated is what is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from appliance import prompts
from appliance.adapters import life as adapter_life
from appliance.adapters.registry import Registry
from appliance.answers.availability import approved_warnings, fallback_reason, flag_warnings, index_warnings
from appliance.answers.cache import AnswerCache, key_of
from appliance.answers.citations import align, quote
from appliance.answers.refusals import declines
from appliance.answers.situation import Deciding, Draft, Turn
from appliance.answers.verified import VerifiedAnswers
from appliance.engines.base import Engine, EngineBusy, EngineError, Message, PromptTooLong, Sampling, Usage
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.errors import ApplianceError
from appliance.knowledge.knowledge import Knowledge, state
from appliance.routing.costs import CostBook
from appliance.types import Answer, Caller, Citation, Decided, Event, Finished, Prompted, Request, Text
from retrieval.types import DocumentKey, Passage, RetrievalError, Scope
from router.types import ARMS, GENERATING, TUNED, Arm, Router


class Answering(Deciding):
    """Answers questions over one workspace."""

    def __init__(
        self, knowledge: Knowledge, engines: EnginePool, registry: Registry, verified: VerifiedAnswers, router: Router, costs: CostBook
    ) -> None:
        super().__init__(knowledge, engines, registry, verified, router, costs)
        self._secret = knowledge.workspace.db.secret()
        # Only a gateway keeps answers: who measures wants them made.
        self.cache: AnswerCache | None = None

    # --- what the gateway asks besides answers

    def arms(self, domain: str, caller: Caller) -> list[str]:
        """The arms that can be named in a request: those of adapters only where one is live that the caller may use."""
        live = self.registry.live(domain)
        tuned = live is not None and live.labels <= caller.scope.labels
        return [arm for arm in ARMS if tuned or arm not in TUNED]

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
        await asyncio.to_thread(self.verified.match, "warm up", Scope())
        for name in dict.fromkeys(self.config.engine_of(domain)[0] for domain in self.knowledge.workspace.domains()):
            engine = await self.engines.named(name)
            # A server that is still being started is warmed up by what tends it (see `appliance.adapters.life`).
            if (await engine.health()).ok:
                await adapter_life.smoke(engine, None)

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
        """Answer one question as events: Decided, Prompted where one is generated, Text…, Finished. Closing the iterator stops the engine.

        Raises UsageError (empty or too long question, unknown domain or arm), ArmUnavailable, EngineBusy, EngineError.
        """
        turn = await self.decide(request, (caller or Caller()).narrowed(request.labels))
        _, kept = await self._look_up(turn)
        yield Decided(turn.id, turn.decision, turn.evidence, generates=turn.decision.arm in GENERATING and kept is None)
        checked = turn.request.constraints.must_cite and turn.decision.arm in ("rag", "hybrid")
        # What is not generated is there at once; it leaves after its citations were compared with the stored text.
        held = checked or turn.decision.arm not in GENERATING
        draft = Draft("")
        # aclosing, so that a client that goes stops the engine at once and not at the next garbage collection.
        async with aclosing(self._run(turn, kept)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Draft):
                    draft = piece
                    continue
                if isinstance(piece, Prompted):
                    yield piece
                    continue
                if "first_token" not in turn.clock.stages:
                    turn.clock.mark("first_token")
                if not held:
                    yield Text(piece)
        arm = draft.arm or turn.decision.arm
        if checked and (draft.unsupported or not draft.citations):
            arm, draft = await self._fall_back(turn, draft)
        # Without citations there is nothing to compare, and no thread is worth its while.
        answer = await asyncio.to_thread(self._finish, turn, arm, draft) if draft.citations else self._finish(turn, arm, draft)
        if held:
            yield Text(answer.text)
        if not (answer.cached or request.measured):
            self.costs.record(turn.domain, turn.decision.arm, answer)
        yield Finished(answer)

    async def ask(self, request: Request, caller: Caller | None = None) -> Answer:
        """The finished answer, without the events before it."""
        async for event in self.stream(request, caller):
            if isinstance(event, Finished):
                return event.answer
        raise EngineError("the answer ended before it was finished; ask again")

    # --- the arms

    async def _run(self, turn: Turn, kept: Draft | None) -> AsyncGenerator[str | Prompted | Draft]:
        """Pieces of text, then one draft; before them what the engine was asked, if it was; `kept` is the answer from the cache."""
        arm = turn.decision.arm
        if arm in GENERATING:
            try:
                async with aclosing(self._generate(turn, kept)) as pieces:
                    async for piece in pieces:
                        # An answer that was kept tells nothing more about its version.
                        if isinstance(piece, Draft) and not piece.cached:
                            self._count(turn, failed=not piece.text.strip())
                        yield piece
            except (EngineError, ApplianceError) as error:
                # A full queue and a long prompt tell nothing about a version.
                if not isinstance(error, EngineBusy | PromptTooLong):
                    self._count(turn, failed=True)
                raise
            return
        draft = await asyncio.to_thread(self._without_engine, turn, arm)
        yield draft.text
        yield draft

    def _count(self, turn: Turn, *, failed: bool) -> None:
        """Tell the domain's canary how an answer went."""
        if self.canaries is not None and turn.side is not None:
            self.canaries.note(turn.side, turn.decision.arm, failed=failed)

    def _without_engine(self, turn: Turn, arm: Arm) -> Draft:
        if arm == "verified" and turn.verified is not None:
            return Draft(turn.verified.answer, turn.verified.citations)
        if arm == "quote":
            text, cited = self._quote(turn)
            if text:
                return Draft(text, cited)
        return Draft(prompts.refusal(turn.lang, turn.decision.reasons[-1] if turn.decision.reasons else ""), arm="refuse")

    def _quote(self, turn: Turn) -> tuple[str, list[Citation]]:
        settings = self.config.answering
        return quote(
            turn.query,
            turn.evidence.passages,
            self.knowledge.similarity,
            flagged=self.config.retrieval.flagged,
            characters=settings.quote_characters,
        )

    async def _generate(self, turn: Turn, kept: Draft | None) -> AsyncGenerator[str | Prompted | Draft]:
        epoch, key = 0 if self.cache is None else self.cache.epoch, None
        if kept is None:
            # Once more: the very same may have been answered while this waited for its turn.
            key, kept = await self._look_up(turn)
        if kept is not None:
            yield kept.text
            yield replace(kept, cached=True)
            return
        engine, adapter, sampling = await self.engines.of(turn.domain), self._adapter(turn), self._sampling(turn)
        if adapter is not None and turn.adapter is not None:
            await adapter_life.load(self.registry, engine, turn.adapter)
        messages, passages, tokens = await self._messages(turn, engine, sampling)
        yield Prompted(tokens)
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
        if passages and not declines(text):
            cited, unsupported = await asyncio.to_thread(align, text, passages, self.config.answering.support)
        draft = Draft(text, cited, unsupported, usage, finish, engine.name, adapter, cached=None if key is None else False)
        if self.cache is not None and key is not None and text.strip():
            self.cache.keep(key, draft, epoch)
        yield draft

    def _adapter(self, turn: Turn) -> str | None:
        """The version that generates, None for the base model."""
        return turn.adapter.name if turn.decision.arm in TUNED and turn.adapter is not None else None

    def _sampling(self, turn: Turn) -> Sampling:
        return turn.request.sampling or Sampling(max_tokens=self.config.answering.max_tokens)

    async def _look_up(self, turn: Turn) -> tuple[Hashable | None, Draft | None]:
        """The answer's key in the cache, None where it is not to be kept; and the answer, if it was kept."""
        if self.cache is None or turn.decision.arm not in GENERATING:
            return None, None
        engine = await self.engines.of(turn.domain)
        key = key_of(turn, engine, self._adapter(turn), self._sampling(turn), turn.decision.router_version)
        return key, None if key is None else self.cache.find(key)

    async def _messages(self, turn: Turn, engine: Engine, sampling: Sampling) -> tuple[list[Message], Sequence[Passage], int]:
        """The prompt within the engine's window, the passages in it, and its tokens."""
        request, arm = turn.request, turn.decision.arm
        history = prompts.recent(request.history, self.config.answering.max_history_messages)
        task = request.task or (turn.adapter.task if turn.adapter is not None and arm in TUNED else "qa")
        passages = self.within_budget(self.readable(turn.evidence.passages)) if arm in ("rag", "hybrid") else []
        # An answer may use all that the prompt leaves, but no more is left out of the prompt for it than for a usual one.
        room = engine.context_window - min(sampling.max_tokens, self.config.answering.max_tokens, engine.context_window // 2)
        abstain = self.config.engines[engine.name].abstain

        def build(history: Sequence[Message], passages: Sequence[Passage]) -> list[Message]:
            if not passages:
                return prompts.direct(turn.domain, turn.lang, turn.query, history, request.system, task)
            tag = prompts.passages_tag(self._secret, passages)
            return prompts.with_passages(
                turn.domain, turn.lang, turn.query, history, passages, tag, request.system, abstain=abstain, task=task
            )

        return await prompts.fitted(build, history, passages, engine.count_tokens, room)

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

    async def _fall_back(self, turn: Turn, draft: Draft) -> tuple[Arm, Draft]:
        """Under `must_cite`, what the check rejected becomes a quote, else a refusal."""
        text, cited = await asyncio.to_thread(self._quote, turn)
        if text:
            return "quote", replace(draft, text=text, citations=cited, unsupported=())
        reason = "资料无法支持这个回答。" if turn.lang == "zh" else "The documents do not support an answer."
        return "refuse", replace(draft, text=prompts.refusal(turn.lang, reason), citations=(), unsupported=())

    def _finish(self, turn: Turn, arm: Arm, draft: Draft) -> Answer:
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
            cached=draft.cached,
            warnings=self._warnings(turn, arm),
        )

    def _warnings(self, turn: Turn, arm: Arm) -> tuple[str, ...]:
        if arm == "verified" and turn.verified is not None:
            return approved_warnings(turn.verified.question, turn.query, turn.lang)
        if arm in ("base", "finetuned", "verified"):
            return ()
        return (*index_warnings(turn.evidence, turn.lang), *flag_warnings(turn.evidence.passages, turn.lang))

    def _holds(self, citation: Citation, caller: Caller) -> bool:
        """Whether the cited text is still there, and still for this caller."""
        documents, key = self.knowledge.documents, DocumentKey(citation.domain, citation.doc_id)
        info = documents.current(key)
        if info is None or not info.labels <= caller.scope.labels:
            return False
        return documents.text_slice(key, citation.sha256, citation.start, citation.end) == citation.quote
