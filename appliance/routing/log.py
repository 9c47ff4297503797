"""What was decided lately, kept without any text, so that the questions of now can be compared with those a router learnt from."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from appliance.errors import ApplianceError
from appliance.store.database import Database, utcnow
from appliance.store.tables_router import route
from appliance.types import Answer
from router.drift import recorded
from router.features import VERSION, row_of

logger = logging.getLogger("appliance.router")

# Decisions that may wait to be written, seconds between two writes, and for how long they are kept.
_WAITING, _EVERY, _DAYS = 10_000, 2.0, 180
# So many are compared at most: more say nothing that these do not, and would have to fit into memory.
_READ = 20_000


class RouteLog:
    """Collects decisions in memory and writes them now and then; what a killed process had not written yet is lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_WAITING)
        # The last write, on the way out, may come while another one is still under way in its thread.
        self._writing = threading.Lock()

    def note(self, answer: Answer) -> None:
        """Keep a decision for the next write, with the arm that was chosen, whatever it led to; one the caller made themselves is none of
        the router's."""
        decision = answer.decision
        if decision.rule != "forced":
            row = list(recorded(row_of(decision.features)))
            self._waiting.append(
                {
                    "domain": answer.domain,
                    "router": decision.router_version,
                    "arm": decision.arm,
                    "feature_version": VERSION,
                    "row": row,
                    "created_at": utcnow(),
                }
            )

    def flush(self) -> None:
        """Write what waits; what cannot be written goes on waiting."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not rows:
            return
        try:
            with self._database.write() as connection:
                connection.execute(route.insert(), rows)
                connection.execute(route.delete().where(route.c.created_at < utcnow() - timedelta(days=_DAYS)))
        except (ApplianceError, sa.exc.SQLAlchemyError, OSError) as error:
            logger.error("%d decisions wait for the router's log: %s", len(rows), error)
            self._waiting.extendleft(reversed(rows))

    async def run(self) -> None:
        """Write every two seconds until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(_EVERY)
                await asyncio.to_thread(self.flush)
        finally:
            self.flush()


def rows_since(database: Database, domain: str, since: datetime) -> list[sa.Row[Any]]:
    """The newest decisions of a domain since then, oldest first, as far as they have today's features."""
    query = sa.select(route.c.arm, route.c.row, route.c.router, route.c.created_at).where(
        route.c.domain == domain, route.c.created_at >= since, route.c.feature_version == VERSION
    )
    with database.read() as connection:
        newest: list[sa.Row[Any]] = list(connection.execute(query.order_by(route.c.created_at.desc(), route.c.id.desc()).limit(_READ)))
    newest.reverse()
    return newest
