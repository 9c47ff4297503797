"""What of an adapter's training has changed since: the pairs that rest on documents which are other or gone by now, and the labels."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from appliance.adapters.evidence import FORMER
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.lookup import Lookup
from retrieval.types import DocumentKey


class Counts(NamedTuple):
    """Training pairs of a version: with evidence, of those with changed or removed evidence, and without any."""

    linked: int
    stale: int
    unlinked: int

    @property
    def share(self) -> float:
        """The stale share of the linked pairs; 0 where there are none."""
        return self.stale / self.linked if self.linked else 0.0


@dataclass(frozen=True, slots=True)
class StaleDocument:
    """A document that is not any more what `pairs` training pairs rest on."""

    key: DocumentKey
    change: Literal["changed", "removed"]
    pairs: int


@dataclass(frozen=True, slots=True)
class Staleness:
    """The stale part of one version's training evidence; `pairs` names for each stale pair its documents that are other or gone, `labels`
    are those that the documents of all pairs have now."""

    version: str
    counts: Counts
    documents: tuple[StaleDocument, ...]
    pairs: Mapping[str, tuple[DocumentKey, ...]]
    labels: frozenset[str]


def _links() -> sa.Select[Any]:
    """The links of a version, each with the hash and the labels (as text: decoding them for each row takes longer) of its document now."""
    links, document = schema.adapter_evidence, schema.document
    live = (
        sa.select(
            document.c.domain, document.c.doc_id, sa.cast(document.c.labels, sa.Text).label("labels"), schema.document_version.c.sha256
        )
        .select_from(document.join(schema.document_version))
        .subquery()
    )
    same = sa.and_(live.c.domain == links.c.doc_domain, live.c.doc_id == links.c.doc_id)
    columns = (links.c.pair_id, links.c.kind, links.c.doc_domain, links.c.doc_id, links.c.sha256)
    return (
        sa.select(*columns, live.c.sha256.label("now"), live.c.labels)
        .select_from(links.outerjoin(live, same))
        .where(links.c.adapter == sa.bindparam("version"))
    )


def _state() -> sa.Select[Any]:
    adapter, pointer = schema.adapter, schema.pointer
    registered = sa.select(adapter.c.created_at).where(adapter.c.name == sa.bindparam("version"))
    index = [sa.select(column).where(pointer.c.name == sa.literal_column("'index'")) for column in (pointer.c.value, pointer.c.updated_at)]
    named = zip(("registered", "generation", "moved"), (registered, *index), strict=True)
    return sa.select(*(query.scalar_subquery().label(name) for name, query in named))


# Made once: making a statement takes longer than running it.
_LINKS, _STATE = _links(), Lookup(_state())


class Freshness:
    """Compares what versions were trained on with the live documents."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # By version: when it was registered and the index last moved, and what was stale then.
        self._known: dict[str, tuple[tuple[object, ...], Staleness]] = {}

    def of(self, version: str) -> Staleness:
        """What is stale now, the documents with the most pairs first; looked up once while the live documents are the same."""
        # Every change of documents or labels moves the index in its own transaction.
        state = tuple(self._database.rows(_STATE, version=version)[0])
        known = self._known.get(version)
        if known is None or known[0] != state:
            with self._database.read() as connection:
                # Both in one snapshot.
                state = tuple(connection.execute(_STATE.statement, {"version": version}).one())
                known = self._known[version] = (state, _sorted_out(version, connection.execute(_LINKS, {"version": version})))
        return known[1]


def _sorted_out(version: str, rows: sa.CursorResult[Any]) -> Staleness:
    found = rows.all()
    # A pair that was trained once more, from the version that it goes on from, may rest on a document's former and its present text.
    current = {(row.pair_id, row.doc_domain, row.doc_id) for row in found if row.sha256 == row.now and row.kind not in ("unlinked", FORMER)}
    linked: set[str] = set()
    unlinked: set[str] = set()
    stale: defaultdict[str, dict[DocumentKey, None]] = defaultdict(dict)
    pairs: defaultdict[DocumentKey, set[str]] = defaultdict(set)
    removed: set[DocumentKey] = set()
    labels: set[str] = set()
    for row in found:
        if row.labels is not None:
            labels.add(row.labels)
        if row.kind == FORMER:
            continue
        if row.kind == "unlinked":
            unlinked.add(row.pair_id)
            continue
        linked.add(row.pair_id)
        if (row.pair_id, row.doc_domain, row.doc_id) not in current:
            key = DocumentKey(row.doc_domain, row.doc_id)
            stale[row.pair_id][key] = None
            pairs[key].add(row.pair_id)
            if row.now is None:
                removed.add(key)
    documents = [StaleDocument(key, "removed" if key in removed else "changed", len(ids)) for key, ids in pairs.items()]
    documents.sort(key=lambda document: (-document.pairs, document.key.domain, document.key.id))
    counts = Counts(len(linked), len(stale), len(unlinked))
    labelled = frozenset(label for text in labels for label in json.loads(text))
    return Staleness(version, counts, tuple(documents), {pair: tuple(keys) for pair, keys in stale.items()}, labelled)
