"""What is particular to PostgreSQL: how it is connected to, what a transaction is there, and what its errors say.

The driver is pg8000 (BSD). Transactions that read see one snapshot (REPEATABLE READ). Those that write wait for one another on an
advisory lock, so that they have the same guarantee as on SQLite: what they read does not change until they commit.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pg8000.dbapi as pg8000
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

from appliance.errors import ApplianceError, UsageError
from appliance.store.locks import advisory_key

_NAMES = ("postgres", "postgresql", "postgresql+pg8000")
_MODES = ("disable", "prefer", "require", "verify-full")
# Settings of every connection: a writer waits as long as SQLite's busy timeout; the scan of the vector index goes on (see `pgsearch`).
_SESSION = {
    "application_name": "appliance",
    "startup_params": {"lock_timeout": "30s", "hnsw.iterative_scan": "relaxed_order"},
}
_DISK_FULL = "53100"
# The first version that goes on scanning its index until enough rows pass the filter.
_PGVECTOR = (0, 8, 0)


def is_postgres(url: str) -> bool:
    return url.split(":", 1)[0] in _NAMES


def open_engine(url: str) -> Engine:
    """The pool for transactions. Raises UsageError for a URL that cannot be right."""
    address, arguments = _address(url)
    # Errors go into logs, where no text of a question or an answer belongs.
    engine = sa.create_engine(address, connect_args=arguments, pool_size=10, max_overflow=20, hide_parameters=True)
    # The driver sends the rows of an executemany one by one; this lets SQLAlchemy put a thousand into one statement.
    engine.dialect.use_insertmanyvalues_wo_returning = True
    sa.event.listen(engine, "begin", _begin)

    def check(connection: Any, _record: Any, _proxy: Any) -> None:
        # The pool's own check does not take the driver's bare ConnectionResetError for the end of a connection.
        try:
            engine.dialect.do_ping(connection)
        except (pg8000.Error, OSError) as error:
            raise sa.exc.DisconnectionError from error

    sa.event.listen(engine, "checkout", check)
    return engine


def open_session(url: str) -> Connection:
    """A connection of its own outside the pool, without transactions; whoever opens it closes it."""
    address, arguments = _address(url)
    # The lock's holder may be silent for hours: no statement runs into the timeout, keepalive packets tell the server that it lives.
    return sa.create_engine(address, connect_args=arguments, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT").connect()


def reason(error: sa.exc.DBAPIError) -> str:
    """What the server or the driver said, in one line."""
    return _said(error).get("M") or str(error.orig or error)


def state(error: sa.exc.DBAPIError) -> str:
    """The SQLSTATE of what the server said, "" if it said nothing."""
    return _said(error).get("C", "")


def require_pgvector(connection: Connection) -> None:
    """Turn the extension on in this database. Raises ApplianceError saying what to do if the server lacks it or has an old one."""
    query = "SELECT coalesce(installed_version, default_version), installed_version FROM pg_available_extensions WHERE name = 'vector'"
    found = connection.exec_driver_sql(query).one_or_none()
    wanted = ".".join(map(str, _PGVECTOR))
    if found is None:
        raise ApplianceError(f"the PostgreSQL server has no pgvector; install version {wanted} or later there, see docs/postgresql.md")
    version, installed = found
    if tuple(int(part) for part in version.split(".")) < _PGVECTOR:
        remedy = "install a later one on the server, then run ALTER EXTENSION vector UPDATE in the database"
        raise ApplianceError(f"the PostgreSQL server has pgvector {version}, needed is {wanted} or later; {remedy}")
    if installed is None:
        try:
            connection.exec_driver_sql("CREATE EXTENSION vector")
        except sa.exc.DBAPIError as error:
            raise ApplianceError(
                f"pgvector cannot be turned on: {reason(error)}; let an administrator run CREATE EXTENSION vector in the database once"
            ) from error


@contextmanager
def disk_full() -> Iterator[None]:
    """Turn the server's "disk full" into the OSError that ingest explains."""
    try:
        yield
    except (sa.exc.DBAPIError, pg8000.Error) as error:
        said = _said(error)
        if said.get("C") == _DISK_FULL:
            raise OSError(errno.ENOSPC, said["M"]) from error
        raise


def _said(error: Exception) -> dict[str, str]:
    """The fields of the server's message (https://www.postgresql.org/docs/current/protocol-error-fields.html); none: the driver's own."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    detail = cause.args[0] if cause.args else None
    return detail if isinstance(detail, dict) else {}


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("appliance_write", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({advisory_key('write')})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _address(url: str) -> tuple[URL, dict[str, Any]]:
    """The URL for SQLAlchemy and the driver's arguments; `sslmode`, `sslrootcert` and `host` are libpq's, which pg8000 does not know."""
    given = sa.make_url(url)
    mode = str(given.query.get("sslmode", "prefer"))
    if mode not in _MODES:
        raise UsageError(f"[database] url: sslmode={mode} is not known here; use one of {', '.join(_MODES)}")
    if given.username is None:
        raise UsageError("[database] url: it names no user; write postgresql+pg8000://USER:PASSWORD@HOST:5432/DATABASE")
    arguments: dict[str, Any] = dict(_SESSION)
    if mode == "disable":
        arguments["ssl_context"] = False
    elif mode != "prefer":
        root = given.query.get("sslrootcert")
        if root is not None and not Path(str(root)).is_file():
            raise UsageError(f"[database] url: there is no file sslrootcert={root}")
        context = ssl.create_default_context(cafile=None if root is None else str(root))
        if mode == "require":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        arguments["ssl_context"] = context
    if "host" in given.query:
        # As libpq has it, the folder of a socket.
        arguments["unix_sock"] = f"{given.query['host']}/.s.PGSQL.{given.port or 5432}"
    return given.set(drivername="postgresql+pg8000").difference_update_query(["sslmode", "sslrootcert", "host"]), arguments
