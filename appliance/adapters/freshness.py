"""What of an adapter's training has changed since: the pairs that rest on documents which are other or gone by now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from appliance.store import schema
from appliance.store.database import Database
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
    """The stale part of one version's training evidence; `pairs` names for each stale pair its documents that are other or gone."""

    version: str
    counts: Counts
    documents: tuple[StaleDocument, ...]
    pairs: Mapping[str, tuple[DocumentKey, ...]]


class Freshness:
    """Compares what versions were trained on with the live documents."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # The last generation that was asked about, and what was stale then.
        self._known: dict[str, tuple[int, Staleness]] = {}

    def at(self, version: str, generation: int | None) -> Staleness:
        """What is stale while `generation` is live, looked up once: every change of documents makes a new generation. None: looked up."""
        if generation is None:
            return self.of(version)
        known = self._known.get(version)
        if known is None or known[0] != generation:
            known = self._known[version] = (generation, self.of(version))
        return known[1]

    def of(self, version: str) -> Staleness:
        """What is stale now, the documents with the most pairs first."""
        links = schema.adapter_evidence
        live = (
            sa.select(schema.document.c.domain, schema.document.c.doc_id, schema.document_version.c.sha256)
            .select_from(schema.document.join(schema.document_version))
            .subquery()
        )
        same = sa.and_(live.c.domain == links.c.doc_domain, live.c.doc_id == links.c.doc_id)
        query = (
            sa.select(links.c.pair_id, links.c.kind, links.c.doc_domain, links.c.doc_id, links.c.sha256, live.c.sha256.label("now"))
            .select_from(links.outerjoin(live, same))
            .where(links.c.adapter == version)
        )
        with self._database.read() as connection:
            return _sorted_out(version, connection.execute(query))


def _sorted_out(version: str, rows: sa.CursorResult[Any]) -> Staleness:
    linked: set[str] = set()
    unlinked: set[str] = set()
    stale: defaultdict[str, dict[DocumentKey, None]] = defaultdict(dict)
    pairs: defaultdict[DocumentKey, set[str]] = defaultdict(set)
    removed: set[DocumentKey] = set()
    for row in rows:
        if row.kind == "unlinked":
            unlinked.add(row.pair_id)
            continue
        linked.add(row.pair_id)
        if row.sha256 != row.now:
            key = DocumentKey(row.doc_domain, row.doc_id)
            stale[row.pair_id][key] = None
            pairs[key].add(row.pair_id)
            if row.now is None:
                removed.add(key)
    documents = [StaleDocument(key, "removed" if key in removed else "changed", len(ids)) for key, ids in pairs.items()]
    documents.sort(key=lambda document: (-document.pairs, document.key.domain, document.key.id))
    counts = Counts(len(linked), len(stale), len(unlinked))
    return Staleness(version, counts, tuple(documents), {pair: tuple(keys) for pair, keys in stale.items()})
