"""The trained router: the arm with the highest expected utility after its cost, within the caller's conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from router.features import NAMES, row_of, say_feature
from router.model import NEVER, RouterModel
from router.policy import RulePolicy, View, about_staleness, verified_match
from router.predict import costs_of
from router.settings import Prices
from router.types import TUNED, Arm, Costs, Decision, Prediction, Situation
from router.wording import name_some, say

# So many features are named in a reason.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """What a trained router makes of one situation: expected utility of each arm it may choose, the same after its cost, the arm of the
    highest, and `refused`, that arm's lead over refusing where it is below the threshold."""

    arm: Arm
    utility: Mapping[Arm, float]
    value: Mapping[Arm, float]
    refused: tuple[Arm, float] | None = None

    @property
    def runner_up(self) -> Arm | None:
        """The next best arm."""
        others = sorted((value, arm) for arm, value in self.value.items() if arm != self.arm)
        return others[-1][1] if others else None


def pick(utility: Mapping[Arm, float], costs: Mapping[Arm, Costs], prices: Prices, threshold: float) -> Choice:
    """The arm of the highest value among those with a `utility`, which "refuse" always is; an answer must promise `threshold` more utility
    than refusing."""
    value = {
        arm: worth - prices.tokens * costs[arm].tokens / 1000 - prices.seconds * costs[arm].latency_ms / 1000
        for arm, worth in utility.items()
    }
    best = max(value, key=lambda arm: value[arm])
    lead = utility[best] - utility["refuse"]
    return Choice("refuse", utility, value, (best, lead)) if best != "refuse" and lead < threshold else Choice(best, utility, value)


class LearnedRouter:
    """Decides by a `RouterModel`; pure. What the model cannot know stays with the rules: verified answers, stale adapters, conditions.

    A question in a language that the model never saw is decided by the rules.
    """

    def __init__(self, version: str, model: RouterModel, policy: RulePolicy, prices: Prices | None = None) -> None:
        self.version = version
        self.model = model
        self.policy = policy
        self.prices = prices or Prices()

    def decide(self, situation: Situation) -> Decision:
        """The choice with its reasons, in well under 2 ms."""
        if situation.lang not in self.model.langs:
            decision = self.policy.decide(situation)
            return replace(decision, reasons=(*decision.reasons, say("not_measured", situation.lang, version=self.version)))
        view = self.policy.view(situation)
        unavailable = self.exclusions(view)
        if (verdict := verified_match(view)) is not None:
            predicted = {arm: prediction for arm, prediction in view.predicted.items() if arm not in unavailable}
            reasons = tuple(verdict.reasons)
            return Decision(
                verdict.arm, situation.domain, "verified_match", reasons, predicted, unavailable, view.features, self.version
            )  # fmt: skip
        choice = self.choose(view, unavailable)
        predicted = {}
        for arm, utility in choice.utility.items():
            cost = costs_of(arm, situation)
            predicted[arm] = Prediction(min(1.0, max(0.0, utility)), cost.latency_ms, cost.tokens, utility)
        reasons = (*self._reasons(choice, view), *about_staleness(view))
        return Decision(choice.arm, situation.domain, "learned", reasons, predicted, unavailable, view.features, self.version)

    def exclusions(self, view: View) -> dict[Arm, str]:
        """Every arm that may not be chosen, with the reason: as the rules have it, an adapter out of date, and what was never measured."""
        lang, adapter = view.situation.lang, view.situation.adapter
        out = dict(view.unavailable)
        if adapter is not None and view.fresh_adapter is None:
            changed = name_some(adapter.stale_here, lang)
            for arm in TUNED:
                why = (
                    say("not_chosen_stale", lang, documents=changed)
                    if changed
                    else say("stale_share", lang, version=adapter.version, share=adapter.stale_share)
                )
                out.setdefault(arm, why)
        for arm in view.predicted:
            if arm not in self.model.arms and arm != "verified":
                out.setdefault(arm, say("never_measured", lang))
        return out

    def choose(self, view: View, unavailable: Mapping[Arm, str]) -> Choice:
        """The arm of the highest value among those that may be chosen; refusing always may."""
        expected = self.model.expected(row_of(view.features))
        utility = {arm: value for arm, value in expected.items() if arm not in unavailable}
        return pick(utility, {arm: costs_of(arm, view.situation) for arm in utility}, self.prices, self.model.threshold)

    def _reasons(self, choice: Choice, view: View) -> list[str]:
        lang, other = view.situation.lang, choice.runner_up
        numbers: dict[str, float | str] = {"questions": self.model.questions, "arm": choice.arm, "utility": choice.utility[choice.arm]}
        if choice.refused is not None:
            arm, lead = choice.refused
            if self.model.threshold == NEVER:
                return [say("never_sure", lang, questions=self.model.questions)]
            return [say("not_sure_enough", lang, arm=arm, lead=lead, threshold=self.model.threshold)]
        if other is None:
            return [say("learned_alone", lang, **numbers)]
        reasons = [say("learned", lang, **numbers, other=other, less=choice.utility[other])]
        if spoke := self.contributions(view, choice.arm, other)[:_NAMED]:
            named = [say("high" if high else "low", lang, feature=say_feature(name, lang)) for name, _, high in spoke]
            reasons.append(say("spoke_for", lang, features=("、" if lang == "zh" else ", ").join(named)))
        return reasons

    def contributions(self, view: View, arm: Arm, other: Arm) -> list[tuple[str, float, bool]]:
        """(feature, what it added to the lead of `arm` over `other`, whether it is above its median in training), those for `arm`
        only, the largest first."""
        row = self.model.within(row_of(view.features))
        ours, theirs = (self.model.arms[each].explained(row)[1] for each in (arm, other))
        found = [
            (name, mine - its, value > grid[len(grid) // 2])
            for name, mine, its, value, grid in zip(NAMES, ours, theirs, row, self.model.grid, strict=True)
            if mine - its > 0.005
        ]
        return sorted(found, key=lambda entry: -entry[1])
