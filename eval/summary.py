"""The figures of a run: every single arm, the routed answers, and the best choice in hindsight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from eval.metrics import of_arm
from eval.types import AUTO, Item, Outcome, Outcomes
from eval.utility import Scoring, utility

# What refusing comes to where it was not asked as an arm: it needs no engine.
_REFUSED = Outcome("refuse", refused=True, tokens=0.0, generated=0.0)


def summarise(items: Sequence[Item], outcomes: Outcomes, scoring: Scoring | None = None) -> dict[str, Any]:
    """``{"n", "arms": {arm: {metric: number}}, "routed", "oracle", "unavailable": {arm: reason}, "errors", "first_error"}``.

    An arm that could not be used for a single item is listed under ``unavailable`` and not scored. ``routed`` and
    ``oracle`` also have ``mix``: the share of questions each arm answered; they are empty when "auto" was not asked, or no
    single arm could be scored. ``errors`` counts the outcomes that are failures, ``first_error`` says what the first one was, or None.
    """
    failed = [outcome.error for outcome in outcomes.values() if outcome.error is not None and not outcome.unavailable]
    by_arm = {arm: [(item, outcomes[item.id, arm]) for item in items if (item.id, arm) in outcomes] for arm in _asked(outcomes)}
    usable = {arm: pairs for arm, pairs in by_arm.items() if any(not outcome.unavailable for _, outcome in pairs)}
    out = {arm: pairs[0][1].error for arm, pairs in by_arm.items() if arm not in usable and pairs}
    routed = usable.pop(AUTO, [])
    best = oracle(items, outcomes, scoring)
    return {
        "n": len(items),
        "arms": {arm: _row(pairs, scoring) for arm, pairs in usable.items()},
        "routed": _row(routed, scoring) | {"mix": _mix(routed)} if routed else {},
        "oracle": _row(best, scoring) | {"mix": _mix(best)} if best else {},
        "unavailable": out,
        "errors": len(failed),
        "first_error": failed[0] if failed else None,
    }


def oracle(items: Sequence[Item], outcomes: Outcomes, scoring: Scoring | None = None) -> list[tuple[Item, Outcome]]:
    """For each question the single arm of the highest utility, refusing included; of equals the one with fewest tokens, then the first.

    `verified` is left out, as it only repeats an expert, and so are failures: nobody chooses those. Questions whose utility is not known
    for any arm are left out; nothing is chosen where no single arm answered anything.
    """
    arms = [arm for arm in _asked(outcomes) if arm not in (AUTO, "verified")]
    given = {pair: outcome for pair, outcome in outcomes.items() if pair[1] in arms and outcome.error is None}
    chosen: list[tuple[Item, Outcome]] = []
    for item in items if given else ():
        found = [given[item.id, arm] for arm in arms if (item.id, arm) in given]
        found += [] if "refuse" in arms else [_REFUSED]
        scored = [(worth, -(outcome.tokens or 0.0), outcome) for outcome in found if (worth := utility(item, outcome, scoring)) is not None]
        if scored:
            chosen.append((item, max(scored, key=lambda entry: entry[:2])[2]))
    return chosen


def _asked(outcomes: Outcomes) -> list[str]:
    return list(dict.fromkeys(arm for _, arm in outcomes))


def _row(pairs: Sequence[tuple[Item, Outcome]], scoring: Scoring | None) -> dict[str, Any]:
    return of_arm([item for item, _ in pairs], [outcome for _, outcome in pairs], scoring)


def _mix(pairs: Sequence[tuple[Item, Outcome]]) -> dict[str, float]:
    counts = Counter(outcome.arm for _, outcome in pairs)
    return {arm: count / len(pairs) for arm, count in counts.most_common()}
