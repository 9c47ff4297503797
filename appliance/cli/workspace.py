"""`appliance init` and `appliance config`."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def init(folder: Path, as_json: bool) -> None:
    """Create a workspace in FOLDER with a commented appliance.toml."""
    from appliance.workspace import Workspace

    with Workspace.create(folder) as workspace:
        root = workspace.root
    emit({"workspace": str(root)}, as_json, lambda: click.echo(str(root)))
    say(f"next: appliance ingest PATH --domain NAME --workspace {root}")


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
@pass_session
def show(session: Session, origin: bool, as_json: bool) -> None:
    """Every setting with its value in force; a password in the database's URL is not shown."""
    from appliance.config import leaves

    workspace = session.workspace
    values = dict(leaves(workspace.config.model_dump(mode="json")))
    if values["database.url"] is not None:
        values["database.url"] = workspace.db.engine.url.render_as_string(hide_password=True)
    rows = [(key, value, workspace.origins.get(key, "default")) for key, value in values.items()]
    data = {key: {"value": value, "origin": source} for key, value, source in rows} if origin else values
    columns = ("setting", "value", "origin") if origin else ("setting", "value")
    emit(data, as_json, lambda: table(columns, [row[: len(columns)] for row in rows]))
