"""What a deletion reaches besides the index: quotations in approved answers, answers of evaluation runs, experts' tasks, feedback, and
pairs that were written from documents.

The deletion ledger is applied to all of them as a whole, so that what one process could not finish the next one does.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.answers import feedback
from appliance.datasets import registry as datasets
from appliance.experts import access as expert_access
from appliance.files import write_bytes
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.locks import Locked
from appliance.store.tables_experts import expert_task, expert_work
from eval.types import UNAVAILABLE

logger = logging.getLogger("appliance.index")

_DONE = "forgotten"
# The page of a run, in its folder: report.html, report.md and its plots.
REPORT = "report"
_WHY = f"{UNAVAILABLE}a document that this answer rests on was deleted"

# When a document was last deleted, by domain and id.
Ledger = Mapping[tuple[str, str], datetime]


def forget(database: Database, root: Path, *, again: bool = False) -> bool:
    """Take the text of deleted documents out of what the workspace in `root` keeps besides its index; False: nothing new.

    An approved answer keeps the expert's words and loses the quotations; an outcome of a run that had found or cited the document loses
    its answer and counts as unavailable from then on (the figures of its run stay as they were measured). `again`: look through everything,
    also where nothing seems new, as after entries of another ledger were added, which may be older than its own.
    """
    # What there was to look through the last time.
    moments = (
        schema.deletion.c.deleted_at,
        schema.run.c.finished_at,
        schema.verified.c.created_at,
        schema.dataset.c.created_at,
        schema.answer.c.created_at,
        schema.feedback.c.created_at,
        expert_task.c.created_at,
        expert_work.c.done_at,
    )
    with database.read() as connection:
        newest = [connection.execute(sa.select(sa.func.max(moment))).scalar_one() for moment in moments]
    state = " ".join(str(moment) for moment in newest)
    if newest[0] is None or (not again and database.setting(_DONE) == state):
        return False
    ledger: dict[tuple[str, str], datetime] = {}
    table = schema.setting
    with database.write() as connection:
        for row in connection.execute(sa.select(schema.deletion)):
            key = (row.domain, row.doc_id)
            ledger[key] = max(row.deleted_at, ledger.get(key, row.deleted_at))
        for row in connection.execute(sa.select(schema.verified.c.id, schema.verified.c.citations, schema.verified.c.created_at)).all():
            kept = [_without_quote(citation, ledger, row.created_at) for citation in row.citations]
            if kept != row.citations:
                connection.execute(schema.verified.update().where(schema.verified.c.id == row.id).values(citations=kept))
        feedback.forget(connection)
        expert_access.forget(connection)
        runs = connection.execute(sa.select(schema.run)).all()
    datasets.forget(database, root)
    for row in runs:
        if row.finished_at is not None:
            _withhold(root / row.path / "outputs.jsonl", row.domain, row.created_at, ledger)
            continue
        try:
            # Broken off, unless somebody holds it: then it is looked through when it ends.
            with database.lock(f"run:{row.id}"):
                _withhold(root / row.path / "outputs.jsonl", row.domain, row.created_at, ledger)
        except Locked:
            state = ""
    with database.write() as connection:
        connection.execute(table.delete().where(table.c.key == _DONE))
        connection.execute(table.insert().values(key=_DONE, value=state))
    return True


def _without_quote(citation: dict[str, Any], ledger: Ledger, since: datetime) -> dict[str, Any]:
    deleted = ledger.get((citation["domain"], citation["doc_id"]))
    if deleted is None or deleted < since:
        return citation
    return {**citation, "quote": "", "title": "", "heading": []}


def _withhold(path: Path, domain: str | None, since: datetime, ledger: Ledger) -> None:
    """Rewrite the outcomes of a run that rest on documents deleted since it began, all at once; damaged lines go, as what they say is not
    known."""
    names: defaultdict[str | None, set[str]] = defaultdict(set)
    for (owner, id), deleted in ledger.items():
        if deleted >= since and domain in (None, owner):
            names[owner].add(id)
    gone = set().union(*names.values()) if names else set()
    if not gone or not path.is_file():
        return
    # Only a newline ends a line: answers may hold U+2028 and the like.
    *lines, torn = path.read_bytes().split(b"\n")
    kept: list[bytes] = []
    for number, line in enumerate(lines, 1):
        try:
            kept.append(_without_answer(line, gone))
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("%s, line %d: damaged (%s), so what it rests on is not known: deleted", path, number, error)
    if torn or kept != lines:
        write_bytes(path, b"".join(line + b"\n" for line in kept))
        # It quotes answers; `appliance eval show RUN --html` makes it anew.
        for page in path.parent.glob(f"{REPORT}*"):
            page.unlink(missing_ok=True)


def _without_answer(line: bytes, gone: set[str]) -> bytes:
    """A line of outputs.jsonl, without the answer if that rests on documents in `gone`. Raises what a damaged line raises."""
    row = json.loads(line)
    outcome = row["outcome"]
    if not outcome["answer"] or not gone & {*(outcome["retrieved"] or ()), *outcome["citations"]}:
        return line
    return json.dumps({**row, "outcome": {**outcome, "answer": "", "error": _WHY}}).encode()
