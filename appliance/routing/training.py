"""`appliance router train`: from evaluation runs to a router, and the gate that it must pass.

Each question of a run is a label: what every arm was worth there, by the team's utility or, where experts scored the answers, by them. The
router is measured on questions it did not learn from: those of a fold are decided by a router that was trained on the other folds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from appliance.errors import ApplianceError, UsageError
from appliance.evaluation import runs as evaluation
from appliance.experts.tasks import expert_utilities
from appliance.routing.routers import Routers, RouterVersion
from appliance.service import Service, router_of
from eval.run import load
from eval.statistics import paired_bootstrap
from eval.types import AUTO, Item, Outcome
from eval.utility import Scoring, utility
from router.features import FEATURES, NAMES, row_of
from router.fit import FEWEST, FEWEST_GROUPS, Labelled, cross_validated, train
from router.learned import TUNED, pick
from router.model import RouterModel
from router.settings import Prices
from router.types import ARMS, Arm, Costs

# Learnt arms: `verified` repeats an expert, which the router always prefers.
LEARNT: tuple[Arm, ...] = tuple(arm for arm in ARMS if arm != "verified")


@dataclass(frozen=True, slots=True)
class Labels:
    """The questions of a domain as they are learnt from; `routed` is what the router in force then was worth, by question id, `costs` what
    each arm cost on average."""

    domain: str
    runs: tuple[str, ...]
    questions: tuple[Labelled, ...]
    routed: Mapping[str, float]
    costs: Mapping[Arm, Costs]
    adapters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to: `live` says whether the version decides now, `why` says it in words."""

    version: RouterVersion
    live: bool
    why: str


def labels_of(service: Service, run_ids: Sequence[str], domain: str | None = None) -> Labels:
    """The labels in finished runs over questions of one domain, the later run's where a question is in several.

    Raises UsageError (unknown or unfinished run, several domains), ApplianceError where a run has no routed answers or no known utility.
    """
    rows = [evaluation.find(service, name) for name in run_ids]
    questions: dict[str, Labelled] = {}
    routed: dict[str, float] = {}
    spent: defaultdict[Arm, list[tuple[float, float]]] = defaultdict(list)
    found: dict[str, tuple[Item, dict[Arm, Outcome], Scoring]] = {}
    # Known before the first question is looked at, whichever run it is that names it.
    domain = domain or next((row.domain for row in rows if row.domain is not None), None)
    if domain is None:
        raise UsageError("the runs name no domain; name one with --domain")
    for row in rows:
        if row.summary is None:
            raise UsageError(f"run {row.id} is not finished; go on with: appliance eval run --dataset {row.dataset} --resume {row.id}")
        if row.domain is not None and row.domain != domain:
            raise UsageError(f"run {row.id} is of {row.domain}, not of {domain}; a router learns from one domain")
        result = load(service.workspace.root / row.path)
        scoring = evaluation.scoring_of(service.workspace.config, expert_utilities(service.workspace.db, row.id))
        for item in result.items:
            if (item.domain or row.domain or domain) != domain:
                continue
            outcomes = {arm: result.outcomes[item.id, arm] for arm in LEARNT if (item.id, arm) in result.outcomes}
            auto = result.outcomes.get((item.id, AUTO))
            if auto is None or not auto.features:
                continue
            found[item.id] = (item, outcomes, scoring)
            worth = {arm: utility(item, outcome, scoring) for arm, outcome in outcomes.items()}
            worth["refuse"] = utility(item, Outcome("refuse", refused=True), scoring)
            if worth["refuse"] is None:
                continue
            questions[item.id] = Labelled(item.id, item.id, item.lang, row_of(auto.features), worth)
            if (value := utility(item, auto, scoring)) is not None:
                routed[item.id] = value
            for arm, outcome in outcomes.items():
                if outcome.error is None:
                    spent[arm].append((outcome.latency_ms or 0.0, outcome.tokens or 0.0))
    if not questions:
        raise ApplianceError(
            f"{', '.join(row.id for row in rows)}: no question has both a routed answer and a known worth; "
            "run `appliance eval run` again over questions with gold answers"
        )
    groups = groups_of([found[name][0] for name in questions])
    costs = {arm: Costs(fmean(ms for ms, _ in pairs), fmean(tokens for _, tokens in pairs)) for arm, pairs in spent.items() if pairs}
    grouped = tuple(Labelled(one.id, groups[one.id], one.lang, one.row, one.utility) for one in questions.values())
    adapters = {row.id: (row.settings.get("adapters") or {}).get(domain, "") for row in rows}
    return Labels(domain, tuple(row.id for row in rows), grouped, routed, {arm: Costs(0, 0) for arm in LEARNT} | costs, adapters)


def groups_of(items: Iterable[Item]) -> dict[str, str]:
    """By question id what must stay on one side of a fold: questions that share a document, or have the same words."""
    leader: dict[str, str] = {}

    def top(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    keys: dict[str, str] = {}
    for item in items:
        names = [f"question {' '.join(item.question.split()).casefold()}", *(f"document {name}" for name in item.doc_ids)]
        keys[item.id] = names[0]
        for name in names[1:]:
            leader[top(name)] = top(names[0])
    return {id: top(key) for id, key in keys.items()}


def train_router(
    service: Service,
    run_ids: Sequence[str],
    *,
    domain: str | None = None,
    force: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Trained:
    """Train a router on the labels of `run_ids`, measure it out of fold, keep it, and let it decide if it passed, or by `force`, a reason.

    Raises as `labels_of`, and ApplianceError with fewer than `router.fit.FEWEST` questions. Nothing changes where the gate was missed.
    """
    labels = labels_of(service, run_ids, domain)
    if len(labels.questions) < FEWEST:
        raise ApplianceError(f"{len(labels.questions)} labelled questions are too few to learn from and to test on; {FEWEST} are needed")
    if (groups := len({question.group for question in labels.questions})) < FEWEST_GROUPS:
        about = "1 separate document" if groups == 1 else f"{groups} separate groups of documents"
        raise ApplianceError(
            f"the {len(labels.questions)} labelled questions are about {about}, too few to learn from some and to test on others; "
            f"{FEWEST_GROUPS} are needed"
        )
    settings = service.workspace.config.router
    routing = router_of(service.workspace)
    if progress is not None:
        progress("training", 0, 2)
    model = train(labels.questions, target_risk=settings.target_risk)
    if progress is not None:
        progress("measuring out of fold", 1, 2)
    gate = measure(labels, routing.prices, routing.policy.settings.stale_limit, settings.target_risk)
    training = {
        "runs": list(labels.runs),
        "questions": len(labels.questions),
        "adapters": dict(labels.adapters),
        "arm_mix": gate["mix"],
        "bins": bins_of(labels.questions),
        "target_risk": settings.target_risk,
    }
    routers = Routers(service.workspace.db)
    version = routers.save(labels.domain, model, training, gate)
    if force is not None or version.passed:
        routers.promote(version.name, f"forced: {force}" if force is not None else "beats the best single arm")
        return Trained(version, True, str(gate["why"]))
    live = routers.live(labels.domain) or "the rule policy"
    return Trained(version, False, f"{gate['why']}; {live} stays. {_better(gate)}")


def measure(labels: Labels, prices: Prices, stale_limit: float, target_risk: float | None = None) -> dict[str, Any]:
    """The gate: out-of-fold choices against the best single arm, paired by question, with a 95 % interval over their groups.

    Passed where the lower bound of the gain lies above 0 and the mean is not below that of the router which was in force in the runs. An
    arm that was unavailable for a question counts as a refusal there. `risk` is the share of wrong answers among those given.
    """
    questions = labels.questions
    models = cross_validated(questions, lambda inside: train(inside, target_risk=target_risk))
    chosen = [choose(model, question, labels.costs, prices, stale_limit) for model, question in zip(models, questions, strict=True)]
    values = [_worth(question, arm) for question, arm in zip(questions, chosen, strict=True)]
    arms = {arm: [_worth(question, arm) for question in questions] for arm in LEARNT if any(arm in q.utility for q in questions)}
    single = max(arms, key=lambda arm: fmean(arms[arm]))
    oracle = [max(_worth(question, arm) for arm in arms) for question in questions]
    gain = paired_bootstrap(values, arms[single], groups=[question.group for question in questions])
    both = [(value, question) for value, question in zip(values, questions, strict=True) if question.id in labels.routed]
    live = None
    if both:
        routed = [labels.routed[question.id] for _, question in both]
        live = paired_bootstrap([value for value, _ in both], routed, groups=[question.group for _, question in both])
    passed = gain.low > 0 and (live is None or live.difference >= 0)
    given = [value for value, arm in zip(values, chosen, strict=True) if arm != "refuse"]
    mean, of_single, of_oracle = fmean(values), fmean(arms[single]), fmean(oracle)
    return {
        "passed": passed,
        "questions": len(questions),
        "mean": mean,
        "best_single": single,
        "arms": {arm: fmean(found) for arm, found in arms.items()},
        "oracle": of_oracle,
        "oracle_share": (mean - of_single) / (of_oracle - of_single) if of_oracle > of_single else 0.0,
        "gain": gain._asdict(),
        "over_live": None if live is None else live._asdict(),
        "mix": {arm: count / len(chosen) for arm, count in Counter(chosen).most_common()},
        "risk": sum(value < 0 for value in given) / len(given) if given else 0.0,
        "answered": len(given) / len(chosen),
        "tokens": fmean(labels.costs[arm].tokens for arm in chosen),
        "why": f"out of fold worth {mean:.3f}, the best single arm ({single}) {of_single:.3f}: "
        f"gain {gain.difference:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}",
    }


def choose(model: RouterModel, question: Labelled, costs: Mapping[Arm, Costs], prices: Prices, stale_limit: float) -> Arm:
    """What a router would have chosen for a labelled question, as `router.learned.LearnedRouter` does."""
    row = question.row
    stale = row[NAMES.index("a_stale_here")] > 0 or row[NAMES.index("a_stale_share")] > stale_limit
    open_arms = {
        arm: worth
        for arm, worth in model.expected(row).items()
        if question.utility.get(arm) is not None and not (stale and arm in TUNED)
    }  # fmt: skip
    return pick(open_arms, costs, prices, model.threshold).arm


def bins_of(questions: Sequence[Labelled]) -> dict[str, dict[str, list[float]]]:
    """For each feature the inner borders of at most ten bins and the share of the questions in each, to compare live questions with."""
    import numpy as np

    rows = np.array([question.row for question in questions])
    found: dict[str, dict[str, list[float]]] = {}
    for place, feature in enumerate(FEATURES):
        borders = np.unique(np.quantile(rows[:, place], np.linspace(0.1, 0.9, 9)))
        counts = np.bincount(np.searchsorted(borders, rows[:, place], side="left"), minlength=len(borders) + 1)
        found[feature.name] = {"borders": borders.tolist(), "shares": (counts / len(rows)).tolist()}
    return found


def version_json(version: RouterVersion, live: bool) -> dict[str, Any]:
    """A version as `router list --json` and `router train --json` show it."""
    shown = {name: value for name, value in asdict(version).items() if name != "model"}
    training = {name: value for name, value in version.training.items() if name != "bins"}
    return {**shown, "training": training, "kind": version.model["kind"], "live": live, "created_at": version.created_at.isoformat()}


def _worth(question: Labelled, arm: Arm) -> float:
    value = question.utility.get(arm)
    return value if value is not None else question.utility["refuse"] or 0.0


def _better(gate: Mapping[str, Any]) -> str:
    """Whether the best single arm did better than what stays."""
    over = gate["over_live"]
    if over is None:
        return "No routed answers were measured to compare it with"
    live, single = gate["mean"] - over["difference"], gate["arms"][gate["best_single"]]
    if live >= single:
        return f"It was worth {live:.3f} in these runs, no less than any single arm"
    return f"It was worth {live:.3f} in these runs; always {gate['best_single']} would have been worth {single:.3f}"
