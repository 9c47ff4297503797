"""`appliance verified`."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, table

if TYPE_CHECKING:
    from appliance.answers.verified import VerifiedAnswers


@click.group()
def verified() -> None:
    """Answers that experts approved; served as they are while what they cite has not changed."""


def _answers(session: Session) -> VerifiedAnswers:
    from appliance.service import open_service

    return open_service(session.workspace).verified


@verified.command()
@click.argument("question")
@click.argument("answer")
@click.option("--doc", "doc_ids", multiple=True, help="A document the answer rests on. Repeatable.")
@click.option("--by", "approved_by", help="Who approves (default: the login name).")
@domain_option
@json_option
@pass_session
def add(
    session: Session, question: str, answer: str, doc_ids: tuple[str, ...], approved_by: str | None, domain: str | None, as_json: bool
) -> None:
    """Approve ANSWER as the answer to QUESTION."""
    name = session.workspace.only_domain(domain)
    support = session.workspace.config.answering.support
    made = _answers(session).add(name, question, answer, doc_ids, approved_by or getpass.getuser(), support)
    data = {"id": made.id, "domain": made.domain, "citations": [{"doc_id": c.doc_id, "quote": c.quote} for c in made.citations]}
    emit(data, as_json, lambda: click.echo(f"{made.id}: {len(made.citations)} citations"))


@verified.command(name="list")
@domain_option
@json_option
@pass_session
def list_verified(session: Session, domain: str | None, as_json: bool) -> None:
    """Every approved answer, and why it is suspended if it is."""
    if domain:
        session.workspace.check_domain(domain)
    rows = [answer.to_json() for answer in _answers(session).all(domain)]
    columns = ("id", "domain", "question", "answer", "approved_by", "suspended")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@verified.command()
@click.argument("identity", metavar="ID")
@json_option
@pass_session
def remove(session: Session, identity: str, as_json: bool) -> None:
    """Withdraw an approved answer."""
    _answers(session).remove(identity)
    emit({"removed": identity}, as_json, lambda: click.echo(f"removed {identity}"))
