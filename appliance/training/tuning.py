"""`appliance tune`: from a registered data set to an adapter version with its evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.adapters import tuned_questions
from appliance.adapters.card import write_card
from appliance.adapters.registry import MODELS, AdapterVersion
from appliance.errors import ApplianceError, UsageError
from appliance.service import Service
from appliance.store.locks import WriterLock
from appliance.training.data import TrainingData, gather
from appliance.training.examples import labels_of
from finetune.distributed import is_main
from finetune.settings import TrainSettings, yields
from finetune.types import TrainingError

if TYPE_CHECKING:
    from finetune.train import TrainJob

# Pairs of which it is measured how surely the adapter gives their answers: a part of an epoch, whatever the size of the set.
_MEASURED = 256


def tune(
    service: Service,
    domain: str,
    dataset: str | None,
    settings: TrainSettings,
    progress: Callable[[dict[str, Any]], None],
    *,
    start: AdapterVersion | None = None,
    stage: str | None = None,
    fresh: bool = False,
) -> tuple[AdapterVersion, dict[str, Any]]:
    """Train an adapter or a model for `domain` and register it; nothing goes live. Returns the version and the JSON of `tune --json`.

    The run's folder is ``runs/tune-<domain>-<hash of data, settings and base>``: after a kill, the same call goes on from the
    last checkpoint there, unless `fresh`. Its metrics, loss curve and TensorBoard files stay when it is done.

    `dataset` may be None for a method that reads the domain's documents. `start` is the version to train further, the parent of the
    new one; `stage` is recorded with it (see `appliance.training.stages`). A model version is named as the base of an engine.
    Raises UsageError, Locked and ApplianceError; an interrupted run leaves no version behind.
    """
    from finetune.runs import clear
    from finetune.train import train
    from finetune.version import clear_unfinished, finish_version, rank_of
    from retrieval.threads import together

    workspace = service.workspace
    makes = yields(settings.method)
    prepared = prepare(service, domain, dataset, settings, start)
    start, data = prepared.start, prepared.data
    job = replace(prepared.job, work=run_folder(prepared.job, domain), fresh=fresh)
    # Of several processes that train together only the first one writes; the others leave with `Helped`.
    with workspace.db.lock(f"tune:{domain}") if is_main() else nullcontext() as lock:
        if is_main():
            for name in ("adapters", MODELS):
                clear_unfinished(workspace.folder(name), domain)
        # Before the first step: what changes or goes while it trains is stale when it is done. The others of several processes need none.
        links = data.links(service, domain) if is_main() else []
        # What the start was trained on is in the new version too.
        links += service.registry.links(start.name) if start else []
        labels = labels_of(service, links) | (start.labels if start else frozenset())
        try:
            with together():
                result = train(job, guarded(progress, lock))
            parent = start or (service.registry.live(domain) if makes == "adapter" else None)
            folder = finish_version(
                result,
                workspace.folder(MODELS if makes == "model" else "adapters"),
                domain,
                dataset=data.dataset,
                dataset_version=data.version,
                parent=parent.name if parent else None,
                labels=sorted(labels),
                evidence=[asdict(link) for link in links],
            )
            if makes == "adapter":
                sure = measured(job, folder.path, data, lock)
                tuned_questions.save(folder.path, data.questions(), service.knowledge.embedder, sure)
        except TrainingError as error:
            raise ApplianceError(str(error)) from error
        dropped = {**data.left_out, **result.dropped}
        version = AdapterVersion(
            name=folder.name,
            domain=domain,
            base=job.base_ref,
            base_hash=job.base_hash,
            method=settings.method,
            path=folder.path,
            sha256=folder.sha256,
            dataset=data.dataset,
            dataset_version=data.version,
            parent=parent.name if parent else None,
            labels=labels,
            config={**settings.to_json(), "task": data.task, "stage": stage},
            metrics={**result.metrics(), "dropped": dropped, "rank": rank_of(folder.path)},
            created_at=folder.created_at,
        )
        service.registry.register(version, links, lock)
        write_card(service.registry, version)
        clear(job.work)
    shown = {
        "domain": domain,
        "version": version.name,
        "kind": version.kind,
        "method": settings.method,
        "train_examples": result.train_examples,
        "dropped": dropped,
        "train_loss": result.train_loss,
        "eval_loss": result.eval_loss,
        "tokens_per_second": result.tokens_per_second,
        "shortcuts_not_taken": {name: why for name, why in result.shortcuts.items() if why != "taken"},
        "seconds": result.seconds,
        "estimated_mib": round(result.memory["estimated"] / 2**20),
        "peak_mib": round(result.memory["peak"] / 2**20),
        "path": str(version.path),
    }
    return version, shown


def guarded(progress: Callable[[dict[str, Any]], None], lock: WriterLock | None) -> Callable[[dict[str, Any]], None]:
    """`progress`, which raises Locked once `lock` is lost: another process may be at work in the run's folder then."""

    def tell(event: dict[str, Any]) -> None:
        if lock is not None:
            lock.beat()
        progress(event)

    return tell


def measured(job: TrainJob, adapter: Path, data: TrainingData, lock: WriterLock | None = None) -> dict[str, float]:
    """How surely the adapter in a folder gives the answers of `data`, by the ids of at most `_MEASURED` pairs; see `finetune.recall`."""
    if not data.pairs:
        return {}
    from finetune.recall import recall

    # Any of them, but the same ones each time.
    chosen = sorted(data.train, key=lambda example: hashlib.sha256(example.id.encode()).digest())[:_MEASURED]
    found = recall(job, adapter, chosen, lambda: None if lock is None else lock.beat())
    return {example.id: value for example, value in zip(chosen, found, strict=True)}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs, before its folder is known: `job.work` is the folder of all runs."""

    job: TrainJob
    data: TrainingData
    start: AdapterVersion | None


def prepare(service: Service, domain: str, dataset: str | None, settings: TrainSettings, start: AdapterVersion | None = None) -> Prepared:
    """The base, the data and the start of a run; see `tune`. Raises UsageError and ApplianceError."""
    from finetune.train import TrainJob

    workspace = service.workspace
    workspace.check_domain(domain)
    engine_name, engine = workspace.config.engine_of(domain)
    if not engine.has_base:
        raise UsageError(
            f"engine {engine_name} of {domain} is {engine.kind}: training needs a base model here, "
            "name a local or vllm engine for the domain"
        )
    # What is in the weights of a model version is in those trained from it.
    start = start or (service.registry.model_at(engine.base) if yields(settings.method) == "model" else None)
    base_ref = engine.base if start is None else start.reference if start.kind == "model" else start.base
    reference = workspace.model(base_ref)
    data = gather(service, domain, dataset, settings, engine.languages)
    job = TrainJob(
        base=service.models.path(reference),
        base_ref=base_ref,
        base_hash=service.models.model_hash(reference),
        train=data.train,
        dev=data.dev,
        settings=settings,
        work=workspace.folder("runs"),
        chat_template=engine.template(workspace.root),
        start=start.path if start and start.kind == "adapter" else None,
    )
    return Prepared(job, data, start)


def run_folder(job: TrainJob, domain: str) -> Path:
    """The folder of the run in that of all runs, named by what it trains: the same job finds it again."""
    from finetune.train import key_of

    return job.work / f"tune-{domain}-{key_of(job)[:12]}"
