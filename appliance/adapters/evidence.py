"""What the pairs of a version rest on, as rows: those of its last training, and of earlier ones what deletions must still find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.schema import adapter_evidence as table

# The kind of what an earlier training of the same weights rested on: it is not current evidence, but the text is in the weights.
FORMER = "former"


@dataclass(frozen=True, slots=True)
class Link:
    """What one trained pair rests on. `kind` is declared, inferred (with its retrieval score), unlinked, or former (see `FORMER`)."""

    pair_id: str
    kind: str
    domain: str | None = None
    doc_id: str | None = None
    sha256: str | None = None
    score: float | None = None


def record(connection: Connection, adapter: str, links: Sequence[Link]) -> bool:
    """Make `links` the evidence of `adapter`; whether that changed anything. What it rested on before stays, as `FORMER`.

    A pair for which nothing is found any more keeps what it had: its document was changed or removed, so it stays stale.
    """
    query = sa.select(table).where(table.c.adapter == adapter)
    known = {(row.pair_id, row.doc_domain, row.doc_id, row.sha256): row for row in connection.execute(query)}
    tied = {key[0] for key, row in known.items() if row.doc_id is not None}
    renewed = {link.pair_id for link in links if link.kind not in ("unlinked", FORMER)}
    found: dict[tuple[Any, ...], Link] = {}
    for link in links:
        key = (link.pair_id, link.domain, link.doc_id, link.sha256)
        if (link.pair_id in renewed or link.pair_id not in tied) and (key not in found or found[key].kind == FORMER):
            found[key] = link
    kinds = {row.id: (row.kind, found[key].kind if key in found else FORMER) for key, row in known.items() if key[0] in renewed}
    changes = [{"row": row, "now": now} for row, (was, now) in kinds.items() if was != now]
    rows = [
        {
            "adapter": adapter,
            "pair_id": link.pair_id,
            "kind": link.kind,
            "doc_domain": link.domain,
            "doc_id": link.doc_id,
            "sha256": link.sha256,
            "score": link.score,
        }
        for key, link in found.items()
        if key not in known
    ]
    if changes:
        connection.execute(table.update().where(table.c.id == sa.bindparam("row")).values(kind=sa.bindparam("now")), changes)
    if rows:
        connection.execute(table.insert(), rows)
    return bool(changes or rows)
