"""`appliance dataset`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from appliance.cli.curation import check, from_documents, review
from appliance.cli.feedback_pairs import from_expert, from_feedback
from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, PARTLY, UsageError
from finetune.types import Task

if TYPE_CHECKING:
    from appliance.datasets.registry import Added


@click.group()
def dataset() -> None:
    """Register and check data sets."""


@dataset.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="The data set's name (default: the file's).")
@domain_option
@click.option("--map", "mapping", help="Columns, e.g. question=instruction,answer=output (default: guessed and shown); lang= reads none.")
@click.option(
    "--task", type=click.Choice(get_args(Task)), help="What the data teach; it picks the instruction and the measures (default: qa)."
)
@click.option("--only", multiple=True, metavar="ENTRY", help="Of a folder, only this entry. Repeatable.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out, counted and listed, instead of stopping.")
@json_option
@pass_session
def add(
    session: Session,
    path: Path,
    name: str | None,
    domain: str | None,
    mapping: str | None,
    task: Task | None,
    only: tuple[str, ...],
    skip_bad: bool,
    as_json: bool,
) -> int:
    """Validate PATH and register it. The same content again changes nothing.

    PATH is a file (JSONL, JSON, CSV, TSV, Parquet, Arrow), or a LLaMA-Factory folder: then every entry of its dataset_info.json is
    registered, and those that cannot be are listed with their reasons (exit code 3, or 1 if there is no other).
    """
    from appliance.datasets.registry import Datasets

    datasets = Datasets(session.workspace)
    if not path.is_dir() and path.name != "dataset_info.json":
        if only:
            raise UsageError("--only names entries of a LLaMA-Factory folder; leave it out for a file")
        added = datasets.add(path, name=name, domain=domain, mapping=_mapping(mapping), skip_bad=skip_bad, task=task)
        emit(_added(added), as_json, lambda: _show(added))
        return DONE
    if name or mapping:
        raise UsageError("--name and --map are for a single file; a LLaMA-Factory folder names its data sets and columns itself")
    folder = path if path.is_dir() else path.parent
    entries = datasets.add_folder(folder, domain=domain, only=only, skip_bad=skip_bad, task=task)
    kept = [entry for entry in entries if entry.added is not None]

    def human() -> None:
        for entry in entries:
            if entry.added is not None:
                _show(entry.added)
            else:
                click.echo(f"{entry.name}: {entry.status}: {entry.reason}")
        click.echo(f"{len(kept)} of {len(entries)} data sets are registered")

    rows = [
        {"entry": entry.name, "status": entry.status, "reason": entry.reason, **(_added(entry.added) if entry.added else {})}
        for entry in entries
    ]
    emit({"folder": str(folder), "registered": len(kept), "entries": rows}, as_json, human)
    return DONE if len(kept) == len(entries) else PARTLY if kept else FAILURE


def _added(added: Added) -> dict[str, Any]:
    info = added.info
    return {
        "name": info.name,
        "version": info.version,
        "domain": info.domain,
        "task": info.task,
        "changed": added.changed,
        "mapping": info.mapping,
        "counts": info.counts,
        "notes": added.notes,
        "preview": [{"id": pair.id, "question": pair.question, "answer": pair.answer} for pair in added.preview],
        "excluded": [asdict(excluded) for excluded in added.excluded],
    }


def _show(added: Added) -> None:
    info = added.info
    click.echo(f"{info.name}@{info.version}: {info.counts['pairs']} pairs, {'registered' if added.changed else 'unchanged'}")
    for pair in added.preview:
        click.echo(f"  {pair.id}: {_short(pair.question)} → {_short(pair.answer)}")
    say("  columns: " + ", ".join(f"{ours}={theirs}" for ours, theirs in info.mapping.items()))
    for note in added.notes:
        say(f"  note: {note}")
    for excluded in added.excluded:
        say(f"  left out: {excluded}")


def _short(text: str) -> str:
    return " ".join(text[:70].split())


def _mapping(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if any(not sign or not ours.strip() for ours, sign, _ in parts):
        raise UsageError(f"--map {text!r}: expected ours=theirs pairs, for example question=instruction,answer=output")
    named = Counter(ours.strip() for ours, _, _ in parts)
    twice = next((ours for ours, times in named.items() if times > 1), None)
    if twice is not None:
        raise UsageError(f"--map {text!r}: names {twice} twice; to join columns write {twice}=a+b")
    return {ours.strip(): theirs.strip() for ours, _, theirs in parts}


@dataset.command(name="list")
@json_option
@pass_session
def list_datasets(session: Session, as_json: bool) -> None:
    """The live version of every data set."""
    from appliance.datasets.registry import Datasets

    rows = [
        {"name": info.name, "version": info.version, "domain": info.domain, "task": info.task, **info.counts, "source": info.source}
        for info in Datasets(session.workspace).all()
    ]
    columns = ("name", "version", "domain", "task", "pairs", "splits", "languages", "unanswerable")
    emit(rows, as_json, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


@dataset.command()
@click.argument("name")
@json_option
@pass_session
def remove(session: Session, name: str, as_json: bool) -> None:
    """Remove a data set with its files. States that an adapter was trained on or a run was asked stay, under no name, as long as those do.

    The same command then deletes them. The file that it was added from is not touched.
    """
    from appliance.datasets.removal import remove as removed

    done = removed(session.workspace, name)

    def human() -> None:
        click.echo(f"{name} is removed: {len(done.removed)} states deleted")
        for version, users in done.kept.items():
            click.echo(f"{name}@{version} stays for {', '.join(users)}")

    emit({"name": name, "removed": done.removed, "kept": done.kept}, as_json, human)


for curating in (check, from_documents, from_feedback, from_expert, review):
    dataset.add_command(curating)
