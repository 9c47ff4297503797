"""What a compaction of the index reads and changes in the tables, inside the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from appliance.store.committing import batches
from appliance.store.database import utcnow
from appliance.store.schema import chunk, content, document, document_version, segment
from retrieval.store import MergedSegment, SegmentRows, StoredChunks

# Rows of a large result that are in memory as objects, or parameters of a statement, at one time.
_ROWS = 50_000


def segment_rows(connection: Connection) -> dict[str, SegmentRows]:
    """Every segment of the database."""
    query = sa.select(segment.c.id, segment.c.embedding_hash, segment.c.chunks, segment.c.live)
    return {id: SegmentRows(embedding, rows, live) for id, embedding, rows, live in connection.execute(query)}


def stored_chunks(connection: Connection, segments: Collection[str]) -> StoredChunks:
    """The chunks in some segments, whichever generation has them."""
    live = sa.select(document_version.c.content_id).join(document, document.c.version_id == document_version.c.id)
    query = (
        sa.select(chunk.c.segment_id, chunk.c.ordinal, chunk.c.id, content.c.lang, content.c.id.in_(live).label("live"))
        .join(content, content.c.id == chunk.c.content_id)
        .order_by(chunk.c.segment_id, chunk.c.ordinal)
        .execution_options(yield_per=_ROWS)
    )
    names: dict[str, int] = {}
    languages: dict[str, int] = {}
    parts: list[NDArray[np.int64]] = [np.empty((0, 5), dtype=np.int64)]
    # In order, so that batch by batch the chunks come sorted by segment.
    for some in batches(sorted(segments)):
        for rows in connection.execute(query.where(chunk.c.segment_id.in_(some))).partitions():
            found = [
                (names.setdefault(name, len(names)), ordinal, id, languages.setdefault(lang, len(languages)), is_live)
                for name, ordinal, id, lang, is_live in rows
            ]
            parts.append(np.array(found, dtype=np.int64).reshape(-1, 5))
    number, ordinal, row, language, is_live = np.ascontiguousarray(np.concatenate(parts).T)
    return StoredChunks(
        tuple(names), tuple(languages), number.astype(np.int32), ordinal, row, is_live.astype(np.bool_), language.astype(np.int32)
    )


def move_chunks(connection: Connection, merged: Sequence[MergedSegment]) -> None:
    """Put the chunks of merged segments where they are now, for every generation."""
    for new in merged:
        facts = {"embedding_hash": new.embedding_hash, "chunks": len(new.chunks), "live": new.live, "sha256": new.sha256}
        connection.execute(segment.insert().values(id=new.id, **facts, created_at=utcnow()))
        for first in range(0, len(new.chunks), _ROWS):
            listed = _numbered(connection, new.chunks[first : first + _ROWS])
            update = chunk.update().where(chunk.c.id == listed.c.id).values(segment_id=new.id, ordinal=listed.c.number + first)
            connection.execute(update)
    left = ~sa.exists().where(chunk.c.segment_id == segment.c.id)
    connection.execute(segment.update().where(segment.c.live > 0, left).values(live=0))


def _numbered(connection: Connection, ids: NDArray[np.int64]) -> sa.FromClause:
    """The ids as one parameter, as rows (id, number), numbered from 0."""
    if connection.dialect.name == "postgresql":
        text = sa.literal("{" + ",".join(map(str, ids.tolist())) + "}", sa.Text)
        cast = sa.cast(text, sa.ARRAY(sa.Integer))
        table = sa.func.unnest(cast).table_valued("id", with_ordinality="place").render_derived(name="listed")
        return sa.select(table.c.id, (table.c.place - 1).label("number")).subquery()
    # SQLite numbers the entries of a JSON array from 0.
    each = sa.func.json_each(json.dumps(ids.tolist())).table_valued(sa.column("value", sa.Integer), sa.column("key", sa.Integer))
    return sa.select(each.c.value.label("id"), each.c.key.label("number")).subquery()
