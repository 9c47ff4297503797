"""How questions come into the review queue: once each, with counts, inside the transactions of `appliance.answers.feedback`."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from appliance.store.tables_experts import review
from retrieval.text import normalise_question

OPEN = "open"
# Resolutions after which the question should not need a person again: if it does, it is open again.
_SETTLED = ("answered", "missing")
# The latest answers a row names.
_ANSWERS = 20
# Questions looked up at a time.
_TOGETHER = 500

Cause = Literal["refused", "rated_down"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One refusal or bad rating; `question` is None where its text is not kept."""

    domain: str
    question_hash: str
    question: str | None
    cause: Cause
    rule: str
    arm: str
    answer_id: str
    documents: Iterable[Any]
    labels: Iterable[str]
    moment: datetime


def question_hash(secret: bytes, question: str) -> str:
    """The same for the same question after normalising; without the workspace secret nobody can try questions against it."""
    return hmac.new(secret, b"question\0" + normalise_question(question).encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def enter(connection: Connection, entries: Iterable[Entry]) -> None:
    """Add to the counts of each question, or make its row. What was resolved as answered or missing is open again."""
    entries = list(entries)
    rows = _known(connection, entries)
    fresh = _merged(entries, rows)
    try:
        if fresh:
            with connection.begin_nested():
                connection.execute(review.insert(), fresh)
    except IntegrityError:
        # Another process made one of them meanwhile; what it made is seen now.
        rows = _known(connection, entries)
        if fresh := _merged(entries, rows):
            connection.execute(review.insert(), fresh)
    if rows:
        names = (name for name in next(iter(rows.values())) if name != "id")
        statement = review.update().where(review.c.id == sa.bindparam("key")).values({name: sa.bindparam(f"new_{name}") for name in names})
        changed = [{"key": row["id"], **{f"new_{name}": value for name, value in row.items() if name != "id"}} for row in rows.values()]
        connection.execute(statement, changed)


def _known(connection: Connection, entries: Sequence[Entry]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows there are of the questions, by domain and hash."""
    wanted = {(entry.domain, entry.question_hash) for entry in entries}
    hashes = sorted({hashed for _, hashed in wanted})
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for start in range(0, len(hashes), _TOGETHER):
        query = sa.select(review).where(review.c.question_hash.in_(hashes[start : start + _TOGETHER])).with_for_update()
        for row in connection.execute(query):
            if (row.domain, row.question_hash) in wanted:
                found[row.domain, row.question_hash] = dict(row._mapping)
    return found


def _merged(entries: Sequence[Entry], rows: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring the entries into `rows`; returns the rows that are new."""
    fresh: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        key = (entry.domain, entry.question_hash)
        if (row := rows.get(key) or fresh.get(key)) is not None:
            row.update(_further(entry, row))
        else:
            fresh[key] = _first(entry)
    return list(fresh.values())


def _first(entry: Entry) -> dict[str, Any]:
    return {
        "id": f"rev-{secrets.token_hex(6)}",
        "domain": entry.domain,
        "question_hash": entry.question_hash,
        "question": entry.question,
        "state": OPEN,
        "refused": int(entry.cause == "refused"),
        "rated_down": int(entry.cause == "rated_down"),
        "rule": entry.rule,
        "arm": entry.arm,
        "answers": [entry.answer_id],
        "labels": sorted(entry.labels),
        "documents": sorted(list(each) for each in entry.documents),
        "topics": [],
        "note": "",
        "first_seen": entry.moment,
        "last_seen": entry.moment,
    }


def _further(entry: Entry, row: Mapping[str, Any]) -> dict[str, Any]:
    answers = [*(name for name in row["answers"] if name != entry.answer_id), entry.answer_id]
    return {
        entry.cause: row[entry.cause] + 1,
        "question": entry.question or row["question"],
        "state": OPEN if row["state"] in _SETTLED else row["state"],
        "rule": entry.rule,
        "arm": entry.arm,
        "answers": answers[-_ANSWERS:],
        "labels": sorted({*row["labels"], *entry.labels}),
        "documents": sorted({(owner, name) for owner, name in (*row["documents"], *entry.documents)}),
        "last_seen": entry.moment,
    }


def withdraw(connection: Connection, domain: str, hashed: str) -> None:
    """Take one bad rating back, whose author thought again; an open row that nothing else brought in goes."""
    where = (review.c.domain == domain, review.c.question_hash == hashed, review.c.rated_down > 0)
    connection.execute(review.update().where(*where).values(rated_down=review.c.rated_down - 1))
    nothing = (review.c.rated_down == 0, review.c.refused == 0, review.c.state == OPEN)
    connection.execute(review.delete().where(review.c.domain == domain, review.c.question_hash == hashed, *nothing))


def expire(connection: Connection, kept_since: datetime, accepted_since: datetime) -> None:
    """Erase the texts of questions that only refusals brought in and that were last asked before `kept_since`.

    Open questions without a text that were last asked before `accepted_since` go: nobody can do anything about them.
    """
    old = (review.c.question.is_not(None), review.c.last_seen < kept_since, review.c.rated_down == 0)
    connection.execute(review.update().where(*old).values(question=None))
    lost = (review.c.question.is_(None), review.c.state == OPEN, review.c.rated_down == 0, review.c.last_seen < accepted_since)
    connection.execute(review.delete().where(*lost))
