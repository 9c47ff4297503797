"""Looking at a canary's figures, and what follows from them.

Two criteria, failed answers and ratings down, each a share of the candidate's answers that were counted or rated. A candidate is rolled
back where its share is above the ceiling (one-sided binomial test; unless the live version's is too, as in an outage), or above that of the
live version (Fisher's exact test, one-sided), which answered the other questions of the same hours. Figures that are looked at again and
again show a difference by chance sooner or later: so they are looked at when there are `min_answers` (`min_feedback`), and then each time
their number has doubled, and the k-th look tests at significance / (k (k + 1)); over all looks that sums up to the `significance`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from appliance.adapters import canary as canaries
from appliance.adapters.canary import Canary
from appliance.adapters.gate_checks import last_gate
from appliance.adapters.gates import check_fit
from appliance.adapters.registry import Registry
from appliance.errors import ApplianceError, DatabaseFailed
from appliance.models.store import ModelStore
from appliance.settings import CanaryConfig
from appliance.store import tables_admin
from appliance.store.database import utcnow

logger = logging.getLogger("appliance.adapters.canary")

Figures = Mapping[str, Mapping[str, int]]


def watch(registry: Registry, now: datetime | None = None) -> list[dict[str, Any]]:
    """Look at every running canary whose figures are due, and roll back or promote; the JSON of those that ended."""
    database, ended = registry.workspace.db, []
    for canary in canaries.running(database):
        settings = registry.workspace.config.domain(canary.domain).canary
        found = canaries.figures(database, canary)
        state, why, looks = judge(registry, canary, settings, found, now or utcnow())
        if state == "promoted":
            try:
                # The engine's settings may be others than when the trial began.
                check_fit(registry.workspace, ModelStore.default(), registry.get(canary.candidate))
                registry.promote(canary.candidate, f"canary {canary.id}: {why}", over=canary.live)
            except DatabaseFailed:
                # That says nothing about the candidate: the next look promotes it.
                raise
            except ApplianceError as error:
                state, why = "stopped", f"could not be promoted: {error}"
        if state is not None:
            canaries.end(database, canary, state, why)
            ended.append({**canary.to_json(), "state": state, "why": why, "figures": found})
            logger.warning("canary of %s in %s: %s, %s", canary.candidate, canary.domain, state, why)
        elif looks != canary.looks:
            table = tables_admin.canary
            with database.write() as connection:
                connection.execute(table.update().where(table.c.id == canary.id).values(looks=looks))
    return ended


def judge(
    registry: Registry, canary: Canary, settings: CanaryConfig, found: Figures, now: datetime
) -> tuple[Literal["promoted", "rolled_back", "stopped"] | None, str, dict[str, list[int]]]:
    """What is to become of the canary (None: it goes on), why, and the looks taken so far, as [number, size of the last]."""
    looks = dict(canary.looks)
    live = registry.workspace.db.pointer(f"adapter:{canary.domain}")
    if live != canary.live:
        return "stopped", "the candidate became live" if live == canary.candidate else "another version became live", looks
    if registry.find(canary.candidate) is None:
        return "stopped", "the candidate was removed", looks
    criteria = (
        ("failed answers", "failed", "answered", settings.min_answers, settings.max_errors),
        ("ratings down", "down", "up", settings.min_feedback, settings.max_bad),
    )
    for name, bad, good, least, ceiling in criteria:
        ours, theirs = ((found[side][bad], found[side][bad] + found[side][good]) for side in ("candidate", "live"))
        number, size = looks.get(bad, [0, 0])
        if ours[1] < max(least, 2 * size):
            continue
        looks[bad] = [number + 1, ours[1]]
        if why := worse(ours, theirs, ceiling, settings.significance / ((number + 1) * (number + 2))):
            return "rolled_back", f"{name}: {why}", looks
    return *_promotion(registry, canary, settings, found, now), looks


def worse(ours: tuple[int, int], theirs: tuple[int, int], ceiling: float, level: float) -> str:
    """Why (bad, all) of the candidate is too much at this `level` of significance, '' if that is not shown."""
    from scipy.stats import binomtest, fisher_exact

    bad, every = ours
    said = f"{bad} of {every} of the candidate"
    both = theirs[1] > 0 and theirs[0] / theirs[1] > ceiling
    above = 1.0 if both or ceiling == 1 else float(binomtest(bad, every, ceiling, alternative="greater").pvalue)
    if above <= level:
        return f"{said}, more than {ceiling:.0%} (p = {above:.2g})"
    if theirs[1] == 0:
        return ""
    table = [[bad, every - bad], [theirs[0], theirs[1] - theirs[0]]]
    than = float(fisher_exact(table, alternative="greater").pvalue)
    return f"{said}, {theirs[0]} of {theirs[1]} of the live version (p = {than:.2g})" if than <= level else ""


def _promotion(
    registry: Registry, canary: Canary, settings: CanaryConfig, found: Figures, now: datetime
) -> tuple[Literal["promoted"] | None, str]:
    answers, hours = settings.promote_after_answers, settings.promote_after_hours
    given = found["candidate"]["answered"]
    # One that has answered nothing has shown nothing, however many hours have passed.
    if (answers is None and hours is None) or given < (answers or 1) or now - canary.started_at < timedelta(hours=hours or 0):
        return None, ""
    gate = last_gate(registry.workspace, canary.candidate)
    if gate is None or not gate.passed:
        # Forced into the trial: a person has to decide.
        return None, ""
    return "promoted", f"{given} answers in {(now - canary.started_at).total_seconds() / 3600:.1f} hours, gate {gate.id} passed"
