"""`appliance eval`."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from appliance.cli.experts import expert
from appliance.cli.injection import injection
from appliance.cli.session import Progress, Session, emit, json_option, pass_session, say, stoppable, table
from appliance.engines.team import stay_awake
from appliance.errors import DONE, GATE_MISSED, PARTLY, UsageError

if TYPE_CHECKING:
    from appliance.datasets.registry import DatasetInfo
    from appliance.service import Service


@click.group(name="eval")
def eval() -> None:
    """Measure every arm on a question set."""


eval.add_command(injection)
eval.add_command(expert)


_GOES_ON = "stopped; every answer so far is kept, go on with: appliance eval run --resume last"


def _asked(service: Service, info: DatasetInfo, **how: Any) -> dict[str, Any]:
    """The summary of a run over a data set; `how` is that of `evaluate`. Says how to go on where answers failed."""
    from appliance.evaluation.runs import evaluate
    from eval.report import failures

    together = service.workspace.config.engines["default"].max_batch

    async def go(progress: Progress) -> dict[str, Any]:
        try:
            return await evaluate(service, info, concurrency=together, progress=progress, **how)
        finally:
            await service.answering.close()

    with stoppable(_GOES_ON), Progress() as progress:
        summary = asyncio.run(go(progress))
    if summary["errors"]:
        say(f"{failures(summary)}; ask these again with: appliance eval run --resume {summary['run_id']}")
    return summary


def _split(name: str) -> str | None:
    return None if name == "all" else name


@eval.command()
@click.option("--dataset", "-n", help="A registered data set; see: appliance dataset list. Needed without --resume.")
@click.option("--arms", default="all", show_default=True, help="all, or a comma-separated list.")
@click.option("--split", default="test", show_default=True, help="Which split to ask; 'all' for every question.")
@click.option("--limit", type=click.IntRange(1), help="At most this many questions.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Length of generated answers.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0 is greedy: the same answers again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn with a temperature above 0.")
@click.option("--resume", "run_id", metavar="RUN", help="Go on with this run (a prefix of its id, or 'last'), as it was begun.")
@click.option("--fresh", is_flag=True, help="Ask everything anew, also what an earlier run has asked in the same state.")
@json_option
@pass_session
@click.pass_context
def run(
    context: click.Context,
    session: Session,
    dataset: str | None,
    arms: str,
    split: str,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    run_id: str | None,
    fresh: bool,
    as_json: bool,
) -> int:
    """Run every arm and the router over a question set and print the table; exit code 3 if answers failed.

    What an earlier run over the set has asked is taken over where everything that decides the answer is the same: question, documents,
    settings, prompts, models, adapter, router and labels. The page with plots is written into the run's folder.
    """
    stay_awake()
    from appliance.datasets.registry import Datasets
    from appliance.evaluation.page import keep_page
    from appliance.evaluation.runs import begun_with, find, parse_arms
    from appliance.service import open_service
    from eval.report import table as report

    service = open_service(session.workspace)
    how: dict[str, Any] = {"arms": parse_arms(arms), "split": _split(split), "limit": limit, "max_tokens": max_tokens}
    how |= {"temperature": temperature, "seed": seed}
    if run_id is not None:
        resumed = find(service, run_id)
        given = {name: value for name, value in (how | {"dataset": dataset}).items() if _is_given(context, name)}
        how = begun_with(resumed, given)
        run_id, dataset = resumed.id, resumed.dataset
    if dataset is None:
        raise UsageError("name a data set with --dataset, or a run to go on with: --resume RUN")
    summary = _asked(service, Datasets(session.workspace).get(dataset), run_id=run_id, fresh=fresh, **how)
    for path in keep_page(session.workspace, find(service, summary["run_id"])):
        if path.suffix == ".html":
            say(f"page: {path}")
    emit(summary, as_json, lambda: click.echo(f"run {summary['run_id']}, {summary['n']} questions\n{report(summary)}"))
    return PARTLY if summary["errors"] else DONE


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


@eval.command()
@click.argument("run_id", required=False)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the run's page with plots, as one file.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="The same as Markdown, its plots beside it.")
@json_option
@pass_session
def show(session: Session, run_id: str | None, html: Path | None, markdown: Path | None, as_json: bool) -> None:
    """A run's table (a prefix of its id, or 'last'); without RUN_ID, every run.

    The page compares every arm with the best single one question by question, and shows costs, calibration, times and examples. Scores of
    experts take the place of metrics in both, and prices and worths are those of today.
    """
    from appliance.evaluation.judging import judges_of
    from appliance.evaluation.page import figures, write_page
    from appliance.evaluation.runs import find, runs
    from appliance.service import open_service
    from eval.report import table as report

    service = open_service(session.workspace)
    if run_id is None:
        if html is not None or markdown is not None:
            raise UsageError("--html and --markdown are for one run; name it, or 'last'")
        rows = [
            {"run_id": row.id, "dataset": row.dataset, "settings": row.settings, "finished": row.finished_at is not None}
            for row in runs(service)
        ]
        emit(rows, as_json, lambda: table(("run", "dataset", "settings", "finished"), [list(row.values()) for row in rows]))
        return
    found = find(service, run_id)
    result = figures(session.workspace, found)[0]
    summary = dict(result.summary or {})
    if judges := judges_of(session.workspace, found.id, result):
        summary["judges"] = judges
    for path in write_page(session.workspace, found, html, markdown):
        say(f"written: {path}")

    def told() -> None:
        click.echo(f"run {found.id}, {summary['n']} questions\n{report(summary)}")
        for judge in judges:
            _show_judged(judge)

    emit(summary, as_json, told)


@eval.command()
@click.argument("run_ids", metavar="[RUN]...", nargs=-1)
@click.option(
    "--older-than",
    type=click.IntRange(1),
    metavar="DAYS",
    help="Every run begun before that, except those of adapters' gates and those that experts have scored.",
)
@click.option("--with-scores", is_flag=True, help="Also runs that experts have scored; their work goes with them.")
@json_option
@pass_session
def remove(session: Session, run_ids: tuple[str, ...], older_than: int | None, with_scores: bool, as_json: bool) -> None:
    """Remove runs with all their answers. Later runs keep the answers that they took over from them."""
    from appliance.evaluation.removal import remove as removed
    from appliance.service import open_service

    if not run_ids and older_than is None:
        raise UsageError("name a run, or --older-than DAYS")
    gone = removed(open_service(session.workspace), run_ids, older_than, with_scores=with_scores)
    emit({"removed": gone}, as_json, lambda: click.echo("\n".join(f"removed: {name}" for name in gone) or "nothing to remove"))


@eval.command()
@click.argument("first")
@click.argument("second")
@json_option
@pass_session
def compare(session: Session, first: str, second: str, as_json: bool) -> None:
    """Two runs side by side: differences with 95 % intervals over the questions both answered."""
    from appliance.evaluation.runs import find, finished, scoring_of, scoring_of_run
    from appliance.service import open_service
    from eval.report import compare as differences
    from eval.report import compare_json, compare_table

    service = open_service(session.workspace)
    rows = [find(service, name) for name in (first, second)]
    one, two = (finished(session.workspace, row) for row in rows)
    experts = [scoring_of_run(session.workspace, row, result.items).experts for row, result in zip(rows, (one, two), strict=True)]
    found = differences(one, two, scoring_of(session.workspace.config, {**experts[0], **experts[1]}))
    emit(compare_json(found), as_json, lambda: click.echo(compare_table(found)))


@eval.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--run", "run_id", help="Look at this run (or 'last') and ask nothing; the default if FILE names no data set.")
@click.option("--fresh", is_flag=True, help="Ask everything anew.")
@json_option
@pass_session
def gate(session: Session, file: Path, run_id: str | None, fresh: bool, as_json: bool) -> int:
    """Hold the thresholds in FILE (TOML) against a run; exit code 4 if one is missed.

    FILE names the data set to ask and has a [[check]] for each threshold: metric, arm (default: the routed answers), min or max, and if
    wanted against (another arm, or "last" for the last run before that did not miss FILE) and confidence. An arm whose answers failed
    misses it. See docs/evaluation.md.
    """
    from appliance.datasets.registry import Datasets
    from appliance.evaluation.gating import hold
    from appliance.evaluation.runs import MEASURED, find, parse_arms
    from appliance.service import open_service
    from eval.gate import read, verdict_json
    from eval.gate import table as verdict_table

    wanted = read(file, MEASURED)
    service = open_service(session.workspace)
    if run_id is None and wanted.dataset is not None:
        info = Datasets(session.workspace).get(wanted.dataset)
        how = {"arms": parse_arms(",".join(wanted.arms)), "split": _split(wanted.split), "limit": wanted.limit}
        run_id = _asked(service, info, max_tokens=wanted.max_tokens, fresh=fresh, **how)["run_id"]
    found = find(service, run_id or "last")
    verdicts = hold(session.workspace, wanted, file.name, found)
    missed = sum(verdict.status == "missed" for verdict in verdicts)
    rows = {"run_id": found.id, "passed": not missed, "checks": [verdict_json(verdict) for verdict in verdicts]}
    emit(rows, as_json, lambda: click.echo(f"run {found.id}, {found.summary['n']} questions\n{verdict_table(verdicts)}"))
    if missed:
        say(f"the gate was missed: {missed} of {len(verdicts)} checks")
    return GATE_MISSED if missed else DONE


@eval.command()
@click.argument("run_id")
@click.option("--engine", required=True, help="The engine that judges, by its name in the configuration.")
@click.option("--arms", help="Score the answers of these arms (comma-separated; default: all; '' for none).")
@click.option("--pair", "pairs", multiple=True, metavar="ARM,ARM", help="Compare the answers of two arms, in both orders. Repeatable.")
@click.option("--limit", type=click.IntRange(1), help="Of at most this many questions.")
@click.option("--max-tokens", type=click.IntRange(1), help="Length of its replies (default: 200; a model that reasons first needs more).")
@json_option
@pass_session
def judge(
    session: Session,
    run_id: str,
    engine: str,
    arms: str | None,
    pairs: tuple[str, ...],
    limit: int | None,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    """Let a model judge the answers of a run by the experts' rubric, and show how far it agrees with the experts.

    Any OpenAI-compatible endpoint can judge: name it as an engine. What was judged before is not asked again; what failed or could not be
    read is.
    """
    from appliance.evaluation.judging import MAX_TOKENS, judged
    from appliance.evaluation.runs import find
    from appliance.service import open_service

    service = open_service(session.workspace)
    found = find(service, run_id)
    chosen = None if arms is None else [name.strip() for name in arms.split(",") if name.strip()]
    two = [_pair(text) for text in pairs]

    async def go(progress: Progress) -> dict[str, Any]:
        try:
            beat = partial(progress, "judging")
            length = max_tokens or MAX_TOKENS
            return await judged(service, found, engine, arms=chosen, pairs=two, limit=limit, max_tokens=length, progress=beat)
        finally:
            await service.answering.close()

    with Progress() as progress:
        summary = asyncio.run(go(progress))
    if summary["failed"]:
        say(f"{summary['failed']} answers were not judged; the same command asks for them again. The first: {summary['first_failure']}")
    if summary["unreadable"]:
        say(f"{summary['unreadable']} replies could not be read; a model that reasons first needs more --max-tokens")
    emit(summary, as_json, lambda: _show_judged(summary))


def _pair(text: str) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UsageError(f"--pair {text!r}: give two arms, for example --pair rag,hybrid")
    return names[0], names[1]


def _show_judged(summary: dict[str, Any]) -> None:
    def number(value: dict[str, float] | None) -> str:
        return "–" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"

    columns = ("correctness", "completeness", "harm", "utility")
    rows = [(arm, *(number(row.get(name)) for name in columns), row["unreadable"]) for arm, row in summary["arms"].items()]
    if rows:
        table(("arm", *columns, "unreadable"), rows, title=f"{summary['judge']} on {summary['run_id']}: 1 to 5, 5 is best")
    compared = [
        (f"{row['first']} over {row['second']}", number(row["first_preferred"]), row["preferred"] or "–", row["flipped"], row["unreadable"])
        for row in summary["pairs"]
    ]
    if compared:
        table(("compared", "first preferred", "preferred", "flipped with the order", "unreadable"), compared)
    agreed = [(name, row["kappa"], row["low"], row["high"], row["same"], row["n"]) for name, row in summary["agreement"].items()]
    if agreed:
        table(("agreement with the experts", "kappa", "low", "high", "same", "n"), agreed)
    else:
        click.echo("no expert has judged these answers: how far this judge can be relied on is not known (appliance eval expert)")
