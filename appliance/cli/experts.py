"""`appliance eval expert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.session import Session, as_option, cell, emit, held, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, PARTLY, UsageError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from appliance.service import Service
    from retrieval.types import Scope

expert_option = click.option("--expert", "-e", "name", required=True, help="The expert's name, or the name of their key.")
# Bad rows that a terminal shows; --json has all.
_SHOWN = 20


@click.group()
def expert() -> None:
    """Let experts judge the answers of a run, without knowing what gave them."""


def _open(session: Session, run_id: str) -> tuple[Service, sa.Row[Any]]:
    from appliance.evaluation.runs import find
    from appliance.service import open_service

    service = open_service(session.workspace)
    return service, find(service, run_id)


def _scopes(session: Session, service: Service, names: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Scope]:
    """Each expert under the id their work is kept by, with what they may see: that of their key, or of whoever works here."""
    from appliance.admin.keys import Keys
    from appliance.experts.tasks import ExpertTasks
    from retrieval.types import Scope

    everything = service.knowledge.documents.labels() | service.registry.labels() | ExpertTasks(session.workspace.db).labels()
    keys = {key.name: key for key in Keys(session.workspace.db).list() if key.state == "active"}
    found: dict[str, Scope] = {}
    for name in names:
        key = keys.get(name)
        if not name.strip() or len(name) > 100:
            raise UsageError(f"an expert needs a name of 1 to 100 characters, not {name[:40]!r}")
        scope = Scope(None, held(labels, everything)) if key is None else key.scope
        found[name if key is None else key.id] = scope
    return found


@expert.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--kind", type=click.Choice(["single", "pair", "both"]), default="single", show_default=True, help="One answer, or two compared."
)
@click.option("--arms", help="Only answers of these arms, comma-separated.")
@click.option("--limit", type=click.IntRange(1), help="At most this many questions, drawn at random.")
@click.option("--overlap", type=click.IntRange(1, 100), default=2, show_default=True, help="Experts for each task.")
@click.option("--expert", "-e", "names", multiple=True, help="Give the tasks to these evenly. Repeatable. Default: to whoever asks.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the questions drawn and the order.")
@as_option
@json_option
@pass_session
def prepare(
    session: Session,
    run_id: str,
    kind: str,
    arms: str | None,
    limit: int | None,
    overlap: int,
    names: tuple[str, ...],
    seed: int,
    labels: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make blind tasks of RUN's answers (a prefix of its id, or 'last').

    Equal answers of several arms are one task; refusals and failures are not judged. The same command again adds what is missing. An
    expert who has an API key of that name gets only what the key may see, and works over HTTP or with files; any other with files.
    """
    from appliance.experts.tasks import prepare as make

    service, run = _open(session, run_id)
    wanted = [name.strip() for name in arms.split(",") if name.strip()] if arms is not None else None
    done = make(
        session.workspace,
        run,
        kinds=("single", "pair") if kind == "both" else (kind,),  # type: ignore[arg-type]
        arms=wanted,
        limit=limit,
        overlap=overlap,
        experts=_scopes(session, service, names, labels),
        seed=seed,
    )
    assigned = _named(session, done.assigned)

    def human() -> None:
        click.echo(f"run {done.run}: {done.made} tasks made, {done.known} there before")
        table(("expert", "tasks"), assigned.items())

    emit({"run": done.run, "made": done.made, "known": done.known, "assigned": assigned}, as_json, human)
    if not done.made + done.known:
        say("the run has no answers to judge with these settings")
    return DONE if done.made + done.known else FAILURE


def _named(session: Session, experts: Any) -> dict[str, Any]:
    from appliance.experts.use import expert_names

    names = expert_names(session.workspace.db)
    return {names.get(name, name): value for name, value in experts.items()}


@expert.command()
@click.argument("run_id", metavar="RUN")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@expert_option
@click.option("--limit", type=click.IntRange(1), help="At most this many tasks.")
@click.option("--bom", is_flag=True, help="Mark a .csv as UTF-8 for spreadsheet programs.")
@as_option
@json_option
@pass_session
def export(
    session: Session, run_id: str, file: Path, name: str, limit: int | None, bom: bool, labels: tuple[str, ...], as_json: bool
) -> int:
    """Write what an expert should judge to FILE (.csv or .jsonl); the scores go into its empty columns.

    A text that a spreadsheet program would take for a formula is preceded by an apostrophe. Deletions do not reach the file: delete it
    once it is imported.
    """
    from appliance.experts.files import export as write
    from appliance.experts.tasks import ExpertTasks

    service, run = _open(session, run_id)
    ((identity, scope),) = _scopes(session, service, (name,), labels).items()
    count = write(ExpertTasks(session.workspace.db), identity, scope, run.id, file, limit=limit, bom=bom)
    emit({"run": run.id, "file": str(file), "tasks": count}, as_json, lambda: click.echo(f"{file}: {count} tasks"))
    say("the criteria: appliance eval expert rubric")
    return DONE if count else FAILURE


@expert.command(name="import")
@click.argument("run_id", metavar="RUN")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@expert_option
@as_option
@json_option
@pass_session
def import_(session: Session, run_id: str, file: Path, name: str, labels: tuple[str, ...], as_json: bool) -> int:
    """Take the judgements of FILE; rows without any are left for later, the same file again changes nothing.

    Rows that cannot be taken are listed with what to do (exit code 3, or 1 where no row could be taken).
    """
    from appliance.experts.files import take_in
    from appliance.experts.tasks import ExpertTasks

    service, run = _open(session, run_id)
    ((identity, scope),) = _scopes(session, service, (name,), labels).items()
    done = take_in(ExpertTasks(session.workspace.db), identity, scope, run.id, file)
    bad = [{"row": each.row, "field": each.field, "reason": each.reason} for each in done.bad]

    def human() -> None:
        table(("what", "rows"), [*done.counts.items(), ("bad", len(bad))])
        for each in done.bad[:_SHOWN]:
            say(str(each))
        if len(bad) > _SHOWN:
            say(f"... and {len(bad) - _SHOWN} more")

    emit({"run": run.id, "file": str(file), "counts": dict(done.counts), "bad": bad}, as_json, human)
    for note in done.notes:
        say(f"note: {note}")
    return DONE if not bad else PARTLY if any(done.counts.values()) else FAILURE


@expert.command()
@click.argument("run_id", metavar="RUN")
@json_option
@pass_session
def status(session: Session, run_id: str, as_json: bool) -> None:
    """How far the scoring of RUN is, without saying anything of arms."""
    from appliance.experts.tasks import ExpertTasks

    _, run = _open(session, run_id)
    found = ExpertTasks(session.workspace.db).status(run.id)
    found["experts"] = _named(session, found["experts"])

    def human() -> None:
        click.echo(
            f"run {run.id}: {found['complete']} of {found['tasks']} tasks complete, {found['begun']} begun, {found['withheld']} withheld"
        )
        columns = ("open", "done", "cannot", "skipped")
        table(("expert", *columns), [(name, *(counts[column] for column in columns)) for name, counts in found["experts"].items()])

    emit(found, as_json, human)


def _agreement(session: Session, found: dict[str, Any]) -> dict[str, Any]:
    """Agreement with the experts' names."""
    kappas = [{**row, **{side: next(iter(_named(session, {row[side]: None}))) for side in ("first", "second")}} for row in found["kappa"]]
    return {**found, "kappa": kappas}


def _show_agreement(found: dict[str, Any]) -> None:
    columns = ("value", "low", "high", "units", "ratings")
    alphas = [(name, row["level"], *(row[column] for column in columns)) for name, row in found["alpha"].items()]
    table(("criterion", "level", "alpha", "low", "high", "tasks", "ratings"), alphas, "Krippendorff's alpha")
    kappas = [(f"{row['first']} / {row['second']}", row["criterion"], *(row[column] for column in columns[:4])) for row in found["kappa"]]
    table(("experts", "criterion", "kappa", "low", "high", "tasks"), kappas, "Cohen's kappa (quadratic weights for scores)")


@expert.command()
@click.argument("run_id", metavar="RUN")
@json_option
@pass_session
def agreement(session: Session, run_id: str, as_json: bool) -> None:
    """How far the experts of RUN agree, with 95 % intervals."""
    from appliance.experts.tasks import ExpertTasks
    from eval.experts import agreement as measure

    _, run = _open(session, run_id)
    found = _agreement(session, measure([judged for judged, _ in ExpertTasks(session.workspace.db).judged(run.id)]))
    emit({"run": run.id, **found}, as_json, lambda: _show_agreement(found))


@expert.command()
@click.argument("run_id", metavar="RUN")
@json_option
@pass_session
def report(session: Session, run_id: str, as_json: bool) -> None:
    """What the experts say of each arm of RUN: the only place where arms are named. Intervals are 95 % over questions."""
    from appliance.experts.tasks import ExpertTasks
    from eval.experts import report as measure

    _, run = _open(session, run_id)
    found = measure([judged for judged, _ in ExpertTasks(session.workspace.db).judged(run.id)])
    found["agreement"] = _agreement(session, found["agreement"])

    def shown(value: dict[str, float] | None) -> str:
        return "–" if value is None else f"{cell(value['mean'])} [{cell(value['low'])}, {cell(value['high'])}] n={value['n']}"

    def human() -> None:
        click.echo(f"run {run.id}: {found['judgements']} judgements, {found['cannot_judge']} could not be judged")
        columns = ("correctness", "completeness", "citation", "harm", "utility")
        rows = [(arm, *(shown(row.get(column)) for column in columns), row["cannot_judge"]) for arm, row in found["arms"].items()]
        table(("arm", *columns, "cannot judge"), rows)
        table(
            ("first", "second", "first preferred", "preferred"),
            [(row["first"], row["second"], shown(row["first_preferred"]), row["preferred"]) for row in found["pairs"]],
        )
        _show_agreement(found["agreement"])

    emit({"run": run.id, **found}, as_json, human)


@expert.command()
@click.argument("run_id", metavar="RUN")
@click.option("--experts", type=click.IntRange(1), default=2, show_default=True, help="How many must agree at least.")
@click.option("--dry-run", is_flag=True, help="Only say what would be approved.")
@json_option
@pass_session
def approve(session: Session, run_id: str, experts: int, dry_run: bool, as_json: bool) -> None:
    """Make approved answers of those that all their experts found right, complete, supported (4 or 5) and harmless (5)."""
    from appliance.experts.use import approve as give

    service, run = _open(session, run_id)
    done = give(service, run.id, experts=experts, dry_run=dry_run)
    rows = [{"task": task, "question": question, "verified": made or None} for task, question, made in done.approved]

    def human() -> None:
        table(("verified", "question"), [(row["verified"], row["question"]) for row in rows])
        table(("left out because", "answers"), done.left_out.items())

    emit({"run": run.id, "dry_run": dry_run, "approved": rows, "left_out": dict(done.left_out)}, as_json, human)


@expert.command()
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="The language.")
@json_option
@pass_session
def rubric(session: Session, lang: str, as_json: bool) -> None:
    """The criteria and what 1 to 5 mean."""
    from appliance.experts.files import rubric_json, rubric_text

    emit(rubric_json(lang), as_json, lambda: click.echo("\n".join(rubric_text(lang))))
