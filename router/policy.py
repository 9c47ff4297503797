"""The rule policy: a router that needs no training. Ordered, named rules; the first that applies decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from router.predict import costs_of, predict, support
from router.settings import PolicySettings
from router.signals import features as all_features
from router.types import ARMS, CITING, TUNED, AdapterFacts, Arm, Decision, Prediction, Situation
from router.wording import name_some, say


@dataclass(frozen=True, slots=True)
class View:
    """What the rules look at: the situation, its features, and what is predicted of each available arm."""

    situation: Situation
    settings: PolicySettings
    features: Mapping[str, float]
    predicted: Mapping[Arm, Prediction]
    unavailable: Mapping[Arm, str]

    @property
    def support(self) -> float:
        return self.features["support"]

    @property
    def nearest(self) -> float:
        return self.features.get("a_nearest", 0.0)

    @property
    def fresh_adapter(self) -> AdapterFacts | None:
        """The adapter, if its knowledge may be used for these passages."""
        adapter = self.situation.adapter
        stale = adapter is not None and (adapter.stale_here or adapter.stale_share > self.settings.stale_limit)
        return None if stale else adapter

    def asks(self, *cues: str) -> bool:
        return any(self.features[f"q_{cue}"] > 0 for cue in cues)

    def say(self, key: str, **values: float | str) -> str:
        """A reason in the question's language; every number of the evidence may be cited."""
        numbers: dict[str, float | str] = {
            "dense": self.features.get("e_dense_top", 0.0),
            "coverage": self.features.get("e_term_coverage", 0.0),
            "support": self.support,
            "weak": self.settings.weak,
            "strong": self.settings.strong,
            "nearest": self.nearest,
        }
        return say(key, self.situation.lang, **(numbers | values))

    def best(self, *arms: Arm) -> tuple[Arm, list[str]] | None:
        """The available arm of `arms` with the highest predicted quality; the scenario's prior tips near ties, and is then named."""
        open_arms = [arm for arm in arms if arm in self.predicted]
        if not open_arms:
            return None
        favoured: Arm | None = "finetuned" if self.situation.prior == "finetuning" else self.situation.prior
        plain = max(open_arms, key=lambda arm: self.predicted[arm].quality)
        chosen = max(open_arms, key=lambda arm: self.predicted[arm].quality + self.settings.prior_bonus * (arm == favoured))
        return chosen, [] if chosen == plain else [self.say("prior", prior=str(self.situation.prior))]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rule's choice and its reasons."""

    arm: Arm
    reasons: list[str]


def verified_match(view: View) -> Verdict | None:
    """An expert has approved an answer to this very question."""
    similarity = view.situation.verified or 0.0
    if "verified" not in view.predicted or similarity < view.settings.verified_match:
        return None
    return Verdict("verified", [view.say("verified", similarity=similarity)])


def no_evidence(view: View) -> Verdict | None:
    """Too little support: refuse, unless the adapter was trained on nearly this question. The plain model is never asked to guess."""
    if view.support >= view.settings.weak:
        return None
    found = view.say("no_support") if view.situation.evidence.passages else view.say("nothing_found")
    if "finetuned" in view.predicted and view.fresh_adapter and view.nearest >= view.settings.close_question:
        return Verdict("finetuned", [found, view.say("close_training")])
    return Verdict("refuse", [found, view.say("refuse")])


def precise_fact(view: View) -> Verdict | None:
    """A number, date, clause, fee or deadline that a passage states is quoted; a passage in another language is not."""
    wanted = view.asks("exact", "clauses") and not view.asks("reason", "compare")
    if not wanted or view.support < view.settings.strong or view.features["e_foreign"] or "quote" not in view.predicted:
        return None
    return Verdict("quote", [view.say("strong"), view.say("precise")])


def present_state(view: View) -> Verdict | None:
    """Words of recency: the documents are trusted, not what was learned."""
    choice = view.best("rag", "quote") if view.asks("recent") else None
    return choice and Verdict(choice[0], [view.say("recent"), _evidence(view), *choice[1]])


def learned_reasoning(view: View) -> Verdict | None:
    """Reasons, advice and comparisons are what a fresh adapter was trained for; alone only if its questions are related."""
    if not view.asks("reason", "compare") or view.fresh_adapter is None:
        return None
    alone = view.support < view.settings.strong and view.nearest >= view.settings.related_question
    choice = view.best("hybrid", "finetuned") if alone else view.best("hybrid")
    return choice and Verdict(choice[0], [view.say("reasoning"), _evidence(view), *choice[1]])


def supported(view: View) -> Verdict | None:
    """Enough evidence to answer from it: in the documents' words, generated, with a fresh adapter's help, or by it alone if partial."""
    if not {"rag", "hybrid", "finetuned"} & set(view.predicted):
        return None
    arms: list[Arm] = ["rag", "quote"]
    if view.fresh_adapter:
        arms.append("hybrid")
        if view.support < view.settings.strong and view.nearest >= view.settings.related_question:
            arms.append("finetuned")
    choice = view.best(*arms)
    if choice is None:
        return None
    arm, reasons = choice
    if arm == "quote":
        reasons.append(view.say("own_words"))
    if arm == "hybrid" and view.fresh_adapter:
        reasons.append(view.say("adapter_helps", version=view.fresh_adapter.version))
    if arm == "finetuned":
        reasons.append(view.say("related_training"))
    return Verdict(arm, [_evidence(view), *reasons])


def quote_only(view: View) -> Verdict | None:
    """Evidence is there, but nothing may be generated."""
    if "quote" not in view.predicted:
        return None
    return Verdict("quote", [_evidence(view), view.say("no_generation", reason=view.unavailable.get("rag", ""))])


def nothing_left(view: View) -> Verdict:
    """No arm can be used."""
    return Verdict("refuse", [view.say("nothing_left")])


RULES: Final[tuple[Callable[[View], Verdict | None], ...]] = (
    verified_match,
    no_evidence,
    precise_fact,
    present_state,
    learned_reasoning,
    supported,
    quote_only,
    nothing_left,
)


class RulePolicy:
    """The router without training: `decide` is pure, takes well under 2 ms, and never chooses `base`."""

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self.settings = settings or PolicySettings()
        self.version = f"rules-1-{self.settings.digest()}"

    def view(self, situation: Situation) -> View:
        """What there is to decide by."""
        return self.view_of(situation, all_features(situation))

    def view_of(self, situation: Situation, found: Mapping[str, float]) -> View:
        """What there is to decide by if these are the features."""
        features = {**found, "support": support(found, self.settings)}
        unavailable = exclusions(situation)
        predicted = predict((arm for arm in ARMS if arm not in unavailable), situation, features, self.settings)
        return View(situation, self.settings, features, predicted, unavailable)

    def decide(self, situation: Situation) -> Decision:
        """The first rule that applies decides; `refuse` is always available, so there is always an answer."""
        view = self.view(situation)
        rule, verdict = self.verdict(view)
        return Decision(
            arm=verdict.arm,
            domain=situation.domain,
            rule=rule,
            reasons=(*verdict.reasons, *about_staleness(view)),
            predicted=view.predicted,
            unavailable=view.unavailable,
            features=view.features,
            router_version=self.version,
        )

    def verdict(self, view: View) -> tuple[str, Verdict]:
        """The first rule that applies, by name, and what it says."""
        return next((rule.__name__, verdict) for rule in RULES if (verdict := rule(view)) is not None)


def exclusions(situation: Situation) -> dict[Arm, str]:
    """Every arm that cannot be used here, with the reason: as given, then for want of material, then by the caller's constraints."""
    lang, limit = situation.lang, situation.constraints.max_latency_ms
    out: dict[Arm, str] = {arm: reason for arm, reason in situation.unavailable.items() if arm != "refuse"}
    if not situation.evidence.passages:
        out |= {arm: say("no_passages", lang) for arm in ("quote", "rag", "hybrid") if arm not in out}
    if situation.verified is None:
        out.setdefault("verified", say("no_verified", lang))
    if situation.adapter is None:
        out |= {arm: say("no_adapter", lang) for arm in TUNED if arm not in out}
    elif situation.adapter.stale_here:
        documents = name_some(situation.adapter.stale_here, lang)
        out.setdefault("finetuned", say("not_chosen_stale", lang, documents=documents))
    for arm in ARMS:
        if arm in out or arm == "refuse":
            continue
        latency = costs_of(arm, situation).latency_ms
        if situation.constraints.must_cite and arm not in CITING:
            out[arm] = say("must_cite", lang)
        elif limit is not None and latency > limit and arm not in situation.untimed:
            out[arm] = say("too_slow", lang, latency=latency, limit=limit)
    return out


def _evidence(view: View) -> str:
    return view.say("strong" if view.support >= view.settings.strong else "partial")


def about_staleness(view: View) -> list[str]:
    """Why the adapter was not trusted, where it might have been used."""
    adapter = view.situation.adapter
    given = view.situation.unavailable
    if adapter is None or view.fresh_adapter or ("finetuned" in given and "hybrid" in given):
        return []
    if adapter.stale_here:
        return [view.say("stale_here", version=adapter.version, documents=name_some(adapter.stale_here, view.situation.lang))]
    return [view.say("stale_share", version=adapter.version, share=adapter.stale_share)]
