"""Removing a data set: its name, and every state of it that nothing rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from appliance.datasets.registry import Datasets, several
from appliance.errors import UsageError
from appliance.jobs.jobs import Jobs
from appliance.store import schema
from appliance.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Removed:
    """The versions whose pairs were deleted, and those that stay with the adapters and runs that rest on them."""

    removed: Sequence[str]
    kept: Mapping[str, Sequence[str]]


def remove(workspace: Workspace, name: str) -> Removed:
    """Take the name away and delete every state that no adapter and no run rests on; of a name taken before, what was kept and is free now.

    The name goes first, then each file before its row: after a crash the same call goes on. Raises UsageError (unknown, named by a job or
    a setting), Locked while one of its domain is trained or measured.
    """
    table, database = schema.dataset, workspace.db
    with database.read() as connection:
        rows = connection.execute(sa.select(table).where(table.c.name == name)).all()
    if not rows:
        Datasets(workspace).get(name)
        raise UsageError(f"{name!r} names several data sets; remove one at a time")
    domains = sorted({row.domain for row in rows}) if all(row.domain for row in rows) else workspace.domains()
    with ExitStack() as held:
        # A training that goes on has read it, but no adapter says so yet.
        for domain in domains:
            held.enter_context(database.lock(f"tune:{domain}"))
            held.enter_context(database.lock(f"gate:{domain}"))
        _check_free(workspace, name)
        kept = {row.version: users for row in rows if (users := _users(workspace, name, row.version))}
        free = [row for row in rows if row.version not in kept]
        with database.write() as connection:
            if database.pointer(f"dataset:{name}", connection) is not None:
                database.move_pointer(connection, f"dataset:{name}", None, "dataset remove", {"kept": sorted(kept)})
        for row in free:
            (workspace.root / row.path).unlink(missing_ok=True)
            with database.write() as connection:
                connection.execute(table.delete().where(table.c.name == name, table.c.version == row.version))
    return Removed([row.version for row in free], kept)


def _check_free(workspace: Workspace, name: str) -> None:
    """Raises UsageError where a job that waits or runs, or a setting, names the data set."""
    jobs = Jobs(workspace.db)
    for job in (*jobs.running(), *jobs.waiting()):
        if _names(job.arguments, name):
            raise UsageError(f"{name} is used by {job.id} ({job.kind}, {job.state}); wait for it, or `appliance job cancel {job.id}`")
    for domain, settings in workspace.config.domains.items():
        named = {"gate.dataset": settings.gate.dataset, "gate.general": settings.gate.general, "retrain_dataset": settings.retrain_dataset}
        for setting, value in named.items():
            if name in several(value or ""):
                raise UsageError(f"[domains.{domain}] {setting} names {name}; change that first")


def _names(given: Any, name: str) -> bool:
    """Whether a job's arguments, or the settings and stages in them, name a data set."""
    if isinstance(given, Mapping):
        texts = (given.get(key) for key in ("dataset", "eval_dataset"))
        return any(isinstance(text, str) and name in several(text) for text in texts) or any(_names(one, name) for one in given.values())
    return isinstance(given, list) and any(_names(one, name) for one in given)


def _users(workspace: Workspace, name: str, version: str) -> list[str]:
    """The adapters trained on a state and the runs over it, also beside others ("a,b" with the beginnings of their versions)."""
    found: list[str] = []
    for what, table in (("adapter", schema.adapter), ("run", schema.run)):
        own = table.c.name if what == "adapter" else table.c.id
        with workspace.db.read() as connection:
            rows = connection.execute(sa.select(own, table.c.dataset, table.c.dataset_version)).all()
        for user, names, versions in rows:
            if any(one == name and version.startswith(short) for one, short in zip(names.split(","), versions.split(","), strict=False)):
                found.append(f"{what} {user}")
    return found
