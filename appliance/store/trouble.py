"""What a failing database means, in words that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from appliance.errors import DatabaseFailed
from appliance.store import postgres

# SQLite's primary result codes (https://www.sqlite.org/rescode.html) that no statement of ours causes, and the remedy of each.
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
_REMEDIES = {
    _BUSY: "another process has been writing for too long; wait for it to end, or stop it",
    _LOCKED: "another process has been writing for too long; wait for it to end, or stop it",
    _READONLY: "let this user write the file and its folder",
    _IOERR: "the disk is full or failing: free some space or repair it, then run the same again",
    _CORRUPT: "the file is damaged: restore it from a backup",
    _CANTOPEN: "let this user read and write the file and its folder",
    _NOTADB: "the file is damaged: restore it from a backup",
}
# PostgreSQL's (https://www.postgresql.org/docs/current/errcodes-appendix.html): connections, resources, shutting down.
_LOCK_TIMEOUT, _NOT_THERE = "55P03", ("08", "53", "57P")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the failures of the database `name` itself into DatabaseFailed, and a full disk into OSError; those of a statement pass."""
    try:
        with postgres.disk_full():
            yield
    except sa.exc.DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code == _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name) from error
        if code in _REMEDIES:
            raise DatabaseFailed(f"the database {name} cannot be used: {postgres.reason(error)}; {_REMEDIES[code]}") from error
        state = postgres.state(error)
        if state == _LOCK_TIMEOUT:
            raise DatabaseFailed(f"the database {name} cannot be used: {postgres.reason(error)}; {_REMEDIES[_BUSY]}") from error
        if isinstance(error, sa.exc.InterfaceError) or state.startswith(_NOT_THERE):
            raise DatabaseFailed(f"the database {name} does not answer: {postgres.reason(error)}; check that its server runs") from error
        raise
    except (ConnectionResetError, BrokenPipeError) as error:
        # The driver of PostgreSQL does not make every one of these its own error.
        raise DatabaseFailed(f"the database {name} does not answer: {error}; check that its server runs") from error
