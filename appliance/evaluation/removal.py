"""Removing runs: their answers, pages, judgements, and what experts said of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from appliance.errors import UsageError
from appliance.evaluation.runs import find, runs
from appliance.service import Service
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.tables_experts import expert_task, expert_work


def remove(service: Service, run_ids: Sequence[str], older_than: int | None = None, *, with_scores: bool = False) -> list[str]:
    """Remove runs by id, and those begun more than `older_than` days ago that belong to no adapter's gate; returns the ids.

    Runs that experts have scored stay, unless `with_scores`. Raises UsageError for a run named that is unknown or stays, Locked while
    somebody goes on with one.
    """
    rows = {row.id: row for row in (find(service, name) for name in run_ids)}
    scored = set() if with_scores else _scored(service)
    for id in rows:
        if id in scored:
            raise UsageError(f"run {id} was scored by experts, whose work would go with it; add --with-scores to remove it all the same")
    if older_than is not None:
        before = utcnow() - timedelta(days=older_than)
        old = (row for row in runs(service) if row.created_at < before and "gate" not in row.settings and row.id not in scored)
        rows |= {row.id: row for row in old}
    for row in rows.values():
        _remove(service, row)
    return list(rows)


def _remove(service: Service, row: sa.Row[Any]) -> None:
    database, folder = service.workspace.db, service.workspace.root / row.path
    with database.lock(f"run:{row.id}"):
        # The texts first: what is not in the database is not looked through when documents are deleted.
        if folder.is_dir():
            shutil.rmtree(folder)
        with database.write() as connection:
            connection.execute(schema.run.delete().where(schema.run.c.id == row.id))
            database.audit(connection, "run.remove", {"run": row.id, "dataset": row.dataset})


def _scored(service: Service) -> set[str]:
    query = sa.select(expert_task.c.run).distinct().join(expert_work, expert_work.c.task == expert_task.c.id)
    with service.workspace.db.read() as connection:
        return set(connection.execute(query.where(expert_work.c.state == "done")).scalars())
