"""Which arms can answer here, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.adapters.registry import AdapterVersion
from appliance.engines.base import Engine
from appliance.engines.guard import Guarded
from appliance.errors import UsageError
from appliance.types import Caller
from retrieval.text import normalise_question
from retrieval.types import Evidence, Passage
from router.types import Arm, Decision, Situation
from router.wording import say

# Why an arm cannot answer, in English and Chinese; what an engine says of itself stays as it is. The router says the rest.
_WHY: Mapping[str, tuple[str, str]] = {
    "language": (
        "engine {engine} answers in {declared}, the question is in {lang}",
        "引擎 {engine} 只用 {declared} 回答，而问题的语言是 {lang}",
    ),
    "engine": ("engine {engine} is not available: {detail}", "引擎 {engine} 不可用：{detail}"),
    "forced": ("arm {arm} cannot answer this: {reason}", "{arm} 不能回答这个问题：{reason}"),
    "no_adapters": ("engine {engine} serves no adapters", "引擎 {engine} 不支持适配器"),
    "other_base": (
        "{adapter} was trained for another base model ({base}) than engine {engine} runs",
        "{adapter} 是为另一个基础模型（{base}）训练的，不是引擎 {engine} 所用的",
    ),
    "adapter_labels": (
        "the adapter was trained on documents this caller may not see",
        "适配器的训练文档中有调用者无权查看的",
    ),
    "unfit": ("engine {engine} cannot serve {adapter}: {problem}", "引擎 {engine} 不能使用 {adapter}：{problem}"),
    "refused": ("engine {engine} cannot use {adapter}; the log says why", "引擎 {engine} 不能使用 {adapter}，原因见日志"),
    "base_labels": (
        "the engine's model was trained on documents this caller may not see",
        "引擎的模型用调用者无权查看的文档训练过",
    ),
    "flagged": (
        "every passage found contains instructions to the model ([retrieval] flagged)",
        "找到的段落都含有写给模型的指令（[retrieval] flagged）",
    ),
}


def why(key: str, lang: str, /, **facts: str) -> str:
    """A reason of the table above, for a question in `lang`."""
    return _WHY[key][lang == "zh"].format(**facts)


class ArmUnavailable(UsageError):
    """The arm that was asked for cannot answer here; the message says why."""


async def engine_trouble(engine: Engine, lang: str) -> str:
    """Why the engine cannot answer a question in `lang` now; '' if it can."""
    if lang not in engine.languages:
        declared = ", ".join(sorted(engine.languages))
        return why("language", lang, engine=engine.name, declared=declared, lang=lang)
    state = await engine.health()
    return "" if state.ok else why("engine", lang, engine=engine.name, detail=state.detail)


def forced(arm: Arm, situation: Situation, version: str) -> Decision:
    """The caller named the arm. Raises ArmUnavailable with the reason if it cannot answer here."""
    if arm in situation.unavailable:
        raise ArmUnavailable(why("forced", situation.lang, arm=arm, reason=situation.unavailable[arm]))
    if situation.constraints.must_cite and arm in ("base", "finetuned"):
        raise ArmUnavailable(f"arm {arm} cannot cite, and must_cite was asked for; use quote, rag, hybrid or verified")
    reason = f"调用者指定了 {arm}。" if situation.lang == "zh" else f"The caller asked for {arm}."
    return Decision(arm, situation.domain, "forced", (reason,), {}, situation.unavailable, {}, version)


async def adapter_trouble(adapter: AdapterVersion | None, engine: Engine, caller: Caller, lang: str) -> str:
    """Why the domain's adapter cannot be used by this caller on this engine; '' if it can."""
    if adapter is None:
        return say("no_adapter", lang)
    if not engine.serves_adapters:
        return why("no_adapters", lang, engine=engine.name)
    if engine.base_hash != adapter.base_hash:
        return why("other_base", lang, adapter=adapter.name, base=adapter.base, engine=engine.name)
    if not adapter.labels <= caller.scope.labels:
        return why("adapter_labels", lang)
    if isinstance(engine, Guarded):
        if problem := await engine.unfit(adapter.ref):
            return why("unfit", lang, engine=engine.name, adapter=adapter.name, problem=problem)
        if adapter.name in engine.refused:
            return why("refused", lang, engine=engine.name, adapter=adapter.name)
    return ""


def base_trouble(base: AdapterVersion | None, caller: Caller, lang: str) -> str:
    """Why the engine cannot generate for this caller: `base`, a model version it runs, was trained on what the caller may not see."""
    if base is None or base.labels <= caller.scope.labels:
        return ""
    return why("base_labels", lang)


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
