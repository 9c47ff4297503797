"""`appliance router train`: from evaluation runs to a router, and the gate that it must pass.

Each question of a run is a label: what every arm was worth there, by the team's utility or, where experts scored the answers, by them. The
router is measured on questions it did not learn from: those of a fold are decided by a router that was trained on the other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from appliance.errors import ApplianceError
from appliance.routing.gate import decided_now, measure, measure_single
from appliance.routing.labels import Labels, labels_of, without_rare_languages
from appliance.routing.routers import Routers, RouterVersion
from appliance.service import Service, router_of
from router.drift import bins_of
from router.fit import FEWEST, FEWEST_GROUPS, Family, families, train


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to: `live` says whether the version decides now, `why` says it in words, `notes` what else is to be known."""

    version: RouterVersion
    live: bool
    why: str
    notes: tuple[str, ...] = ()


def train_router(
    service: Service,
    run_ids: Sequence[str],
    *,
    domain: str | None = None,
    force: str | None = None,
    best_single: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Trained:
    """Train a router on the labels of `run_ids`, measure it out of fold, keep it, and let it decide if it passed, or by `force`, a reason.

    With `best_single`, where it did not pass, the arm that is worth most on average decides instead (the next one where that cannot be
    used), if that is worth more than what decides now. Raises as `labels_of`, and ApplianceError with fewer than `router.fit.FEWEST`
    questions. Nothing changes where the gate was missed, or where another router came to decide meanwhile (ApplianceError).
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
    labels, few = without_rare_languages(labels)
    if len(labels.questions) < FEWEST:
        raise ApplianceError(
            f"{len(labels.questions)} labelled questions are left without the languages of fewer than {FEWEST_GROUPS} separate questions "
            f"({', '.join(few)}); {FEWEST} are needed"
        )
    routers = Routers(service.workspace.db)
    routing = router_of(service.workspace)
    notes = (*_other_adapters(labels, service.workspace.db.pointer(f"adapter:{labels.domain}")), *_rare(few), *_withheld(labels))
    live = routers.live(labels.domain)
    now = decided_now(labels, routers, routing)

    def kept(gate: Mapping[str, Any], among: Sequence[Family] | None = None) -> RouterVersion:
        model = train(labels.questions, among)
        training = {
            "runs": list(labels.runs),
            "questions": len(labels.questions),
            "adapters": dict(labels.adapters),
            "costs": {arm: asdict(cost) for arm, cost in labels.costs.items()},
            "arm_mix": gate["mix"],
            "bins": bins_of([question.row for question in labels.questions]),
            "learnt": sorted(labels.words[question.id] for question in labels.questions),
        }
        return routers.save(labels.domain, model, training, gate)

    if progress is not None:
        progress("training, measuring out of fold", 0, 1)
    gate = measure(labels, routing, now)
    version = kept(gate)
    if force is not None or version.passed:
        routers.promote(version.name, f"forced: {force}" if force is not None else "beats the best single arm", over=live)
        return Trained(version, True, str(gate["why"]), notes)
    mean = families()[:1]
    if best_single and (single := measure_single(labels, routing, now, mean))["passed"]:
        version = kept(single, mean)
        routers.promote(version.name, "the best single arm, as no router beats it", over=live)
        return Trained(version, True, f"{gate['why']}; so the best arm on average decides: {single['why']}", notes)
    hint = "" if best_single else f": appliance router train {' '.join(f'--run {run}' for run in labels.runs)} --best-single"
    return Trained(version, False, f"{gate['why']}; {live or 'the rule policy'} stays. {_better(gate, hint)}", notes)


def _other_adapters(labels: Labels, live: str | None) -> list[str]:
    """What to say of runs that measured another adapter than the one that answers now."""
    return [
        f"run {run} measured {name or 'no adapter'}, but {live or 'no adapter'} is live: run appliance eval run again and train from that"
        for run, name in labels.adapters.items()
        if name != (live or "")
    ]


def _withheld(labels: Labels) -> list[str]:
    said = f"{labels.withheld} answers of the runs rest on documents deleted since, so nothing was learnt of them"
    return [f"{said}: run appliance eval run again and train from that"] if labels.withheld else []


def _rare(few: Mapping[str, int]) -> list[str]:
    return [
        f"{count} questions in {lang} are too few to learn from, the rules go on deciding those; {FEWEST_GROUPS} separate ones are needed"
        for lang, count in few.items()
    ]


def version_json(version: RouterVersion, live: bool) -> dict[str, Any]:
    """A version as `router list --json` and `router train --json` show it."""
    shown = {name: value for name, value in asdict(version).items() if name != "model"}
    training = {name: value for name, value in version.training.items() if name not in ("bins", "learnt")}
    return {**shown, "training": training, "kind": version.model["kind"], "live": live, "created_at": version.created_at.isoformat()}


def _better(gate: Mapping[str, Any], hint: str) -> str:
    """Whether the best single arm did better than what stays; `hint` says how to let it decide then."""
    over = gate["over_live"]
    if over is None:
        return "No questions were measured to compare it with"
    live, single = over["live"], over["best_single"]
    was = f"It was worth {live:.3f} on {over['questions']} questions"
    if live >= single:
        return f"{was}, no less than the best single arm"
    return f"{was}; always {gate['best_single']} would have been worth {single:.3f}{hint}"
