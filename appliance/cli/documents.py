"""`appliance document`."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, patiently, say, table, wait_option


def _knowledge(session: Session) -> Any:
    from appliance.service import open_service

    return open_service(session.workspace).knowledge


@click.group()
def document() -> None:
    """List, show, compare and remove documents."""


@document.command(name="list")
@domain_option
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="How many to pass over.")
@json_option
@pass_session
def list_documents(session: Session, domain: str | None, limit: int, offset: int, as_json: bool) -> None:
    """The live documents, by domain and id."""
    from appliance.knowledge.documents import listed

    if domain:
        session.workspace.check_domain(domain)
    documents = _knowledge(session).documents
    rows = [listed(info, chunks) for info, chunks in documents.page(domain, limit, offset)]
    columns = ("domain", "doc_id", "title", "lang", "chunks", "updated_at")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))
    total = documents.count(domain)
    if offset + len(rows) < total:
        say(f"{len(rows)} of {total} documents; go on with --offset {offset + len(rows)}")


@document.command()
@click.argument("doc_id")
@domain_option
@json_option
@pass_session
def show(session: Session, doc_id: str, domain: str | None, as_json: bool) -> None:
    """Everything about one document: facts, versions, copies, chunks, and the adapters trained on it."""
    from appliance.knowledge import documents
    from retrieval.types import DocumentKey

    data = documents.show(_knowledge(session), DocumentKey(session.workspace.only_domain(domain), doc_id))

    def human() -> None:
        tables = ("versions", "chunks", "adapters")
        facts = {name: value for name, value in data.items() if name not in tables and value not in (None, {}, [])}
        table(("what", "value"), [(name, _joined(value)) for name, value in facts.items()])
        versions = [(version["sha256"][:12], version["title"], version["since"], version["until"]) for version in data["versions"]]
        table(("sha256", "title", "since generation", "until"), versions, "versions")
        if data["adapters"]:
            rows = [(adapter["version"], adapter["live"], adapter["documents"][0]["pairs"]) for adapter in data["adapters"]]
            table(("adapter", "live", "pairs"), rows, "trained on it")
        plain = ("start", "end", "page", "lang")
        chunks = [
            (*(chunk[name] for name in plain), _joined(chunk["flags"]), " / ".join(chunk["heading"]), " ".join(chunk["text"].split())[:60])
            for chunk in data["chunks"]
        ]
        table((*plain, "flags", "heading", "text"), chunks, "chunks")

    emit(data, as_json, human)


def _joined(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@document.command()
@domain_option
@click.option(
    "--threshold", type=click.FloatRange(0.5, 1), default=0.8, show_default=True, help="Jaccard similarity from which texts are alike."
)
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="How many pairs to compare exactly and to list.")
@json_option
@pass_session
def duplicates(session: Session, domain: str | None, threshold: float, limit: int, as_json: bool) -> None:
    """Documents with the same text, and with nearly the same.

    The same text is indexed once, under all its names. What is nearly the same stays as it is: last year's fee list is not this
    year's, so the numbers that differ are shown.
    """
    from appliance.knowledge import documents

    if domain:
        session.workspace.check_domain(domain)
    data = documents.duplicates(_knowledge(session), domain, threshold, limit)

    def human() -> None:
        for group in data["exact"]:
            click.echo(f"{group[0]['domain']}: the same text: {', '.join(entry['doc_id'] for entry in group)}")
        for near in data["near"]:
            click.echo(near["said"])
        if not data["exact"] and not data["near"]:
            click.echo("no duplicates")

    emit(data, as_json, human)
    if data["near_pairs"] > len(data["near"]):
        say(f"{len(data['near'])} of {data['near_pairs']} pairs that are nearly the same; --limit shows more")


@document.command()
@click.argument("doc_ids", nargs=-1, required=True)
@domain_option
@wait_option
@json_option
@pass_session
def remove(session: Session, doc_ids: tuple[str, ...], domain: str | None, wait: float, as_json: bool) -> None:
    """Delete documents for good: from every generation, with their text.

    Adapters that were trained on them are listed: they contain deleted text until they are trained again. So are data sets that lost pairs
    with them, or have pairs of a team's own that name them.
    """
    from appliance.knowledge import documents
    from retrieval.types import DocumentKey

    name = session.workspace.only_domain(domain)
    knowledge, keys = _knowledge(session), [DocumentKey(name, doc_id) for doc_id in doc_ids]
    data = patiently(wait, lambda: documents.remove(knowledge, keys))
    emit(data, as_json, lambda: click.echo(f"removed {data['removed']}, generation {data['generation']}"))
    for adapter in data["adapters"]:
        names = ", ".join(document["doc_id"] for document in adapter["documents"])
        say(f"adapter {adapter['version']}{' (live)' if adapter['live'] else ''} contains deleted text, of {names}; train it again without")
    if data["still_there"]:
        names = ", ".join(data["still_there"])
        say(f"still in the folder it came from: {names}; a scheduled refresh passes it over, `appliance ingest` brings it back")
    for row in data["datasets"]:
        if row["erased"]:
            say(f"data set {row['dataset']}: {row['erased']} pairs that were written from it are erased")
        if row["naming"]:
            say(f"data set {row['dataset']}: {row['naming']} pairs of your own name it and stay; correct its file if they repeat it")
    if data["suspended"]:
        say(f"verified answers that cite it are suspended: {', '.join(data['suspended'])}")
