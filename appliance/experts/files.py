"""Tasks of experts as files, for those who work in a spreadsheet or an editor, and the way back."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, UsageError
from appliance.experts.tasks import ExpertTasks, NoSuchTask
from appliance.files import write_whole
from eval.experts import CRITERIA, PREFERENCE_TEXT, PREFERENCES, RUBRIC, BadScore
from finetune.reading import Excluded, read_rows
from finetune.types import DatasetError
from retrieval.types import Scope

FILLED_IN = (*CRITERIA, "preference", "cannot_judge", "correction", "comment")
_SHOWN = ("task", "kind", "lang", "domain", "question", "answer_a", "sources_a", "answer_b", "sources_b")
# What makes a spreadsheet program take a cell for a formula (OWASP, "CSV Injection"); full-width forms too, which some programs fold.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_GUARD = "'"
# Characters of a cell of the usual spreadsheet programs, which cut what is longer.
_CELL = 32_767


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did with the rows of a file: counts by what became of them, and those that could not be taken."""

    counts: Mapping[str, int]
    bad: tuple[Excluded, ...]
    notes: tuple[str, ...]


def export(tasks: ExpertTasks, expert: str, scope: Scope, run: str, file: Path, *, limit: int | None = None, bom: bool = False) -> int:
    """Write what the expert should judge into a ``.csv`` or ``.jsonl`` file, with empty columns for the judgement; returns how many tasks.

    `bom` marks the file as UTF-8, without which spreadsheet programs misread Chinese. In CSV, a text that a spreadsheet program would take
    for a formula is preceded by an apostrophe. Raises UsageError for another ending, a file that is there already, or a text too long for
    a cell.
    """
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"{file}: expected a name ending in .csv or .jsonl")
    if bom and file.suffix.lower() != ".csv":
        raise UsageError("--bom is for .csv files; JSON lines are UTF-8 without a mark")
    if file.exists():
        raise UsageError(f"{file} is there already, perhaps with judgements; import it first, or name another file")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is not a folder; make it, or name another file")
    rows = [_row(task) for task in tasks.take(expert, scope, run, limit)]
    if file.suffix.lower() == ".jsonl":
        write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return len(rows)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([*_SHOWN, *FILLED_IN])
    for row in rows:
        cells = [guarded("; ".join(value) if isinstance(value, list) else value or "") for value in row.values()]
        longest = max(map(len, cells))
        if longest > _CELL:
            raise UsageError(f"{row['task']} has a text of {longest:,} characters, a cell holds {_CELL:,}; export to a .jsonl file")
        writer.writerow(cells)
    write_whole(file, ("\ufeff" if bom else "") + buffer.getvalue())
    return len(rows)


def _row(task: Mapping[str, Any]) -> dict[str, Any]:
    sides = {f"{field}_{side['name']}": side[field] for side in task["answers"] for field in ("answer", "sources")}
    shown = {name: sides.get(name, task.get(name, [] if name.startswith("sources") else "")) for name in _SHOWN}
    return {**shown, **dict.fromkeys(FILLED_IN, "")}


def guarded(cell: str) -> str:
    """A cell that no spreadsheet program takes for a formula."""
    return _GUARD + cell if cell.lstrip(" ").startswith(_FORMULA) else cell


def unguarded(cell: str) -> str:
    """The text of a cell as it was before `guarded`."""
    return cell.removeprefix(_GUARD) if cell.startswith(_GUARD) and guarded(cell[1:]) == cell else cell


def take_in(tasks: ExpertTasks, expert: str, scope: Scope, run: str, file: Path) -> Imported:
    """Read the judgements of a file that `export` wrote. Rows without any wait, rows taken before change nothing, others replace.

    Rows that cannot be taken are listed, and the others taken. Raises UsageError if the file has none of our columns or tells nothing,
    ApplianceError where it cannot be read.
    """
    try:
        read = read_rows(file)
    except DatasetError as error:
        raise ApplianceError(str(error)) from error
    known = tasks.ids(run)
    counts: Counter[str] = Counter()
    bad: list[Excluded] = []
    seen: dict[str, int] = {}
    for row in read.rows:
        where = (row.file, row.number)
        if isinstance(row.value, Excluded):
            bad.append(row.value)
            continue
        said = {name: row.value.get(name) for name in FILLED_IN if row.value.get(name) is not None}
        if file.suffix.lower() in (".csv", ".tsv"):
            said = {name: unguarded(value) if isinstance(value, str) else value for name, value in said.items()}
        identity = row.value.get("task")
        if not isinstance(identity, str) or identity.strip() not in known:
            bad.append(Excluded(*where, "task", f"expected the id of a task of run {run}, found {identity!r}; leave this column as it was"))
            continue
        identity = identity.strip()
        if identity in seen:
            bad.append(Excluded(*where, "task", f"{identity} is in row {seen[identity]} already; leave one of them out"))
            continue
        seen[identity] = row.number
        try:
            counts[tasks.submit(expert, scope, identity, said, claim=True)] += 1
        except BadScore as error:
            bad.append(Excluded(*where, error.field, error.reason))
        except NoSuchTask as error:
            bad.append(Excluded(*where, "task", str(error)))
    if not seen:
        raise UsageError(f"{file}: no row names a task of run {run}; {bad[0] if bad else 'it has no rows'}")
    return Imported({name: counts[name] for name in ("new", "changed", "unchanged", "empty")}, tuple(bad), read.notes)


def rubric_json(lang: str) -> dict[str, Any]:
    """The rubric for a program: what is asked of each criterion, and what 1 to 5 mean, in the language ("zh" or else English)."""
    own = "zh" if lang == "zh" else "en"
    criteria = {name: {"question": asked, "scale": list(marks)} for name, (asked, marks) in RUBRIC[own].items()}
    return {"lang": own, "criteria": criteria, "preference": {"question": PREFERENCE_TEXT[own], "choices": list(PREFERENCES)}}


def rubric_text(lang: str) -> list[str]:
    """The rubric as lines to be read."""
    rubric = rubric_json(lang)
    lines = [
        f"{name}: {each['question']} " + "; ".join(f"{mark} {text}" for mark, text in enumerate(each["scale"], 1))
        for name, each in rubric["criteria"].items()
    ]
    return [*lines, f"preference: {rubric['preference']['question']}"]
