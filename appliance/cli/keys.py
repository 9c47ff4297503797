"""`appliance key`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table

if TYPE_CHECKING:
    from appliance.admin.keys import Keys


@click.group()
def key() -> None:
    """API keys: shown once, stored hashed."""


def _keys(session: Session) -> Keys:
    from appliance.admin.keys import Keys as Registry

    return Registry(session.workspace.db)


@key.command()
@click.argument("name")
@click.option("--domain", "domains", multiple=True, help="Only this domain. Repeatable; without it, every domain.")
@click.option("--label", "labels", multiple=True, help="May see documents with this label. Repeatable.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["chat", "ingest", "admin", "expert"]),
    default=("chat",),
    show_default=True,
    help="What it may do: ask, bring documents and data sets in, administer, judge answers blind. Repeatable.",
)
@click.option("--days", type=click.IntRange(1, 36_500), help="Valid for this many days (default: until revoked).")
@click.option("--requests-per-minute", type=click.IntRange(1, 2**31 - 1), help="More get 429 (default: no quota).")
@click.option("--tokens-per-minute", type=click.IntRange(1, 2**31 - 1), help="Read and generated ones; more get 429 (default: no quota).")
@json_option
@pass_session
def create(
    session: Session,
    name: str,
    domains: tuple[str, ...],
    labels: tuple[str, ...],
    scopes: tuple[str, ...],
    days: int | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    as_json: bool,
) -> None:
    """Make a key for NAME and print it, this once."""
    from appliance.store.database import utcnow

    for domain in domains:
        session.workspace.check_domain(domain)
    expires: datetime | None = utcnow() + timedelta(days=days) if days else None
    made, token = _keys(session).create(
        name,
        domains=frozenset(domains) if domains else None,
        labels=frozenset(labels),
        expires_at=expires,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        scopes=scopes,
    )
    emit({"id": made.id, "name": made.name, "key": token}, as_json, lambda: click.echo(token))
    say("keep it now: it is stored as a hash and cannot be shown again")


@key.command(name="list")
@json_option
@pass_session
def list_keys(session: Session, as_json: bool) -> None:
    """Every key, without its secret."""
    rows = [found.to_json() for found in _keys(session).list()]
    columns = ("id", "name", "scopes", "domains", "labels", "expires_at", "revoked", "requests_per_minute", "tokens_per_minute")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@key.command()
@click.argument("identity", metavar="ID")
@json_option
@pass_session
def revoke(session: Session, identity: str, as_json: bool) -> None:
    """Make a key useless from now on."""
    _keys(session).revoke(identity)
    emit({"revoked": identity}, as_json, lambda: click.echo(f"revoked {identity}"))
