"""The deletion ledger of one database, applied to another: a restored copy must not bring back what was deleted since it was made."""

from __future__ import annotations

import sqlalchemy as sa

from appliance.store import committing
from appliance.store.database import Database
from appliance.store.schema import deletion, document, document_version
from retrieval.types import DocumentKey


def apply_ledger(source: Database, target: Database) -> list[DocumentKey]:
    """Erase from `target` what `source` has on its ledger, and put it on the ledger there; the documents that were in `target`.

    Their text is gone from `target` afterwards, from every generation; other contents of the same documents stay.
    """
    with source.read() as connection:
        ledger = connection.execute(sa.select(deletion.c.domain, deletion.c.doc_id, deletion.c.sha256, deletion.c.deleted_at)).all()
    version = document_version
    found: dict[DocumentKey, None] = {}
    with target.write() as connection:
        known = set(connection.execute(sa.select(deletion.c.domain, deletion.c.doc_id, deletion.c.sha256)).all())
        new = [row._asdict() for row in ledger if row[:3] not in known]
        if new:
            connection.execute(deletion.insert(), new)
        deleted = {row[:3] for row in ledger}
        versions: list[int] = []
        for same in committing.having({DocumentKey(row.domain, row.doc_id) for row in ledger}, version):
            for row in connection.execute(sa.select(version.c.id, version.c.domain, version.c.doc_id, version.c.sha256).where(same)):
                if (row.domain, row.doc_id, row.sha256) in deleted:
                    versions.append(row.id)
                    found[DocumentKey(row.domain, row.doc_id)] = None
        for some in committing.batches(versions):
            connection.execute(document.delete().where(document.c.version_id.in_(some)))
        committing.forget(connection, versions)
        committing.recount_live(connection)
    target.scrub()
    return list(found)
