"""One workspace database: opening, migrating, transactions, locks and pointers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from appliance.errors import ApplianceError, UsageError
from appliance.store import audit_log, postgres, schema
from appliance.store.locks import SessionLock, WriterLock
from appliance.store.lookup import Lookup
from appliance.store.trouble import explained

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 30_000
_POINTER = Lookup(sa.select(schema.pointer.c.value).where(schema.pointer.c.name == sa.bindparam("name")))

T = TypeVar("T")


def utcnow() -> datetime:
    return datetime.now(UTC)


class Database:
    """The metadata database of a workspace: SQLite in WAL mode, or PostgreSQL. Raises UsageError for another URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Who does what is done here, for the audit log.
        self.actor = audit_log.local_actor()
        self.is_postgres = postgres.is_postgres(url)
        if self.is_postgres:
            self.engine: Engine = postgres.open_engine(url)
        elif url.startswith("sqlite:"):
            # No error shows what was written: it may be a question or an answer, and the error goes into a log.
            # Threads that wait for the one writer hold connections; a read, also one on an event loop (see `look`), must not.
            in_file = sa.make_url(url).database not in (None, "", ":memory:")
            self.engine = sa.create_engine(url, hide_parameters=True, **({"max_overflow": -1} if in_file else {}))
            sa.event.listen(self.engine, "connect", _sqlite_connect)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        else:
            raise UsageError(
                f"[database] url: {url.split(':', 1)[0]} is not supported; use postgresql+pg8000://USER:PASSWORD@HOST/DATABASE"
            )

    @property
    def name(self) -> str:
        """Where it is, for messages: without the password."""
        url = self.engine.url
        return f"{url.database} on {url.host or 'this machine'}" if self.is_postgres else str(url.database)

    def close(self) -> None:
        self.engine.dispose()

    def migrate(self) -> None:
        """Bring the tables to this version's form; does nothing when they are.

        Raises ApplianceError if the database cannot be opened (no database, damaged, not writable, no answer), OSError on a full disk.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        try:
            script = ScriptDirectory.from_config(config)
            with explained(self.name), self.engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise ApplianceError(
                    f"the database was written by a newer version of the appliance (revision {current}); install that version to open it"
                )
            # Of two processes that open a new database the later finds the work done.
            with self._altering() as connection:
                config.attributes["connection"] = connection
                if not self.is_postgres and not sa.inspect(connection).get_table_names():
                    # A new file needs no history: SQLite would rebuild its tables at each step of it.
                    schema.metadata.create_all(connection)
                    command.stamp(config, "head")
                else:
                    command.upgrade(config, "head")
        except (sa.exc.DatabaseError, sa.exc.InterfaceError) as error:
            remedy = "check [database] url and that the server runs" if self.is_postgres else "restore it from a backup"
            raise ApplianceError(f"the database {self.name} cannot be opened: {postgres.reason(error)}; {remedy}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading: one consistent snapshot from its first query on. Raises DatabaseFailed."""
        with explained(self.name), self.engine.connect() as connection:
            yield connection

    def rows(self, lookup: Lookup, **parameters: str) -> Sequence[Any]:
        """All rows of a small read, their columns as attributes. Raises DatabaseFailed."""
        with explained(self.name):
            return lookup.rows(self.engine, parameters)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A write transaction: commits at the end, rolls back on any exception. Keep it short: there is one writer.

        Raises DatabaseFailed (locked, damaged, not writable, no answer), OSError if the disk is full.
        """
        with explained(self.name), self.engine.connect().execution_options(appliance_write=True) as connection, connection.begin():
            yield connection

    async def look(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`, a few small reads, without keeping an event loop waiting: those of SQLite, whose readers wait for no writer, are
        done sooner than a busy server changes threads."""
        return await asyncio.to_thread(work, *args) if self.is_postgres else work(*args)

    @contextmanager
    def _altering(self) -> Iterator[Connection]:
        """A write transaction that may make tables anew: SQLite would delete all that refers to a table when its old form is dropped."""
        with explained(self.name), self.engine.connect().execution_options(appliance_write=True) as connection:
            raw: Any = connection.connection.driver_connection
            if not self.is_postgres:
                raw.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    yield connection
            finally:
                if not self.is_postgres:
                    raw.execute("PRAGMA foreign_keys=ON")

    def scrub(self) -> bool:
        """Empty SQLite's log, in which deleted text may still be; False if somebody is reading, and a later call has to do it."""
        if self.is_postgres:
            return True
        with explained(self.name), self.engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.execute("PRAGMA busy_timeout=0")
            try:
                busy, *_ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        return not busy

    def session(self) -> Connection:
        """A connection of its own, outside the pool and without transactions, on PostgreSQL; the caller closes it."""
        return postgres.open_session(self.url)

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
        if connection is not None:
            return connection.execute(_POINTER.statement, {"name": name}).scalar_one_or_none()
        return next((row.value for row in self.rows(_POINTER, name=name)), None)

    def move_pointer(
        self, connection: Connection, name: str, value: str | None, why: str, details: Mapping[str, Any] | None = None
    ) -> None:
        """Move (or with None, remove) a pointer inside the caller's write transaction and log the move; `details` go to the audit log."""
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
        facts = {"name": name, "old": old, "new": value, "why": why, **(details or {})}
        self.audit(connection, audit_log.pointer_action(name, value, why), facts, at=now)

    def audit(self, connection: Connection, action: str, details: Mapping[str, Any], at: datetime | None = None) -> None:
        """Write an entry of the audit log inside the caller's write transaction, in the name of `actor`."""
        audit_log.append(connection, self.actor, action, details, at or utcnow())

    # --- the writer lock

    @contextmanager
    def lock(self, resource: str) -> Iterator[WriterLock]:
        """Hold the only writer's lock on `resource`; raises Locked naming the holder. `beat` in long work tells when it was lost."""
        held = SessionLock(self, resource) if self.is_postgres else WriterLock(self, resource)
        held.acquire()
        try:
            yield held
        finally:
            # A full disk may forbid even this. What was done stays done, and whoever comes next takes the lock over.
            with suppress(ApplianceError, OSError):
                held.release()


def _sqlite_connect(connection: Any, _record: Any) -> None:
    # pysqlite's own transaction handling is turned off so that `begin` below decides the kind of transaction.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # What is deleted is overwritten: the text of a removed document must not stay in the file.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # A write takes its lock at once: a reader that becomes a writer later would fail with SQLITE_BUSY instead of waiting.
    immediate = connection.get_execution_options().get("appliance_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
