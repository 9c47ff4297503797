"""What a deletion reaches in data sets: a pair that the appliance wrote goes with the documents it rests on.

A pair drafted from documents holds their words, in its answer at least; one made of an approved answer, of feedback or of experts'
judgements holds what was answered out of them. So both are erased from registered data sets when such a document is deleted, and one whose
document was deleted between drafting and registering is not taken. Pairs of a team's own words stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from appliance.answers.feedback import Deletions
from appliance.store import schema
from appliance.store.database import Database
from finetune.types import Pair

# Of each deleted text, by document id and hash, the domains it was deleted from.
Texts = Mapping[tuple[str, str], AbstractSet[str]]
# Fields of a row that the appliance wrote: what it was drafted from, and what it was collected from.
PASSAGES, PROVENANCE = "passages", "provenance"


@dataclass(frozen=True, slots=True)
class Gone:
    """Why a pair is not kept: `document` was deleted since the pair was written, which `field` of its row tells."""

    document: str
    field: str


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a collected pair rests on, as (domain, id) and names of adapters, and when its answer was given or approved."""

    documents: Sequence[tuple[str, str]]
    adapters: Sequence[str | None]
    since: datetime


def gone(database: Database, pairs: Sequence[Pair], domain: str | None) -> dict[str, Gone]:
    """Which `pairs` of a data set of `domain` (None: each pair's own, else any) rest on deleted documents, by id.

    A text that came in again since is not deleted.
    """
    texts: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    table = schema.deletion
    bases = {pair.id: basis for pair in pairs if (basis := _basis(pair, domain)) is not None}
    with database.read() as connection:
        for owner, doc_id, sha256 in connection.execute(sa.select(table.c.domain, table.c.doc_id, table.c.sha256)):
            texts[doc_id, sha256].add(owner)
        documents = [basis.documents for basis in bases.values()]
        deletions = Deletions(connection, documents, [name for basis in bases.values() for name in basis.adapters])
    found: dict[str, Gone] = {}
    for pair in pairs:
        drafted, basis = _drafted_from(pair, domain or pair.domain, texts), bases.get(pair.id)
        if drafted is not None:
            found[pair.id] = Gone(drafted, PASSAGES)
        elif basis is not None:
            lost = (deletions.first(basis.documents, name, basis.since) for name in basis.adapters or [None])
            if (name := next((name for name in lost if name is not None), None)) is not None:
                found[pair.id] = Gone(name, PROVENANCE)
    return found


def _drafted_from(pair: Pair, owner: str | None, texts: Texts) -> str | None:
    for ref in pair.passages:
        domains = texts.get((ref.doc_id, ref.sha256), frozenset())
        # What was only shown beside it left nothing in its words.
        if ref.role != "negative" and domains and (owner is None or owner in domains):
            return ref.doc_id
    return None


def _basis(pair: Pair, domain: str | None) -> _Basis | None:
    """What the provenance tells that `appliance.datasets.from_feedback` wrote; None for a pair of another origin.

    Where it names no documents or no moment, those in `doc_ids` count, whenever they were deleted.
    """
    said: Any = pair.meta.get(PROVENANCE)
    if not isinstance(said, Mapping) or not said.keys() & {"verified", "answer", "task"}:
        return None
    named, adapters, owner = said.get("documents"), said.get("adapters", [said.get("adapter")]), domain or pair.domain
    documents = [(str(each[0]), str(each[1])) for each in _list(named) if isinstance(each, list) and len(each) == 2]
    if not documents and owner is not None:
        documents = [(owner, doc_id) for doc_id in pair.doc_ids]
    return _Basis(documents, [name for name in _list(adapters) if isinstance(name, str)], _moment(said.get("answered_at")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def without_quotations(pair: Pair) -> Pair:
    """A drafted pair with where its quotations are instead of what they say, which the knowledge base keeps."""
    quotes = pair.meta.get("quotes")
    if not pair.passages or not isinstance(quotes, list):
        return pair
    places = [{name: value for name, value in quote.items() if name != "text"} if isinstance(quote, dict) else quote for quote in quotes]
    return replace(pair, meta={**pair.meta, "quotes": places})
