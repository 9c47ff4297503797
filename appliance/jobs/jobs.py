"""Jobs: long work asked of a running appliance, as rows that the worker takes up one after the other for each resource."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from appliance.errors import DONE, GATE_MISSED, PARTLY, UsageError
from appliance.jobs.kinds import KINDS
from appliance.store.database import Database, utcnow
from appliance.store.tables_admin import job as table

State = Literal["queued", "running", "done", "partly", "missed", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
_OPEN = ("queued", "running")
# What an exit code of the command line makes of a job.
OUTCOMES: Mapping[int, State] = {DONE: "done", PARTLY: "partly", GATE_MISSED: "missed"}
# How long one that has ended is kept.
_KEPT = timedelta(days=90)
# How often a job is taken up again whose worker was killed.
ATTEMPTS = 3
# Rows read at a time.
_TOGETHER = 100


@dataclass(frozen=True, slots=True)
class Job:
    """One job. `progress` is the last progress line of its command, `log` the end of what it said, `result` its JSON."""

    id: str
    kind: str
    domain: str | None
    resource: str
    arguments: Mapping[str, Any]
    labels: Sequence[str]
    state: State
    actor: str
    attempt: int
    cancelled_at: datetime | None
    process: str | None
    heartbeat: datetime | None
    progress: Mapping[str, Any] | None
    log: str
    result: Any
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        return self.state not in _OPEN

    def to_json(self) -> dict[str, Any]:
        """As `job show --json` and the HTTP API give it."""
        times = ("created_at", "started_at", "finished_at", "cancelled_at", "heartbeat")
        moments = {name: getattr(self, name) for name in times}
        return {
            "id": self.id,
            "kind": self.kind,
            "domain": self.domain,
            "state": self.state,
            "actor": self.actor,
            "attempt": self.attempt,
            "arguments": {name: value for name, value in self.arguments.items() if name not in ("paths", "path")},
            "progress": None if self.progress is None else dict(self.progress),
            "log": self.log,
            "result": self.result,
            "error": self.error,
            **{name: None if moment is None else moment.isoformat(timespec="seconds") for name, moment in moments.items()},
        }


class Jobs:
    """The jobs of a workspace."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        domain: str | None = None,
        labels: Collection[str] = (),
        identity: str | None = None,
    ) -> Job:
        """Queue a job in the name of the database's actor; `labels` are what one must hold to see it, `identity` one of `new_id`.

        Those that ended long ago are dropped. Raises UsageError for an unknown kind.
        """
        if kind not in KINDS:
            raise UsageError(f"unknown kind of job {kind!r}; known: {', '.join(KINDS)}")
        now = utcnow()
        row: dict[str, Any] = {
            **dict.fromkeys(Job.__slots__),
            "id": identity or new_id(),
            "kind": kind,
            "domain": domain,
            "resource": KINDS[kind].resource,
            "arguments": dict(arguments),
            "labels": sorted(labels),
            "state": "queued",
            "actor": self._database.actor,
            "attempt": 0,
            "log": "",
            "created_at": now,
        }
        with self._database.write() as connection:
            connection.execute(table.delete().where(table.c.finished_at < now - _KEPT))
            connection.execute(table.insert().values({name: sa.null() if value is None else value for name, value in row.items()}))
            self._database.audit(connection, "job.add", {"job": row["id"], "kind": kind, "domain": domain})
        return Job(**row)

    def find(self, identity: str) -> Job | None:
        """The job with this id, None if there is none."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(table).where(table.c.id == identity)).one_or_none()
        return None if row is None else Job(**row._asdict())

    def get(self, identity: str) -> Job:
        """The job with this id. Raises UsageError if there is none."""
        found = self.find(identity)
        if found is None:
            raise UsageError(f"no job {identity!r}; see: appliance job list")
        return found

    def all(self, *, domain: str | None = None, states: Collection[str] = STATES, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first: of a domain, in some states."""
        return list(islice(self.newest(domain=domain, states=states), limit))

    def newest(
        self, *, domain: str | None = None, states: Collection[str] = STATES, within: Collection[str] | None = None
    ) -> Iterator[Job]:
        """Jobs, newest first: of a domain, in some states, `within` some domains (None: all, and those of none); read as they are taken."""
        query = sa.select(table).where(table.c.state.in_(states)).order_by(table.c.created_at.desc(), table.c.id)
        query = query if domain is None else query.where(table.c.domain == domain)
        query = query if within is None else query.where(table.c.domain.in_(within))
        with self._database.read() as connection:
            for row in connection.execute(query, execution_options={"yield_per": _TOGETHER}):
                yield Job(**row._asdict())

    def cancel(self, identity: str) -> Job:
        """Cancel a job: one that waits at once, one that runs as soon as its process has ended. Raises UsageError (unknown, ended)."""
        found = self.get(identity)
        if found.ended:
            raise UsageError(f"job {identity} has ended: {found.state}")
        now = utcnow()
        with self._database.write() as connection:
            mine = table.c.id == identity
            asked = connection.execute(table.update().where(mine, table.c.state.in_(_OPEN)).values(cancelled_at=now)).rowcount
            waited = sa.and_(mine, table.c.state == "queued")
            connection.execute(table.update().where(waited).values(state="cancelled", finished_at=now))
            if asked:
                self._database.audit(connection, "job.cancel", {"job": identity, "kind": found.kind, "domain": found.domain})
        return self.get(identity)

    # --- what the worker does

    def waiting(self) -> list[Job]:
        """Those that wait, oldest first."""
        return self._in("queued")

    def running(self) -> list[Job]:
        """Those that run, or did when their worker was killed."""
        return self._in("running")

    def begin(self, identity: str, process: str) -> bool:
        """Note that a waiting job runs in `process`; False if it was cancelled meanwhile."""
        now, waiting = utcnow(), sa.and_(table.c.id == identity, table.c.state == "queued")
        values = {"state": "running", "process": process, "started_at": now, "heartbeat": now, "attempt": table.c.attempt + 1}
        with self._database.write() as connection:
            return bool(connection.execute(table.update().where(waiting).values(values)).rowcount)

    def note(self, identity: str, progress: Mapping[str, Any] | None, log: str) -> bool:
        """Write how far a running job is, and its heartbeat; True if its cancelling was asked for."""
        values = {"log": log, "heartbeat": utcnow(), **({} if progress is None else {"progress": dict(progress)})}
        with self._database.write() as connection:
            connection.execute(table.update().where(table.c.id == identity).values(values))
            return connection.execute(sa.select(table.c.cancelled_at).where(table.c.id == identity)).scalar_one_or_none() is not None

    def finish(self, identity: str, state: State, *, result: Any = None, error: str | None = None, log: str | None = None) -> None:
        """Note how a job ended."""
        values = {
            "state": state,
            "result": sa.null() if result is None else result,
            "error": error,
            "finished_at": utcnow(),
            "process": None,
        }
        with self._database.write() as connection:
            connection.execute(table.update().where(table.c.id == identity).values({**values, **({} if log is None else {"log": log})}))
            self._database.audit(connection, "job.end", {"job": identity, "state": state})

    def again(self, job: Job, why: str, *, counted: bool) -> State:
        """Let a job that was broken off wait again, or give it up after ATTEMPTS if that is `counted`; the state it is in then."""
        if job.cancelled_at is not None:
            self.finish(job.id, "cancelled")
            return "cancelled"
        if counted and job.attempt >= ATTEMPTS:
            self.finish(job.id, "failed", error=f"{why}, {job.attempt} times")
            return "failed"
        log = f"{job.log}{why}; it is taken up again\n"
        attempt = job.attempt if counted else job.attempt - 1
        with self._database.write() as connection:
            values = {"state": "queued", "process": None, "log": log, "attempt": attempt}
            connection.execute(table.update().where(table.c.id == job.id).values(values))
        return "queued"

    def _in(self, state: State) -> list[Job]:
        query = sa.select(table).where(table.c.state == state).order_by(table.c.created_at, table.c.id)
        with self._database.read() as connection:
            return [Job(**row._asdict()) for row in connection.execute(query)]


def new_id() -> str:
    """A name for a job."""
    return f"job-{secrets.token_hex(8)}"


def folder_of(root: Path, identity: str) -> Path:
    """Where a job's process keeps its files while it runs, below the workspace's folder `root`."""
    return root / "runs" / identity
