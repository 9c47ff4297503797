"""The labels of a router: the questions of finished evaluation runs, what every arm was worth there and what it cost."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from appliance.errors import ApplianceError, UsageError
from appliance.evaluation import runs as evaluation
from appliance.knowledge.forgetting import WITHHELD
from appliance.service import Service
from eval.groups import groups_of, said
from eval.types import AUTO, Item, Outcome
from eval.utility import utility
from router.features import VERSION as FEATURE_VERSION
from router.features import row_of
from router.fit import FEWEST_GROUPS, Labelled
from router.types import ARMS, Arm, Costs

# Learnt arms: `verified` repeats an expert, which the router always prefers.
LEARNT: tuple[Arm, ...] = tuple(arm for arm in ARMS if arm != "verified")


@dataclass(frozen=True, slots=True)
class Labels:
    """The questions of a domain as they are learnt from. `ruled` is what the rules were worth, by question id, where they decided in
    the run and no approved answer came before; `costs` what each arm that answered cost on average; `words` the digest of each question's
    words, by its id; `withheld` how many answers a deletion took, of which nothing can be learnt."""

    domain: str
    runs: tuple[str, ...]
    questions: tuple[Labelled, ...]
    ruled: Mapping[str, float]
    costs: Mapping[Arm, Costs]
    adapters: Mapping[str, str]
    words: Mapping[str, str]
    withheld: int = 0


def labels_of(service: Service, run_ids: Sequence[str], domain: str | None = None) -> Labels:
    """The labels in finished runs over questions of one domain, the later run's where a question is in several.

    Raises UsageError (unknown or unfinished run, several domains), ApplianceError where a run has no routed answers, no known utility, or
    the features of another release.
    """
    rows = [evaluation.find(service, name) for name in run_ids]
    items: dict[str, Item] = {}
    questions: dict[str, Labelled] = {}
    ruled: dict[str, float] = {}
    spent: defaultdict[Arm, list[tuple[float, float]]] = defaultdict(list)
    withheld = 0
    # Known before the first question is looked at, whichever run it is that names it.
    domain = domain or next((row.domain for row in rows if row.domain is not None), None)
    if domain is None:
        raise UsageError("the runs name no domain; name one with --domain")
    for row in rows:
        evaluation.check_finished(row)
        if row.domain is not None and row.domain != domain:
            raise UsageError(f"run {row.id} is of {row.domain}, not of {domain}; a router learns from one domain")
        if row.settings.get("feature_version") != FEATURE_VERSION:
            raise ApplianceError(
                f"run {row.id} was made by a release that found other features of a question; "
                "run `appliance eval run` again and train from that"
            )
        result = evaluation.finished(service.workspace, row)
        scoring = evaluation.scoring_of_run(service.workspace, row, result.items)
        # See `Routing.version`.
        rules = not any(name.startswith(f"{domain}@") for name in str(row.settings.get("router", "")).split("+"))
        for asked in result.items:
            if (asked.domain or row.domain or domain) != domain:
                continue
            outcomes = {arm: result.outcomes[asked.id, arm] for arm in LEARNT if (asked.id, arm) in result.outcomes}
            auto = result.outcomes.get((asked.id, AUTO))
            # Rows of two sets may be called the same.
            item = replace(asked, id=f"{asked.id} {words_of(asked)}")
            if auto is None or not auto.features:
                continue
            # A failure says nothing about what the arm is worth when it works.
            worth = {arm: None if outcome.error is not None else utility(asked, outcome, scoring) for arm, outcome in outcomes.items()}
            worth["refuse"] = utility(asked, Outcome("refuse", refused=True), scoring)
            if worth["refuse"] is None:
                continue
            withheld += sum(outcome.error == WITHHELD for outcome in outcomes.values())
            items[item.id] = item
            declined = frozenset(arm for arm, outcome in outcomes.items() if outcome.declined)
            questions[item.id] = Labelled(item.id, item.id, item.lang, row_of(auto.features), worth, declined)
            ruled.pop(item.id, None)
            if rules and auto.arm != "verified" and (value := utility(asked, auto, scoring)) is not None:
                ruled[item.id] = value
            for arm, outcome in outcomes.items():
                if outcome.error is None:
                    spent[arm].append((outcome.latency_ms or 0.0, outcome.tokens or 0.0))
    if not questions:
        raise ApplianceError(
            f"{', '.join(row.id for row in rows)}: no question has both a routed answer and a known worth; "
            "run `appliance eval run` again over questions with gold answers"
        )
    groups = groups_of(items.values())
    costs = {arm: Costs(fmean(ms for ms, _ in pairs), fmean(tokens for _, tokens in pairs)) for arm, pairs in spent.items()}
    grouped = tuple(replace(one, group=groups[one.id]) for one in questions.values())
    adapters = {row.id: (row.settings.get("adapters") or {}).get(domain, "") for row in rows}
    words = {id: words_of(item) for id, item in items.items()}
    return Labels(domain, tuple(row.id for row in rows), grouped, ruled, costs | {"refuse": Costs(0, 0)}, adapters, words, withheld)


def without_rare_languages(labels: Labels) -> tuple[Labels, dict[str, int]]:
    """The labels without those in languages of fewer than `router.fit.FEWEST_GROUPS` groups of questions, which would prove nothing about
    others in that language, and how many those are by language."""
    groups = Counter(lang for lang, _ in {(question.lang, question.group) for question in labels.questions})
    kept = tuple(question for question in labels.questions if groups[question.lang] >= FEWEST_GROUPS)
    few = Counter(question.lang for question in labels.questions if groups[question.lang] < FEWEST_GROUPS)
    return replace(labels, questions=kept), dict(few)


def words_of(item: Item) -> str:
    """Twelve hexadecimal digits that tell which question was asked, whatever its id, without its text."""
    return hashlib.sha256(said(item).encode()).hexdigest()[:12]
