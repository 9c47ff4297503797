"""The writers' locks: one writer for each resource, on SQLite by a row with a heartbeat, on PostgreSQL by a lock of the session."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.errors import ApplianceError
from appliance.processes import started
from appliance.store import schema

if TYPE_CHECKING:
    from appliance.store.database import Database

_STALE = timedelta(seconds=60)
_BEAT_SECONDS = 10


class Locked(ApplianceError):
    """Another process is writing to this resource."""


class Busy(Locked):
    """Another process was writing before anything was begun here: waiting for it helps."""


class WriterLock:
    """A lock row with owner and heartbeat; a dead owner's lock is taken over.

    While it is held a thread renews the heartbeat, so that no step of the work is too long for it.
    """

    def __init__(self, database: Database, resource: str) -> None:
        self._database = database
        self.resource = resource
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}:{secrets.token_hex(4)}"
        self._beaten = 0.0
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"lock {resource}", daemon=True)

    def acquire(self) -> None:
        """Take the lock and keep it until `release`, once. Raises Busy naming the holder."""
        self._take()
        self._keeper.start()

    def release(self) -> None:
        """Stop keeping the lock and give it back. Where that fails the heartbeat tells when it may be taken over."""
        self._released.set()
        self._keeper.join()
        self._give_back()

    def _take(self) -> None:
        with self._database.write() as connection:
            row = connection.execute(sa.select(schema.lock).where(schema.lock.c.resource == self.resource)).one_or_none()
            if row is not None and _alive(row.owner, row.heartbeat):
                raise self._busy(row.owner)
            self._own(connection)

    def beat(self) -> None:
        """Renew the heartbeat (at most every 10 s); raises Locked when another process has taken the lock over."""
        if time.monotonic() - self._beaten < _BEAT_SECONDS:
            return
        table = schema.lock
        with self._database.write() as connection:
            renewed = connection.execute(
                table.update().where(table.c.resource == self.resource, table.c.owner == self.owner).values(heartbeat=datetime.now(UTC))
            )
            if renewed.rowcount != 1:
                raise self._lost("another process")
        self._beaten = time.monotonic()

    def check(self, connection: Connection) -> None:
        """Inside the committing transaction: raises Locked unless the lock is still ours."""
        table = schema.lock
        owner = connection.execute(sa.select(table.c.owner).where(table.c.resource == self.resource)).scalar_one_or_none()
        if owner != self.owner:
            raise self._lost(str(owner))

    def _give_back(self) -> None:
        table = schema.lock
        with self._database.write() as connection:
            connection.execute(table.delete().where(table.c.resource == self.resource, table.c.owner == self.owner))

    def _keep(self) -> None:
        while not self._released.wait(_BEAT_SECONDS):
            try:
                self.beat()
            except Locked:
                # The work learns it at its own next `beat` or `check`.
                return
            except (ApplianceError, sa.exc.SQLAlchemyError, OSError):
                # A database that is busy or full for a moment: the next beat may come through in time.
                continue

    def _own(self, connection: Connection) -> None:
        connection.execute(schema.lock.delete().where(schema.lock.c.resource == self.resource))
        connection.execute(schema.lock.insert().values(resource=self.resource, owner=self.owner, heartbeat=datetime.now(UTC)))
        self._beaten = time.monotonic()

    def _busy(self, owner: str) -> Busy:
        return Busy(f"{self.resource} is being written by {owner}; wait for it to end, or stop that process")

    def _lost(self, owner: str) -> Locked:
        return Locked(f"the lock on {self.resource} was lost to {owner}; nothing was committed, start again")


class SessionLock(WriterLock):
    """A PostgreSQL advisory lock on a connection of its own: the server frees it the moment its owner is gone, on whichever machine.

    The row beside it names the owner, and lets the committing transaction see that no other has come since.
    """

    def __init__(self, database: Database, resource: str) -> None:
        super().__init__(database, resource)
        # The keeper and the work use the one connection.
        self._alone = threading.Lock()

    def _take(self) -> None:
        with ExitStack() as undo:
            self._session = undo.enter_context(self._database.session())
            if not self._session.execute(sa.select(sa.func.pg_try_advisory_lock(advisory_key(self.resource)))).scalar_one():
                query = sa.select(schema.lock.c.owner).where(schema.lock.c.resource == self.resource)
                raise self._busy(self._session.execute(query).scalar_one_or_none() or "another process")
            with self._database.write() as connection:
                self._own(connection)
            undo.pop_all()

    def beat(self) -> None:
        if time.monotonic() - self._beaten >= _BEAT_SECONDS:
            self._ping()
        super().beat()

    def check(self, connection: Connection) -> None:
        # Whoever takes the lock after this ping writes the row first, and waits with that for this transaction to end.
        self._ping()
        super().check(connection)

    def _give_back(self) -> None:
        try:
            super()._give_back()
        finally:
            self._session.close()

    def _ping(self) -> None:
        try:
            with self._alone:
                self._session.execute(sa.select(1))
        except (sa.exc.SQLAlchemyError, OSError) as error:
            # Whoever comes second to a broken connection meets no error of the database but one of its transaction.
            raise Locked(f"the lock on {self.resource} was lost with its connection; nothing was committed, start again") from error


def advisory_key(name: str) -> int:
    """The 64-bit number PostgreSQL knows a lock by."""
    return int.from_bytes(hashlib.blake2b(f"appliance {name}".encode(), digest_size=8).digest(), "big", signed=True)


def _alive(owner: str, heartbeat: datetime) -> bool:
    host, pid, since, _ = owner.rsplit(":", 3)
    # A lock of this very process may be one that could not be given back: only its heartbeat tells.
    if host == socket.gethostname() and int(pid) != os.getpid():
        # The start time tells the owner from a later process that got its number.
        return started(int(pid)) == since
    return datetime.now(UTC) - heartbeat < _STALE
