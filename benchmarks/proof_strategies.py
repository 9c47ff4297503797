"""What router_proof.py compares on the same outcomes: single arms, mixtures, and routers deciding questions they never learnt from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, quantiles
from typing import Any

from proof_collect import Asked

from appliance.routing.gate import choose, worth
from appliance.routing.labels import LEARNT
from eval.calibration import brier, ece, risk_coverage
from eval.groups import groups_of
from eval.statistics import few_different, paired_bootstrap
from eval.types import Outcome
from eval.utility import utility
from router.features import FEATURES, Row
from router.fit import Labelled, cross_validated, fold_of, train
from router.learned import LearnedRouter
from router.model import RouterModel
from router.policy import RulePolicy
from router.settings import PolicySettings, Prices
from router.types import Arm, Costs

STALE = PolicySettings().stale_limit
# What a router is trained without, by name.
WITHOUT: Mapping[str, Collection[str]] = {
    "router": (),
    "question only": ("evidence", "adapter", "freshness", "scenario"),
    "without evidence": ("evidence",),
    "without adapter": ("adapter",),
    "without freshness": ("freshness",),
}
TARGETS = (0.2, 0.4, 0.6)


@dataclass(frozen=True, slots=True)
class Labelling:
    """The questions of a set with what each arm was worth and generated, and what each arm costs on average."""

    questions: tuple[Labelled, ...]
    generated: tuple[Mapping[Arm, float], ...]
    answerable: tuple[bool, ...]
    rules: tuple[Arm, ...]
    costs: Mapping[Arm, Costs]


def labelling(asked: Sequence[Asked]) -> Labelling:
    """The labels of questions that every arm has answered."""
    groups = groups_of([one.item for one in asked])
    refusal = Outcome("refuse", refused=True, generated=0.0, tokens=0.0, latency_ms=0.0)
    outcomes: list[dict[Arm, Outcome]] = [{**one.outcomes, "refuse": refusal} for one in asked]
    questions = tuple(
        Labelled(
            one.item.id,
            groups[one.item.id],
            one.item.lang,
            one.row,
            {arm: utility(one.item, found[arm]) for arm in found},
            frozenset(arm for arm in found if found[arm].declined),
        )
        for one, found in zip(asked, outcomes, strict=True)
    )
    generated = tuple({arm: outcome.generated or 0.0 for arm, outcome in found.items()} for found in outcomes)
    costs: dict[Arm, Costs] = {arm: Costs(0.0, 0.0) for arm in LEARNT}
    for arm in outcomes[0]:
        seen = [found[arm] for found in outcomes if found[arm].error is None]
        if seen:
            costs[arm] = Costs(fmean(one.latency_ms or 0.0 for one in seen), fmean(one.tokens or 0.0 for one in seen))
    return Labelling(questions, generated, tuple(one.item.answerable for one in asked), tuple(one.rules for one in asked), costs)


def compare(name: str, found: Labelling) -> list[dict[str, Any]]:
    """One row a strategy: mean utility, gain over the best single arm and, as `behind`, how far it stays behind the router, each with its
    95 % interval, why the gain shows nothing where only a handful of questions differ (`few`), generated tokens as a share of those of
    `hybrid`, the share of the best possible gain, the share answered, and the share of wrong ones among the answers given."""
    arms = list(found.questions[0].utility)
    chosen: dict[str, list[Arm]] = {arm: [arm] * len(found.questions) for arm in arms}
    chosen["rules"] = list(found.rules)
    for label, without in WITHOUT.items():
        chosen[label] = choices(found, without)
    chosen["oracle"] = [max(arms, key=lambda arm: (worth(one, arm), arm == "refuse")) for one in found.questions]
    values = {label: [worth(one, arm) for one, arm in zip(found.questions, each, strict=True)] for label, each in chosen.items()}
    tokens = {label: fmean(g.get(arm, 0.0) for g, arm in zip(found.generated, each, strict=True)) for label, each in chosen.items()}
    mix = Counter(chosen["router"])
    values["random, same mix"] = [
        sum(count * worth(one, arm) for arm, count in mix.items()) / len(found.questions) for one in found.questions
    ]  # fmt: skip
    tokens["random, same mix"] = sum(count * tokens[arm] for arm, count in mix.items()) / len(found.questions)
    single = max(arms, key=lambda arm: fmean(values[arm]))
    best, reachable = fmean(values[single]), fmean(values["oracle"])
    groups = [one.group for one in found.questions]
    rows: list[dict[str, Any]] = []
    for label, each in values.items():
        gain = paired_bootstrap(each, values[single], groups=groups)
        behind = paired_bootstrap(values["router"], each, groups=groups)
        given = [
            value for value, arm, one in zip(each, chosen.get(label, ()), found.questions, strict=False) if one.answered(arm)
        ]  # fmt: skip
        rows.append(
            {
                "set": name,
                "strategy": label + (" (best single)" if label == single else ""),
                "n": len(each),
                "utility": fmean(each),
                "gain": gain.difference,
                "low": gain.low,
                "high": gain.high,
                "few": few_different(each, values[single], groups) if gain.shown else "",
                "behind": behind.difference,
                "behind_low": behind.low,
                "behind_high": behind.high,
                "oracle_share": (fmean(each) - best) / (reachable - best) if reachable > best else 0.0,
                "tokens": tokens[label],
                "token_ratio": tokens[label] / tokens["hybrid"] if tokens.get("hybrid") else None,
                "answered": len(given) / len(each) if label in chosen else None,
                "wrong": sum(value < 0 for value in given) / len(given) if given else None,
            }
        )
    return rows


def choices(found: Labelling, without: Collection[str] = ()) -> list[Arm]:
    """What routers trained on the other folds choose, without some groups of features."""
    masked = [replace(one, row=_masked(one.row, without)) for one in found.questions]
    models = cross_validated(masked, train)
    # Without the features of freshness nothing tells that an adapter is out of date.
    limit = 2.0 if "freshness" in without else STALE
    return [choose(model, one, found.costs, Prices(), limit) for model, one in zip(models, masked, strict=True)]


def calibration(name: str, found: Labelling) -> list[dict[str, Any]]:
    """Brier score and expected calibration error of what the router says, out of fold: that a question has no answer (the utility it
    expects of refusing), and that an answer it would give is right (worth more than nothing)."""
    models = cross_validated(found.questions, train)
    expected = [model.expected(one.row) for model, one in zip(models, found.questions, strict=True)]
    unanswerable = [min(1.0, max(0.0, each["refuse"])) for each in expected]
    truth = [float(not one) for one in found.answerable]
    base = fmean(truth)
    rows = [_calibrated(name, "no answer", unanswerable, truth, base)]
    best = [max((arm for arm in each if arm != "refuse"), key=lambda arm: each[arm]) for each in expected]
    right = [float(worth(one, arm) > 0) for one, arm in zip(found.questions, best, strict=True)]
    # The utility of a wrong answer is -0.5; a right one's is spread between 0.2 and 1, about a mean taken from the other folds.
    good = [(fold_of(one.group), worth(one, arm)) for one, arm in zip(found.questions, best, strict=True) if worth(one, arm) > 0]
    sure = []
    for one, each, arm in zip(found.questions, expected, best, strict=True):
        elsewhere = [value for fold, value in good if fold != fold_of(one.group)]
        of_right = fmean(elsewhere) if elsewhere else 1.0
        sure.append(min(1.0, max(0.0, (each[arm] + 0.5) / (of_right + 0.5))))
    rows.append(_calibrated(name, "answer right", sure, right, fmean(right)))
    return rows


def _calibrated(name: str, what: str, sure: Sequence[float], truth: Sequence[float], base: float) -> dict[str, Any]:
    constant = fmean((base - one) ** 2 for one in truth)
    return {"set": name, "what": what, "share": base, "brier": brier(sure, truth), "brier_of_the_share": constant, "ece": ece(sure, truth)}


def risk(name: str, found: Labelling) -> list[dict[str, Any]]:
    """Wrong answers at each coverage, the surest first, and where the router was told how many may be wrong; all out of fold."""
    models = cross_validated(found.questions, train)
    leads, losses = [], []
    for model, one in zip(models, found.questions, strict=True):
        expected = model.expected(one.row)
        arm = max((arm for arm in expected if arm != "refuse"), key=lambda each: expected[each])
        if one.answered(arm):
            leads.append(expected[arm] - expected["refuse"])
            losses.append(float(worth(one, arm) < 0))
    points, most = risk_coverage(leads, losses), len(leads) / len(found.questions)
    rows: list[dict[str, Any]] = []
    for coverage in (0.1, 0.25, 0.5, 0.75, 1.0):
        point = min(points, key=lambda each: abs(most * each.coverage - coverage))
        shown = {"coverage": most * point.coverage, "wrong": point.risk}
        rows.append({"set": name, "what": "surest first", "target": None, **shown, "margin": None})
    for target in TARGETS:
        told = cross_validated(found.questions, lambda inside, target=target: train(inside, target_risk=target))  # type: ignore[misc]
        arms = [choose(model, one, found.costs, Prices(), STALE) for model, one in zip(told, found.questions, strict=True)]
        given = [worth(one, arm) < 0 for one, arm in zip(found.questions, arms, strict=True) if one.answered(arm)]
        share = sum(given) / len(given) if given else None
        margin = 1.96 * (target * (1 - target) / len(given)) ** 0.5 if given else None
        rows.append(
            {
                "set": name,
                "what": "target",
                "target": target,
                "coverage": len(given) / len(found.questions),
                "wrong": share,
                "margin": margin,
            }
        )
    return rows


def signals(name: str, found: Labelling) -> list[dict[str, Any]]:
    """For each feature how well it alone tells questions with an answer from those without, as an area under the ROC curve; the best ten.
    Where the router does not win, this shows how much there was to decide by."""
    rows: list[dict[str, Any]] = []
    for place, feature in enumerate(FEATURES):
        with_answer = [one.row[place] for one, yes in zip(found.questions, found.answerable, strict=True) if yes]
        without = [one.row[place] for one, yes in zip(found.questions, found.answerable, strict=True) if not yes]
        if with_answer and without:
            wins = sum((a > b) + 0.5 * (a == b) for a in with_answer for b in without)
            area = wins / (len(with_answer) * len(without))
            rows.append({"set": name, "feature": feature.name, "means": feature.en, "auc": max(area, 1 - area)})
    return sorted(rows, key=lambda row: -row["auc"])[:10]


def timing(name: str, found: Labelling, asked: Sequence[Asked]) -> dict[str, Any]:
    """How long a trained router takes to decide, with features and reasons, in ms, one thread, nothing cached; and all that is between
    evidence and decision when a question is served by the rules, most of it looking up what the router is told."""
    router = LearnedRouter(f"{name}@proof", trained(found), RulePolicy())
    spent = []
    for one in asked:
        began = time.perf_counter()
        router.decide(one.situation)
        spent.append((time.perf_counter() - began) * 1000)
    percentiles, served = quantiles(spent, n=100), quantiles([one.deciding_ms for one in asked], n=100)
    times = {"p50_ms": percentiles[49], "p99_ms": percentiles[98], "served_p50_ms": served[49], "served_p99_ms": served[98]}
    return {"set": name, "n": len(spent), **times}


def trained(found: Labelling) -> RouterModel:
    """The router of all questions."""
    return train(found.questions)


def _masked(row: Row, without: Collection[str]) -> Row:
    return tuple(0.0 if feature.group in without else value for value, feature in zip(row, FEATURES, strict=True))
