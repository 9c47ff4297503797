"""`appliance job`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, table

if TYPE_CHECKING:
    from appliance.jobs.jobs import Jobs


@click.group()
def job() -> None:
    """Long work asked of a running appliance: list, show, cancel."""


def _jobs(session: Session) -> Jobs:
    from appliance.jobs.jobs import Jobs as Rows

    return Rows(session.workspace.db)


@job.command(name="list")
@domain_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["queued", "running", "done", "partly", "missed", "failed", "cancelled"]),
    help="Only those in this state. Repeatable.",
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The newest so many.")
@json_option
@pass_session
def list_jobs(session: Session, domain: str | None, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """The newest jobs, newest first."""
    from appliance.jobs.jobs import STATES

    if domain:
        session.workspace.check_domain(domain)
    rows = [found.to_json() for found in _jobs(session).all(domain=domain, states=states or STATES, limit=limit)]
    columns = ("id", "kind", "domain", "state", "actor", "created_at", "finished_at", "error")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@job.command()
@click.argument("identity", metavar="ID")
@json_option
@pass_session
def show(session: Session, identity: str, as_json: bool) -> None:
    """Everything about a job: how far it is, the end of its log, its result."""
    data = _jobs(session).get(identity).to_json()

    def human() -> None:
        table(("what", "value"), [(name, value) for name, value in data.items() if name != "log" and value not in (None, {}, [])])
        click.echo(data["log"], nl=False)

    emit(data, as_json, human)


@job.command()
@click.argument("identity", metavar="ID")
@json_option
@pass_session
def cancel(session: Session, identity: str, as_json: bool) -> None:
    """Cancel a job. One that runs is ended within seconds; what it had finished stays, a training goes on from there the next time."""
    from appliance.admin.uploads import Uploads

    found = _jobs(session).cancel(identity)
    if found.ended:
        # It never ran, so no worker removes its files.
        Uploads(session.workspace).taken(identity)
    emit(found.to_json(), as_json, lambda: click.echo(f"{found.id}: {'cancelled' if found.ended else 'being cancelled'}"))
