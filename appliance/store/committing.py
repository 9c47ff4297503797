"""What one commit changes in the tables, step by step, inside the caller's transaction. Everything costs as much as what changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.database import utcnow
from appliance.store.schema import chunk, content, deletion, document, document_version, generation, generation_document, segment
from retrieval.store import LiveDocument, Warned
from retrieval.types import DocumentInfo, DocumentKey

# Parameters of one statement; SQLite allows 32,766, PostgreSQL 65,535.
BATCH = 5_000
T = TypeVar("T")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists that fit into one statement."""
    whole = list(items)
    for start in range(0, len(whole), BATCH):
        yield whole[start : start + BATCH]


def live_contents(connection: Connection, keys: Collection[DocumentKey]) -> set[int]:
    """The contents of live documents."""
    version = document_version
    query = sa.select(version.c.content_id).select_from(document.join(version, version.c.id == document.c.version_id))
    return {id for matching in having(keys, document) for id in connection.execute(query.where(matching)).scalars()}


def version_contents(connection: Connection, ids: Collection[int]) -> dict[int, int]:
    """Document version to content."""
    query = sa.select(document_version.c.id, document_version.c.content_id)
    return {id: found for some in batches(ids) for id, found in connection.execute(query.where(document_version.c.id.in_(some)))}


def live_chunks(connection: Connection, contents: Collection[int]) -> Counter[str]:
    """How many chunks of those of the contents that are live each segment has."""
    counts: Counter[str] = Counter()
    is_live = sa.exists().where(document_version.c.content_id == chunk.c.content_id, document.c.version_id == document_version.c.id)
    query = sa.select(chunk.c.segment_id, sa.func.count()).where(is_live).group_by(chunk.c.segment_id)
    for some in batches(contents):
        counts.update(dict(connection.execute(query.where(chunk.c.content_id.in_(some))).all()))
    return counts


def count_live(connection: Connection, before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Bring the segments' live chunks from `before` to `after` (both of what changed); those of every segment that has any."""
    changed = [{"id_": name, "by": after[name] - before[name]} for name in before.keys() | after.keys() if after[name] != before[name]]
    if changed:
        connection.execute(
            segment.update().where(segment.c.id == sa.bindparam("id_")).values(live=segment.c.live + sa.bindparam("by")), changed
        )
    return dict(connection.execute(sa.select(segment.c.id, segment.c.live).where(segment.c.live > 0)).all())


def recount_live(connection: Connection) -> None:
    """Count the live chunks of every segment anew: after a rollback."""
    versions = sa.select(document_version.c.content_id).join(document, document.c.version_id == document_version.c.id)
    count = sa.select(sa.func.count()).where(chunk.c.segment_id == segment.c.id, chunk.c.content_id.in_(versions))
    connection.execute(segment.update().values(live=count.scalar_subquery()))


def erase(connection: Connection, keys: Collection[DocumentKey]) -> None:
    """Put every version of documents on the ledger and delete it with its memberships, and the texts that no other document has."""
    version, now = document_version, utcnow()
    for same in having(keys, version):
        found = connection.execute(sa.select(version.c.id, version.c.domain, version.c.doc_id, version.c.sha256).where(same)).all()
        hashes = sorted({(row.domain, row.doc_id, row.sha256) for row in found})
        if hashes:
            rows = [{"domain": domain, "doc_id": id, "sha256": sha256, "deleted_at": now} for domain, id, sha256 in hashes]
            connection.execute(deletion.insert(), rows)
        forget(connection, [row.id for row in found])


def forget(connection: Connection, versions: Collection[int]) -> None:
    """Delete versions with their memberships, and the texts that no other document has."""
    contents = set(version_contents(connection, versions).values())
    for some in batches(versions):
        connection.execute(document_version.delete().where(document_version.c.id.in_(some)))
    orphaned = ~sa.exists().where(document_version.c.content_id == content.c.id)
    for some in batches(contents):
        connection.execute(content.delete().where(content.c.id.in_(some), orphaned))


def put(connection: Connection, documents: Collection[LiveDocument]) -> None:
    """Replace the rows of live documents. Bringing deleted content in again is a new act: the ledger lets go of it."""
    if not documents:
        return
    keys = [item.key for item in documents]
    columns = sa.select(document.c.domain, document.c.doc_id, document.c.added_at)
    added = {(row.domain, row.doc_id): row.added_at for same in having(keys, document) for row in connection.execute(columns.where(same))}
    for same in having(keys, document):
        connection.execute(document.delete().where(same))
    ledger = deletion.delete().where(
        deletion.c.domain == sa.bindparam("key_domain"),
        deletion.c.doc_id == sa.bindparam("key_id"),
        deletion.c.sha256 == sa.bindparam("hash"),
    )
    connection.execute(ledger, [{"key_domain": item.key.domain, "key_id": item.key.id, "hash": item.sha256} for item in documents])
    now = utcnow()
    rows = [
        {
            "domain": item.key.domain,
            "doc_id": item.key.id,
            "version_id": item.version_id,
            "root": item.root,
            "labels": sorted(item.labels),
            "file_size": item.file_size,
            "file_mtime_ns": item.file_mtime_ns,
            "file_sha256": item.file_sha256,
            "file_warned": warned(item),
            "added_at": added.get(item.key, now),
        }
        for item in documents
    ]
    connection.execute(document.insert(), rows)


def drop(connection: Connection, keys: Collection[DocumentKey]) -> None:
    """Take documents out of the live ones."""
    for same in having(keys, document):
        connection.execute(document.delete().where(same))


Held = tuple[tuple[str, ...], str]


def hold(connection: Connection, new: int, keys: Collection[DocumentKey] | None) -> None:
    """Make the memberships of generation `new` those of the live documents: close what left, open what came.

    `keys` are the documents that differ from the newest generation; None: any may.
    """
    held, version = generation_document, document_version
    live = sa.select(document.c.version_id, document.c.labels, document.c.root)
    is_open = sa.select(held.c.version_id, held.c.labels, held.c.root).where(held.c.until.is_(None))
    if keys is None:
        now, before = _held(connection, [live]), _held(connection, [is_open])
    else:
        opened = is_open.join(version, version.c.id == held.c.version_id)
        now = _held(connection, [live.where(same) for same in having(keys, document)])
        before = _held(connection, [opened.where(same) for same in having(keys, version)])
    leaving = [{"version": id} for id, facts in before.items() if now.get(id) != facts]
    if leaving:
        close = held.update().where(held.c.version_id == sa.bindparam("version"), held.c.until.is_(None)).values(until=new)
        connection.execute(close, leaving)
    coming = [
        {"version_id": id, "since": new, "until": None, "labels": list(facts[0]), "root": facts[1]}
        for id, facts in now.items()
        if before.get(id) != facts
    ]
    if coming:
        connection.execute(held.insert(), coming)


def drop_generations(connection: Connection, live: int, keep: int) -> None:
    """Forget all generations but `keep`: the live one, its parent, and the newest ones.

    Those two and the very newest, after which the next is numbered, stay in any case.
    """
    query = sa.select(generation.c.id, generation.c.parent).order_by(generation.c.id.desc())
    parents = {row.id: row.parent for row in connection.execute(query)}
    needed = dict.fromkeys(id for id in (live, parents[live], max(parents)) if id in parents)
    kept = list(dict.fromkeys([*needed, *parents]))[: max(keep, len(needed))]
    gone = parents.keys() - set(kept)
    for some in batches(gone):
        connection.execute(generation.delete().where(generation.c.id.in_(some)))
    if gone:
        held = generation_document
        used = sa.exists().where(generation.c.id >= held.c.since, generation.c.id < held.c.until)
        connection.execute(held.delete().where(held.c.until.is_not(None), ~used))


def strays(connection: Connection, documents: Collection[LiveDocument], remove: Collection[DocumentKey]) -> list[LiveDocument]:
    """See `retrieval.store.Writer.strays`."""
    version = document_version
    changed = {item.key: item for item in documents}
    contents = live_contents(connection, [*changed, *remove])
    for same in having(remove, version):
        contents.update(connection.execute(sa.select(version.c.content_id).where(same)).scalars())
    titles: dict[int, tuple[int, str]] = {}
    for ids in batches(item.version_id for item in documents):
        query = sa.select(version.c.id, version.c.content_id, version.c.title).where(version.c.id.in_(ids))
        titles.update((row.id, (row.content_id, row.title)) for row in connection.execute(query))
    contents.update(found for found, _ in titles.values())
    # What the documents of each content and label set will be, with their titles.
    sharing: defaultdict[tuple[int, frozenset[str]], list[tuple[str, LiveDocument]]] = defaultdict(list)
    for item in documents:
        found, title = titles[item.version_id]
        sharing[found, item.labels].append((title, item))
    gone = {*changed, *remove}
    found_by: dict[int, str] = {}
    for some in batches(contents):
        query = live_rows().add_columns(version.c.content_id, version.c.title).where(version.c.content_id.in_(some))
        for row in connection.execute(query):
            live = live_document(row)
            if live.key not in gone:
                sharing[row.content_id, live.labels].append((row.title, live))
        found_by.update(connection.execute(sa.select(content.c.id, content.c.title).where(content.c.id.in_(some))).all())
    return [live for (id, _), group in sharing.items() if found_by[id] not in {title for title, _ in group} for _, live in group]


def live_rows() -> sa.Select[Any]:
    """The rows that `live_document` reads."""
    version = document_version
    mine = [column for column in document.c if column.name != "added_at"]
    return sa.select(*mine, version.c.sha256, version.c.recipe).join(version, version.c.id == document.c.version_id)


def live_document(row: Any) -> LiveDocument:
    """A live document from a row of `live_rows`."""
    return LiveDocument(
        key=DocumentKey(row.domain, row.doc_id),
        version_id=row.version_id,
        sha256=row.sha256,
        recipe=row.recipe,
        labels=frozenset(row.labels),
        root=row.root,
        file_size=row.file_size,
        file_mtime_ns=row.file_mtime_ns,
        file_sha256=row.file_sha256,
        file_warned=None if row.file_warned is None else Warned(tuple(row.file_warned["warnings"]), row.file_warned["options"]),
    )


def warned(live: LiveDocument) -> dict[str, object] | None:
    """The column `file_warned` of a live document."""
    return None if live.file_warned is None else live.file_warned._asdict()


def document_info(row: Any, labels: Iterable[str]) -> DocumentInfo:
    """The facts of a document from a row with its version's columns."""
    return DocumentInfo(
        domain=row.domain,
        id=row.doc_id,
        uri=row.uri,
        title=row.title,
        lang=row.lang,
        labels=frozenset(labels),
        sha256=row.sha256,
        updated_at=row.updated_at,
        meta=row.meta,
    )


def having(keys: Collection[DocumentKey], table: sa.FromClause) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions on domain and doc_id of `table` that together match the documents, each small enough for one statement."""
    by_domain: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_domain[key.domain].append(key.id)
    for name, ids in by_domain.items():
        for some in batches(ids):
            yield sa.and_(table.c.domain == name, table.c.doc_id.in_(some))


def _held(connection: Connection, queries: Sequence[sa.Select[Any]]) -> dict[int, Held]:
    return {row.version_id: (tuple(row.labels), row.root) for query in queries for row in connection.execute(query)}
