"""Tables of the trained routers and of what was decided lately."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Index, Integer, String, Table

from appliance.store.schema import UtcDateTime, metadata

# An immutable trained router; pointer `router:DOMAIN` names the live one, none means the rules. `model` is what decides (see
# `router.model`), `training` what it learnt from, and `gate` what was measured before it might go live.
router = Table(
    "router",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("domain", String(64), nullable=False, index=True),
    Column("model", JSON, nullable=False),
    Column("training", JSON, nullable=False),
    Column("gate", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# What was decided for a question, without its text: the numbers that the router read (`row`, in the order of `router.features`).
route = Table(
    "route",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("domain", String(64), nullable=False),
    Column("router", String(200), nullable=False),
    Column("arm", String(20), nullable=False),
    Column("feature_version", Integer, nullable=False),
    Column("row", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_route_domain", "domain", "created_at"),
)
