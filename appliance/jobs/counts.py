"""How many jobs there are in each state and what came of each domain's last scheduled refresh, for the gateway's metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

import sqlalchemy as sa

from appliance.errors import ApplianceError
from appliance.jobs.jobs import STATES
from appliance.jobs.kinds import KINDS
from appliance.jobs.schedule import last_refresh
from appliance.store.database import Database
from appliance.store.tables_admin import job as table

logger = logging.getLogger("appliance.jobs")

# Seconds between two looks: less than between two scrapes.
_EVERY = 5.0


class JobCounts:
    """What the last look found, so that a scrape never waits for the database; `refreshed` are the domains with a `refresh`."""

    def __init__(self, database: Database, refreshed: Collection[str] = ()) -> None:
        self._database, self._refreshed = database, refreshed
        self._found: Mapping[tuple[str, str], int] = {}
        self._refreshes: Mapping[str, str] = {}

    def found(self) -> Mapping[tuple[str, str], int]:
        """Jobs by (kind, state), those that have ended included as long as they are kept; empty before the first look."""
        return self._found

    def refreshes(self) -> Mapping[str, str]:
        """What came of the last scheduled refresh, by domain; without those that had none yet."""
        return self._refreshes

    def look(self) -> None:
        """Count them. Raises DatabaseFailed; the counts of before then stay."""
        query = sa.select(table.c.kind, table.c.state, sa.func.count()).group_by(table.c.kind, table.c.state)
        with self._database.read() as connection:
            rows = {(kind, state): count for kind, state, count in connection.execute(query)}
        # A series that is there from the start shows the first failure as a rise.
        self._found = {(kind, state): 0 for kind in KINDS for state in STATES} | rows
        last = {domain: last_refresh(self._database, domain) for domain in self._refreshed}
        self._refreshes = {domain: row["outcome"] for domain, row in last.items() if row is not None}

    async def run(self) -> None:
        """`look` every few seconds until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except (ApplianceError, sa.exc.SQLAlchemyError, OSError) as error:
                logger.error("the jobs cannot be counted: %s", error)
            await asyncio.sleep(_EVERY)
