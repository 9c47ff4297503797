"""`appliance model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.session import Progress, Session, emit, json_option, pass_session, table
from appliance.errors import DONE, FAILURE, UsageError

if TYPE_CHECKING:
    from appliance.models.store import ModelStore


@click.group()
def model() -> None:
    """Fetch and check models."""


def _store() -> ModelStore:
    from appliance.models.store import ModelStore as Store

    return Store.default()


def _references(session: Session, given: tuple[str, ...]) -> list[str]:
    """The named references, or those of the workspace's configuration, or the defaults."""
    from appliance.settings import DEFAULT_CHAT, DEFAULT_EMBEDDING

    if given:
        return list(given)
    try:
        config = session.workspace.config
    except UsageError:
        return [DEFAULT_EMBEDDING, DEFAULT_CHAT]
    named = [config.models.embedding, *dict.fromkeys(engine.base for engine in config.engines.values() if engine.has_base)]
    return [str(session.workspace.model(name)) for name in named]


@model.command()
@click.argument("references", nargs=-1)
@json_option
@pass_session
def pull(session: Session, references: tuple[str, ...], as_json: bool) -> None:
    """Fetch models once, check their hashes, convert them; without arguments, those in use."""
    store = _store()
    with Progress() as progress:
        rows = [{"reference": name, "path": str(store.pull(name, progress))} for name in _references(session, references)]
    emit(rows, as_json, lambda: table(("reference", "path"), [list(row.values()) for row in rows]))


@model.command(name="list")
@json_option
@pass_session
def list_models(session: Session, as_json: bool) -> None:
    """The models on this machine, and those trained in the workspace."""
    rows = [
        {
            "reference": info.ref,
            "kind": info.kind,
            "licence": info.licence,
            "languages": list(info.languages),
            "hash": info.hash,
            "bytes": info.size,
            "path": str(info.path),
        }
        for info in _store().list()
    ]
    rows += _trained(session)
    columns = ("reference", "kind", "licence", "languages", "bytes")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


def _trained(session: Session) -> list[dict[str, object]]:
    """The model versions of the workspace, if there is one."""
    from appliance.adapters.registry import Registry

    try:
        workspace = session.workspace
    except UsageError:
        return []
    versions = [version for version in Registry(workspace).versions() if version.kind == "model"]
    return [
        {
            "reference": version.reference,
            "kind": "chat",
            "licence": "",
            "languages": [],
            "hash": version.sha256,
            "bytes": sum(file.stat().st_size for file in version.path.glob("*")),
            "path": str(version.path),
            "method": version.method,
            "trained_from": version.base,
        }
        for version in versions
    ]


@model.command()
@click.argument("references", nargs=-1)
@json_option
@pass_session
def verify(session: Session, references: tuple[str, ...], as_json: bool) -> int:
    """Hash every file again."""
    store = _store()
    rows = [{"reference": name, "problems": store.verify(name)} for name in _references(session, references)]
    emit(
        rows, as_json, lambda: table(("reference", "problems"), [(row["reference"], "; ".join(row["problems"]) or "none") for row in rows])
    )
    return FAILURE if any(row["problems"] for row in rows) else DONE
