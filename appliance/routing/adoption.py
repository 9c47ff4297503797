"""What a domain's own data says to the scenario advice: each rule against measurements, figures for the return, phases of adoption."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean, median
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from appliance.adapters.registry import Registry
from appliance.evaluation.runs import finished, scoring_of_run
from appliance.experts.review import share_answered
from appliance.routing.routers import Routers
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from eval.cost import NO_ENGINE, cost
from eval.groups import groups_of
from eval.statistics import difference, not_shown
from eval.types import AUTO, Outcome
from eval.utility import utility
from router.fit import FEWEST
from router.signals import question_features

# Days that count as "lately", and the share of wrong answers from which critical accuracy is not reached.
_LATELY, _WRONG = 30, 0.05
# Answers to live questions from which shares of them mean something.
_LIVE = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest complete evaluation run of a domain. `worth` is by arm and question, the same questions for every arm: refusing's where an
    arm could not be asked; an approved answer is left out of the routed ones. Of each arm also the median latency, mean tokens, and mean
    cost where all its answers have a price; `reasoning` are the questions for reasons, advice or comparisons, `given` those to which the
    routed way gave an answer, `groups` names the group of each (see `eval.groups`)."""

    run: str
    worth: dict[str, dict[str, float]]
    latency_ms: dict[str, float]
    tokens: dict[str, float]
    cost: dict[str, float]
    reasoning: frozenset[str]
    given: frozenset[str]
    groups: Mapping[str, str]

    def mean(self, arm: str, among: Iterable[str] | None = None) -> float | None:
        """The mean utility of an arm over some questions (None: all); None where it answered none."""
        known = self.worth.get(arm, {})
        values = list(known.values()) if among is None else [known[name] for name in among if name in known]
        return fmean(values) if values else None

    def single(self) -> str | None:
        """The single arm that is worth most; None where nothing is known."""
        arms = [arm for arm in self.worth if arm not in (AUTO, "verified")]
        return max(arms, key=lambda arm: self.mean(arm) or 0.0, default=None)


def newest(workspace: Workspace, domain: str) -> Measured | None:
    """The newest finished run over questions of the domain that asked several arms; None without one."""
    table = schema.run
    query = sa.select(table).where(table.c.domain == domain, table.c.finished_at.is_not(None)).order_by(table.c.created_at.desc())
    with workspace.db.read() as connection:
        rows = [row for row in connection.execute(query) if "gate" not in row.settings and len(row.settings.get("arms", ())) > 1]
    if not rows:
        return None
    result = finished(workspace, rows[0])
    scoring = scoring_of_run(workspace, rows[0], result.items)
    items = {item.id: item for item in result.items}
    worth: defaultdict[str, dict[str, float]] = defaultdict(dict)
    latency: defaultdict[str, list[float]] = defaultdict(list)
    tokens: defaultdict[str, list[float]] = defaultdict(list)
    costs: defaultdict[str, list[float | None]] = defaultdict(list)
    for name, item in items.items():
        if (value := utility(item, Outcome("refuse", refused=True), scoring)) is not None:
            worth["refuse"][name] = value
    measured = {arm for (_, arm), outcome in result.outcomes.items() if not outcome.unavailable}
    for (name, arm), outcome in result.outcomes.items():
        if name in worth["refuse"] and arm in measured and outcome.arm != "verified":
            value = utility(items[name], outcome, scoring)
            worth[arm][name] = worth["refuse"][name] if value is None else value
        if outcome.error is None:
            latency[arm].append(outcome.latency_ms or 0.0)
            tokens[arm].append(outcome.tokens or 0.0)
            # What no engine generated costs nothing unless it has a price of its own.
            free = outcome.engine is None and NO_ENGINE not in scoring.prices
            costs[arm].append(0.0 if free else cost(outcome, scoring.prices))
    asks = {name: question_features(item.question, item.lang) for name, item in items.items()}
    reasoning = frozenset(name for name, found in asks.items() if found["q_reason"] or found["q_compare"])
    typical = {arm: median(values) for arm, values in latency.items()}
    read = {arm: fmean(values) for arm, values in tokens.items()}
    priced = {arm: [value for value in values if value is not None] for arm, values in costs.items() if scoring.prices}
    cost_of = {arm: fmean(values) for arm, values in priced.items() if len(values) == len(costs[arm])}
    given = frozenset(name for (name, arm), outcome in result.outcomes.items() if arm == AUTO and not outcome.declined)
    return Measured(rows[0].id, dict(worth), typical, read, cost_of, reasoning, given, groups_of(result.items))


def evidence(workspace: Workspace, domain: str) -> dict[str, Any]:
    """The JSON of `advise --domain` under ``measured``: ``rules`` (what the data says to each rule, by its field), ``figures`` for the
    return, ``phases``, and the run they come from."""
    found = newest(workspace, domain)
    answered = share_answered(workspace.db, [domain])
    registry = Registry(workspace)
    live = registry.live(domain)
    versions = [version for version in registry.versions(domain) if version.kind == "adapter"]
    seconds = sum(float(version.metrics.get("seconds", 0.0)) for version in versions)
    pairs = max((int(version.metrics.get("train_examples", 0)) for version in versions), default=0)
    figures: dict[str, float | None] = {
        "gpu_hours": seconds / 3600 if versions else None,
        "data_volume": float(pairs) if versions else None,
        "answered_without_a_person": answered.share,
        "latency_ms": None if found is None else found.latency_ms.get(AUTO),
        "tokens": None if found is None else found.tokens.get(AUTO),
        "cost": None if found is None else found.cost.get(AUTO),
    }
    rules = {
        "knowledge_update_frequency": _changes(workspace, registry, domain),
        "reasoning_complexity": _reasoning(found),
        "deployment_environment": _where(workspace, domain),
        "development_timeline": _training(seconds, len(versions)),
        "accuracy_requirement": _accuracy(found),
    }
    phases = _phases(workspace, domain, found, live is not None, answered.share, answered.asked)
    return {"domain": domain, "run": None if found is None else found.run, "rules": rules, "figures": figures, "phases": phases}


def _changes(workspace: Workspace, registry: Registry, domain: str) -> str:
    since = utcnow() - timedelta(days=_LATELY)
    table = schema.document.join(schema.document_version)
    query = sa.select(sa.func.count(), sa.func.count(sa.case((schema.document_version.c.updated_at >= since, 1)))).select_from(table)
    with workspace.db.read() as connection:
        total, lately = connection.execute(query.where(schema.document.c.domain == domain)).one()
    live = registry.live(domain)
    stale = "" if live is None else f"; {registry.freshness.of(live.name).counts.share:.0%} of what {live.name} was trained on has changed"
    return f"{lately} of {total} documents are new or changed in the last {_LATELY} days{stale}" if total else "no documents yet"


def _reasoning(found: Measured | None) -> str:
    if found is None:
        return "not measured: appliance eval run"
    parts = [
        f"{arm} {value:.2f} on these, {found.mean(arm):.2f} on all"
        for arm in ("finetuned", "hybrid", "rag")
        if (value := found.mean(arm, found.reasoning)) is not None
    ]
    if not parts:
        return f"run {found.run} has no questions for reasons, advice or comparisons that these arms answered"
    return f"{len(found.reasoning)} of the questions ask for reasons, advice or comparisons: " + "; ".join(parts)


def _where(workspace: Workspace, domain: str) -> str:
    name, engine = workspace.config.engine_of(domain)
    if engine.kind == "local":
        return f"engine {name} answers inside this process: nothing leaves the machine, offline included"
    hosts = {urlsplit(url).hostname or url for url in (*engine.urls, *([engine.url] if engine.url else []))}
    away = sorted(host for host in hosts if host not in ("localhost", "::1") and not host.startswith("127."))
    if away:
        return f"engine {name} is asked at {', '.join(away)}: without that network only quote and approved answers are left"
    return f"engine {name} runs on this machine: nothing leaves it, offline included"


def _training(seconds: float, versions: int) -> str:
    if not versions:
        return "nothing was trained yet"
    return f"training took {seconds / 60:.1f} minutes on this machine for {versions} {'version' if versions == 1 else 'versions'}"


def _accuracy(found: Measured | None) -> str:
    single = None if found is None else found.single()
    if found is None or single is None:
        return "not measured: appliance eval run"
    parts = [f"{arm} {found.mean(arm):.2f}" for arm in sorted(found.worth, key=lambda arm: -(found.mean(arm) or 0.0))]
    text = f"worth on {len(found.worth[single])} questions: {', '.join(parts)}"
    both = [
        (found.worth["finetuned"][name], found.worth["rag"][name], found.groups[name])
        for name in found.worth.get("finetuned", {})
        if name in found.worth.get("rag", {})
    ]
    if both:
        gain, few = difference([one for one, _, _ in both], [two for _, two, _ in both], [group for _, _, group in both])
        verdict = "" if gain.shown and not few else f"{not_shown(few)}: "
        text += f"; finetuned minus rag: {verdict}{gain.difference:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"
    return text


def _phases(
    workspace: Workspace, domain: str, found: Measured | None, adapter: bool, answered: float | None, asked: int
) -> list[dict[str, Any]]:
    """Feasibility, production, scale: what must hold to enter and to leave each, and whether it was measured to."""
    with workspace.db.read() as connection:
        documents = connection.execute(
            sa.select(sa.func.count()).select_from(schema.document).where(schema.document.c.domain == domain)
        ).scalar_one()
        keys = connection.execute(sa.select(sa.func.count()).select_from(schema.api_key)).scalar_one()
    questions = 0 if found is None else len(found.worth.get("refuse", ()))
    decided = () if found is None else found.worth.get(AUTO, ())
    routed = None if found is None else found.mean(AUTO)
    refusing = None if found is None else found.mean("refuse", decided)
    single = None if found is None else found.single()
    best = None if found is None or single is None else found.mean(single, decided)
    wrong = _wrong_share(found)
    router = Routers(workspace.db).live(domain)
    latency = None if found is None else found.latency_ms.get(AUTO)
    engine = workspace.config.engine_of(domain)[1].kind
    useful = _criterion(
        "answering is worth more than refusing", routed, None if refusing is None else f"> {refusing:.2f}", _above(routed, refusing)
    )
    live = _criterion("live questions seen", asked, f">= {_LIVE}", asked >= _LIVE)
    return [
        {
            "phase": "feasibility",
            "entry": [_criterion("documents in the knowledge base", documents, ">= 1", documents >= 1)],
            "exit": [_criterion("questions with gold answers measured", questions, f">= {FEWEST}", questions >= FEWEST), useful],
        },
        {
            "phase": "production",
            "entry": [
                useful,
                _criterion("routed answers are worth no less than the best single arm", routed, None if best is None else f">= {best:.2f}",
                           None if routed is None or best is None else routed >= best),
                _criterion("API keys", keys, ">= 1", keys >= 1),
            ],
            "exit": [
                _criterion("routed answers worth less than nothing", wrong, f"<= {_WRONG}", None if wrong is None else wrong <= _WRONG),
                live,
                _criterion("answered without a person", answered, ">= 0.5", None if answered is None else answered >= 0.5),
            ],
        },
        {
            "phase": "scale",
            "entry": [live, _criterion("a trained router decides", router or "rules", "trained", router is not None)],
            "exit": [
                _criterion("an adapter is live", adapter, "yes", adapter),
                _criterion("an engine for many at once", engine, "vllm or openai", engine != "local"),
                _criterion("median answer, ms", latency, "<= 5000", None if latency is None else latency <= 5000),
            ],
        },
    ]  # fmt: skip


def _criterion(what: str, measured: object, required: str | None, met: bool | None) -> dict[str, Any]:
    """`met` is None where it was not measured."""
    return {"what": what, "measured": measured, "required": required or "not measured", "met": met}


def _above(value: float | None, bound: float | None) -> bool | None:
    return None if value is None or bound is None else value > bound


def _wrong_share(found: Measured | None) -> float | None:
    """Of the answers that the routed way gave, the share worth less than nothing."""
    values = [] if found is None else [value for name, value in found.worth.get(AUTO, {}).items() if name in found.given]
    return sum(value < 0 for value in values) / len(values) if values else None
