"""Erasing from registered data sets what a deletion reaches, and telling what it reached."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.datasets.adding import version_of
from appliance.datasets.deleted import PASSAGES, PROVENANCE, gone
from appliance.datasets.registry import LEFT, DatasetInfo, Datasets, counts_of
from appliance.errors import ApplianceError
from appliance.files import beside
from appliance.store import schema
from appliance.store.database import Database
from appliance.workspace import Workspace
from finetune.dataset import read_pairs, write_pairs
from finetune.types import DatasetError
from retrieval.types import DocumentKey

logger = logging.getLogger("appliance.dataset")


def forget(database: Database, root: Path) -> None:
    """Erase the pairs that the appliance wrote from deleted documents, from every registered state; its name stays.

    The row is changed before the file, so that what a crash leaves undone is done the next time.
    """
    table = schema.dataset
    with database.read() as connection:
        rows = connection.execute(sa.select(table)).all()
    for row in rows:
        path = root / row.path
        content = path.read_bytes() if path.is_file() else b""
        if not any(f'"{field}"'.encode() in content for field in (PASSAGES, PROVENANCE)):
            continue
        try:
            pairs = read_pairs(path).pairs
        except DatasetError as error:
            logger.warning("data set %s@%s: damaged (%s), so what it rests on is not known", row.name, row.version, error)
            continue
        lost = gone(database, pairs, row.domain)
        if not lost:
            continue
        kept = [pair for pair in pairs if pair.id not in lost]
        counts = counts_of(kept, row.counts["excluded"]) | {LEFT: version_of(kept)}
        with database.write() as connection:
            same = sa.and_(table.c.name == row.name, table.c.version == row.version)
            connection.execute(table.update().where(same).values(counts=counts))
        with beside(path) as place:
            write_pairs(kept, place)


def left(database: Database, root: Path, name: str, version: str) -> frozenset[str] | None:
    """The ids of the pairs that deletions left of a state (of several: named and numbered as `Datasets.get` does it); None where nothing
    was erased, or nobody can tell."""
    names, versions, table = name.split(","), version.split(","), schema.dataset
    with database.read() as connection:
        found = [
            connection.execute(sa.select(table).where(table.c.name == one, table.c.version.startswith(short))).first()
            for one, short in zip(names, versions, strict=False)
        ]
    rows = [row for row in found if row is not None]
    if len(rows) < len(names) or not any(LEFT in row.counts for row in rows):
        return None
    try:
        read = {row.name: read_pairs(root / row.path).pairs if row.counts["pairs"] else [] for row in rows}
    except (DatasetError, OSError) as error:
        logger.warning("data set %s@%s: damaged (%s), so what was erased from it is not known", name, version, error)
        return None
    return frozenset(f"{one}/{pair.id}" if len(rows) > 1 else pair.id for one, pairs in read.items() for pair in pairs)


class Touched:
    """What the removal of documents does to the live data sets: made before it, asked after it."""

    def __init__(self, workspace: Workspace, keys: Sequence[DocumentKey]) -> None:
        self._datasets, self._keys = Datasets(workspace), frozenset(keys)
        self._before = {info.name: info.counts["pairs"] for info in self._datasets.all()}

    def to_json(self) -> list[dict[str, Any]]:
        """``{"dataset", "erased", "naming"}`` of each data set that is touched: how many pairs went with the documents, and how many of a
        team's own words name one and stay."""
        rows: list[dict[str, Any]] = []
        for info in self._datasets.all():
            erased = self._before.get(info.name, 0) - info.counts["pairs"]
            try:
                naming = self._naming(info)
            except (ApplianceError, OSError) as error:
                logger.warning("%s; which of its pairs name the document is not known", error)
                naming = 0
            if erased > 0 or naming:
                rows.append({"dataset": info.name, "erased": max(erased, 0), "naming": naming})
        return rows

    def _naming(self, info: DatasetInfo) -> int:
        content = info.path.read_bytes()
        # Most sets name none of them, and are not read as pairs for that.
        keys = [key for key in self._keys if json.dumps(key.id, ensure_ascii=False).encode() in content]
        pairs = self._datasets.pairs(info) if keys else []
        return sum(any(key.id in pair.doc_ids and pair.domain in (None, key.domain) for key in keys) for pair in pairs)
