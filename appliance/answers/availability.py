"""Which arms can answer here, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.adapters.registry import AdapterVersion
from appliance.engines.base import Engine
from appliance.engines.guard import Guarded
from appliance.errors import UsageError
from appliance.types import Caller
from retrieval.text import normalise_question
from retrieval.types import Evidence, Passage
from router.types import Arm, Decision, Situation


class ArmUnavailable(UsageError):
    """The arm that was asked for cannot answer here; the message says why."""


async def engine_trouble(engine: Engine, lang: str) -> str:
    """Why the engine cannot answer a question in `lang` now; '' if it can."""
    if lang not in engine.languages:
        declared = ", ".join(sorted(engine.languages))
        return f"engine {engine.name} answers in {declared}, the question is in {lang}"
    state = await engine.health()
    return "" if state.ok else f"engine {engine.name} is not available: {state.detail}"


def forced(arm: Arm, situation: Situation, version: str) -> Decision:
    """The caller named the arm. Raises ArmUnavailable with the reason if it cannot answer here."""
    if arm in situation.unavailable:
        raise ArmUnavailable(f"arm {arm} cannot answer this: {situation.unavailable[arm]}")
    if situation.constraints.must_cite and arm in ("base", "finetuned"):
        raise ArmUnavailable(f"arm {arm} cannot cite, and must_cite was asked for; use quote, rag, hybrid or verified")
    reason = f"调用者指定了 {arm}。" if situation.lang == "zh" else f"The caller asked for {arm}."
    return Decision(arm, situation.domain, "forced", (reason,), {}, situation.unavailable, {}, version)


async def adapter_trouble(adapter: AdapterVersion | None, engine: Engine, caller: Caller) -> str:
    """Why the domain's adapter cannot be used by this caller on this engine; '' if it can."""
    if adapter is None:
        return "no adapter is live in this domain"
    if not engine.serves_adapters:
        return f"engine {engine.name} serves no adapters"
    if engine.base_hash != adapter.base_hash:
        return f"{adapter.name} was trained for another base model ({adapter.base}) than engine {engine.name} runs"
    if not adapter.labels <= caller.scope.labels:
        return "the adapter was trained on documents this caller may not see"
    if isinstance(engine, Guarded):
        if problem := await engine.unfit(adapter.ref):
            return f"engine {engine.name} cannot serve {adapter.name}: {problem}"
        if adapter.name in engine.refused:
            return f"engine {engine.name} cannot use {adapter.name}; the log says why"
    return ""


def base_trouble(base: AdapterVersion | None, caller: Caller) -> str:
    """Why the engine cannot generate for this caller: `base`, a model version it runs, was trained on what the caller may not see."""
    if base is None or base.labels <= caller.scope.labels:
        return ""
    return "the engine's model was trained on documents this caller may not see"


def readable(passages: Sequence[Passage], flagged: str) -> list[Passage]:
    """The passages that may stand in a generating prompt, best first.

    With `flagged` "exclude" ([retrieval] flagged) those in which ingest found instructions to the model are left out; `rag` and
    `hybrid` are unavailable where nothing else was found, and the question is left to `quote`, which shows whose words they are.
    """
    return [passage for passage in passages if flagged == "keep" or not passage.chunk.flags]


def flag_warnings(passages: Sequence[Passage], lang: str) -> tuple[str, ...]:
    """One sentence for each flagged passage."""
    template = (
        "{place} 含有写给模型的指令（{kinds}），请核对这份文档的来源。"
        if lang == "zh"
        else "{place} contains instructions to the model ({kinds}); check where this document comes from."
    )
    return tuple(
        template.format(place=f"{p.document.domain}/{p.document.id} {p.chunk.start}–{p.chunk.end}", kinds=", ".join(p.chunk.flags))
        for p in passages
        if p.chunk.flags
    )


def approved_warnings(approved: str, asked: str, lang: str) -> tuple[str, ...]:
    """A sentence that says for which question an answer was approved, if it is served for another wording of it."""
    if normalise_question(approved) == normalise_question(asked):
        return ()
    return (
        (f"这个回答是针对以下问题审核通过的：{approved}",) if lang == "zh" else (f"This answer was approved for the question: {approved}",)
    )


def index_warnings(evidence: Evidence, lang: str) -> tuple[str, ...]:
    """A sentence if the index is damaged and what stands in for it was searched."""
    if not evidence.degraded:
        return ()
    if lang == "zh":
        return ("索引已损坏，正在使用其完好的部分或较早的状态作答，部分文档可能缺失。",)
    return ("The index is damaged; what is sound of it, or an older state, answers, and documents may be missing.",)


def fallback_reason(planned: Arm, used: Arm, lang: str) -> str:
    if lang == "zh":
        return f"{planned} 的回答没有通过引用核对，因此改用 {used}。"
    return f"The answer of {planned} did not pass the citation check, so {used} was used."
