"""`appliance adapter stale`."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, table


@click.command()
@domain_option
@json_option
@pass_session
def stale(session: Session, domain: str | None, as_json: bool) -> None:
    """What of each adapter's training evidence has changed or gone since: where it is not trusted any more."""
    from appliance.adapters.registry import Registry

    registry = Registry(session.workspace)
    live = registry.in_use()
    rows: list[dict[str, Any]] = []
    for version in registry.versions(domain):
        found = registry.freshness.of(version.name)
        documents = [{"domain": d.key.domain, "doc_id": d.key.id, "change": d.change, "pairs": d.pairs} for d in found.documents]
        counts = {"pairs": found.counts.linked, "stale": found.counts.stale, "unlinked": found.counts.unlinked}
        share = {"stale_share": round(found.counts.share, 4)}
        rows.append({"version": version.name, "live": version.name in live, **counts, **share, "documents": documents})

    def human() -> None:
        shown = [
            (
                row["version"],
                "live" if row["live"] else "",
                f"{row['stale']} of {row['pairs']} ({row['stale_share']:.0%})",
                row["unlinked"],
                ", ".join(f"{one['doc_id']} ({one['change']}, {one['pairs']} pairs)" for one in row["documents"][:5])
                + (f" and {len(row['documents']) - 5} more" if len(row["documents"]) > 5 else ""),
            )
            for row in rows
        ]
        table(("adapter", "", "stale pairs", "without evidence", "documents"), shown)

    emit(rows, as_json, human)
