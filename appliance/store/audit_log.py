"""The audit log's one way in: an entry is written in the transaction of the act it tells of, and bound to the entry before it.

Every entry is a canonical JSON text that holds the sha256 of the one before it, so that none can be altered, left out or put in between
without breaking the chain; the kept head shows when the end was cut off. Write transactions come one after the other on both databases
(SQLite's only writer, PostgreSQL's advisory lock), so that two entries never follow the same one.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.schema import setting
from appliance.store.tables_admin import audit

# The environment variable in which a job's process finds who asked for it.
ACTOR = "APPLIANCE_ACTOR"
# The setting with the number and hash of the newest entry.
HEAD = "audit_head"
# What the first entry names as the one before it.
GENESIS = "0" * 64
# Documents named in one entry; the deletion ledger and the generations name all of them.
NAMED = 100
_VERBS = ("ingest", "remove", "rebuild", "compact", "rollback", "add")


def append(
    connection: Connection,
    actor: str,
    action: str,
    details: Mapping[str, Any],
    at: datetime,
    outcome: str = "done",
) -> tuple[int, str]:
    """Write one entry inside the caller's write transaction; its number (from 1) and its sha256.

    `actor` is who did it (``key:ID``, ``cli:LOGIN``, ``worker``), `details` plain JSON without the text of a question, answer or document.
    """
    seq, previous = head(connection) or (0, GENESIS)
    seq += 1
    entry = canonical(
        {
            "seq": seq,
            "at": at.isoformat(timespec="microseconds"),
            "actor": actor,
            "action": action,
            "details": details,
            "outcome": outcome,
            "previous": previous,
        }
    )
    sha256 = digest(entry)
    connection.execute(audit.insert().values(seq=seq, action=action, entry=entry, sha256=sha256))
    keep_head(connection, seq, sha256)
    return seq, sha256


def head(connection: Connection) -> tuple[int, str] | None:
    """Number and sha256 of the newest entry as they were kept, None before the first."""
    kept = connection.execute(sa.select(setting.c.value).where(setting.c.key == HEAD)).scalar_one_or_none()
    if kept is None:
        return None
    seq, _, sha256 = kept.partition(" ")
    return int(seq), sha256


def keep_head(connection: Connection, seq: int, sha256: str) -> None:
    """Remember which entry is the newest."""
    value = f"{seq} {sha256}"
    if connection.execute(setting.update().where(setting.c.key == HEAD).values(value=value)).rowcount == 0:
        connection.execute(setting.insert().values(key=HEAD, value=value))


def canonical(entry: Mapping[str, Any]) -> str:
    """The one text of an entry: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(entry, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(entry: str) -> str:
    return hashlib.sha256(entry.encode("utf-8")).hexdigest()


def pointer_action(name: str, new: str | None, why: str) -> str:
    """What a pointer's move is called: ``index.ingest``, ``adapter.promote``, ``dataset.add``, …, or ``KIND.move``."""
    kind = name.partition(":")[0]
    words = why.removeprefix(f"{kind} ")
    verb = next((verb for verb in _VERBS if words.startswith(verb)), "move")
    if kind == "adapter" and verb != "rollback":
        # Here the reason is a gate's result or a person's words.
        verb = "promote" if new is not None else "remove"
    return f"{kind}.{verb}"


def local_actor() -> str:
    """Who runs this process, for acts without a key; in the process of a job, who asked for it."""
    if asked := os.environ.get(ACTOR):
        return asked
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return f"cli:{os.getuid()}"
