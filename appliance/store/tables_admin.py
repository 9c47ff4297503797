"""The tables of a running appliance's administration: the audit log, jobs, uploaded files, and canaries."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKey, Integer, String, Table, Text, event

from appliance.store import append_only
from appliance.store.schema import UtcDateTime, metadata

# What was done, by whom and when, without any text (see `appliance.store.audit_log`). `entry` is canonical JSON, `sha256` its hash.
# Triggers refuse to change or delete a row (see `appliance.store.append_only`).
audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("action", String(40), nullable=False, index=True),
    Column("entry", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
)
event.listen(audit, "after_create", lambda table, connection, **_: append_only.protect(connection))

# Work that the worker does in a process of its own (see `appliance.jobs.jobs`). It keeps no text of questions, answers or documents.
job = Table(
    "job",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("domain", String(64)),
    # Jobs of one resource run one after the other.
    Column("resource", String(160), nullable=False),
    Column("arguments", JSON, nullable=False),
    # What one must hold to see it.
    Column("labels", JSON, nullable=False),
    Column("state", String(12), nullable=False, index=True),
    Column("actor", String(120), nullable=False),
    Column("attempt", Integer, nullable=False),
    # When its cancelling was asked for.
    Column("cancelled_at", UtcDateTime),
    # The process that does it, as PID:START, so that what a killed worker left behind can be ended.
    Column("process", String(40)),
    Column("heartbeat", UtcDateTime),
    Column("progress", JSON),
    Column("log", Text, nullable=False),
    Column("result", JSON),
    Column("error", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
)

# A file that was sent in and checked; it lies in uploads/ID until the job that takes it has ended.
upload = Table(
    "upload",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", Text, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("caller", String(100), nullable=False),
    Column("job", String(40)),
    Column("created_at", UtcDateTime, nullable=False),
)

# A candidate version that answers a share of a domain's questions (see `appliance.adapters.canary`); at most one a domain is `running`.
canary = Table(
    "canary",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("domain", String(64), nullable=False, index=True),
    Column("candidate", String(100), nullable=False),
    # The version it is compared with; NULL: none is live.
    Column("live", String(100)),
    Column("share", Float, nullable=False),
    Column("state", String(12), nullable=False),
    Column("why", Text, nullable=False),
    # Looks at the figures so far, by criterion.
    Column("looks", JSON, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
)

# How the answers of both sides went; `side` is candidate or live, `outcome` answered or failed.
canary_count = Table(
    "canary_count",
    metadata,
    Column("canary", String(40), ForeignKey("canary.id", ondelete="CASCADE"), primary_key=True),
    Column("side", String(10), primary_key=True),
    Column("outcome", String(10), primary_key=True),
    Column("count", Integer, nullable=False),
)
