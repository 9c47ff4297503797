"""The gate of a trained router: on questions of folds it did not learn from, its choices against the single arms and what decides now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from appliance.routing.labels import LEARNT, Labels
from appliance.routing.routers import Routers, Routing
from eval.statistics import few_different, paired_bootstrap
from router.features import NAMES
from router.fit import Family, Labelled, cross_validated, train
from router.learned import LearnedRouter, pick
from router.model import RouterModel
from router.predict import ASSUMED_COSTS
from router.settings import Prices
from router.types import TUNED, Arm, Costs


def measure(labels: Labels, routing: Routing, now: Mapping[str, float], among: Sequence[Family] | None = None) -> dict[str, Any]:
    """Out-of-fold choices of a router of the families `among` (None: all) against the best single arm, paired by question, with a 95 %
    interval over their groups; `now` is what decides now (see `decided_now`).

    Passed where the lower bound of the gain lies above 0 (and not by a handful of questions, see `few_different`), the mean is not below
    that of what decides now, and the share of wrong answers among those given (`risk`) is not shown to be above the target: the lower bound
    of its interval is not above it. An arm that was unavailable for a question counts as a refusal there, and one that declined has given
    no answer.
    """
    questions, target = labels.questions, routing.target_risk
    stale_limit, costs = routing.policy.settings.stale_limit, {**ASSUMED_COSTS, **labels.costs}
    models = cross_validated(questions, lambda inside: train(inside, among, target))
    chosen = [choose(model, question, costs, routing.prices, stale_limit) for model, question in zip(models, questions, strict=True)]
    values = [worth(question, arm) for question, arm in zip(questions, chosen, strict=True)]
    groups = [question.group for question in questions]
    arms = {arm: [worth(question, arm) for question in questions] for arm in LEARNT if any(arm in q.utility for q in questions)}
    single = max(arms, key=lambda arm: fmean(arms[arm]))
    oracle = [max(worth(question, arm) for arm in arms) for question in questions]
    gain = paired_bootstrap(values, arms[single], groups=groups)
    few = few_different(values, arms[single], groups) if gain.shown else ""
    both = [place for place, question in enumerate(questions) if question.id in now]
    over = None
    if both:
        live = [now[questions[place].id] for place in both]
        gained = paired_bootstrap([values[place] for place in both], live, groups=[groups[place] for place in both])
        of_single = fmean(arms[single][place] for place in both)
        over = {**gained._asdict(), "questions": len(both), "live": fmean(live), "best_single": of_single}
    given = [place for place, (question, arm) in enumerate(zip(questions, chosen, strict=True)) if question.answered(arm)]
    wrong = [float(values[place] < 0) for place in given]
    risk = fmean(wrong) if wrong else 0.0
    mean, of_single, of_oracle = fmean(values), fmean(arms[single]), fmean(oracle)
    why = (
        f"out of fold worth {mean:.3f}, the best single arm ({single}) {of_single:.3f}: "
        f"gain {gain.difference:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}"
    )
    why += f", which shows nothing ({few})" if few else ""
    if over is not None:
        why += f"; {over['difference']:+.3f} over what decides now, on the {len(both)} questions it did not learn from"
    too_risky = False
    if target is not None:
        why += f"; {risk:.0%} of the answers given are wrong, {target:.0%} are allowed"
        too_risky = bool(wrong) and paired_bootstrap(wrong, [target] * len(wrong), groups=[groups[place] for place in given]).low > 0
    return {
        "passed": gain.low > 0 and not few and (over is None or over["difference"] >= 0) and not too_risky,
        "questions": len(questions),
        "mean": mean,
        "best_single": single,
        "arms": {arm: fmean(found) for arm, found in arms.items()},
        "oracle": of_oracle,
        "oracle_share": (mean - of_single) / (of_oracle - of_single) if of_oracle > of_single else 0.0,
        "gain": gain._asdict(),
        "over_live": over,
        "mix": {arm: count / len(chosen) for arm, count in Counter(chosen).most_common()},
        "risk": risk,
        "target_risk": target,
        "too_risky": too_risky,
        "answered": len(given) / len(chosen),
        "tokens": fmean(costs[arm].tokens for arm in chosen),
        "why": why,
    }


def measure_single(labels: Labels, routing: Routing, now: Mapping[str, float], mean: Sequence[Family]) -> dict[str, Any]:
    """As `measure`, of the router that takes the arm of the highest mean value; it need not beat the best single arm, which it is, but
    must be worth more than what decides now."""
    gate = measure(labels, routing, now, mean)
    over = gate["over_live"]
    return {**gate, "passed": over is not None and over["difference"] > 0 and not gate["too_risky"]}


def decided_now(labels: Labels, routers: Routers, routing: Routing) -> Mapping[str, float]:
    """What decides now was worth, by question id: the rules as they were measured, a trained router on what it did not learn from."""
    live = routing.of(labels.domain)
    if not isinstance(live, LearnedRouter):
        return labels.ruled
    stale_limit, costs = routing.policy.settings.stale_limit, {**ASSUMED_COSTS, **labels.costs}
    learnt = frozenset(routers.get(live.version).training["learnt"])
    return {
        question.id: worth(question, choose(live.model, question, costs, routing.prices, stale_limit))
        for question in labels.questions
        if labels.words[question.id] not in learnt and question.lang in live.model.langs
    }


def choose(model: RouterModel, question: Labelled, costs: Mapping[Arm, Costs], prices: Prices, stale_limit: float) -> Arm:
    """What a router would have chosen for a labelled question, as `router.learned.LearnedRouter` does."""
    row = question.row
    stale = row[NAMES.index("a_stale_here")] > 0 or row[NAMES.index("a_stale_share")] > stale_limit
    open_arms = {
        arm: expected
        for arm, expected in model.expected(row).items()
        if question.utility.get(arm) is not None and not (stale and arm in TUNED)
    }  # fmt: skip
    return pick(open_arms, costs, prices, model.threshold).arm


def worth(question: Labelled, arm: Arm) -> float:
    """The utility of an arm for a labelled question; that of refusing where it could not be asked."""
    value = question.utility.get(arm)
    return value if value is not None else question.utility["refuse"] or 0.0
