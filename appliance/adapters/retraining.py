"""Retraining on schedule: from the newest data through the gate into a trial, or live at once.

`[domains.NAME] retrain` says when; the worker then queues a job, which runs `retrain`. Where neither the data nor the settings nor the base
have changed since the last time, nothing is trained.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from appliance.adapters import canary as canaries
from appliance.errors import ApplianceError, UsageError
from appliance.jobs.cron import next_after
from appliance.jobs.jobs import Jobs
from appliance.jobs.worker import Task, Tick
from appliance.settings import DomainConfig
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.locks import Busy
from appliance.workspace import Workspace

T = TypeVar("T")
# (what, done, total)
Progress = Callable[..., None]
# Seconds to wait for a gate that somebody else runs, and between two tries.
_WAIT, _AGAIN = 3600.0, 5.0


class Retraining:
    """When the domains of a workspace are trained anew."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.plans = {name: domain.retrain for name, domain in sorted(workspace.config.domains.items()) if domain.retrain is not None}
        for name in self.plans:
            workspace.check_name(name)

    def due(self, moment: datetime) -> Sequence[Task]:
        """The domains whose time has come since they were asked for the last time; several missed times are one."""
        return [
            Task(f"retrain {domain}", partial(self._queue, domain))
            for domain, line in self.plans.items()
            if (last := _read(self._workspace.db, _asked(domain))) is None or next_after(line, datetime.fromisoformat(last["at"])) <= moment
        ]

    def _queue(self, domain: str, _: Tick) -> dict[str, Any]:
        jobs = Jobs(self._workspace.db)
        waiting = [job for job in jobs.all(domain=domain, states=("queued", "running")) if job.kind == "retrain"]
        job = waiting[0] if waiting else jobs.add("retrain", {"domain": domain}, domain)
        _write(self._workspace.db, _asked(domain), {"at": utcnow().isoformat(timespec="seconds")})
        return {"domain": domain, "kind": "retrain", "outcome": "done", "job": job.id}


def retrain(workspace: Workspace, domain: str, progress: Progress) -> dict[str, Any]:
    """Train the domain from the newest data, measure the gate, and go on as `retrain_then` says; the JSON of `adapter retrain --json`.

    `outcome` is skipped (nothing has changed), waiting (a version is still on trial), missed (the gate), registered, trial, live, or
    failed, which is also raised. One line of JSON goes to `retrain_report`.
    Raises UsageError where nothing says what to train on, ApplianceError.
    """
    row: dict[str, Any] = {"domain": domain, "at": utcnow().isoformat(timespec="seconds")}
    try:
        _train(workspace, domain, progress, row)
    except Exception as error:
        row |= {"outcome": "failed", "why": str(error) or repr(error)}
        _report(workspace, row)
        raise
    _report(workspace, row)
    return row


def _train(workspace: Workspace, domain: str, progress: Progress, row: dict[str, Any]) -> None:
    """What `retrain` does; `row` is filled with what came of it so far."""
    from appliance.datasets.registry import several
    from appliance.service import open_service
    from appliance.training.stages import tune_plan

    settings = workspace.config.domain(domain)
    plan = _plan(workspace, domain, settings)
    service = open_service(workspace)
    named = [name for stage in plan.stages for name in (stage.dataset, stage.settings.eval_dataset) if name is not None]
    names = list(dict.fromkeys(one for name in named for one in several(name)))
    row["datasets"] = {name: _newest(workspace, name) for name in names}
    engine = workspace.config.engine_of(domain)[1]
    state = {
        "datasets": row["datasets"],
        # Methods that read the documents learn something new with every generation.
        "generation": service.knowledge.store.live_generation() if any(stage.dataset is None for stage in plan.stages) else None,
        "base": service.models.model_hash(workspace.model(engine.base)) if engine.has_base else "",
        "plan": hashlib.sha256(repr(replace(plan, notes=())).encode()).hexdigest(),
    }
    before = _read(workspace.db, _done(domain))
    same = before if before is not None and before["state"] == state else None
    if same is not None and not same.get("unfinished"):
        row |= {"outcome": "skipped", "version": same["version"], "why": "data, settings and base are those of the last time"}
        return
    # A domain has one trial at a time: what is trained now could not begin its own.
    if settings.retrain_then == "canary" and (trials := canaries.running(workspace.db, domain)):
        ends = f"promote it, or end its trial: appliance adapter canary stop --domain {domain}"
        row |= {"outcome": "waiting", "version": trials[0].candidate, "why": f"{trials[0].candidate} is still on trial; {ends}"}
        return

    def report(stage: str, event: dict[str, Any]) -> None:
        progress(" ".join(filter(None, ("training", domain, stage))), event["step"], event["steps"])

    # What was trained the last time, and ended or met an error before the gate was through, is not trained again.
    if same is not None and _whole(service.registry, same["version"]):
        row["version"] = same["version"]
    else:
        row["version"] = tune_plan(service, domain, plan, report)[-1][0].name
        _write(workspace.db, _done(domain), {"state": state, "version": row["version"], "unfinished": True})
    found = asyncio.run(_go_on(service, row["version"], settings.retrain_then, progress))
    _write(workspace.db, _done(domain), {"state": state, "version": row["version"]})
    row |= found


def _whole(registry: Any, name: str) -> bool:
    """Whether the version is still registered, with the files that were."""
    version = registry.find(name)
    try:
        return version is not None and registry.check(version) is None
    except ApplianceError:
        return False


def _report(workspace: Workspace, row: dict[str, Any]) -> None:
    with workspace.db.write() as connection:
        workspace.db.audit(connection, "adapter.retrain", {name: row.get(name) for name in ("domain", "outcome", "version")})
    file = workspace.config.domain(row["domain"]).retrain_report
    if file is not None:
        _append(workspace.root / Path(file).expanduser(), row)


async def _go_on(service: Any, name: str, then: str, progress: Progress) -> dict[str, Any]:
    from appliance.adapters.gates import promote
    from appliance.adapters.trial import begin

    try:
        if then == "register":
            return {"outcome": "registered"}
        live = service.registry.live(service.registry.get(name).domain)
        if live is not None and live.name == name:
            return {"outcome": "live", "why": "this very version is live already"}
        if then == "promote":
            done = await _patiently(partial(promote, service, name, progress=progress), progress)
            return {"outcome": "live" if done.promoted else "missed", "gate": None if done.gate is None else done.gate.to_json()}
        trial = await _patiently(partial(begin, service, name, progress=progress), progress)
        gate = None if trial.gate is None else trial.gate.to_json()
        if trial.canary is None:
            return {"outcome": "missed", "gate": gate}
        return {"outcome": "trial", "gate": gate, "canary": trial.canary.to_json()}
    finally:
        await service.answering.close()


async def _patiently(work: Callable[[], Awaitable[T]], progress: Progress) -> T:
    """What `work` returns, once no other gate runs in the domain; raises Busy if one still does after an hour."""
    until = time.monotonic() + _WAIT
    while True:
        try:
            return await work()
        except Busy:
            if time.monotonic() >= until:
                raise
            progress("waiting for another gate of the domain", 0, 1)
            await asyncio.sleep(_AGAIN)


def _plan(workspace: Workspace, domain: str, settings: DomainConfig) -> Any:
    from finetune.config_file import load_plan
    from finetune.settings import learns_from, yields
    from finetune.stages import plan_from
    from finetune.types import TrainingError

    file = settings.retrain_config
    try:
        plan = (load_plan(workspace.root / Path(file).expanduser()) if file else plan_from({})).overridden(settings.retrain_dataset, None)
    except TrainingError as error:
        raise UsageError(f"[domains.{domain}] retrain: {error}") from error
    for stage in plan.stages:
        if stage.dataset is None and learns_from(stage.settings.method) != "texts":
            raise UsageError(f"[domains.{domain}] retrain: nothing names a data set; set retrain_dataset, or name it in the retrain_config")
    if yields(plan.stages[-1].settings.method) == "model":
        raise UsageError(
            f"[domains.{domain}] retrain: method {plan.stages[-1].settings.method} makes a model, which cannot go live by itself"
        )
    return plan


def _newest(workspace: Workspace, name: str) -> str:
    """The version of a data set, after the file or folder it was registered from was read once more, where that is still there."""
    from appliance.datasets.registry import Datasets

    datasets = Datasets(workspace)
    info = datasets.get(name)
    source, sign, entry = info.source.partition("#")
    file = Path(source)
    if sign and file.is_file():
        datasets.add_folder(file.parent, domain=info.domain, only=[entry], skip_bad=True, task=info.task)
    elif file.is_file():
        datasets.add(file, name=name, domain=info.domain, mapping=dict(info.mapping), skip_bad=True, task=info.task)
    return datasets.get(name).version


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _asked(domain: str) -> str:
    return f"retrain_asked:{domain}"


def _done(domain: str) -> str:
    return f"retrained:{domain}"


def _read(database: Database, key: str) -> dict[str, Any] | None:
    found = database.setting(key)
    return None if found is None else json.loads(found)


def _write(database: Database, key: str, value: dict[str, Any]) -> None:
    table = schema.setting
    with database.write() as connection:
        connection.execute(sa.delete(table).where(table.c.key == key))
        connection.execute(table.insert().values(key=key, value=json.dumps(value, ensure_ascii=False)))
