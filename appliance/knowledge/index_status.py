"""What `appliance index status` shows: which generation serves, what it is made of, and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import ApplianceError
from appliance.store import schema
from appliance.store.database import Database, utcnow
from retrieval.types import RetrievalError

if TYPE_CHECKING:
    from appliance.knowledge.knowledge import Knowledge
    from retrieval.report import IngestReport

_LAST = "ingest:"


def index_status(knowledge: Knowledge) -> dict[str, Any]:
    """The JSON of `index status`. Opening the index checks the files, so this takes as long as the first search of a process.

    `generations` are those that can be rolled back to. `serving` is the generation that is searched, None if nothing can be; while the
    live one (`generation`) is damaged, it may be another. `problems` says why. `dead_rows` are rows of segments that the live generation
    does not use. Sizes are in bytes.
    """
    state = knowledge.documents.status()
    problems: list[str] = []
    serving: int | None = None
    try:
        served = knowledge.serving()
        serving = served.index.generation
        problems += [served.problem] if served.problem else []
    except (ApplianceError, RetrievalError) as error:
        problems.append(str(error))
    generation = knowledge.store.generation(state["generation"]) if state["generation"] is not None else None
    segments = _segments(knowledge)
    return {
        "generation": state["generation"],
        "parent": generation.parent if generation is not None else None,
        "generations": list(knowledge.store.generations()),
        "serving": serving,
        "created_at": state.get("created_at"),
        "documents": state["documents"],
        "chunks": state["chunks"],
        "languages": _languages(knowledge.workspace.db),
        "dead_rows": sum(segment["rows"] - segment["live"] for segment in segments),
        "segments": segments,
        "embedding": _embedding(knowledge, state.get("embedding"), state["generation"]),
        "bytes": {"index": sum(segment["bytes"] or 0 for segment in segments), "database": _database_size(knowledge.workspace.db)},
        "ingests": last_ingests(knowledge.workspace.db),
        "problems": problems,
    }


def note_ingest(database: Database, paths: Sequence[Path], domain: str | None, report: IngestReport) -> None:
    """Remember when each root was last brought in, and what came of it."""
    facts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "removed", "generation")}
    table = schema.setting
    with database.write() as connection:
        for root in dict.fromkeys(str(path.resolve()) for path in paths):
            row = {"root": root, "domain": domain, "finished_at": utcnow().isoformat(timespec="seconds"), **facts}
            # A path can be longer than a key.
            key = _LAST + hashlib.sha256(f"{domain}\n{root}".encode()).hexdigest()[:32]
            connection.execute(table.delete().where(table.c.key == key))
            connection.execute(table.insert().values(key=key, value=json.dumps({**row, "failed": len(report.failed)}, ensure_ascii=False)))


def last_ingests(database: Database) -> list[dict[str, Any]]:
    """The last ingest of each root and domain, the newest first."""
    with database.read() as connection:
        query = sa.select(schema.setting.c.value).where(schema.setting.c.key.startswith(_LAST))
        found = [json.loads(value) for value in connection.execute(query).scalars()]
    return sorted(found, key=lambda row: str(row["finished_at"]), reverse=True)


def _segments(knowledge: Knowledge) -> list[dict[str, Any]]:
    table = schema.segment
    with knowledge.workspace.db.read() as connection:
        rows = connection.execute(sa.select(table.c.id, table.c.chunks, table.c.live).order_by(table.c.chunks.desc(), table.c.id)).all()
    facts = knowledge.vectors.facts([row.id for row in rows])
    return [
        {
            "id": row.id,
            "rows": row.chunks,
            "live": row.live,
            "bytes": facts[row.id].bytes if row.id in facts else None,
            "search": facts[row.id].search["method"] if row.id in facts else "damaged",
            "recall": facts[row.id].search.get("recall") if row.id in facts else None,
        }
        for row in rows
    ]


def _languages(database: Database) -> dict[str, int]:
    chunk, version, document = schema.chunk, schema.document_version, schema.document
    is_live = sa.exists().where(version.c.content_id == chunk.c.content_id, document.c.version_id == version.c.id)
    query = sa.select(chunk.c.lang, sa.func.count()).where(is_live).group_by(chunk.c.lang).order_by(sa.func.count().desc())
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def _embedding(knowledge: Knowledge, made_with: str | None, generation: int | None) -> dict[str, Any]:
    """The configured model and that of the live generation; `same` is None where one of them is not known."""
    try:
        configured = knowledge.embedders.configured().hash
    except ApplianceError:
        configured = None
    return {
        "configured": knowledge.embedders.reference,
        "configured_hash": configured,
        "generation": knowledge.embedders.recorded(generation) if generation is not None else None,
        "generation_hash": made_with,
        "same": None if configured is None or made_with is None else configured == made_with,
    }


def _database_size(database: Database) -> int:
    if database.is_postgres:
        with database.read() as connection:
            return int(connection.execute(sa.select(sa.func.pg_database_size(sa.func.current_database()))).scalar_one())
    place = Path(str(database.engine.url.database))
    return sum(path.stat().st_size for path in (place, place.with_name(f"{place.name}-wal")) if path.is_file())
