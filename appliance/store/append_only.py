"""Triggers that keep the database from changing or deleting an entry of the audit log, whatever program asks for it."""

from __future__ import annotations

from sqlalchemy.engine import Connection

_SQLITE = [
    f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    for verb in ("UPDATE", "DELETE")
]
_POSTGRESQL = [
    "CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
    "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()",
]


def protect(connection: Connection) -> None:
    """Make the triggers; they are not there yet."""
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.exec_driver_sql(statement)


def unprotect(connection: Connection) -> None:
    """Take the triggers away, inside the caller's transaction."""
    names = ("audit_no_update", "audit_no_delete") if connection.dialect.name == "sqlite" else ("audit_append_only ON audit",)
    for name in names:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
