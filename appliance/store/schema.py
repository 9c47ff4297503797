"""Every table of a workspace. Column types work on SQLite and PostgreSQL alike; migrations are made from this."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time; SQLite drops the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- the workspace itself ---------------------------------------------------------------------------------------

setting = Table("setting", metadata, Column("key", String(100), primary_key=True), Column("value", Text, nullable=False))

domain = Table(
    "domain",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
)

# What is live: `index` -> generation id, `adapter:DOMAIN` -> version, `dataset:NAME` -> version. Every move is one row in pointer_move.
pointer = Table(
    "pointer",
    metadata,
    Column("name", String(160), primary_key=True),
    Column("value", String(200), nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

pointer_move = Table(
    "pointer_move",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(160), nullable=False, index=True),
    Column("old", String(200)),
    Column("new", String(200)),
    Column("moved_at", UtcDateTime, nullable=False),
    Column("why", Text, nullable=False, default=""),
)

# One writer per resource; a lock whose heartbeat is too old, or whose process is gone, may be taken over.
lock = Table(
    "lock",
    metadata,
    Column("resource", String(160), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("heartbeat", UtcDateTime, nullable=False),
)

# --- documents and the index ------------------------------------------------------------------------------------

# A text as it was cut and embedded: immutable, shared by every document of one domain and label set that has exactly this text.
content = Table(
    "content",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("domain", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    # How chunks and vectors were made (see `retrieval.staging.Recipe`), and the label set it was made for: what may share it.
    Column("recipe", String(64), nullable=False),
    Column("labels", Text, nullable=False),
    # The title its chunks are found by, and the main language: those of the document that brought it.
    Column("title", Text, nullable=False),
    Column("lang", String(8), nullable=False),
    # The number of chunks; NULL until all of them are staged.
    Column("chunks", Integer),
    # MinHash of the text, for near duplicates (see `retrieval.duplicates`).
    Column("signature", LargeBinary),
    Index("ix_content_text", "domain", "sha256"),
)

# The text of a content in pieces of `appliance.store.texts.PIECE` characters, written and read by that module alone.
content_text = Table(
    "content_text",
    metadata,
    Column("content_id", Integer, ForeignKey("content.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
)

# Under what keys a content meets those like it (see `retrieval.duplicates.bands`).
content_band = Table(
    "content_band",
    metadata,
    Column("band", BigInteger, primary_key=True, autoincrement=False),
    Column("content_id", Integer, ForeignKey("content.id", ondelete="CASCADE"), primary_key=True, autoincrement=False, index=True),
)

# A document with one content: immutable. Referenced by generations; staged until its ingest commits.
document_version = Table(
    "document_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("domain", String(64), nullable=False),
    Column("doc_id", String(1000), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("recipe", String(64), nullable=False),
    Column("content_id", Integer, ForeignKey("content.id"), nullable=False, index=True),
    Column("uri", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("lang", String(8), nullable=False),
    Column("meta", JSON, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("domain", "doc_id", "recipe", "content_id", name="uq_document_version_content"),
)

# The live documents: which version, which labels, and the root it was last seen under (for --prune).
document = Table(
    "document",
    metadata,
    Column("domain", String(64), primary_key=True),
    Column("doc_id", String(1000), primary_key=True),
    Column("version_id", Integer, ForeignKey("document_version.id"), nullable=False, index=True),
    Column("root", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    # Size, mtime and raw hash of the file as last seen, so that an unchanged file is not parsed again.
    Column("file_size", BigInteger),
    Column("file_mtime_ns", String(24)),
    Column("file_sha256", String(64)),
    # What was said about the file when it was read, and how it was read: {"warnings", "options"}; NULL: there was nothing to say.
    Column("file_warned", JSON(none_as_null=True)),
    Column("added_at", UtcDateTime, nullable=False),
)

segment = Table(
    "segment",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("embedding_hash", String(64), nullable=False),
    Column("chunks", Integer, nullable=False),
    # How many of them belong to live documents.
    Column("live", Integer, nullable=False),
    # What vouches for a segment that a compaction made: the manifests of older generations do not name it.
    Column("sha256", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
)

# (segment, ordinal) is the row of the segment's vector and postings.
chunk = Table(
    "chunk",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("chunk_id", String(40), nullable=False, index=True),
    Column("content_id", Integer, ForeignKey("content.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("segment_id", String(40), ForeignKey("segment.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("end", Integer, nullable=False),
    Column("heading", JSON, nullable=False),
    Column("page", Integer),
    Column("lang", String(8), nullable=False),
    # Kinds of instruction-like content (see `retrieval.injection`).
    Column("flags", JSON, nullable=False),
    UniqueConstraint("segment_id", "ordinal", name="uq_chunk_place"),
)

# The embedding models of segments and generations, by the hash of their files: what to load to search them.
embedding = Table(
    "embedding",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("reference", Text, nullable=False),
    Column("used_at", UtcDateTime, nullable=False),
)

generation = Table(
    "generation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("manifest", String(200), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("embedding_hash", String(64), nullable=False),
    Column("documents", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("parent", Integer),
    Column("created_at", UtcDateTime, nullable=False),
)

# Which document versions a generation holds: the ground truth behind rollback, `document` is derived for the live one.
generation_document = Table(
    "generation_document",
    metadata,
    Column("version_id", Integer, ForeignKey("document_version.id", ondelete="CASCADE"), primary_key=True),
    # Half-open interval of generations: [since, until); until NULL means still there.
    Column("since", Integer, primary_key=True),
    Column("until", Integer),
    Column("labels", JSON, nullable=False),
    Column("root", Text, nullable=False),
)

# Deleted documents: id and content hash, never text. Applied on reading to everything.
deletion = Table(
    "deletion",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("domain", String(64), nullable=False),
    Column("doc_id", String(1000), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("deleted_at", UtcDateTime, nullable=False),
    Index("ix_deletion_document", "domain", "doc_id"),
)

# --- data sets, adapters ------------------------------------------------------------------------------------------

# An immutable state of a data set; pointer `dataset:NAME` names the live one. `path` is relative to the workspace.
dataset = Table(
    "dataset",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("domain", String(64)),
    Column("task", String(20), nullable=False, default="qa"),
    Column("path", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("mapping", JSON, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# An immutable trained adapter; pointer `adapter:DOMAIN` names the live one. `path` is relative to the workspace.
adapter = Table(
    "adapter",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("domain", String(64), nullable=False, index=True),
    Column("base", Text, nullable=False),
    Column("base_hash", String(64), nullable=False),
    Column("method", String(20), nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("dataset", String(100), nullable=False),
    Column("dataset_version", String(64), nullable=False),
    Column("parent", String(100)),
    Column("labels", JSON, nullable=False),
    Column("config", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# What each trained pair rests on. kind is `declared`, `inferred`, `unlinked` (these have no document), or `former`: of an earlier training.
adapter_evidence = Table(
    "adapter_evidence",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter", String(100), ForeignKey("adapter.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("pair_id", String(200), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("doc_domain", String(64)),
    Column("doc_id", String(1000)),
    Column("sha256", String(64)),
    Column("score", Float),
)

# What was measured when a version was to go live. `reference` is the version that was live then, NULL for none.
gate = Table(
    "gate",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("adapter", String(100), ForeignKey("adapter.name", ondelete="CASCADE"), nullable=False, index=True),
    Column("reference", String(100)),
    Column("passed", Boolean, nullable=False),
    Column("settings", JSON, nullable=False),
    # One entry for each thing measured, the questions left out by reason, and the runs that hold the answers.
    Column("checks", JSON, nullable=False),
    Column("left_out", JSON, nullable=False),
    Column("runs", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# --- answers, evaluation, access ----------------------------------------------------------------------------------

# An expert-approved answer. It is served only while every cited document still has the cited hash.
verified = Table(
    "verified",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("domain", String(64), nullable=False, index=True),
    Column("question", Text, nullable=False),
    # As the release that approved it normalised the question; what is asked is looked up by `question` itself.
    Column("normalised", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("lang", String(8), nullable=False),
    Column("citations", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("approved_by", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("dataset", String(100), nullable=False),
    Column("dataset_version", String(64), nullable=False),
    Column("domain", String(64)),
    Column("path", Text, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("summary", JSON),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("domains", JSON),
    Column("labels", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    # What it may do (see `appliance.admin.keys.SCOPES`).
    Column("scopes", JSON, nullable=False, server_default='["chat"]'),
    # The quota; NULL: none.
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
)

# What the gateway answered lately (see `appliance.answers.feedback`); the texts only while `[feedback] retain_hours` keeps them.
# `documents` are the [domain, doc_id] it rests on, `labels` what one must hold to see it.
answer = Table(
    "answer",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("caller", String(100), nullable=False),
    Column("domain", String(64), nullable=False),
    Column("arm", String(20), nullable=False),
    Column("adapter", String(100)),
    Column("question", Text),
    Column("answer", Text),
    Column("documents", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    # Whether it declined; its question, keyed with the workspace secret (see `appliance.experts.review`).
    Column("refused", Boolean, nullable=False, server_default=false()),
    Column("question_hash", String(64), nullable=False, server_default=""),
    Column("rule", String(60), nullable=False, server_default=""),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

# What a person said about an answer; `answered_at` is when that was given, and deletions since then withhold the texts.
feedback = Table(
    "feedback",
    metadata,
    Column("answer_id", String(60), primary_key=True),
    Column("caller", String(100), nullable=False),
    Column("domain", String(64), nullable=False, index=True),
    Column("arm", String(20), nullable=False),
    Column("adapter", String(100)),
    Column("rating", String(10), nullable=False),
    Column("question", Text),
    Column("answer", Text),
    Column("correction", Text),
    Column("documents", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("answered_at", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# Tables of other areas, in the same metadata.
from appliance.store import tables_admin, tables_experts, tables_router  # noqa: E402, F401
