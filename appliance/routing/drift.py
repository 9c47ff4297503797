"""`appliance router drift`: the questions of now against those the live router learnt from, and when to relabel."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from appliance.routing.log import rows_since
from appliance.routing.routers import Routers
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.workspace import Workspace
from router.drift import FEWEST, mix_shift, shifts

# These move by themselves: documents grow older, and adapters are trained anew.
_EXPECTED = ("e_top_days", "e_newest_days", "e_oldest_days", "a_pairs", "a_unlinked")


def drift(workspace: Workspace, domain: str, days: int = 30) -> dict[str, Any]:
    """The JSON of `router drift`: shifts by feature and of the arms, shares refused and rated badly, and `relabel`, why to label anew
    (empty: no reason). Without a trained router only what was decided is told.
    """
    database, since = workspace.db, utcnow() - timedelta(days=days)
    routers = Routers(database)
    live = routers.live(domain)
    rows = rows_since(database, domain, since)
    mix = {arm: count / len(rows) for arm, count in Counter(row.arm for row in rows).most_common()} if rows else {}
    found: dict[str, Any] = {
        "domain": domain,
        "router": live or "rules",
        "days": days,
        "questions": len(rows),
        "mix": mix,
        "refused": mix.get("refuse", 0.0),
        "ratings": _ratings(database, domain, since),
        "features": [],
        "arms": None,
        "relabel": [],
    }
    if live is None:
        return found
    if trouble := routers.trouble(live):
        return {**found, "router": "rules", "relabel": [f"the rules decide: {trouble}"]}
    version = routers.get(live)
    reasons: list[str] = []
    trained_with = {name for name in version.training["adapters"].values() if name}
    adapter = database.pointer(f"adapter:{domain}")
    if adapter not in trained_with and (adapter or trained_with):
        knows = ", ".join(sorted(trained_with)) or "no adapter"
        reasons.append(f"{f'the adapter {adapter}' if adapter else 'no adapter'} is live, the router learnt what {knows} does")
    if len(rows) < FEWEST:
        reasons_later = f"{len(rows)} decisions in {days} days are too few to tell; {FEWEST} are needed"
        return {**found, "relabel": reasons, "note": reasons_later}
    moved = shifts(version.training["bins"], [row.row for row in rows], version.training["questions"])
    reasons += [
        f"{shift.name} has moved (PSI {shift.psi:.2f}, by chance {shift.by_chance:.2f})"
        for shift in moved
        if shift.state == "moved" and shift.name not in _EXPECTED
    ]
    # Only its own choices are compared: not the rules' before it, nor approved answers, which come before it.
    chosen = Counter(row.arm for row in rows if row.router == live and row.arm != "verified")
    arms = None
    if (total := chosen.total()) >= FEWEST:
        shares = {arm: count / total for arm, count in chosen.items()}
        arms = mix_shift(version.training["arm_mix"], shares, version.training["questions"], total)
        if arms.state == "moved":
            reasons.append(f"other arms are chosen than in training (PSI {arms.psi:.2f})")
    return {**found, "features": [asdict(shift) for shift in moved], "arms": arms and asdict(arms), "relabel": reasons}


def _ratings(database: Database, domain: str, since: Any) -> dict[str, int]:
    """How often people gave each rating."""
    table = schema.feedback
    query = (
        sa.select(table.c.rating, sa.func.count()).where(table.c.domain == domain, table.c.created_at >= since).group_by(table.c.rating)
    )  # fmt: skip
    with database.read() as connection:
        return {str(rating): int(count) for rating, count in connection.execute(query)}
