"""`appliance ingest`, `search`, `document` and `index`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, PARTLY


def _knowledge(session: Session) -> Any:
    from appliance.service import open_service

    return open_service(session.workspace).knowledge


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@domain_option
@click.option("--label", "labels", multiple=True, help="Only callers who hold this label see these documents. Repeatable.")
@click.option("--prune", is_flag=True, help="Remove documents last seen under the same root and domain that are gone from it.")
@json_option
@pass_session
def ingest(session: Session, paths: tuple[Path, ...], domain: str | None, labels: tuple[str, ...], prune: bool, as_json: bool) -> int:
    """Bring files, folders and JSONL corpora into the knowledge base.

    Unchanged documents cost nothing, changed ones replace. One broken file does not stop the others (exit code 3).
    """
    with Progress() as progress:
        report = _knowledge(session).ingest(list(paths), domain=domain, labels=frozenset(labels), prune=prune, progress=progress)
    data = report.to_json()

    def human() -> None:
        columns = ("added", "updated", "unchanged", "removed", "failed", "chunks", "generation", "seconds")
        table(columns, [[len(data[column]) if column == "failed" else data[column] for column in columns]])

    emit(data, as_json, human)
    for failure in data["failed"]:
        say(f"failed: {failure['path']}: {failure['error']}")
    if not data["failed"]:
        return DONE
    return PARTLY if data["added"] + data["updated"] + data["unchanged"] else FAILURE


@click.command()
@click.argument("query")
@domain_option
@click.option("-k", "k", type=click.IntRange(1, 100), help="How many passages (default: [retrieval] k).")
@json_option
@pass_session
def search(session: Session, query: str, domain: str | None, k: int | None, as_json: bool) -> None:
    """Search the knowledge base and print the passages."""
    from appliance.errors import UsageError
    from retrieval.types import Scope

    if not query.strip():
        raise UsageError("the query is empty")
    domains = frozenset({session.workspace.check_domain(domain)}) if domain else None
    knowledge = _knowledge(session)
    evidence = knowledge.search(query, Scope(domains, knowledge.documents.labels()), k)
    results = [
        {
            "doc_id": passage.document.id,
            "domain": passage.document.domain,
            "uri": passage.document.uri,
            "title": passage.document.title,
            "chunk_id": passage.chunk.id,
            "start": passage.chunk.start,
            "end": passage.chunk.end,
            "text": passage.chunk.text,
            "score": round(passage.score, 6),
        }
        for passage in evidence.passages
    ]

    def human() -> None:
        for number, result in enumerate(results, 1):
            place = f"{result['domain']}/{result['doc_id']} {result['start']}–{result['end']}"
            click.echo(f"[{number}] {result['title']}  ({place}, {result['score']:.4f})")
            click.echo("    " + " ".join(str(result["text"]).split())[:300])

    emit({"query": query, "generation": evidence.generation, "results": results}, as_json, human)
    if not results:
        say("nothing found")


@click.group()
def document() -> None:
    """List and remove documents."""


@document.command(name="list")
@domain_option
@json_option
@pass_session
def list_documents(session: Session, domain: str | None, as_json: bool) -> None:
    """Every live document."""
    if domain:
        session.workspace.check_domain(domain)
    rows = [
        {
            "domain": info.domain,
            "doc_id": info.id,
            "title": info.title,
            "lang": info.lang,
            "labels": sorted(info.labels),
            "updated_at": info.updated_at.isoformat(timespec="seconds"),
            "sha256": info.sha256,
        }
        for info in _knowledge(session).documents.documents(domain)
    ]
    columns = ("domain", "doc_id", "title", "lang", "updated_at")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@document.command()
@click.argument("doc_ids", nargs=-1, required=True)
@domain_option
@json_option
@pass_session
def remove(session: Session, doc_ids: tuple[str, ...], domain: str | None, as_json: bool) -> None:
    """Delete documents for good: from every generation, with their text."""
    from retrieval.types import DocumentKey

    name = session.workspace.only_domain(domain)
    data = _knowledge(session).remove([DocumentKey(name, doc_id) for doc_id in doc_ids])
    emit(data, as_json, lambda: click.echo(f"removed {data['removed']}, generation {data['generation']}"))


@click.group()
def index() -> None:
    """Look at the index."""


@index.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """The live generation."""
    knowledge = _knowledge(session)
    data = knowledge.documents.status()
    emit(data, as_json, lambda: table(("what", "value"), data.items()))


@index.command()
@json_option
@pass_session
def verify(session: Session, as_json: bool) -> int:
    """Check every file of the live generation against its checksum."""
    problems = _knowledge(session).verify()
    emit({"ok": not problems, "problems": problems}, as_json, lambda: click.echo("\n".join(problems) or "every file is as it was written"))
    return FAILURE if problems else DONE


@index.command()
@click.argument("generation", type=click.IntRange(1))
@json_option
@pass_session
def rollback(session: Session, generation: int, as_json: bool) -> None:
    """Make an older GENERATION live again; documents deleted since stay deleted."""
    _knowledge(session).rollback(generation)
    emit({"generation": generation}, as_json, lambda: click.echo(f"generation {generation} is live"))


@index.command()
@json_option
@pass_session
def rebuild(session: Session, as_json: bool) -> None:
    """Make the index anew from the stored texts, beside the live one."""
    with Progress() as progress:
        data = _knowledge(session).rebuild(progress)
    emit(data, as_json, lambda: click.echo(f"generation {data['generation']}: {data['documents']} documents, {data['chunks']} chunks"))
