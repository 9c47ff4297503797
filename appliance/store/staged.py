"""Rows of staged contents, chunks and document versions, written many at a time inside the caller's transaction."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.committing import having
from appliance.store.database import utcnow
from appliance.store.schema import chunk, content, document_version
from appliance.store.similar import insert_bands
from appliance.store.texts import insert_texts
from retrieval.store import NewChunk, NewContent, NewVersion


def insert_contents(connection: Connection, contents: Sequence[NewContent], segment_id: str | None) -> list[int]:
    """The rows of contents, those stored in part excepted, and of their chunks in the segment; the content ids in order."""
    fresh = [new for new in contents if new.id is None]
    made = _insert(connection, content, [_content_row(new) for new in fresh])
    insert_texts(connection, ((id, new.text) for id, new in zip(made, fresh, strict=True)))
    insert_bands(connection, [(id, new.signature) for id, new in zip(made, fresh, strict=True) if new.signature is not None])
    rest = iter(made)
    ids = [next(rest) if new.id is None else new.id for new in contents]
    chunks = [_chunk_row(item, id, segment_id) for id, new in zip(ids, contents, strict=True) for item in new.chunks]
    if chunks:
        connection.execute(chunk.insert(), chunks)
    for id, new in zip(ids, contents, strict=True):
        if new.id is not None and new.complete:
            count = sa.select(sa.func.count()).where(chunk.c.content_id == id).scalar_subquery()
            connection.execute(content.update().where(content.c.id == id).values(chunks=count))
    return ids


def describe(connection: Connection, versions: Sequence[NewVersion]) -> list[int]:
    """The rows of document versions, made unless they are there; their ids in order."""
    version = document_version
    place = (version.c.domain, version.c.doc_id, version.c.sha256, version.c.recipe, version.c.content_id)
    known: dict[tuple[Any, ...], int] = {}
    seen: defaultdict[tuple[Any, ...], list[datetime]] = defaultdict(list)
    for same in having([new.key for new in versions], version):
        for row in connection.execute(sa.select(*place, version.c.id, version.c.updated_at).where(same)):
            known[row[:5]] = row.id
            seen[row[:3]].append(row.updated_at)
    now = utcnow()
    missing = {_place(new): new for new in versions if _place(new) not in known}
    # A text keeps the time it was first seen here under this id, however it is cut or titled now.
    rows = [_version_row(new) | {"updated_at": min(seen[*new.key, new.sha256], default=now)} for new in missing.values()]
    known.update(zip(missing, _insert(connection, version, rows), strict=True))
    return [known[_place(new)] for new in versions]


def labels_key(labels: frozenset[str]) -> str:
    """A label set as `content.labels` holds it."""
    return json.dumps(sorted(labels))


def _insert(connection: Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Insert rows and return their ids in order."""
    if not rows:
        return []
    return list(connection.execute(table.insert().returning(table.c.id, sort_by_parameter_order=True), rows).scalars())


def _place(new: NewVersion) -> tuple[Any, ...]:
    return (*new.key, new.sha256, new.recipe, new.content)


def _content_row(new: NewContent) -> dict[str, Any]:
    return {
        "domain": new.key.domain,
        "sha256": new.key.sha256,
        "recipe": new.key.recipe,
        "labels": labels_key(new.key.labels),
        "title": new.title,
        "lang": new.lang,
        "chunks": len(new.chunks) if new.complete else None,
        "signature": new.signature,
    }


def _version_row(new: NewVersion) -> dict[str, Any]:
    return {
        "domain": new.key.domain,
        "doc_id": new.key.id,
        "sha256": new.sha256,
        "recipe": new.recipe,
        "content_id": new.content,
        "uri": new.uri,
        "title": new.title,
        "lang": new.lang,
        "meta": dict(new.meta),
    }


def _chunk_row(item: NewChunk, content_id: int, segment_id: str | None) -> dict[str, Any]:
    return {
        "chunk_id": item.id,
        "content_id": content_id,
        "segment_id": segment_id,
        "ordinal": item.ordinal,
        "start": item.start,
        "end": item.end,
        "heading": list(item.heading),
        "page": item.page,
        "lang": item.lang,
        "flags": list(item.flags),
    }
