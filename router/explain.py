"""Why a router chose as it did, feature by feature, and what would have changed the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from router.features import NAMES, Row, row_of, say_feature
from router.learned import LearnedRouter, pick
from router.policy import RulePolicy
from router.predict import costs_of
from router.signals import features as all_features
from router.types import Arm, Costs, Decision, Situation
from router.wording import name_some, say

# So many features and changes are shown.
_SHOWN = 8
# What the rules look at, with the values that are tried in its place: shares and cosines in hundredths, cues there or not.
_SHARES: Final = tuple(number / 100 for number in range(101))
_OF_RULES: Final[Mapping[str, tuple[float, ...]]] = {
    **dict.fromkeys(("e_dense_top", "e_term_coverage", "a_nearest"), _SHARES),
    **dict.fromkeys(("q_recent", "q_compare", "q_reason", "q_exact", "q_clauses", "e_foreign"), (0.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class Change:
    """With the feature at `to` in place of `value`, all else equal, `arm` would have been chosen. They are as the router reads them: of a
    trained one as its row holds them."""

    feature: str
    value: float
    to: float
    arm: Arm


@dataclass(frozen=True, slots=True)
class Condition:
    """If what `said` says held (in the question's language), `arm` would have been chosen."""

    said: str
    arm: Arm


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with what lies behind it: for each arm its expected utility, cost and value (utility after cost), and the features that
    moved that utility most; the smallest changes of single features that would have changed the choice; and the conditions without which
    it would have been another one."""

    decision: Decision
    arms: Mapping[Arm, Mapping[str, Any]]
    changes: tuple[Change, ...]
    conditions: tuple[Condition, ...]


def explain(router: RulePolicy | LearnedRouter, situation: Situation) -> Explanation:
    """Explain a decision; of the rules there are predictions, costs and changes, but no contributions."""
    decision = router.decide(situation)
    conditions = tuple(_conditions(router, situation, decision.arm))
    if isinstance(router, RulePolicy) or decision.rule != "learned":
        arms = {arm: {"utility": p.utility, "quality": p.quality, "cost": _cost(arm, situation)} for arm, p in decision.predicted.items()}
        policy = router if isinstance(router, RulePolicy) else router.policy
        return Explanation(decision, arms, tuple(_changes_of_rules(policy, situation, decision.arm)[:_SHOWN]), conditions)
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
    changes = _changes(router, row, choice.arm, costs, tuple(choice.utility))
    return Explanation(decision, found, tuple(changes[:_SHOWN]), conditions)


def explanation_json(found: Explanation) -> dict[str, Any]:
    """The arms, changes and conditions of `router explain --json`, beside the decision."""
    changes = [
        {"feature": one.feature, "means": say_feature(one.feature, "en"), "value": one.value, "to": one.to, "arm": one.arm}
        for one in found.changes
    ]
    conditions = [{"if": one.said, "arm": one.arm} for one in found.conditions]
    return {"arms": {arm: dict(told) for arm, told in found.arms.items()}, "changes": changes, "conditions": conditions}


def _conditions(router: RulePolicy | LearnedRouter, situation: Situation, chosen: Arm) -> Iterator[Condition]:
    """What holds whatever the features are, each taken away: changes of what the adapter learnt from, limits, an approved answer,
    the risk that is allowed."""
    lang, adapter, limits = situation.lang, situation.adapter, situation.constraints
    without: list[tuple[str, Situation]] = []
    if adapter is not None and adapter.stale_here:
        said = say("if_unchanged", lang, documents=name_some(adapter.stale_here, lang))
        without.append((said, replace(situation, adapter=replace(adapter, stale_here=()))))
    if adapter is not None and adapter.stale_share:
        without.append((say("if_fresh", lang), replace(situation, adapter=replace(adapter, stale_here=(), stale_share=0.0))))
    if limits.max_latency_ms is not None:
        said = say("if_unlimited", lang, limit=limits.max_latency_ms)
        without.append((said, replace(situation, constraints=replace(limits, max_latency_ms=None))))
    if limits.must_cite:
        without.append((say("if_uncited", lang), replace(situation, constraints=replace(limits, must_cite=False))))
    if situation.verified is not None:
        without.append((say("if_unapproved", lang), replace(situation, verified=None)))
    for said, changed in without:
        if (arm := router.decide(changed).arm) != chosen:
            yield Condition(said, arm)
    if isinstance(router, LearnedRouter) and router.model.threshold:
        daring = LearnedRouter(router.version, router.model.at_risk(None), router.policy, router.prices)
        if (arm := daring.decide(situation).arm) != chosen:
            yield Condition(say("if_any_risk", lang), arm)


def _changes_of_rules(policy: RulePolicy, situation: Situation, chosen: Arm) -> list[Change]:
    """For each feature the rules look at the nearest value that flips the choice, the nearest ones first."""
    found = all_features(situation)
    changes: list[Change] = []
    for name, values in _OF_RULES.items():
        if name not in found:
            continue
        for to in sorted(values, key=lambda value: abs(value - found[name])):
            arm = policy.verdict(policy.view_of(situation, {**found, name: to}))[1].arm
            if arm != chosen:
                changes.append(Change(name, found[name], to, arm))
                break
    return sorted(changes, key=lambda change: abs(change.to - change.value))


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


def _cost(arm: Arm, situation: Situation) -> dict[str, float | bool]:
    cost = costs_of(arm, situation)
    return {"latency_ms": cost.latency_ms, "tokens": cost.tokens, "assumed": arm not in situation.costs}
