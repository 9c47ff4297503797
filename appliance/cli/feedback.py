"""`appliance feedback`."""

from __future__ import annotations

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, table


@click.group()
def feedback() -> None:
    """What people said about answers."""


@feedback.command(name="list")
@click.option("--rating", type=click.Choice(["up", "down"]), help="Only this rating.")
@domain_option
@json_option
@pass_session
def list_feedback(session: Session, rating: str | None, domain: str | None, as_json: bool) -> None:
    """Feedback, newest first. A text is empty where it was neither sent nor kept, or rests on a document deleted since."""
    from appliance.answers.feedback import Feedback

    workspace = session.workspace
    if domain:
        workspace.check_domain(domain)
    rows = [
        {
            "answer_id": given.answer_id,
            "rating": given.rating,
            "domain": given.domain,
            "arm": given.arm,
            "adapter": given.adapter,
            "question": given.question,
            "answer": given.answer,
            "correction": given.correction,
            "withheld": given.withheld,
            "documents": [{"domain": of, "doc_id": doc_id} for of, doc_id in given.documents],
            "labels": sorted(given.labels),
            "caller": given.caller,
            "answered_at": given.answered_at.isoformat(timespec="seconds"),
            "created_at": given.created_at.isoformat(timespec="seconds"),
        }
        for given in Feedback(workspace.db, workspace.config.feedback).list(domain, rating)  # type: ignore[arg-type]
    ]
    columns = ("created_at", "rating", "domain", "arm", "question", "answer", "correction", "labels")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))
