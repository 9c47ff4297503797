"""`appliance adapter`."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, say, table


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
    deleted = registry.deleted()
    rows = [
        {
            "version": version.name,
            "domain": version.domain,
            "live": live.get(version.domain) is not None and live[version.domain].name == version.name,
            "method": version.method,
            "dataset": f"{version.dataset}@{version.dataset_version}",
            "eval_loss": version.metrics.get("eval_loss"),
            "deleted_documents": [key.id for key in deleted.get(version.name, ())],
            "created_at": version.created_at.isoformat(timespec="seconds"),
        }
        for version in registry.versions(domain)
    ]
    columns = ("version", "live", "method", "dataset", "eval_loss", "created_at")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))
    for row in rows:
        if row["deleted_documents"]:
            say(f"{row['version']} contains deleted text, of {', '.join(row['deleted_documents'])}; train it again without")


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
        "deleted_documents": [key.id for key in registry.deleted().get(version, ())],
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
