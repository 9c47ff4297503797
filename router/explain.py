"""Why a router chose as it did, feature by feature, and what would have changed the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.features import NAMES, Row, row_of, say_feature
from router.learned import LearnedRouter, pick
from router.policy import RulePolicy
from router.predict import costs_of
from router.types import Arm, Costs, Decision, Situation

# So many features and changes are shown.
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Change:
    """With the feature at `to` in place of `value` (as the row holds them), all else equal, `arm` would have been chosen."""

    feature: str
    value: float
    to: float
    arm: Arm


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with what lies behind it: for each arm its expected utility, cost and value (utility after cost), and the features that
    moved that utility most; and the smallest changes of single features that would have changed the choice."""

    decision: Decision
    arms: Mapping[Arm, Mapping[str, Any]]
    changes: tuple[Change, ...]


def explain(router: RulePolicy | LearnedRouter, situation: Situation) -> Explanation:
    """Explain a decision; of the rules there are predictions and costs, but no contributions and no changes."""
    decision = router.decide(situation)
    if isinstance(router, RulePolicy) or decision.rule != "learned":
        arms = {arm: {"utility": p.utility, "quality": p.quality, "cost": _cost(arm, situation)} for arm, p in decision.predicted.items()}
        return Explanation(decision, arms, ())
    row = row_of(decision.features)
    within = router.model.within(row)
    costs = {arm: costs_of(arm, situation) for arm in router.model.arms}
    choice = router.choose(router.policy.view(situation), decision.unavailable)
    found: dict[Arm, Mapping[str, Any]] = {}
    for arm, utility in choice.utility.items():
        parts = router.model.arms[arm].explained(within)[1]
        moved = sorted(zip(NAMES, parts, strict=True), key=lambda pair: -abs(pair[1]))[:_SHOWN]
        because = [
            {"feature": name, "means": say_feature(name, situation.lang), "value": decision.features.get(name, 0.0), "adds": part}
            for name, part in moved
            if abs(part) > 1e-6
        ]
        found[arm] = {"utility": utility, "value": choice.value[arm], "cost": _cost(arm, situation), "because": because}
    return Explanation(decision, found, tuple(_changes(router, row, choice.arm, costs, tuple(choice.utility))[:_SHOWN]))


def explanation_json(found: Explanation) -> dict[str, Any]:
    """The arms and changes of `router explain --json`, beside the decision."""
    changes = [
        {"feature": one.feature, "means": say_feature(one.feature, "en"), "value": one.value, "to": one.to, "arm": one.arm}
        for one in found.changes
    ]
    return {"arms": {arm: dict(told) for arm, told in found.arms.items()}, "changes": changes}


def _changes(router: LearnedRouter, row: Row, chosen: Arm, costs: Mapping[Arm, Costs], open_arms: tuple[Arm, ...]) -> list[Change]:
    """For each feature the value nearest to its own, of those that stand for the training questions, that flips the choice; the smallest
    steps (in deciles of training) first."""
    found: list[tuple[int, Change]] = []
    for place, name in enumerate(NAMES):
        grid = router.model.grid[place]
        for to in sorted(grid, key=lambda value: abs(value - row[place])):
            changed = (*row[:place], to, *row[place + 1 :])
            utility = {arm: worth for arm, worth in router.model.expected(changed).items() if arm in open_arms}
            arm = pick(utility, costs, router.prices, router.model.threshold).arm
            if arm != chosen:
                steps = sum(min(to, row[place]) < value < max(to, row[place]) for value in grid)
                found.append((steps, Change(name, row[place], to, arm)))
                break
    return [change for _, change in sorted(found, key=lambda entry: entry[0])]


def _cost(arm: Arm, situation: Situation) -> dict[str, float]:
    cost = costs_of(arm, situation)
    return {"latency_ms": cost.latency_ms, "tokens": cost.tokens}
