"""The schedule of the configuration: when each domain's folders are brought in again, and what became of it the last time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.errors import UsageError
from appliance.jobs.cron import next_after
from appliance.jobs.worker import Stopped, Task
from appliance.knowledge.knowledge import Knowledge, Progress
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.locks import Locked
from appliance.workspace import Workspace

# Files that failed or were skipped which are kept of a run.
_NAMED = 20
# What may come of a scheduled refresh; `partly`: some files failed.
OUTCOMES = ("done", "partly", "failed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``[domains.DOMAIN]`` asks for."""

    domain: str
    sources: tuple[Path, ...]
    refresh: str
    prune: bool
    labels: frozenset[str]

    def next_after(self, moment: datetime) -> datetime:
        """The first time of the cron line after `moment`; see `appliance.jobs.cron`."""
        return next_after(self.refresh, moment)


class Schedule:
    """The plans of a workspace and their last runs, which are rows: every process sees them."""

    def __init__(self, knowledge: Knowledge, clock: Callable[[], datetime] = utcnow) -> None:
        self.knowledge = knowledge
        self.plans = plans(knowledge.workspace)
        self._database = knowledge.workspace.db
        self._clock = clock

    def due(self, moment: datetime) -> Sequence[Task]:
        """The domains whose time has come since their last run began. One that never ran is due; several missed times are one run."""
        return [
            Task(f"refresh {plan.domain}", partial(self.refresh, plan))
            for plan in self.plans
            if (last := self.last(plan.domain)) is None or plan.next_after(datetime.fromisoformat(last["started_at"])) <= moment
        ]

    def refresh(self, plan: Plan, tick: Progress) -> dict[str, Any]:
        """Bring the domain's sources in and store what became of it; `tick` is called often and may raise Stopped.

        A failure is an outcome, not an error, and is tried again at the next time. Raises Stopped, and Locked while another process
        writes the index: then nothing is stored and the run stays due.
        """
        row: dict[str, Any] = {"domain": plan.domain, "started_at": self._clock().isoformat(timespec="seconds")}
        try:
            missing = [str(source) for source in plan.sources if not source.exists()]
            if missing:
                raise UsageError(f"[domains.{plan.domain}] sources: {', '.join(missing)} does not exist; correct it, or mount the folder")
            # Nobody asks for what was removed: only an ingest by hand brings it back.
            asked: dict[str, Any] = {"domain": plan.domain, "labels": plan.labels, "prune": plan.prune, "revive": False}
            report = self.knowledge.ingest(plan.sources, progress=tick, **asked).to_json()
        except (Stopped, Locked):
            raise
        except Exception as error:  # noqa: BLE001 - whatever one domain's documents bring up is recorded, and the others go on
            row |= {"outcome": "failed", "error": str(error) or type(error).__name__}
        else:
            counts = {name: report[name] for name in ("added", "updated", "unchanged", "removed", "generation")}
            listed = {name: report[name][:_NAMED] for name in ("failed", "skipped")}
            row |= {"outcome": "partly" if report["failed"] else "done", **counts, **listed}
        row["finished_at"] = self._clock().isoformat(timespec="seconds")
        self._store(row)
        return row

    def last(self, domain: str) -> dict[str, Any] | None:
        """The last run of a domain, None before the first."""
        return last_refresh(self._database, domain)

    def status(self) -> list[dict[str, Any]]:
        """For each plan: domain, cron line, last run (or None) and next time (now or earlier: it is due)."""
        rows = []
        for plan in self.plans:
            last = self.last(plan.domain)
            upcoming = self._clock() if last is None else plan.next_after(datetime.fromisoformat(last["started_at"]))
            rows.append({"domain": plan.domain, "refresh": plan.refresh, "last": last, "next": upcoming.isoformat(timespec="seconds")})
        return rows

    def _store(self, row: dict[str, Any]) -> None:
        table, key = schema.setting, _key(row["domain"])
        with self._database.write() as connection:
            connection.execute(sa.delete(table).where(table.c.key == key))
            connection.execute(table.insert().values(key=key, value=json.dumps(row, ensure_ascii=False)))


def last_refresh(database: Database, domain: str) -> dict[str, Any] | None:
    """What became of the last scheduled refresh of a domain (its `outcome` is one of OUTCOMES), None before the first."""
    found = database.setting(_key(domain))
    return None if found is None else json.loads(found)


def plans(workspace: Workspace) -> list[Plan]:
    """Every domain with a schedule, by name. Raises UsageError for a name no domain can have."""
    found = []
    for name, settings in sorted(workspace.config.domains.items()):
        if settings.refresh is None:
            continue
        workspace.check_name(name)
        sources = tuple((workspace.root / Path(source).expanduser()).resolve() for source in settings.sources)
        found.append(Plan(name, sources, settings.refresh, settings.prune, frozenset(settings.labels)))
    return found


def _key(domain: str) -> str:
    return f"schedule:{domain}"
