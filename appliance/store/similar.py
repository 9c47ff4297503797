"""Documents with the same text, and candidates for nearly the same, from what ingest stored about their texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.committing import batches, live_contents
from appliance.store.schema import content, content_band, document, document_version
from retrieval.duplicates import bands
from retrieval.types import DocumentKey

_LIVE = document.join(document_version, document_version.c.id == document.c.version_id)


def insert_bands(connection: Connection, signed: Collection[tuple[int, bytes]]) -> None:
    """Store under what keys contents meet those like them."""
    rows = [{"band": band, "content_id": id} for id, signature in signed for band in dict.fromkeys(bands(signature))]
    if rows:
        connection.execute(content_band.insert(), rows)


def copies(connection: Connection, keys: Collection[DocumentKey]) -> list[list[DocumentKey]]:
    """The live documents that share their content with one of `keys`, that one among them: groups of at least two, first seen first."""
    contents = live_contents(connection, keys)
    return [group for group in _sharing(connection, contents).values() if len(group) > 1]


def all_copies(connection: Connection, domain: str | None) -> list[list[DocumentKey]]:
    """Every group of live documents that share a content."""
    query = sa.select(document_version.c.content_id).select_from(_LIVE).group_by(document_version.c.content_id).having(sa.func.count() > 1)
    if domain is not None:
        query = query.where(document.c.domain == domain)
    return list(_sharing(connection, connection.execute(query).scalars().all()).values())


def alike(connection: Connection, keys: Collection[DocumentKey]) -> list[tuple[DocumentKey, DocumentKey, bytes, bytes]]:
    """Live documents that meet an earlier one of their domain under some key: (earlier, this, their signatures), the candidates once each.

    Of those under one key only the earliest is looked at: the cost grows with `keys` alone.
    """
    version = document_version
    contents = live_contents(connection, keys)
    mine, other, earlier = content_band.alias("mine"), content_band.alias("other"), content.alias("earlier")
    is_live = sa.exists().where(version.c.content_id == other.c.content_id, document.c.version_id == version.c.id)
    first = (
        sa.select(other.c.content_id)
        .join(earlier, earlier.c.id == other.c.content_id)
        .where(other.c.band == mine.c.band, other.c.content_id < mine.c.content_id, earlier.c.domain == content.c.domain, is_live)
        .order_by(other.c.content_id)
        .limit(1)
        .correlate(mine, content)
        .scalar_subquery()
    )
    pairs: dict[tuple[int, int], None] = {}
    for some in batches(contents):
        query = sa.select(first, mine.c.content_id).join(content, content.c.id == mine.c.content_id).where(mine.c.content_id.in_(some))
        pairs.update(dict.fromkeys((one, two) for one, two in connection.execute(query) if one is not None))
    named = _sharing(connection, {id for pair in pairs for id in pair})
    signed = _signatures(connection, named)
    return [(named[one][0], named[two][0], signed[one], signed[two]) for one, two in sorted(pairs)]


def signatures(connection: Connection, domain: str | None) -> dict[int, tuple[DocumentKey, bytes]]:
    """The signature of every live content that has one, with the first of its documents."""
    query = sa.select(document_version.c.content_id).select_from(_LIVE)
    if domain is not None:
        query = query.where(document.c.domain == domain)
    named = _sharing(connection, set(connection.execute(query).scalars()))
    return {id: (named[id][0], signature) for id, signature in _signatures(connection, named).items()}


def _sharing(connection: Connection, contents: Collection[int]) -> dict[int, list[DocumentKey]]:
    """The live documents of contents, first seen first."""
    version = document_version
    query = sa.select(version.c.content_id, document.c.domain, document.c.doc_id).select_from(_LIVE)
    query = query.order_by(version.c.updated_at, document.c.doc_id)
    found: defaultdict[int, list[DocumentKey]] = defaultdict(list)
    for some in batches(contents):
        for id, domain, doc_id in connection.execute(query.where(version.c.content_id.in_(some))):
            found[id].append(DocumentKey(domain, doc_id))
    return found


def _signatures(connection: Connection, contents: Collection[int]) -> dict[int, bytes]:
    query = sa.select(content.c.id, content.c.signature).where(content.c.signature.is_not(None))
    return {id: signature for some in batches(contents) for id, signature in connection.execute(query.where(content.c.id.in_(some)))}
