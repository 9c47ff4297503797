"""`appliance review`."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, as_option, cell, domain_option, emit, held, json_option, pass_session, table

if TYPE_CHECKING:
    from appliance.experts.review import ReviewQueue
    from appliance.service import Service
    from retrieval.types import Scope

_STATES = ("open", "answered", "missing", "out_of_scope", "duplicate", "wont_fix")


@click.group()
def review() -> None:
    """Questions that need a person: declined, or answered badly."""


def _queue(session: Session, labels: tuple[str, ...]) -> tuple[ReviewQueue, Scope, Service]:
    from appliance.answers.feedback import Feedback
    from appliance.experts.review import ReviewQueue
    from appliance.service import open_service
    from retrieval.types import Scope

    service, workspace = open_service(session.workspace), session.workspace
    every = service.knowledge.documents.labels() | service.registry.labels()
    queue = ReviewQueue(workspace.db, Feedback(workspace.db, workspace.config.feedback))
    # What was asked for also counts where no document has the label any more.
    return queue, Scope(None, held(labels, every | queue.labels())), service


@review.command(name="list")
@click.option("--state", type=click.Choice([*_STATES, "all"]), default="open", show_default=True, help="Only these.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most this many.")
@domain_option
@as_option
@json_option
@pass_session
def list_review(session: Session, state: str, limit: int, domain: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """The queue, what was asked most often first. A text is empty where it is not kept ([feedback] retain_hours)."""
    if domain:
        session.workspace.check_domain(domain)
    queue, scope, _ = _queue(session, labels)
    rows = [one.to_json() for one in queue.questions(scope, domain, None if state == "all" else state, limit)]
    columns = ("id", "domain", "question", "refused", "rated_down", "rule", "state", "last_seen")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@review.command()
@click.argument("identity", metavar="ID")
@as_option
@json_option
@pass_session
def show(session: Session, identity: str, labels: tuple[str, ...], as_json: bool) -> None:
    """One question, and what was said about the answers to it."""
    queue, scope, _ = _queue(session, labels)
    found, given = queue.show(scope, identity)
    said = [
        {"rating": one.rating, "answer": one.answer, "correction": one.correction, "arm": one.arm, "withheld": one.withheld}
        for one in given
    ]
    data = {**found.to_json(), "feedback": said}

    def human() -> None:
        for name, value in found.to_json().items():
            click.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else cell(value)}")
        table(("rating", "arm", "answer", "correction"), [(one.rating, one.arm, one.answer, one.correction) for one in given])

    emit(data, as_json, human)


@review.command()
@click.argument("identity", metavar="ID")
@click.argument("resolution", type=click.Choice(_STATES[1:]))
@click.option("--answer", help="answered: the right answer; it becomes an approved one.")
@click.option("--doc", "doc_ids", multiple=True, help="answered: a document the answer rests on. Repeatable.")
@click.option("--question", help="answered: the question, where its text was not kept.")
@click.option("--topic", "topics", multiple=True, help="missing: what a document is missing on. Repeatable.")
@click.option("--of", "duplicate_of", help="duplicate: the question it repeats.")
@click.option("--note", default="", help="A remark.")
@click.option("--by", help="Who resolves it (default: the login name).")
@as_option
@json_option
@pass_session
def resolve(
    session: Session,
    identity: str,
    resolution: str,
    answer: str | None,
    doc_ids: tuple[str, ...],
    question: str | None,
    topics: tuple[str, ...],
    duplicate_of: str | None,
    note: str,
    by: str | None,
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what became of a question.

    What was answered or missing is open again when the appliance fails on the same question later.
    """
    if resolution == "answered" and not answer:
        raise click.UsageError("--answer is missing; give the right answer, and with --doc the documents it rests on")
    if resolution != "answered" and (answer or doc_ids or question):
        raise click.UsageError("--answer, --doc and --question are for the resolution answered, and only for it")
    queue, scope, service = _queue(session, labels)
    person = by or getpass.getuser()
    if answer:
        done = queue.answer(service.verified, scope, identity, person, answer, doc_ids, question=question, note=note)
    else:
        done = queue.resolve(scope, identity, resolution, person, note=note, topics=topics, duplicate_of=duplicate_of)
    emit(done.to_json(), as_json, lambda: click.echo(f"{done.id}: {done.state}{f', {done.verified}' if done.verified else ''}"))


@review.command()
@domain_option
@as_option
@json_option
@pass_session
def topics(session: Session, domain: str | None, labels: tuple[str, ...], as_json: bool) -> None:
    """What documents are missing on, by how many questions ask for it."""
    if domain:
        session.workspace.check_domain(domain)
    queue, scope, _ = _queue(session, labels)
    rows = queue.topics(scope, domain)
    columns = ("domain", "topic", "questions", "asked")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@review.command()
@domain_option
@json_option
@pass_session
def share(session: Session, domain: str | None, as_json: bool) -> None:
    """The share of questions answered without a person: neither declined nor rated down, of those still on record."""
    from dataclasses import asdict

    from appliance.experts.review import share_answered

    if domain:
        session.workspace.check_domain(domain)
    found = asdict(share_answered(session.workspace.db, {domain} if domain else None))
    emit(found, as_json, lambda: table(tuple(found), [tuple(found.values())]))
