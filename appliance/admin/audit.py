"""Reading, checking and exporting the audit log, and noting answers in it; `appliance.store.audit_log` says how entries are bound."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.errors import ApplianceError, UsageError
from appliance.files import whole_file
from appliance.store import audit_log
from appliance.store.database import Database, utcnow
from appliance.store.tables_admin import audit
from appliance.types import Answer

logger = logging.getLogger("appliance.admin.audit")

# Entries read at a time, answers written in one transaction, answers that may wait for it.
_BATCH, _TOGETHER, _WAITING = 2_000, 500, 100_000
# Seconds before a failed write is tried again, and for the last one when the gateway ends.
_RETRY, _LAST = 1.0, 10.0
# More than the last line of an export has.
_HEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking a log found: `broken` is the number of the first entry that is not as it was written, None if all are."""

    entries: int
    head: str
    broken: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.broken is None


def entries(database: Database) -> Iterator[tuple[int, str, str]]:
    """(number, entry, sha256) of every entry, oldest first, as they are stored, in one snapshot and little memory."""
    with database.read() as connection:
        yield from _entries(connection)


def _entries(connection: Connection) -> Iterator[tuple[int, str, str]]:
    query = sa.select(audit.c.seq, audit.c.entry, audit.c.sha256).order_by(audit.c.seq)
    for row in connection.execute(query, execution_options={"yield_per": _BATCH}):
        yield row.seq, row.entry, row.sha256


def find(database: Database, action: str | None = None, actor: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The newest entries, newest first: of an action (`answer`, `index.ingest`, or all of `index`), of somebody."""
    query = sa.select(audit.c.entry).order_by(audit.c.seq.desc())
    if action is not None:
        query = query.where(sa.or_(audit.c.action == action, audit.c.action.startswith(f"{action}.", autoescape=True)))
    found: list[dict[str, Any]] = []
    with database.read() as connection:
        for (text,) in connection.execute(query, execution_options={"yield_per": _BATCH}):
            entry = json.loads(text)
            if actor in (None, entry["actor"]):
                found.append(entry)
                if len(found) == limit:
                    break
    return found


def verify(database: Database) -> Verdict:
    """Check the chain and that its end is the kept head."""
    with database.read() as connection:
        kept = audit_log.head(connection) or (0, audit_log.GENESIS)
        verdict = check(_entries(connection))
    if not verdict.ok:
        return verdict
    last = verdict.entries
    if last < kept[0]:
        return replace(verdict, broken=last + 1, problem=f"the log ends with entry {last}, but {kept[0]} were written: its end was cut off")
    if (last, verdict.head) != kept:
        return replace(verdict, broken=last, problem=f"the newest entry on record is {kept[0]}, and entry {last} is not that one")
    return verdict


def check(log: Iterable[tuple[int, str, str]]) -> Verdict:
    """Check the chain of (number, entry, sha256), oldest first."""
    previous, count = audit_log.GENESIS, 0
    for seq, text, sha256 in log:
        expected = count + 1
        try:
            entry = json.loads(text)
        except ValueError:
            entry = {}
        if seq != expected:
            return Verdict(count, previous, expected, f"entry {expected} is missing: {count} is followed by {seq}")
        if audit_log.digest(text) != sha256:
            return Verdict(count, previous, seq, f"entry {seq} was altered: it does not have its sha256")
        if not isinstance(entry, dict) or entry.get("seq") != seq:
            return Verdict(count, previous, seq, f"entry {seq} was altered: it does not carry its number")
        if entry.get("previous") != previous:
            return Verdict(count, previous, seq, f"entry {seq} does not follow the one before it: one of the two was altered")
        previous, count = sha256, seq
    return Verdict(count, previous)


def export(database: Database, file: Path) -> Verdict:
    """Write the log to `file`: one entry a line, whose sha256 is the next line's `previous`, and last a line with the head.

    Raises ApplianceError, and writes nothing, when the log is broken.
    """
    verdict = verify(database)
    if not verdict.ok:
        raise ApplianceError(f"the audit log is broken: {verdict.problem}; nothing was exported")
    with whole_file(file) as out:
        head = {"seq": 0, "sha256": audit_log.GENESIS}
        for seq, text, sha256 in entries(database):
            out.write(f"{text}\n")
            head = {"seq": seq, "sha256": sha256}
        out.write(audit_log.canonical({"head": head}) + "\n")
    return Verdict(int(str(head["seq"])), str(head["sha256"]))


def verify_export(file: Path, database: Database | None) -> Verdict:
    """Check an exported log by itself, and with `database` that its log begins with the very same entries.

    Raises UsageError if the file cannot be read or is none of ours.
    """
    try:
        head = _last_line(file)["head"]
        verdict = check((number, line, audit_log.digest(line)) for number, line in enumerate(_exported(file), 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no whole export of an audit log ({error}); make one with: appliance audit export FILE") from error
    if verdict.ok and (verdict.entries, verdict.head) != (head["seq"], head["sha256"]):
        return Verdict(verdict.entries, verdict.head, verdict.entries + 1, f"{file} does not end with the entry that its last line names")
    if verdict.ok and database is not None and verdict.entries and _hash_of(database, verdict.entries) != verdict.head:
        problem = f"entry {verdict.entries} of this workspace is not that of {file}: the log was written anew or cut off since"
        return Verdict(verdict.entries, verdict.head, verdict.entries, problem)
    return verdict


def _last_line(file: Path) -> Any:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _HEAD_BYTES))
        return json.loads(log.read().removesuffix(b"\n").rpartition(b"\n")[2])


def _exported(file: Path) -> Iterator[str]:
    """Every line of an export but the last, in little memory. Only newlines end one: other separators of lines may be in a name."""
    with file.open(encoding="utf-8", newline="\n") as log:
        before = next(log)
        for line in log:
            yield before.removesuffix("\n")
            before = line


def answer_facts(answer: Answer) -> dict[str, Any]:
    """What the log keeps of an answer: how it came about, and no text."""
    return {
        "id": answer.id,
        "arm": answer.arm,
        "domain": answer.domain,
        "generation": answer.generation,
        "adapter": answer.adapter,
        "documents": list(dict.fromkeys(f"{citation.domain}/{citation.doc_id}" for citation in answer.citations)),
    }


class AnswerLog:
    """Writes answers into the log from a thread of its own, many in one transaction, so that no client waits for a disk.

    Use it in a `with`: at the end what waits is written. What a killed process had not written yet (about a second's worth) is lost.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: queue.Queue[tuple[str, dict[str, Any], str, datetime] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._batch = 0

    def __enter__(self) -> AnswerLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + _LAST
        with suppress(queue.Full):
            self._queue.put(None, timeout=_LAST)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.error("%d answers could not be written to the audit log", self._unwritten)

    @property
    def _unwritten(self) -> int:
        """How many answers wait, with those that are being written."""
        return self._batch + sum(item is not None for item in list(self._queue.queue))

    def note(self, actor: str, details: Mapping[str, Any], outcome: str = "done") -> None:
        """Log one answer; never waits. Where far too many wait already, the loss is logged instead."""
        try:
            self._queue.put_nowait((actor, dict(details), outcome, utcnow()))
        except queue.Full:
            logger.error("the audit log cannot keep up: answer %s is not in it", details.get("id"))

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = [first], False
            while len(batch) < _TOGETHER and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    ended = True
                    break
                batch.append(item)
            self._batch = len(batch)
            while not self._write(batch):
                time.sleep(_RETRY)
            self._batch = 0
            if ended:
                return

    def _write(self, batch: list[tuple[str, dict[str, Any], str, datetime]]) -> bool:
        try:
            with self._database.write() as connection:
                for actor, details, outcome, at in batch:
                    audit_log.append(connection, actor, "answer", details, at, outcome)
        except (ApplianceError, sa.exc.SQLAlchemyError, OSError) as error:
            logger.error("%d answers wait for the audit log: %s", len(batch), error)
            return False
        return True


def _hash_of(database: Database, seq: int) -> str | None:
    with database.read() as connection:
        return connection.execute(sa.select(audit.c.sha256).where(audit.c.seq == seq)).scalar_one_or_none()
