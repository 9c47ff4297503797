"""`appliance tune --search`: hyperparameters are searched, the best run becomes a version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from appliance.adapters.registry import AdapterVersion
from appliance.errors import ApplianceError, UsageError
from appliance.service import Service
from appliance.training.tuning import guarded, prepare, run_folder, tune
from finetune.settings import TrainSettings
from finetune.types import TrainingError

if TYPE_CHECKING:
    from finetune.train import TrainJob


def tune_search(
    service: Service,
    domain: str,
    dataset: str | None,
    settings: TrainSettings,
    space: Mapping[str, Any],
    trials: int,
    progress: Callable[[dict[str, Any]], None],
    fresh: bool = False,
    where: str = "search",
) -> tuple[AdapterVersion, dict[str, Any]]:
    """Search `space` (the table [search] of the file, or {} for the default) with `trials` runs and register the best, once.

    The study is kept in ``runs/search-<domain>-<hash of data, settings, base and space>``: the same call goes on from there (with
    a larger `trials` it adds runs), unless `fresh`. `settings` are those that are not searched. Returns the version and the JSON
    of `tune --json` with the runs in "search". Raises UsageError, naming `where` and the key of a wrong `space`, and ApplianceError.
    """
    from finetune.search import search, space_from
    from retrieval.threads import together

    try:
        checked = space_from(space, settings, where)
    except TrainingError as error:
        raise UsageError(str(error)) from error
    job = replace(prepare(service, domain, dataset, settings).job, fresh=fresh)

    def place(wanted: TrainJob) -> TrainJob:
        return replace(wanted, work=run_folder(wanted, domain))

    folder = job.work / f"search-{domain}-{_key(job, space)[:12]}"
    with service.workspace.db.lock(f"tune:{domain}") as lock:
        try:
            if fresh and folder.exists():
                shutil.rmtree(folder)
            with together():
                found = search(job, checked, trials, folder, place, guarded(progress, lock))
        except TrainingError as error:
            raise ApplianceError(str(error)) from error
    rows = [{**asdict(tried), "best": tried.number == found.best} for tried in found.tried]
    (folder / "search.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", "utf-8")
    version, shown = tune(service, domain, dataset, found.settings, progress)
    return version, {**shown, "search": rows}


def _key(job: TrainJob, space: Mapping[str, Any]) -> str:
    from finetune.runs import run_key
    from finetune.train import key_of

    return run_key({"job": key_of(job), "space": space})
