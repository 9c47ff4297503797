"""What each arm costs here: moving averages of what was seen, starting from what evaluation runs measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from appliance.store import schema
from appliance.store.database import Database
from appliance.types import Answer
from router.types import ARMS, Arm, Costs

# The share of a new answer in an average, and the seconds after which an arm's latency is too old to rule it out by.
_WEIGHT, _TRUSTED = 0.1, 600.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """Averages over `answers` answers, the last of them at `at` (seconds of the book's clock)."""

    costs: Costs
    answers: int
    at: float


class CostBook:
    """Latency (ms) and tokens (read and generated) by domain and arm, as this process sees them.

    `start` gives the costs known for a domain before its first answer, `now` is a clock in seconds.
    """

    def __init__(self, start: Callable[[str], Mapping[Arm, Costs]] = lambda domain: {}, now: Callable[[], float] = time.monotonic) -> None:
        self.start = start
        self._now = now
        self._opened = now()
        self._seen: dict[tuple[str, Arm], _Seen] = {}

    def expected(self, domain: str) -> dict[Arm, Costs]:
        """What is known of a domain's arms; the router assumes the others' costs."""
        return {**self.start(domain), **{arm: seen.costs for arm in ARMS if (seen := self._seen.get((domain, arm))) is not None}}

    def untimed(self, domain: str) -> frozenset[Arm]:
        """The arms that were not timed for ten minutes. A limit that ruled them out would keep them from ever being timed again."""
        return frozenset(
            arm
            for arm in ARMS
            if self._now() - (seen.at if (seen := self._seen.get((domain, arm))) is not None else self._opened) > _TRUSTED
        )  # fmt: skip

    def record(self, domain: str, arm: Arm, answer: Answer) -> None:
        """Take a finished answer into the averages of the arm that was chosen: what it led to, a fall-back too, is what choosing it costs.

        The first ones count alike, then each a tenth; after ten minutes without any they begin anew.
        """
        now, old = self._now(), self._seen.get((domain, arm))
        if old is None or now - old.at > _TRUSTED:
            old = _Seen(Costs(0.0, 0.0), 0, now)
        weight = max(_WEIGHT, 1 / (old.answers + 1))
        tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
        costs = Costs(
            latency_ms=(1 - weight) * old.costs.latency_ms + weight * answer.timings["total"],
            tokens=(1 - weight) * old.costs.tokens + weight * tokens,
        )
        self._seen[domain, arm] = _Seen(costs, old.answers + 1, now)


def newest_run(database: Database, domain: str) -> dict[Arm, Costs]:
    """The median latency and the mean tokens of each arm in the newest finished evaluation run of a domain; nothing without one."""
    table = schema.run
    query = sa.select(table.c.settings, table.c.summary).where(table.c.domain == domain, table.c.finished_at.is_not(None))
    with database.read() as connection:
        rows = connection.execute(query.order_by(table.c.created_at.desc()))
        found: dict[str, Any] = next((row.summary["arms"] for row in rows if row.summary and "gate" not in row.settings), {})
    return {arm: Costs(found[arm]["latency_p50_ms"], found[arm]["tokens"]) for arm in ARMS if "latency_p50_ms" in found.get(arm, {})}
