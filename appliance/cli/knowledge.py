"""`appliance ingest`, `search` and `index`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from appliance.cli.index_status import recall, status
from appliance.cli.index_tune import tune
from appliance.cli.session import (
    Progress,
    Session,
    as_option,
    domain_option,
    emit,
    held,
    json_option,
    pass_session,
    patiently,
    say,
    stoppable,
    table,
    wait_option,
)
from appliance.errors import DONE, FAILURE, PARTLY

_KEPT = "stopped; the live index is as it was, and what was staged is kept: run the same command again, it goes on where it was"


def _knowledge(session: Session) -> Any:
    from appliance.service import open_service

    return open_service(session.workspace).knowledge


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@domain_option
@click.option("--label", "labels", multiple=True, help="Only callers who hold this label see these documents. Repeatable.")
@click.option("--prune", is_flag=True, help="Remove documents last seen under the same root and domain that are gone from it.")
@click.option("--archives", is_flag=True, help="Read zip and tar files like folders (or set [ingest] archives).")
@wait_option
@json_option
@pass_session
def ingest(
    session: Session,
    paths: tuple[Path, ...],
    domain: str | None,
    labels: tuple[str, ...],
    prune: bool,
    archives: bool,
    wait: float,
    as_json: bool,
) -> int:
    """Bring files, folders and JSONL corpora into the knowledge base.

    Unchanged documents cost nothing, changed ones replace. One broken file does not stop the others (exit code 3).
    """
    with stoppable(_KEPT), Progress() as progress:
        options = {"domain": domain, "labels": frozenset(labels), "prune": prune, "archives": archives, "progress": progress}
        knowledge = _knowledge(session)
        report = patiently(wait, lambda: knowledge.ingest(list(paths), **options))
    data = report.to_json()

    def human() -> None:
        columns = ("added", "updated", "unchanged", "removed", "failed", "duplicates", "chunks", "generation", "seconds")
        table(columns, [[len(data[column]) if isinstance(data[column], list) else data[column] for column in columns]])

    emit(data, as_json, human)
    for line in _merged(data["merged"]):
        say(line)
    if data["near_duplicates"]["count"]:
        say(f"{data['near_duplicates']['count']} documents are nearly the same as others (all: appliance document duplicates)")
        for near in report.near:
            say(f"  {near}")
    for failure in data["failed"]:
        say(f"failed: {failure['path']}: {failure['error']}")
    for warning in data["warnings"]:
        say(f"warning: {warning}")
    if skipped := data["skipped"]:
        first = f"{skipped[0]['path']}: {skipped[0]['reason']}"
        say(f"skipped: {first}" + (f" (and {len(skipped) - 1} more, all with --json)" if len(skipped) > 1 else ""))
    if not data["failed"]:
        return DONE
    return PARTLY if data["added"] + data["updated"] + data["unchanged"] else FAILURE


@click.command()
@click.argument("query")
@domain_option
@click.option("-k", "k", type=click.IntRange(1, 100), help="How many passages (default: [retrieval] k).")
@as_option
@json_option
@pass_session
def search(session: Session, query: str, domain: str | None, k: int | None, labels: tuple[str, ...], as_json: bool) -> None:
    """Search the knowledge base and print the passages."""
    from appliance.errors import UsageError
    from retrieval.types import Scope

    if not query.strip():
        raise UsageError("the query is empty")
    domains = frozenset({session.workspace.check_domain(domain)}) if domain else None
    knowledge = _knowledge(session)
    evidence = knowledge.search(query, Scope(domains, held(labels, knowledge.documents.labels())), k)
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
            "rerank_score": passage.rerank_score,
            "flags": list(passage.chunk.flags),
            "sources": [info.id for info in passage.sources],
        }
        for passage in evidence.passages
    ]

    def human() -> None:
        for number, result in enumerate(results, 1):
            place = f"{result['domain']}/{result['doc_id']} {result['start']}–{result['end']}"
            click.echo(f"[{number}] {result['title']}  ({place}, {result['score']:.4f})")
            click.echo("    " + " ".join(str(result["text"]).split())[:300])

    # Only there when something stands in for a damaged generation.
    degraded = {"degraded": True} if evidence.degraded else {}
    emit({"query": query, "generation": evidence.generation, **degraded, "results": results}, as_json, human)
    if not results:
        say("nothing found")


@click.group()
def index() -> None:
    """Look at the index."""


index.add_command(tune)
index.add_command(status)


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
@wait_option
@json_option
@pass_session
def rollback(session: Session, generation: int, wait: float, as_json: bool) -> None:
    """Make an older GENERATION live again; documents deleted since stay deleted."""
    knowledge = _knowledge(session)
    patiently(wait, lambda: knowledge.rollback(generation))
    emit({"generation": generation}, as_json, lambda: click.echo(f"generation {generation} is live"))


@index.command()
@wait_option
@json_option
@pass_session
def rebuild(session: Session, wait: float, as_json: bool) -> None:
    """Make the index anew from the stored texts, beside the live one."""
    with stoppable(_KEPT), Progress() as progress:
        knowledge = _knowledge(session)
        data = patiently(wait, lambda: knowledge.rebuild(progress))
    emit(data, as_json, lambda: click.echo(f"generation {data['generation']}: {data['documents']} documents, {data['chunks']} chunks"))
    for line in _merged(data["merged"]):
        say(line)
    for warning in data["warnings"]:
        say(f"warning: {warning}")


@index.command()
@wait_option
@json_option
@pass_session
def compact(session: Session, wait: float, as_json: bool) -> None:
    """Merge small segments and purge what was deleted from the files.

    Beside the live index and without embedding anything again; older generations stay. An ingest merges by itself when there are many
    segments, so this is for after a removal.
    """
    with Progress() as progress:
        knowledge = _knowledge(session)
        data = patiently(wait, lambda: knowledge.compact(progress))

    def human() -> None:
        click.echo(f"generation {data['generation']}: {data['before']} segments before, {data['after']} now, {data['purged']} rows purged")
        for line in _merged(data["segments"]):
            click.echo(line)

    emit(data, as_json, human)


def _merged(segments: list[dict[str, Any]]) -> Iterator[str]:
    """How the rows of merged segments are searched."""
    for made in segments:
        search = made["search"]
        how = f"recall@10: {recall(search)}" if "recall" in search else search["why"]
        yield f"  merged: {made['rows']} {'live' if made['live'] else 'older'} rows, search {search['method']} ({how})"
