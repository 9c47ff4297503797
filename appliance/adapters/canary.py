"""Canaries: a candidate version answers a share of a domain's questions until it is stopped, rolled back, or promoted.

Everything is rows, so that every process of the workspace knows the same: the gateways choose versions and count what came of it, the
worker looks at the figures (`appliance.adapters.canary_watch`). The alias of the domain stays where it is until the candidate is promoted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.adapters.gate_checks import last_gate
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.errors import ApplianceError, GateMissed, UsageError
from appliance.store import schema, tables_admin
from appliance.store.database import Database, utcnow
from appliance.types import Caller
from retrieval.text import normalise_question
from router.types import TUNED, Arm, Decision

logger = logging.getLogger("appliance.adapters.canary")

State = Literal["running", "promoted", "rolled_back", "stopped"]
SideName = Literal["candidate", "live"]
# Seconds between two looks at what the other processes did.
_EVERY = 1.0
# What answers where no adapter is live.
_PLAIN: tuple[Arm, ...] = ("base", "rag")


@dataclass(frozen=True, slots=True)
class Canary:
    """One trial of `candidate` beside `live` (None: no adapter) on `share` of the questions, in (0, 1]; `looks` are the criteria's."""

    id: str
    domain: str
    candidate: str
    live: str | None
    share: float
    state: State
    why: str
    looks: dict[str, list[int]]
    started_at: datetime
    ended_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """As `adapter canary --json` prints it."""
        return {
            "id": self.id,
            "domain": self.domain,
            "candidate": self.candidate,
            "live": self.live,
            "share": self.share,
            "state": self.state,
            "why": self.why,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "ended_at": None if self.ended_at is None else self.ended_at.isoformat(timespec="seconds"),
        }


@dataclass(frozen=True, slots=True)
class Side:
    """Which side of a canary a question is on."""

    canary: str
    name: SideName
    has_live: bool

    def counts(self, arm: Arm) -> bool:
        """Whether an answer of `arm` tells about this side: only what the adapter wrote, or where none is live what the plain model did."""
        return arm in (TUNED if self.name == "candidate" or self.has_live else _PLAIN)


def start(registry: Registry, name: str, share: float, why: str | None = None) -> Canary:
    """Let the version called `name` answer `share` of its domain's questions, from the next second on.

    `why` is the reason to try one that has not passed the gate; it is recorded. Raises UsageError (unknown, live already, another canary
    runs, a share outside (0, 1]), GateMissed, ApplianceError (altered files).
    """
    if not 0 < share <= 1:
        raise UsageError(f"a share is more than 0 % and at most 100 %, not {share:.0%}")
    version = registry.get(name)
    registry.check_adapter(version)
    gate = last_gate(registry.workspace, name)
    if why is None and (gate is None or not gate.passed):
        missed = "has not been through the gate" if gate is None else f"missed gate {gate.id}"
        raise GateMissed(f"{name} {missed}; `appliance adapter canary start {name}` measures it; --force --why TEXT tries it all the same")
    database, table = registry.workspace.db, tables_admin.canary
    reason = f"forced: {why}" if why is not None else f"gate {gate.id} passed" if gate is not None else ""
    made = Canary(f"can-{secrets.token_hex(6)}", version.domain, name, None, share, "running", reason, {}, utcnow(), None)
    with database.write() as connection:
        live = database.pointer(f"adapter:{version.domain}", connection)
        if live == name:
            raise UsageError(f"{name} is live in {version.domain} already")
        if other := _running(connection, version.domain):
            raise UsageError(f"{other[0].candidate} is on trial in {version.domain}; stop it first: appliance adapter canary stop")
        row = {**{field: getattr(made, field) for field in Canary.__slots__}, "live": live}
        connection.execute(table.insert().values(row))
        facts = {"id": made.id, "domain": made.domain, "candidate": name, "live": live, "share": share, "why": reason}
        database.audit(connection, "canary.start", facts)
    return _canary(row)


def end(database: Database, canary: Canary, state: State, why: str) -> bool:
    """End a running canary; False if it had ended before."""
    table = tables_admin.canary
    with database.write() as connection:
        still = sa.and_(table.c.id == canary.id, table.c.state == "running")
        done = connection.execute(table.update().where(still).values(state=state, why=why, ended_at=utcnow())).rowcount
        if done:
            facts = {"id": canary.id, "domain": canary.domain, "candidate": canary.candidate, "state": state, "why": why}
            database.audit(connection, "canary.end", facts)
    return bool(done)


def stop(database: Database, domain: str, why: str = "stopped") -> Canary:
    """End the domain's canary. Raises UsageError if none runs."""
    found = running(database, domain)
    if not found:
        raise UsageError(f"no version is on trial in {domain}")
    end(database, found[0], "stopped", why)
    return next(canary for canary in history(database, domain) if canary.id == found[0].id)


def running(database: Database, domain: str | None = None) -> list[Canary]:
    """The canaries that run, of one domain or all."""
    with database.read() as connection:
        return _running(connection, domain)


def candidates(database: Database) -> frozenset[str]:
    """The versions on trial: an engine must keep them loaded beside the live ones."""
    return frozenset(canary.candidate for canary in running(database))


def history(database: Database, domain: str | None = None) -> list[Canary]:
    """Every canary, newest first."""
    table = tables_admin.canary
    query = sa.select(table).order_by(table.c.started_at.desc())
    with database.read() as connection:
        rows = connection.execute(query if domain is None else query.where(table.c.domain == domain)).all()
    return [_canary(row._asdict()) for row in rows]


def figures(database: Database, canary: Canary) -> dict[str, dict[str, int]]:
    """For each side: answers, failures among the tries, and ratings up and down of the answers given since the canary began."""
    counts, given = tables_admin.canary_count, schema.feedback
    found = {side: {"answered": 0, "failed": 0, "up": 0, "down": 0} for side in ("candidate", "live")}
    has_live = canary.live is not None
    sides = {
        "candidate": (given.c.adapter == canary.candidate, given.c.arm.in_(TUNED)),
        "live": (given.c.adapter == canary.live, given.c.arm.in_(TUNED))
        if has_live
        else (given.c.adapter.is_(None), given.c.arm.in_(_PLAIN)),
    }
    with database.read() as connection:
        for row in connection.execute(sa.select(counts).where(counts.c.canary == canary.id)):
            found[row.side][row.outcome] = row._mapping["count"]
        for side, which in sides.items():
            query = sa.select(given.c.rating, sa.func.count()).group_by(given.c.rating)
            since = (given.c.domain == canary.domain, given.c.answered_at >= canary.started_at)
            for rating, count in connection.execute(query.where(*since, *which)):
                found[side][rating] = count
    return found


class Canaries:
    """The canaries as one gateway sees them: it chooses, counts, and learns once a second what the others did. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._database = registry.workspace.db
        # With the labels that the candidate asked for at the last look.
        self._running: Sequence[tuple[Canary, frozenset[str]]] = ()
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def choose(self, domain: str, live: AdapterVersion | None, caller: Caller, question: str) -> tuple[AdapterVersion | None, Side | None]:
        """The version for this caller's question: the same one each time; the live one for who may not use the candidate."""
        canary, labels = next((one for one in self._running if one[0].domain == domain), (None, frozenset[str]()))
        if canary is None or canary.live != (None if live is None else live.name) or not labels <= caller.scope.labels:
            # Who may not see one side tells nothing about the difference.
            return live, None
        has_live = live is not None
        if place(canary.id, caller.name, question) >= canary.share:
            return live, Side(canary.id, "live", has_live)
        candidate = self._registry.current(canary.candidate) if self._registry.find(canary.candidate) is not None else None
        # Its labels may be others since the last look.
        if candidate is None or not candidate.labels <= caller.scope.labels:
            return live, None
        return candidate, Side(canary.id, "candidate", has_live)

    def note(self, side: Side, arm: Arm, *, failed: bool) -> None:
        """Count how an answer went; `tend` writes it."""
        if side.counts(arm):
            with self._lock:
                self._counts[side.canary, side.name, "failed" if failed else "answered"] += 1

    def tend(self) -> None:
        """Write what was counted and read which canaries run. Raises DatabaseFailed; what was counted then waits."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        try:
            if counts:
                with self._database.write() as connection:
                    for key, count in counts.items():
                        _add(connection, key, count)
        except (ApplianceError, sa.exc.SQLAlchemyError, OSError):
            with self._lock:
                self._counts.update(counts)
            raise
        known = [one for one in running(self._database) if self._registry.find(one.candidate) is not None]
        self._running = [(one, self._registry.current(one.candidate).labels) for one in known]

    async def run(self) -> None:
        """`tend` once a second until cancelled, and a last time then."""
        try:
            while True:
                await asyncio.to_thread(self._try)
                await asyncio.sleep(_EVERY)
        finally:
            await asyncio.shield(asyncio.to_thread(self._try))

    def _try(self) -> None:
        try:
            self.tend()
        except (ApplianceError, sa.exc.SQLAlchemyError, OSError) as error:
            logger.error("how the versions on trial do cannot be noted: %s", error)

    def shares(self) -> list[tuple[str, str, float]]:
        """(domain, candidate, share) of those that run, for the metrics."""
        return [(canary.domain, canary.candidate, canary.share) for canary, _ in self._running]


def on_trial(decision: Decision, side: Side | None, adapter: AdapterVersion | None, lang: str) -> Decision:
    """The decision with a sentence that says so, where the candidate writes the answer."""
    if side is None or side.name != "candidate" or adapter is None or decision.arm not in TUNED:
        return decision
    said = "正在试用，回答一部分问题。" if lang == "zh" else "is on trial and answers a share of the questions."
    return replace(decision, reasons=(*decision.reasons, f"{adapter.name} {said}"))


def place(canary: str, caller: str, question: str) -> float:
    """Where a caller's question stands in [0, 1): evenly spread, the same for the same question, and anew for each canary."""
    text = "\0".join((canary, caller, normalise_question(question)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _add(connection: Connection, key: tuple[str, str, str], count: int) -> None:
    table = tables_admin.canary_count
    same = sa.and_(table.c.canary == key[0], table.c.side == key[1], table.c.outcome == key[2])
    if connection.execute(table.update().where(same).values(count=table.c.count + count)).rowcount == 0:
        connection.execute(table.insert().values(canary=key[0], side=key[1], outcome=key[2], count=count))


def _running(connection: Connection, domain: str | None) -> list[Canary]:
    table = tables_admin.canary
    query = sa.select(table).where(table.c.state == "running")
    rows = connection.execute(query if domain is None else query.where(table.c.domain == domain)).all()
    return [_canary(row._asdict()) for row in rows]


def _canary(row: dict[str, Any]) -> Canary:
    return Canary(**{field: row[field] for field in Canary.__slots__})
