"""`appliance tune`, `dataset` and `adapter`."""

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


@click.group()
def dataset() -> None:
    """Register and check data sets."""


@dataset.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The data set's name (default: the file's).")
@domain_option
@click.option("--map", "mapping", help="Columns, e.g. question=instruction,answer=output (default: guessed and shown).")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out, counted and listed, instead of stopping.")
@json_option
@pass_session
def add(session: Session, file: Path, name: str | None, domain: str | None, mapping: str | None, skip_bad: bool, as_json: bool) -> None:
    """Validate FILE (JSONL, JSON, CSV) and register it. The same content again changes nothing."""
    from appliance.datasets import Datasets

    added = Datasets(session.workspace).add(file, name=name, domain=domain, mapping=_mapping(mapping), skip_bad=skip_bad)
    info = added.info
    data = {
        "name": info.name,
        "version": info.version,
        "domain": info.domain,
        "changed": added.changed,
        "mapping": info.mapping,
        "counts": info.counts,
        "excluded": [{"file": e.file, "row": e.row, "field": e.field, "reason": e.reason} for e in added.excluded],
    }

    def human() -> None:
        click.echo(f"{info.name}@{info.version}: {info.counts['pairs']} pairs, {'registered' if added.changed else 'unchanged'}")
        for pair in added.preview:
            click.echo(f"  {pair.id}: {pair.question[:70]} → {pair.answer[:70]}")

    emit(data, as_json, human)
    say("columns: " + ", ".join(f"{ours}={theirs}" for ours, theirs in info.mapping.items()))
    for excluded in added.excluded:
        say(f"left out: {excluded.file}:{excluded.row}: {excluded.field}: {excluded.reason}")


def _mapping(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if any(not sign or not ours.strip() or not theirs.strip() for ours, sign, theirs in parts):
        raise UsageError(f"--map {text!r}: expected ours=theirs pairs, for example question=instruction,answer=output")
    return {ours.strip(): theirs.strip() for ours, _, theirs in parts}


@dataset.command(name="list")
@json_option
@pass_session
def list_datasets(session: Session, as_json: bool) -> None:
    """The live version of every data set."""
    from appliance.datasets import Datasets

    rows = [
        {"name": info.name, "version": info.version, "domain": info.domain, **info.counts, "source": info.source}
        for info in Datasets(session.workspace).all()
    ]
    columns = ("name", "version", "domain", "pairs", "splits", "languages", "unanswerable")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@dataset.command()
@click.argument("name")
@click.option(
    "--max-length", type=click.IntRange(16), default=1024, show_default=True, help="Tokens of an example before it counts as too long."
)
@json_option
@pass_session
def check(session: Session, name: str, max_length: int, as_json: bool) -> None:
    """What is in a data set and what is wrong with it."""
    from appliance.datasets import Datasets
    from appliance.service import open_service
    from finetune.check import check as examine

    service = open_service(session.workspace)
    datasets = Datasets(session.workspace)
    info = datasets.get(name)
    known = frozenset(document.id for document in service.knowledge.documents.documents(info.domain))
    report = examine(
        datasets.pairs(info), count_tokens=_counter(service, info.domain), max_length=max_length, known_documents=known or None
    )

    def human() -> None:
        counts = {"pairs": info.counts["pairs"], **info.counts["splits"], **info.counts["languages"]}
        table(("what", "count"), counts.items())
        click.echo("\n".join(report.warnings()) or "nothing wrong was found")

    emit(report.to_json(), as_json, human)


def _counter(service: Any, domain: str | None) -> Any:
    """Counts tokens with the tokenizer of the domain's base model, where that is on this machine."""
    if domain is None:
        return None
    _, engine = service.workspace.config.engine_of(domain)
    if engine.kind != "local":
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(service.models.path(service.workspace.model(engine.base)))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@click.group()
def adapter() -> None:
    """List, promote and roll back adapters."""


def _registry(session: Session) -> Any:
    from appliance.adapters import Registry

    return Registry(session.workspace)


@adapter.command(name="list")
@domain_option
@json_option
@pass_session
def list_adapters(session: Session, domain: str | None, as_json: bool) -> None:
    """Every adapter version; the live one of each domain is marked."""
    registry = _registry(session)
    if domain:
        session.workspace.check_domain(domain)
    live = {name: registry.live(name) for name in session.workspace.domains()}
    rows = [
        {
            "version": version.name,
            "domain": version.domain,
            "live": live.get(version.domain) is not None and live[version.domain].name == version.name,
            "method": version.method,
            "dataset": f"{version.dataset}@{version.dataset_version}",
            "eval_loss": version.metrics.get("eval_loss"),
            "created_at": version.created_at.isoformat(timespec="seconds"),
        }
        for version in registry.versions(domain)
    ]
    columns = ("version", "live", "method", "dataset", "eval_loss", "created_at")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@adapter.command(name="show")
@click.argument("version")
@json_option
@pass_session
def show_adapter(session: Session, version: str, as_json: bool) -> None:
    """Everything recorded about a version, with the state of its evidence."""
    registry = _registry(session)
    found = registry.get(version)
    links = registry.links(version)
    data = {
        "version": found.name,
        "domain": found.domain,
        "base": found.base,
        "base_hash": found.base_hash,
        "method": found.method,
        "path": str(found.path),
        "sha256": found.sha256,
        "dataset": found.dataset,
        "dataset_version": found.dataset_version,
        "parent": found.parent,
        "labels": sorted(found.labels),
        "config": found.config,
        "metrics": found.metrics,
        "created_at": found.created_at.isoformat(timespec="seconds"),
        "evidence": {kind: sum(link.kind == kind for link in links) for kind in ("declared", "inferred", "unlinked")},
        "documents": sorted({link.doc_id for link in links if link.doc_id}),
    }
    emit(data, as_json, lambda: table(("what", "value"), data.items()))


@adapter.command()
@click.argument("version")
@json_option
@pass_session
def promote(session: Session, version: str, as_json: bool) -> None:
    """Make VERSION the live adapter of its domain, after checking its files and that it fits the engine's base."""
    from appliance.models.store import ModelStore
    from appliance.promotion import check_fit

    registry = _registry(session)
    check_fit(session.workspace, ModelStore.default(), registry.get(version))
    promoted = registry.promote(version)
    emit({"domain": promoted.domain, "live": promoted.name}, as_json, lambda: click.echo(f"{promoted.domain} → {promoted.name}"))


@adapter.command()
@domain_option
@json_option
@pass_session
def rollback(session: Session, domain: str | None, as_json: bool) -> None:
    """Go back to the adapter that was live before."""
    name = session.workspace.only_domain(domain)
    version = _registry(session).rollback(name)
    live = version.name if version else None
    emit({"domain": name, "live": live}, as_json, lambda: click.echo(f"{name} → {live or 'no adapter'}"))
