"""Run arms over a QA set: concurrent, resumable, every output kept.

A run is a folder: ``items.jsonl`` (the questions), ``outputs.jsonl`` (one line an outcome, appended as they come, each with the key of
all that decided it), ``summary.json`` (written when the run is complete).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from eval.summary import summarise
from eval.types import EvalError, Item, Outcome, Outcomes, item_from_json, outcome_from_json
from eval.utility import Scoring

Ask = Callable[[Item, str], Awaitable[Outcome]]
# Equal keys, equal outcomes; None for an outcome that another run cannot take over.
Key = Callable[[Item, str], str | None]
Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run as stored: `summary` is None while it is incomplete."""

    folder: Path
    items: tuple[Item, ...]
    outcomes: Outcomes
    summary: dict[str, Any] | None


async def run(
    items: Sequence[Item],
    arms: Sequence[str],
    ask: Ask,
    folder: Path,
    concurrency: int = 8,
    progress: Progress | None = None,
    scoring: Scoring | None = None,
    key: Key | None = None,
    known: Mapping[str, Outcome] | None = None,
) -> RunResult:
    """Ask every arm ("auto" = routed) every question, `concurrency` at a time so that an engine can batch, and summarise.

    Outcomes already in the folder for the same item and arm are not asked again, except failures; an item that has changed is, and
    with `key` whatever was stored under another key. Neither are those whose `key` is among the `known` outcomes of other runs: they
    are taken over, with the times they had there, and counted as ``reused`` in the summary. `progress(done, total)` is called after each
    outcome. An exception of `ask` is raised as it is; it, or cancelling, ends the run with what is stored so far, and calling again goes
    on from there. Times are measured by `ask` under this concurrency.
    Raises EvalError on no items, no arms, ids that repeat, concurrency below 1, or a damaged folder.
    """
    arms = list(dict.fromkeys(arms))
    _check(items, arms, concurrency)
    _prepare(folder, items)
    identities = {(item.id, arm): key(item, arm) if key is not None else None for arm in arms for item in items}
    outcomes = _standing(items, folder, identities if key is not None else {})
    todo = [(item, arm) for arm in arms for item in items if _open(outcomes.get((item.id, arm)))]
    total = len(items) * len(arms)
    with append_lines(folder / "outputs.jsonl") as write:

        def keep(item: Item, arm: str, outcome: Outcome, reused: bool) -> None:
            row = {"id": item.id, "item": digest(item), "asked": arm, "key": identities[item.id, arm], "reused": reused}
            write({**row, "outcome": asdict(outcome)})
            outcomes[item.id, arm] = outcome

        for item, arm in todo:
            there = (known or {}).get(identities[item.id, arm] or "")
            if there is not None:
                keep(item, arm, there, reused=True)
        todo = [(item, arm) for item, arm in todo if _open(outcomes.get((item.id, arm)))]
        done = total - len(todo)
        if progress is not None and done:
            progress(done, total)
        waiting = iter(todo)

        async def worker() -> None:
            nonlocal done
            for item, arm in waiting:
                keep(item, arm, await ask(item, arm), reused=False)
                done += 1
                if progress is not None:
                    progress(done, total)

        await at_once(worker, min(concurrency, len(todo)))

    asked = {(item.id, arm): outcomes[item.id, arm] for arm in arms for item in items}
    reused = {(row["id"], row["asked"]): row.get("reused", False) for row in read_lines(folder / "outputs.jsonl")}
    summary = summarise(items, asked, scoring) | {"reused": sum(reused.get(pair, False) for pair in asked)}
    _write_whole(folder / "summary.json", json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
    return RunResult(folder, tuple(items), asked, summary)


async def at_once(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """`count` workers side by side. The first exception of one cancels the others and is raised as it is, not within a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def stands(folder: Path, items: Sequence[Item], arms: Sequence[str], key: Key) -> bool:
    """Whether the folder holds an outcome for every item and arm, none of them a failure, under the key they have now. Raises EvalError on
    a damaged file."""
    identities = {(item.id, arm): key(item, arm) for arm in arms for item in items}
    outcomes = _standing(items, folder, identities)
    return not any(_open(outcomes.get(pair)) for pair in identities)


def load(folder: Path) -> RunResult:
    """Read a run back. Raises EvalError when the folder holds none or a file is damaged, naming file and line."""
    if not (folder / "items.jsonl").is_file():
        raise EvalError(f"{folder}: no evaluation run is stored here (items.jsonl is missing)")
    items = tuple(_parsed(folder / "items.jsonl", item_from_json))
    outcomes = _standing(items, folder, {})
    path = folder / "summary.json"
    if not path.is_file():
        return RunResult(folder, items, outcomes, None)
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvalError(f"{path}: not valid JSON ({error}); delete the file and run the evaluation again, outputs are kept") from error
    return RunResult(folder, items, outcomes, summary)


def kept(folder: Path) -> Iterator[tuple[str, Outcome]]:
    """The answers of a run that another run may take over, as (key, outcome), the newest last. Raises EvalError on a damaged file."""
    for row in read_lines(folder / "outputs.jsonl"):
        outcome = outcome_from_json(row["outcome"])
        if row.get("key") and outcome.error is None:
            yield row["key"], outcome


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file that is appended to; none without a file. Raises EvalError naming a damaged line."""
    return _parsed(path, lambda row: row) if path.is_file() else iter(())


@contextmanager
def append_lines(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends a row to a JSONL file, each at once; a line that a crash tore is cut off first."""
    with _appending(path) as log:

        def write(row: dict[str, Any]) -> None:
            log.write(_line(row))
            log.flush()

        yield write


def _prepare(folder: Path, items: Sequence[Item]) -> None:
    """The folder with the questions in it, and no summary, which would be of another state."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "items.jsonl", "".join(_line(asdict(item)) for item in items))
    (folder / "summary.json").unlink(missing_ok=True)


def _check(items: Sequence[Item], arms: Sequence[str], concurrency: int) -> None:
    if not items:
        raise EvalError("the QA set has no questions to ask; check the data set and its split")
    if not arms:
        raise EvalError("no arms were given; name at least one, or 'all'")
    if concurrency < 1:
        raise EvalError(f"concurrency: {concurrency}; give at least 1")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise EvalError(f"item id {item.id!r} occurs more than once; ids must be unique within a QA set")
        seen.add(item.id)


def _open(outcome: Outcome | None) -> bool:
    """Not asked yet, or failed for a reason that may have passed."""
    return outcome is None or (outcome.error is not None and not outcome.unavailable)


def _standing(items: Iterable[Item], folder: Path, identities: Mapping[tuple[str, str], str | None]) -> dict[tuple[str, str], Outcome]:
    """The stored outcomes that belong to these items as they are now, by item id and arm; of several for one the last, and that only if
    it was stored under its key in `identities`, where it has one there."""
    digests = {item.id: digest(item) for item in items}
    found: dict[tuple[str, str], tuple[str | None, Outcome]] = {}
    path = folder / "outputs.jsonl"
    if path.is_file():
        for pair, of, key, outcome in _parsed(path, _stored):
            if digests.get(pair[0]) == of:
                found[pair] = key, outcome
    return {pair: outcome for pair, (key, outcome) in found.items() if identities.get(pair, key) == key}


def _stored(row: dict[str, Any]) -> tuple[tuple[str, str], str, str | None, Outcome]:
    return (row["id"], row["asked"]), row["item"], row.get("key"), outcome_from_json(row["outcome"])


def _parsed(path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """The rows of a JSONL file. A last line without its newline was torn by a crash and is left out."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                yield parse(json.loads(line))
            except (ValueError, TypeError, KeyError, EvalError) as error:
                raise EvalError(f"{path}, line {number}: damaged ({error}); delete the line, its question is then asked again") from error


def _appending(path: Path) -> TextIO:
    """The file open for appending, without a torn last line."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
    return path.open("a", encoding="utf-8", newline="\n")


def _write_whole(path: Path, text: str) -> None:
    """All or nothing, also when the process is killed."""
    beside = path.with_suffix(path.suffix + ".tmp")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def digest(item: Item) -> str:
    """What an outcome is stored with, so that it counts only for the item as it was asked."""
    return hashlib.sha256(_line(asdict(item)).encode()).hexdigest()[:16]
