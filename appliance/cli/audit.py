"""`appliance audit`."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE


@click.group()
def audit() -> None:
    """Who did what and when: append-only, hash-chained, without any text of questions or answers."""


@audit.command(name="list")
@click.option("--action", help="Only these: answer, index.ingest, key.create, …, or all of a kind: index, adapter, key, verified.")
@click.option("--actor", help="Only what this one did: key:ID, cli:LOGIN, worker.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="The newest so many.")
@json_option
@pass_session
def list_entries(session: Session, action: str | None, actor: str | None, limit: int, as_json: bool) -> None:
    """The newest entries, newest first."""
    from appliance.admin.audit import find
    from appliance.store.audit_log import canonical

    rows = find(session.workspace.db, action, actor, limit)
    columns = ("seq", "at", "actor", "action", "outcome")
    emit(
        rows, as_json, lambda: table((*columns, "details"), [[*(row[name] for name in columns), canonical(row["details"])] for row in rows])
    )


@audit.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@json_option
@pass_session
def verify(session: Session, file: Path | None, as_json: bool) -> int:
    """Check the chain, or an exported FILE and that the log still begins with it. Exit code 1 names the first broken entry."""
    from appliance.admin.audit import verify as verify_log
    from appliance.admin.audit import verify_export

    database = session.workspace.db
    verdict = verify_log(database) if file is None else verify_export(file, database)
    data = {"ok": verdict.ok, "entries": verdict.entries, "head": verdict.head, "broken": verdict.broken, "problem": verdict.problem}
    if as_json or verdict.ok:
        emit(data, as_json, lambda: click.echo(f"{verdict.entries} entries are as they were written; head {verdict.head}"))
    if verdict.ok:
        return DONE
    say(f"broken at entry {verdict.broken}: {verdict.problem}")
    return FAILURE


@audit.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@pass_session
def export(session: Session, file: Path, as_json: bool) -> None:
    """Write the log to FILE, one entry a line, to be kept where nobody who can write this workspace can write."""
    from appliance.admin.audit import export as export_log

    verdict = export_log(session.workspace.db, file)
    data = {"file": str(file), "entries": verdict.entries, "head": verdict.head}
    emit(data, as_json, lambda: click.echo(f"{verdict.entries} entries in {file}; head {verdict.head}"))
