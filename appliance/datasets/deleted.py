"""What a deletion reaches in data sets: a pair that was written from a document goes with it.

A pair drafted from documents holds their words, in its answer at least. So it is erased from registered data sets when its document is
deleted, and one whose document was deleted between drafting and registering is not taken. Pairs of a team's own words stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

import sqlalchemy as sa

from appliance.store import schema
from appliance.store.database import Database
from finetune.types import Pair

# Of each deleted text, by document id and hash, the domains it was deleted from.
Deleted = Mapping[tuple[str, str], AbstractSet[str]]


def deleted_texts(database: Database) -> Deleted:
    """The deletion ledger; a text that came in again since is not on it."""
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    table = schema.deletion
    with database.read() as connection:
        for domain, doc_id, sha256 in connection.execute(sa.select(table.c.domain, table.c.doc_id, table.c.sha256)):
            found[doc_id, sha256].add(domain)
    return found


def rests_on(pair: Pair, domain: str | None, deleted: Deleted) -> str | None:
    """The id of a deleted document that a pair of `domain` (None: its own, else any) was written from; None if there is none."""
    owner = domain or pair.domain
    for ref in pair.passages:
        domains = deleted.get((ref.doc_id, ref.sha256), frozenset())
        # What was only shown beside it left nothing in its words.
        if ref.role != "negative" and domains and (owner is None or owner in domains):
            return ref.doc_id
    return None


def without_quotations(pair: Pair) -> Pair:
    """A drafted pair with where its quotations are instead of what they say, which the knowledge base keeps."""
    quotes = pair.meta.get("quotes")
    if not pair.passages or not isinstance(quotes, list):
        return pair
    places = [{name: value for name, value in quote.items() if name != "text"} if isinstance(quote, dict) else quote for quote in quotes]
    return replace(pair, meta={**pair.meta, "quotes": places})
