"""`appliance demo`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from appliance.cli.ask import show_answer
from appliance.cli.session import Progress, emit, json_option, say, table


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("demo-workspace"),
    show_default=True,
    help="The workspace; a second run reuses it.",
)
@json_option
def demo(folder: Path, as_json: bool) -> None:
    """Run the main job end to end: ingest, tune, evaluate, ask, on the sample knowledge base."""
    with Progress() as progress:
        data = asyncio.run(_run(folder, as_json, progress))
    emit(data, as_json, lambda: _summary(data))
    say(f"\nOpen it with: appliance serve --workspace {folder}")


async def _run(folder: Path, as_json: bool, progress: Progress) -> dict[str, Any]:
    from appliance import demo as steps
    from appliance.service import open_service
    from appliance.types import answer_json

    watch = steps.Stopwatch(say)
    began = time.monotonic()
    with steps.open_workspace(folder) as workspace:
        service, root = open_service(workspace), workspace.root
        try:
            watch.start("models: appliance model pull")
            steps.pull_models(service, progress)
            watch.start("documents: appliance ingest …/documents --domain DOMAIN --prune")
            ingested = steps.ingest(service, progress)
            watch.start("data sets: appliance dataset add …/qa.jsonl --domain DOMAIN")
            infos = steps.register(service)
            watch.start("adapters: appliance tune --domain DOMAIN --dataset DOMAIN-qa --config …/tune.toml --promote")
            adapters = await steps.train(service, infos, progress, _show_gate)
            watch.start("evaluation: appliance eval run --dataset DOMAIN-qa --limit 6")
            evaluated = await steps.measure(service, infos, progress)
            watch.start("questions: appliance ask QUESTION --domain DOMAIN")
            asked = await steps.ask(service, infos, lambda one: None if as_json else _show(one))
            watch.stop()
        finally:
            await service.answering.close()
    return {
        "workspace": str(root),
        "ingest": ingested,
        "adapters": {domain: version.name for domain, version in adapters.items()},
        "evaluation": evaluated,
        "answers": [{"question": one.question, "expected": one.expected, **answer_json(one.answer)} for one in asked],
        "seconds": round(time.monotonic() - began, 1),
    }


def _show_gate(done: Any) -> None:
    said = "; ".join(f"{check.name} {check.status}" for check in done.gate.checks)
    say(f"   {done.version.name} {'goes live' if done.promoted else 'does not go live'}: {said}")


def _show(asked: Any) -> None:
    from appliance.types import answer_json

    click.echo(f"\n? {asked.question}\n  expected: {asked.expected}")
    show_answer(answer_json(asked.answer))


def _summary(data: dict[str, Any]) -> None:
    from eval.report import table as report

    for domain, summary in data["evaluation"].items():
        click.echo(f"\n{domain}, {summary['n']} questions\n{report(summary)}")
    rows = [
        (one["domain"], one["question"][:60], one["arm"], len(one["citations"]), one["answer"].replace("\n", " ")[:60])
        for one in data["answers"]
    ]
    table(("domain", "question", "arm", "citations", "answer"), rows, f"answers ({data['seconds']:.0f} s in all)")
