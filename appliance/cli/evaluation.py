"""`appliance eval`."""

from __future__ import annotations

import asyncio

import click

from appliance.cli.injection import injection
from appliance.cli.session import Progress, Session, emit, json_option, pass_session, table
from appliance.errors import UsageError


@click.group(name="eval")
def eval() -> None:
    """Measure every arm on a question set."""


eval.add_command(injection)


@eval.command()
@click.option("--dataset", "-n", required=True, help="A registered data set; see: appliance dataset list.")
@click.option("--arms", default="all", show_default=True, help="all, or a comma-separated list.")
@click.option("--split", default="test", show_default=True, help="Which split to ask; 'all' for every question.")
@click.option("--limit", type=click.IntRange(1), help="At most this many questions.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Length of generated answers.")
@click.option("--resume", "run_id", help="Go on with this run.")
@json_option
@pass_session
def run(
    session: Session, dataset: str, arms: str, split: str, limit: int | None, max_tokens: int, run_id: str | None, as_json: bool
) -> None:
    """Run every arm and the router over a question set and print the table."""
    from appliance.datasets import Datasets
    from appliance.evaluation import evaluate, parse_arms
    from appliance.service import open_service
    from eval.report import table as report

    service = open_service(session.workspace)
    info = Datasets(session.workspace).get(dataset)
    names = parse_arms(arms)

    async def go(progress: Progress) -> dict[str, object]:
        try:
            return await evaluate(
                service,
                info,
                names,
                split=None if split == "all" else split,
                limit=limit,
                max_tokens=max_tokens,
                concurrency=session.workspace.config.engines["default"].max_batch,
                progress=progress,
                run_id=run_id,
            )
        finally:
            await service.answering.close()

    with Progress() as progress:
        summary = asyncio.run(go(progress))
    emit(summary, as_json, lambda: click.echo(f"run {summary['run_id']}, {summary['n']} questions\n{report(summary)}"))


@eval.command()
@click.argument("run_id", required=False)
@json_option
@pass_session
def show(session: Session, run_id: str | None, as_json: bool) -> None:
    """A run's table (a prefix of its id, or 'last'); without RUN_ID, every run."""
    from appliance.evaluation import find, runs
    from appliance.service import open_service
    from eval.report import table as report

    service = open_service(session.workspace)
    if run_id is None:
        rows = [
            {"run_id": row.id, "dataset": row.dataset, "settings": row.settings, "finished": row.finished_at is not None}
            for row in runs(service)
        ]
        emit(rows, as_json, lambda: table(("run", "dataset", "settings", "finished"), [list(row.values()) for row in rows]))
        return
    found = find(service, run_id)
    if found.summary is None:
        raise UsageError(f"run {found.id} is not finished; go on with: appliance eval run --dataset {found.dataset} --resume {found.id}")
    emit(found.summary, as_json, lambda: click.echo(f"run {found.id}, {found.summary['n']} questions\n{report(found.summary)}"))


@eval.command()
@click.argument("first")
@click.argument("second")
@json_option
@pass_session
def compare(session: Session, first: str, second: str, as_json: bool) -> None:
    """Two runs side by side: differences with 95 % intervals over the questions both answered."""
    from appliance.evaluation import find
    from appliance.service import open_service
    from eval.report import compare as differences
    from eval.report import compare_json, compare_table
    from eval.run import load

    service = open_service(session.workspace)
    one, two = (load(session.workspace.root / find(service, name).path) for name in (first, second))
    found = differences(one, two)
    emit(compare_json(found), as_json, lambda: click.echo(compare_table(found)))
