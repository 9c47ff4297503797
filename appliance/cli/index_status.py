"""`appliance index status`."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.session import Session, emit, json_option, pass_session, table


@click.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """The live generation: what serves, its parts, its model, the last ingests, and what is wrong."""
    from appliance.jobs.schedule import Schedule
    from appliance.knowledge.index_status import index_status
    from appliance.service import open_service

    knowledge = open_service(session.workspace).knowledge
    tuned = {domain: {name: found[name] for name in ("kind", "weight", "floor")} for domain, found in knowledge.rankings.tuned().items()}
    data = {**index_status(knowledge), "fusion": tuned, "schedule": Schedule(knowledge).status()}
    emit(data, as_json, lambda: _show(data))


def _show(data: dict[str, Any]) -> None:
    embedding, sizes = data["embedding"], data["bytes"]
    same = {True: "as configured", False: f"not the configured {embedding['configured']}: run `appliance index rebuild`", None: "–"}
    table(
        ("what", "value"),
        [
            *((name, data[name]) for name in ("generation", "parent", "serving", "created_at", "documents", "chunks")),
            ("kept generations", ", ".join(map(str, data["generations"]))),
            ("languages", ", ".join(f"{name} {count}" for name, count in data["languages"].items())),
            ("dead rows", data["dead_rows"]),
            ("embedding", f"{embedding['generation'] or embedding['generation_hash'] or '–'} ({same[embedding['same']]})"),
            ("on disk", f"index {_size(sizes['index'])}, database {_size(sizes['database'])}"),
        ],
    )
    if data["segments"]:
        shown = [(*(row[name] for name in ("id", "rows", "live", "search")), _size(row["bytes"]), recall(row)) for row in data["segments"]]
        table(("id", "rows", "live", "search", "size", "recall@10"), shown)
    for row in data["ingests"]:
        counts = ", ".join(f"{row[name]} {name}" for name in ("added", "updated", "unchanged", "removed", "failed"))
        click.echo(f"{row['root']} ({row['domain'] or 'domains of its rows'}): last ingested {row['finished_at']}: {counts}")
    for plan in data["schedule"]:
        last = plan["last"]
        ended = f"{last['outcome']} {last['finished_at']}{': ' + last['error'] if 'error' in last else ''}" if last else "not run yet"
        click.echo(f"{plan['domain']} refreshes at {plan['refresh']!r}; last: {ended}; next: {plan['next']}")
        for skipped in last.get("skipped", ()) if last else ():
            click.echo(f"  skipped: {skipped['path']}: {skipped['reason']}")
    for problem in data["problems"]:
        click.echo(f"problem: {problem}")


def recall(search: dict[str, Any]) -> str:
    """The measured share of the exact best 10 that a search finds; "–" where everything is compared, which finds all of them."""
    return ", ".join(f"{kind} {share}" for kind, share in (search.get("recall") or {}).items()) or "–"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 1024:.0f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"
