"""`appliance export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import ApplianceError, UsageError


@click.command()
@click.argument("version")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new folder for the model.")
@click.option("--shard-size", default="5GB", show_default=True, help="The most one safetensors file holds, such as 500MB.")
@json_option
@pass_session
def export(session: Session, version: str, out: Path, shard_size: str, as_json: bool) -> None:
    """Merge an adapter version into its base: a model of its own, checked to answer the same."""
    from appliance.service import open_service
    from finetune.export import export as merge
    from finetune.types import TrainingError
    from finetune.version import lint_adapter

    service = open_service(session.workspace)
    workspace = service.workspace
    known = service.registry.get(version)
    if known.kind == "model":
        raise UsageError(f"{version} is a model of its own already, in {known.path}: copy that folder")
    service.registry.check(known)
    reference = workspace.model(known.base)
    base, base_hash = service.models.path(reference), service.models.model_hash(reference)
    if base_hash != known.base_hash:
        raise UsageError(f"{version} was trained on {known.base} ({known.base_hash[:8]}), that model is now another ({base_hash[:8]})")
    _, engine = workspace.config.engine_of(known.domain)
    template = engine.template(workspace.root)
    try:
        problems = lint_adapter(known.path, base, chat_template=template)
    except TrainingError as error:
        raise ApplianceError(str(error)) from error
    if problems:
        raise UsageError(f"{version} cannot be merged: {'; '.join(problems)}")
    say(f"merging {version} into {known.base}, then comparing the answers")
    facts = {"version": version, "sha256": known.sha256, "base": known.base, "base_hash": base_hash, "method": known.method}
    try:
        agreement = merge(known.path, base, out, chat_template=template, shard_size=shard_size, facts=facts)
    except TrainingError as error:
        raise ApplianceError(str(error)) from error
    files = sorted(file.name for file in out.glob("*.safetensors"))
    data = {"version": version, "path": str(out.resolve()), "files": files, "check": asdict(agreement)}
    emit(data, as_json, lambda: table(("what", "value"), data.items()))
