"""What a deletion reaches besides the index: quotations in approved answers, answers of evaluation runs, experts' tasks, feedback, and
pairs that were written from documents.

The deletion ledger is applied to all of them as a whole, so that what one process could not finish the next one does.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.answers import feedback
from appliance.datasets import erasing as datasets
from appliance.experts import access as expert_access
from appliance.files import write_bytes
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.locks import Locked
from appliance.store.tables_experts import expert_task, expert_work
from eval.run import digest
from eval.types import UNAVAILABLE, EvalError, Item, item_from_json

logger = logging.getLogger("appliance.index")

_DONE = "forgotten"
# The page of a run, in its folder: report.html, report.md and its plots.
REPORT = "report"
WITHHELD = f"{UNAVAILABLE}a document that this answer rests on was deleted"
_ERASED = f"{UNAVAILABLE}a document that this question was written from was deleted"
# In the place of such a question, by language.
_QUESTION = {"en": "(deleted)", "zh": "（已删除）"}

# When a document was last deleted, by domain and id.
Ledger = Mapping[tuple[str, str], datetime]


def forget(database: Database, root: Path, *, again: bool = False) -> bool:
    """Take the text of deleted documents out of what the workspace in `root` keeps besides its index; False: nothing new.

    An approved answer keeps the expert's words and loses the quotations; an outcome of a run that had found or cited the document, or came
    from an adapter trained on it, loses its answer and counts as unavailable from then on (the figures of its run stay as they were
    measured), and so does every outcome of a question that is erased from its data set, which loses its words. `again`: look through
    everything, also where nothing seems new, as after entries of another ledger were added, which may be older than its own.
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
        adapters = connection.execute(sa.select(schema.adapter.c.name)).scalars().all()
        deleted = feedback.Deletions(connection, (), adapters)
        # A finished run may be gone on with, too, to ask what failed.
        held = frozenset(connection.execute(sa.select(schema.lock.c.resource)).scalars())
    datasets.forget(database, root)
    left = {key: datasets.left(database, root, *key) for key in {(row.dataset, row.dataset_version) for row in runs}}
    for row in runs:
        resource = f"run:{row.id}"
        try:
            # Broken off, unless somebody holds it: then it is looked through when it ends.
            with database.lock(resource) if row.finished_at is None or resource in held else nullcontext():
                blank = _blank(root / row.path / "items.jsonl", left[row.dataset, row.dataset_version])
                trained = frozenset(name for name in adapters if deleted((), name, row.created_at))
                _withhold(root / row.path / "outputs.jsonl", row.domain, row.created_at, ledger, trained, blank)
        except Locked:
            state = ""
            continue
        with database.write() as connection:
            expert_access.erase(connection, row.id, blank)
    with database.write() as connection:
        connection.execute(table.delete().where(table.c.key == _DONE))
        connection.execute(table.insert().values(key=_DONE, value=state))
    return True


def _without_quote(citation: dict[str, Any], ledger: Ledger, since: datetime) -> dict[str, Any]:
    deleted = ledger.get((citation["domain"], citation["doc_id"]))
    if deleted is None or deleted < since:
        return citation
    return {**citation, "quote": "", "title": "", "heading": []}


def _blank(path: Path, left: frozenset[str] | None) -> dict[str, str]:
    """Take the words out of a run's questions that are not `left` in its data set; what outcomes are stored with then, by question."""
    blank: dict[str, str] = {}
    if left is None or not path.is_file():
        return blank

    def without_words(line: bytes) -> bytes:
        item = item_from_json(json.loads(line))
        if item.id in left:
            return line
        bare = Item(
            item.id, _QUESTION[item.lang if item.lang in _QUESTION else "en"], doc_ids=item.doc_ids, lang=item.lang, domain=item.domain
        )
        blank[item.id] = digest(bare)
        return line if item == bare else json.dumps(asdict(bare)).encode()

    _rewrite(path, without_words)
    return blank


def _withhold(path: Path, domain: str | None, since: datetime, ledger: Ledger, trained: frozenset[str], blank: Mapping[str, str]) -> None:
    """Take the answers out of a run's outcomes that rest on documents deleted since it began, as those of adapters `trained` on such do, or
    are of `blank` questions."""
    names: defaultdict[str | None, set[str]] = defaultdict(set)
    for (owner, id), deleted in ledger.items():
        if deleted >= since and domain in (None, owner):
            names[owner].add(id)
    gone = set().union(*names.values()) if names else set()
    if (gone or trained or blank) and path.is_file():
        _rewrite(path, lambda line: _without_answer(line, gone, trained, blank))


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the lines of a run's file, all at once; damaged lines go, as what they say is not known."""
    # Only a newline ends a line: answers may hold U+2028 and the like.
    *lines, torn = path.read_bytes().split(b"\n")
    kept: list[bytes] = []
    for number, line in enumerate(lines, 1):
        try:
            kept.append(change(line))
        except (ValueError, TypeError, KeyError, EvalError) as error:
            logger.warning("%s, line %d: damaged (%s), so what it rests on is not known: deleted", path, number, error)
    if torn or kept != lines:
        write_bytes(path, b"".join(line + b"\n" for line in kept))
        # It quotes answers; `appliance eval show RUN --html` makes it anew.
        for page in path.parent.glob(f"{REPORT}*"):
            page.unlink(missing_ok=True)


def _without_answer(line: bytes, gone: set[str], trained: frozenset[str], blank: Mapping[str, str]) -> bytes:
    """A line of outputs.jsonl, without the answer if that rests on documents in `gone`, an adapter in `trained` gave it, or the question is
    `blank`. Raises what a damaged line raises."""
    row = json.loads(line)
    outcome = row["outcome"]
    if (bare := blank.get(row["id"])) is not None:
        if row["item"] == bare:
            return line
        return json.dumps({**row, "item": bare, "outcome": {**outcome, "answer": "", "error": _ERASED}}).encode()
    rests = outcome.get("adapter") in trained or gone & {*(outcome["retrieved"] or ()), *outcome["citations"]}
    if not outcome["answer"] or not rests:
        return line
    return json.dumps({**row, "outcome": {**outcome, "answer": "", "error": WITHHELD}}).encode()
