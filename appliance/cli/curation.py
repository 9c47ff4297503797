"""`appliance dataset check|from-documents|review`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, stoppable, table
from appliance.errors import DONE, FAILURE, GATE_MISSED, PARTLY

if TYPE_CHECKING:
    from appliance.datasets.from_documents import Drafted, Method
    from finetune.check import CheckReport

# Findings of one kind that a terminal shows; --json and --html have more.
_SHOWN = 10


@click.command()
@click.argument("name")
@domain_option
@click.option(
    "--against",
    multiple=True,
    metavar="OTHER",
    help="A data set that is measured on, also of another domain: its questions must not be here.",
)
@click.option(
    "--max-length", type=click.IntRange(16), default=1024, show_default=True, help="Tokens of an example before it counts as too long."
)
@click.option(
    "--searched", type=click.IntRange(0), default=200, show_default=True, help="Pairs without documents to search the knowledge base for."
)
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as one HTML file.")
@click.option("--strict", is_flag=True, help="Exit with 4 if anything is wrong.")
@json_option
@pass_session
def check(
    session: Session,
    name: str,
    domain: str | None,
    against: tuple[str, ...],
    max_length: int,
    searched: int,
    page: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """What is in a data set and what is wrong with it, as one of its domain (default: the one it was added for, else the only one).

    Its questions are compared with each other, with the other data sets of the domain, those of no domain, and the approved answers:
    what is trained on must not be measured on.
    """
    from appliance.datasets.checks import examine
    from appliance.datasets.registry import Datasets
    from appliance.files import write_whole
    from appliance.service import open_service
    from finetune.report import html
    from finetune.settings import TrainSettings

    service = open_service(session.workspace)
    info = Datasets(session.workspace).get(name)
    with Progress() as progress:
        report = examine(
            service,
            info,
            domain=domain,
            against=against,
            max_length=max_length,
            searched=searched,
            seed=TrainSettings().seed,
            progress=progress,
        )
    title = f"{info.name}@{info.version}"
    if page is not None:
        write_whole(page, html(report, title))
        say(f"written: {page}")
    data = {"name": info.name, "version": info.version, **report.to_json()}
    emit(data, as_json, lambda: _show(report, title))
    return GATE_MISSED if strict and report.reasons() else DONE


@click.command(name="from-documents")
@domain_option
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="Pairs to write.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write (default: DOMAIN-pairs.jsonl).")
@click.option(
    "--method",
    type=click.Choice(["auto", "engine", "pattern"]),
    default="auto",
    show_default=True,
    help="Who asks: the domain's engine, patterns over single sentences (no model), or the engine first.",
)
@click.option(
    "--unanswerable", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Share of questions whose passage is withheld."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the order of the passages.")
@json_option
@pass_session
def from_documents(
    session: Session, domain: str | None, count: int, out: Path | None, method: Method, unanswerable: float, seed: int, as_json: bool
) -> int:
    """Write question/answer pairs from the knowledge base, for review.

    Every answer is supported by its passage and every question finds it again; what did not pass is counted by reason. Each pair carries
    the passages it is trained with, by document and hash, and the quotations it rests on. The same command goes on after an interruption.
    Then: appliance dataset review FILE, and appliance dataset add FILE.
    """
    import asyncio

    from appliance.datasets.from_documents import from_documents as draft
    from appliance.service import open_service

    service = open_service(session.workspace)
    name = session.workspace.only_domain(domain)
    file = out or Path(f"{name}-pairs.jsonl")

    async def run(progress: Progress) -> Drafted:
        try:
            return await draft(service, name, file, count=count, method=method, unanswerable=unanswerable, seed=seed, progress=progress)
        finally:
            await service.engines.close()

    with stoppable(f"stopped; what was written is in {file}.part, the same command goes on from there"), Progress() as progress:
        done = asyncio.run(run(progress))

    def human() -> None:
        click.echo(f"{done.file}: {done.pairs} pairs from {done.passages} passages, {done.unanswerable} of them unanswerable")
        table(("what", "pairs"), done.by_method.items())
        table(("thrown away because", "questions"), done.thrown_away.items())

    emit(done.to_json(), as_json, human)
    for note in done.notes:
        say(f"note: {note}")
    if done.pairs < count:
        say(f"there are no more passages to ask about: {done.pairs} of {count} pairs")
    say(f"review them: appliance dataset review {file}")
    return DONE if done.pairs == count else PARTLY if done.pairs else FAILURE


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--accept", multiple=True, metavar="ID", help='Accept this pair; "all" for every one still pending. Repeatable.')
@click.option("--reject", multiple=True, metavar="ID", help='Reject this pair; "all" for every one still pending. Repeatable.')
@json_option
@pass_session
def review(session: Session, file: Path, accept: tuple[str, ...], reject: tuple[str, ...], as_json: bool) -> None:
    """Look at draft pairs, and accept or reject them.

    The same can be done in an editor: set "review" of each line of FILE to "accepted" or "rejected", and correct what needs it. Only
    accepted pairs can be registered.
    """
    from appliance.datasets.drafts import review as write

    rows = write(file, accept, reject)
    pending = [row for row in rows if row["review"] == "pending"]
    counts = Counter(row["review"] for row in rows)

    def human() -> None:
        for row in pending[:_SHOWN]:
            click.echo(f"{row['id']}  ({row.get('method', '?')})\n  {row.get('question')}\n  → {row.get('answer')}")
            for quote in row.get("quotes") or []:
                click.echo(f"  “{quote['text']}” {quote['doc_id']} {quote['start']}–{quote['end']}")
        if len(pending) > _SHOWN:
            click.echo(f"... and {len(pending) - _SHOWN} more are pending")
        table(("review", "pairs"), sorted(counts.items()))

    emit({"file": str(file), "counts": dict(counts), "pending": pending}, as_json, human)
    if not rows:
        say(f"there is nothing in {file} to review")
    elif not pending:
        say(f"all are reviewed; register the accepted ones: appliance dataset add {file}")


def _show(report: CheckReport, title: str) -> None:
    from finetune.report import findings, lengths, summary, verdict

    click.echo(title)
    found = {what: classes for what, classes in lengths(report).items() if classes}
    names = {name for classes in found.values() for name in classes}
    columns = sorted(names, key=lambda name: (name[0] == ">", int(name.split()[-1])))
    table(summary(report).columns, summary(report).rows)
    table(("lengths", *columns), [(what, *(classes.get(name, 0) for name in columns)) for what, classes in found.items()])
    for finding in findings(report):
        table(finding.columns, finding.rows[:_SHOWN], title=f"{finding.title} ({len(finding.rows)})")
        if len(finding.rows) > _SHOWN:
            click.echo(f"... and {len(finding.rows) - _SHOWN} more; --html and --json show them")
    click.echo("\n".join(verdict(report)))
    for note in report.notes:
        say(f"note: {note}")
