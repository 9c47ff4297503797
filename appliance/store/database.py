"""One workspace database: opening, migrating, transactions, locks and pointers."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from appliance.errors import ApplianceError
from appliance.store import schema

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 30_000
_STALE = timedelta(seconds=60)


def utcnow() -> datetime:
    return datetime.now(UTC)


class Locked(ApplianceError):
    """Another process is writing to this resource."""


class Database:
    """The metadata database of a workspace: SQLite in WAL mode, or any SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)

    def close(self) -> None:
        self.engine.dispose()

    def migrate(self) -> None:
        """Bring the tables to this version's form; does nothing when they are. Raises ApplianceError if the file is no database."""
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            script = ScriptDirectory.from_config(config)
            with self.engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise ApplianceError(
                    f"the database was written by a newer version of the appliance (revision {current}); install that version to open it"
                )
            with self.engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except sa.exc.DatabaseError as error:
            raise ApplianceError(
                f"the database {self.engine.url.database} cannot be opened: {error.orig}; restore it from a backup"
            ) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading. One consistent snapshot on SQLite once the first query ran."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: commits at the end, rolls back on any exception. Keep it short: there is one writer."""
        with self.engine.connect().execution_options(appliance_write=True) as connection, connection.begin():
            yield connection

    # --- settings and pointers

    def setting(self, key: str) -> str | None:
        with self.read() as connection:
            return connection.execute(sa.select(schema.setting.c.value).where(schema.setting.c.key == key)).scalar_one_or_none()

    def secret(self) -> bytes:
        """The workspace secret, 32 random bytes made on first use."""
        found = self.setting("secret")
        if found is None:
            with self.write() as connection:
                known = connection.execute(sa.select(schema.setting.c.value).where(schema.setting.c.key == "secret")).scalar_one_or_none()
                found = known or secrets.token_hex(32)
                if known is None:
                    connection.execute(schema.setting.insert().values(key="secret", value=found))
        return bytes.fromhex(found)

    def pointer(self, name: str, connection: Connection | None = None) -> str | None:
        """What `name` points at now, or None."""
        query = sa.select(schema.pointer.c.value).where(schema.pointer.c.name == name)
        if connection is not None:
            return connection.execute(query).scalar_one_or_none()
        with self.read() as fresh:
            return fresh.execute(query).scalar_one_or_none()

    @staticmethod
    def move_pointer(connection: Connection, name: str, value: str | None, why: str) -> None:
        """Move (or with None, remove) a pointer inside the caller's write transaction and log the move."""
        table = schema.pointer
        old = connection.execute(sa.select(table.c.value).where(table.c.name == name)).scalar_one_or_none()
        now = utcnow()
        if value is None:
            connection.execute(table.delete().where(table.c.name == name))
        elif old is None:
            connection.execute(table.insert().values(name=name, value=value, updated_at=now))
        else:
            connection.execute(table.update().where(table.c.name == name).values(value=value, updated_at=now))
        connection.execute(schema.pointer_move.insert().values(name=name, old=old, new=value, moved_at=now, why=why))

    # --- the writer lock

    @contextmanager
    def lock(self, resource: str) -> Iterator[WriterLock]:
        """Hold the only writer's lock on `resource`; raises Locked naming the holder. Call `beat` in long work."""
        held = WriterLock(self, resource)
        held.acquire()
        try:
            yield held
        finally:
            held.release()


class WriterLock:
    """A lock row with owner and heartbeat; a dead owner's lock is taken over."""

    def __init__(self, database: Database, resource: str) -> None:
        self._database = database
        self.resource = resource
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}:{secrets.token_hex(4)}"
        self._beaten = 0.0

    def acquire(self) -> None:
        table = schema.lock
        with self._database.write() as connection:
            row = connection.execute(sa.select(table).where(table.c.resource == self.resource)).one_or_none()
            if row is not None:
                if _alive(row.owner, row.heartbeat):
                    raise Locked(f"{self.resource} is being written by {row.owner}; wait for it to end, or stop that process")
                connection.execute(table.delete().where(table.c.resource == self.resource))
            connection.execute(table.insert().values(resource=self.resource, owner=self.owner, heartbeat=utcnow()))
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """Renew the heartbeat (at most every 10 s); raises Locked when another process has taken the lock over."""
        if time.monotonic() - self._beaten < 10:
            return
        table = schema.lock
        with self._database.write() as connection:
            renewed = connection.execute(
                table.update().where(table.c.resource == self.resource, table.c.owner == self.owner).values(heartbeat=utcnow())
            )
            if renewed.rowcount != 1:
                raise Locked(f"the lock on {self.resource} was lost to another process; nothing was committed, start again")
        self._beaten = time.monotonic()

    def check(self, connection: Connection) -> None:
        """Inside the committing transaction: raises Locked unless the lock is still ours."""
        table = schema.lock
        owner = connection.execute(sa.select(table.c.owner).where(table.c.resource == self.resource)).scalar_one_or_none()
        if owner != self.owner:
            raise Locked(f"the lock on {self.resource} was lost to {owner}; nothing was committed, start again")

    def release(self) -> None:
        table = schema.lock
        with self._database.write() as connection:
            connection.execute(table.delete().where(table.c.resource == self.resource, table.c.owner == self.owner))


def _alive(owner: str, heartbeat: datetime) -> bool:
    host, pid, started, _ = owner.rsplit(":", 3)
    if host == socket.gethostname():
        # The start time tells the owner from a later process that got its number.
        return _started(int(pid)) == started
    return utcnow() - heartbeat < _STALE


def _started(pid: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # pysqlite's own transaction handling is turned off so that `begin` below decides the kind of transaction.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # A write takes its lock at once: a reader that becomes a writer later would fail with SQLITE_BUSY instead of waiting.
    immediate = connection.get_execution_options().get("appliance_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
