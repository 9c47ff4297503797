"""`appliance tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.adapters import print_promotion, promotion_code, promotion_json, through_gate
from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import DONE, UsageError

if TYPE_CHECKING:
    from appliance.adapters.gates import Promotion
    from appliance.adapters.registry import AdapterVersion


@click.command()
@domain_option
@click.option("--dataset", "-n", help="A registered data set; see: appliance dataset list. A file may name it.")
@click.option("--method", help="The training method (default: lora).")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML or YAML: settings, [[stages]], or a LLaMA-Factory file.")
@click.option("--ignore-unsupported", is_flag=True, help="Go on although keys of a LLaMA-Factory file are not supported.")
@click.option(
    "--search", "trials", type=click.IntRange(min=1), metavar="N", help="Try N settings, see [search] in the file; keep the best."
)
@click.option("--fresh", is_flag=True, help="Start over instead of going on with an unfinished run.")
@click.option("--promote", is_flag=True, help="Make the new version live if it passes the gate of its domain.")
@json_option
@pass_session
def tune(
    session: Session,
    domain: str | None,
    dataset: str | None,
    method: str | None,
    file: Path | None,
    ignore_unsupported: bool,
    trials: int | None,
    fresh: bool,
    promote: bool,
    as_json: bool,
) -> int:
    """Train an adapter on a registered data set. It goes live with --promote or `appliance adapter promote`.

    The methods full, freeze, galore and pretrain make a model, to be named as the base of an engine; pretrain reads the domain's documents.
    """
    from appliance.service import open_service
    from appliance.training.stages import tune_plan
    from finetune.config_file import load_plan
    from finetune.distributed import Helped
    from finetune.settings import yields
    from finetune.stages import plan_from
    from finetune.types import TrainingError

    try:
        plan = (load_plan(file, ignore_unsupported) if file else plan_from({})).overridden(dataset, method)
    except TrainingError as error:
        raise UsageError(str(error)) from error
    if promote and yields(plan.stages[-1].settings.method) == "model":
        raise UsageError(
            f"method {plan.stages[-1].settings.method} makes a model, which no alias points at: leave --promote out, "
            "and name what it makes as the base of an engine"
        )
    for note in plan.notes:
        say(note)
    service = open_service(session.workspace)
    name = session.workspace.only_domain(domain)
    with Progress() as progress:

        def report(stage: str, event: dict[str, Any]) -> None:
            if "resumed" in event:
                say(f"the same run was started before: going on after step {event['step']} of {event['steps']}; --fresh starts over")
            facts = {key: value for key, value in event.items() if key in ("loss", "eval_loss", "tokens_per_second") and value is not None}
            run = f"run {event['trial']}/{event['trials']}" if "trial" in event else ""
            progress(" ".join(filter(None, ("training", name, stage, run))), event["step"], event["steps"], **facts)

        try:
            trained = tune_plan(service, name, plan, report, fresh, trials)
        except Helped:
            return DONE
    version, data = trained[-1]
    if len(trained) > 1:
        data = {**data, "stages": [shown for _, shown in trained]}
    if not promote:
        emit(data, as_json, lambda: _print(trained))
        if version.kind == "model":
            say(f'a model of its own; to use it, name it as the base of an engine: [engines.NAME] base = "{version.reference}"')
        else:
            engine_name, engine = service.workspace.config.engine_of(name)
            if version.base != engine.base:
                say(f'it belongs to the model of the stage before: set [engines.{engine_name}] base = "{version.base}" before it goes live')
            if service.workspace.db.pointer(f"adapter:{name}") == version.name:
                say(f"{version.name} is live in {name} already")
            else:
                say(f"not live yet; make it so with: appliance adapter promote {version.name}")
        return DONE
    done = through_gate(service, version.name)
    emit({**data, **promotion_json(done)}, as_json, lambda: _print(trained, done))
    return promotion_code(done)


def _print(trained: Sequence[tuple[AdapterVersion, dict[str, Any]]], done: Promotion | None = None) -> None:
    for _, shown in trained:
        if "search" in shown:
            table(("run", "outcome", "settings", "loss on dev", "steps", "seconds", ""), map(_tried, shown["search"]))
        table(("what", "value"), [(key, value) for key, value in shown.items() if key != "search"])
    if done is not None:
        print_promotion(done)


def _tried(row: dict[str, Any]) -> tuple[object, ...]:
    settings = ", ".join(f"{key} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in row["values"].items())
    remark = "best" if row["best"] else row["reason"]
    return row["number"] + 1, row["outcome"], settings, row["loss"], row["steps"], row["seconds"], remark
