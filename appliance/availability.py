"""Which arms can answer here, and why the others cannot."""

from __future__ import annotations

from appliance.adapters import AdapterVersion
from appliance.engines.base import Engine
from appliance.errors import UsageError
from appliance.types import Caller
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


def adapter_trouble(adapter: AdapterVersion | None, engine: Engine, caller: Caller) -> str:
    """Why the domain's adapter cannot be used by this caller on this engine; '' if it can."""
    if adapter is None:
        return "no adapter is live in this domain"
    if not engine.serves_adapters:
        return f"engine {engine.name} serves no adapters"
    if engine.base_hash != adapter.base_hash:
        return f"{adapter.name} was trained for another base model ({adapter.base}) than engine {engine.name} runs"
    if not adapter.labels <= caller.scope.labels:
        return "the adapter was trained on documents this caller may not see"
    return ""


def fallback_reason(planned: Arm, used: Arm, lang: str) -> str:
    if lang == "zh":
        return f"{planned} 的回答没有通过引用核对，因此改用 {used}。"
    return f"The answer of {planned} did not pass the citation check, so {used} was used."
