"""Tables of expert scoring and of the review queue."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from appliance.store.schema import UtcDateTime, metadata

# One answer, or two beside each other, of a run's question, to be judged blind (see `appliance.experts.tasks`). `arms_a` and `arms_b` are
# the arms that gave them, which no expert is shown; the texts are empty once something they rest on was deleted after `answered_at`.
expert_task = Table(
    "expert_task",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("run", String(40), ForeignKey("run.id", ondelete="CASCADE"), nullable=False),
    Column("item", String(200), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("place", Integer, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("domain", String(64)),
    Column("lang", String(8), nullable=False),
    Column("question", Text, nullable=False),
    Column("answer_a", Text, nullable=False),
    Column("answer_b", Text, nullable=False),
    Column("sources_a", JSON, nullable=False),
    Column("sources_b", JSON, nullable=False),
    Column("arms_a", JSON, nullable=False),
    Column("arms_b", JSON, nullable=False),
    Column("documents", JSON, nullable=False),
    Column("adapters", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("answered_at", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_expert_task_run", "run", "place"),
)

# What an expert has to do or did. state: `open`, `done`, `cannot`, `skipped`; `named` work was given out, other work was asked for.
expert_work = Table(
    "expert_work",
    metadata,
    Column("task", String(40), ForeignKey("expert_task.id", ondelete="CASCADE"), primary_key=True),
    Column("expert", String(100), primary_key=True),
    Column("state", String(10), nullable=False),
    Column("named", Boolean, nullable=False),
    Column("scores", JSON, nullable=False),
    Column("preference", String(4), nullable=False),
    Column("reason", Text, nullable=False),
    Column("correction", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("assigned_at", UtcDateTime, nullable=False),
    Column("done_at", UtcDateTime),
)

# One question that needs a person, once for each domain. `question_hash` is keyed with the workspace secret, `question` its text while
# it is kept. state: `open` or how it was resolved; `answers` are the latest answers to it.
review = Table(
    "review",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("domain", String(64), nullable=False),
    Column("question_hash", String(64), nullable=False),
    Column("question", Text),
    Column("state", String(20), nullable=False),
    Column("refused", Integer, nullable=False),
    Column("rated_down", Integer, nullable=False),
    Column("rule", String(60), nullable=False),
    Column("arm", String(20), nullable=False),
    Column("answers", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("documents", JSON, nullable=False),
    Column("topics", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("verified", String(40)),
    Column("duplicate_of", String(40)),
    Column("resolved_by", String(100)),
    Column("resolved_at", UtcDateTime),
    Column("first_seen", UtcDateTime, nullable=False),
    Column("last_seen", UtcDateTime, nullable=False, index=True),
    Index("uq_review_question", "domain", "question_hash", unique=True),
)
