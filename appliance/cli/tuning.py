"""`appliance tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import UsageError


@click.command()
@domain_option
@click.option("--dataset", "-n", required=True, help="A registered data set; see: appliance dataset list.")
@click.option("--method", help="The training method (default: lora).")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML or YAML with training settings.")
@click.option("--promote", is_flag=True, help="Make the new version live when it is done.")
@json_option
@pass_session
def tune(session: Session, domain: str | None, dataset: str, method: str | None, file: Path | None, promote: bool, as_json: bool) -> None:
    """Train an adapter on a registered data set. It goes live with --promote or `appliance adapter promote`."""
    from appliance.service import open_service
    from appliance.tuning import tune as train
    from finetune.settings import TrainSettings, load_settings
    from finetune.types import TrainingError

    try:
        settings = load_settings(file) if file else TrainSettings()
        settings = replace(settings, method=method) if method else settings
    except TrainingError as error:
        raise UsageError(str(error)) from error
    service = open_service(session.workspace)
    name = session.workspace.only_domain(domain)
    with Progress() as progress:

        def report(event: dict[str, Any]) -> None:
            facts = {key: value for key, value in event.items() if key in ("loss", "eval_loss", "tokens_per_second") and value is not None}
            progress(f"training {name}", event["step"], event["steps"], **facts)

        version, data = train(service, name, dataset, settings, report)
    if promote:
        service.registry.promote(version.name, "tune --promote")
    emit(data, as_json, lambda: table(("what", "value"), data.items()))
    if not promote:
        say(f"not live yet; make it so with: appliance adapter promote {version.name}")
