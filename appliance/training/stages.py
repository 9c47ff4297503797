"""Several trainings from one plan, each starting from what the last one made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from appliance.adapters.registry import AdapterVersion
from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.service import Service
from appliance.training.data import dataset_of, documents_version
from appliance.training.searching import tune_search
from appliance.training.tuning import tune
from finetune.distributed import Helped, is_main, processes, wait
from finetune.settings import learns_from
from finetune.stages import Plan, Stage

Progress = Callable[[str, dict[str, Any]], None]


def tune_plan(
    service: Service, domain: str, plan: Plan, progress: Progress, fresh: bool = False, trials: int | None = None
) -> list[tuple[AdapterVersion, dict[str, Any]]]:
    """Train the stages in order; every one is registered, the last is the one to promote. `progress` gets the stage's name and its events.

    A stage that is registered already (same settings, data and start, in whatever plan) is not trained again: an interrupted plan goes
    on with the stage that is missing, unless `fresh`. With `trials` the table [search] of the plan is searched first, see
    `appliance.training.searching`. Returns each version with the JSON of `tune --json`. Raises UsageError and ApplianceError.

    Of several processes that train together the first one registers a stage, and the others go on from what it registered; they end with
    `finetune.distributed.Helped`.
    """
    _check_base(service, domain, plan)
    if processes() > 1 and trials is not None:
        raise UsageError("several processes train one run together: start --search without torchrun")
    for stage in plan.stages:
        if stage.dataset is not None:
            dataset_of(Datasets(service.workspace), stage.dataset, stage.settings)
    if trials is not None:
        if len(plan.stages) > 1:
            raise UsageError("--search tries settings of one training, the file has several [[stages]]; search each in a file of its own")
        only, report, where = plan.stages[0], partial(progress, ""), f"{plan.where}: [search]"
        return [tune_search(service, domain, only.dataset, only.settings, plan.search, trials, report, fresh, where)]
    if plan.search:
        raise UsageError("the file has a table [search]: say with --search how many runs to try, or leave the table out")
    done: list[tuple[AdapterVersion, dict[str, Any]]] = []
    for number, stage in enumerate(plan.stages, 1):
        start = done[-1][0] if done else None
        mark = f"{number}/{len(plan.stages)} {stage.name}" if stage.name else None
        known = None if fresh else _registered(service, domain, stage, start, mark)
        if known is not None:
            done.append((known, {"domain": domain, "version": known.name, "stage": mark, "trained_before": True, **_figures(known)}))
            continue
        report = partial(progress, stage.name)
        with suppress(Helped):
            version, shown = tune(service, domain, stage.dataset, stage.settings, report, start=start, stage=mark, fresh=fresh)
            done.append((version, {**shown, "stage": mark} if mark else shown))
        if number < len(plan.stages):
            # From here on it is registered.
            wait(stage.settings.method)
        if len(done) < number < len(plan.stages):
            made = _registered(service, domain, stage, start, mark)
            if made is None:
                raise ApplianceError(f"stage {mark}: the first process has registered no version; do all see the same workspace?")
            done.append((made, {}))
    if not is_main():
        raise Helped
    return done


def _check_base(service: Service, domain: str, plan: Plan) -> None:
    """Raises UsageError if the file was written for another base than the domain's engine has."""
    name, engine = service.workspace.config.engine_of(domain)
    if plan.base is not None and service.workspace.model(plan.base) != service.workspace.model(engine.base):
        raise UsageError(
            f"the file trains {plan.base}, engine {name} of {domain} has the base {engine.base}: "
            f'set [engines.{name}] base = "{plan.base}", or leave the base out of the file'
        )


def _registered(service: Service, domain: str, stage: Stage, start: AdapterVersion | None, mark: str | None) -> AdapterVersion | None:
    """The newest version that is what this stage makes, by whatever plan it was trained. A plan of one stage always trains."""
    if mark is None:
        return None
    wanted = {key: _plain(value) for key, value in stage.settings.to_json().items()}
    data = _data_version(service, domain, stage)
    workspace = service.workspace
    base_hash = service.models.model_hash(workspace.model(workspace.config.engine_of(domain)[1].base))
    for version in reversed(service.registry.versions(domain)):
        same = wanted == {key: _plain(version.config.get(key)) for key in wanted}
        if same and _follows(version, start, base_hash) and version.dataset_version == data and version.path.is_dir():
            return version
    return None


def _follows(version: AdapterVersion, start: AdapterVersion | None, base_hash: str) -> bool:
    """Whether `version` was trained from `start`, or, if that is None, from the base itself."""
    place = version.config.get("stage")
    if place is not None and not place.startswith("1/"):
        return start is not None and version.parent == start.name
    # The parent of any other is what was live when it was trained, and does not tell what it was trained from.
    return version.base_hash == base_hash if start is None else version.base == start.reference


def _data_version(service: Service, domain: str, stage: Stage) -> str | None:
    if learns_from(stage.settings.method) == "texts":
        return documents_version(service, domain, service.workspace.config.engine_of(domain)[1].languages)
    return None if stage.dataset is None else dataset_of(Datasets(service.workspace), stage.dataset, stage.settings).version


def _figures(version: AdapterVersion) -> Mapping[str, Any]:
    names = ("train_examples", "train_loss", "eval_loss")
    return {"method": version.method, **{name: version.metrics.get(name) for name in names}, "path": str(version.path)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
