"""`appliance index tune`."""

from __future__ import annotations

import click

from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import UsageError


@click.command()
@domain_option
@click.option("--dataset", help="The data set with the questions (default: the only one of the domain).")
@click.option("--split", type=click.Choice(["train", "dev"]), default="dev", show_default=True, help="Which of its questions.")
@click.option("--dry-run", is_flag=True, help="Only measure; searches go on as they are.")
@click.option("--reset", is_flag=True, help="Forget the tuning of the domain.")
@json_option
@pass_session
def tune(session: Session, domain: str | None, dataset: str | None, split: str, dry_run: bool, reset: bool, as_json: bool) -> None:
    """Choose how vectors and words are fused, on questions of the team whose documents are known.

    Compares both alone, reciprocal ranks and convex combinations; every search of the domain uses the best from then on.
    """
    from appliance.knowledge.index_tuning import tune_index
    from appliance.service import open_service

    name = session.workspace.only_domain(domain)
    knowledge = open_service(session.workspace).knowledge
    if reset:
        if dataset is not None or dry_run:
            raise UsageError("--reset stands alone: it measures nothing")
        forgotten = knowledge.rankings.forget(name)
        emit(
            {"domain": name, "reset": forgotten},
            as_json,
            lambda: click.echo("the default is used again" if forgotten else "nothing was tuned"),
        )
        return
    with Progress() as progress:
        tuned = tune_index(knowledge, name, dataset, split, keep=not dry_run, progress=progress)
    data = tuned.to_json()

    def human() -> None:
        columns = ("name", "kind", "weight", "floor", "all", *sorted(data["languages"]))
        title = f"{data['measure']} on {data['questions']} questions of {data['dataset']} ({data['split']})"
        table(columns, [[row.get(column) for column in columns] for row in data["figures"]], title)

    emit(data, as_json, human)
    fusion = tuned.fusion
    used = "every search of the domain uses it from now on" if tuned.kept else "nothing was changed (--dry-run)"
    say(f"{name}: {fusion.kind}, {fusion.weight:.0%} of the weight on vectors; {used}")
