"""Question/answer pairs from a team's files: columns found or named, every row checked, none dropped silently."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.fields import LANGS, TASKS, BadField, choice, names, nearest
from finetune.formats import META, Layout, conversation_notes, guess_tags, pairs_of
from finetune.near import group
from finetune.reading import Excluded, Row, read_rows
from finetune.settings import held_out
from finetune.types import DatasetError, Pair, Split, Task

# Field -> the column names it is known under, the own name first. The first that a file has is taken.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "instruction", "prompt", "query", "input", "问题"),
    "answer": ("answer", "output", "response", "completion", "target", "答案", "回答", "chosen"),
    "rejected": ("rejected",),
    "messages": ("messages", "conversations"),
    "id": ("id", "_id", "qid"),
    "doc_ids": ("doc_ids", "doc_id", "documents", "sources"),
    "lang": ("lang", "language"),
    "domain": ("domain",),
    "split": ("split",),
    "answerable": ("answerable",),
    "history": ("history",),
    "system": ("system", "system_prompt"),
    "conversation": ("conversation_id",),
    "task": ("task",),
    "passages": ("passages",),
    "review": ("review",),
}
# Columns that carry the rest of a question: instruction + input, prompt + query.
_CONTINUES = {"instruction": "input", "prompt": "query"}
_REMEDIES: Mapping[str, str] = {field: f"--map {field}=COLUMN" for field in ("question", "answer")}
_RESERVED = frozenset(name for names in ALIASES.values() for name in names) | {META}
SHOWN = 20
# What a reviewer may say of a row.
REVIEWS: Mapping[str, Literal["pending", "accepted", "rejected"]] = {"pending": "pending", "accepted": "accepted", "rejected": "rejected"}


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a file held. `mapping` is field -> column as used ("a+b" joins two), `unused` the columns kept only in `Pair.meta`.

    `notes` say in plain words what was taken for granted: an encoding, an alias.
    """

    pairs: list[Pair]
    mapping: Mapping[str, str]
    excluded: list[Excluded]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_pairs(path: Path, *, mapping: Mapping[str, str] | None = None, skip_bad: bool = False, task: Task | None = None) -> ReadResult:
    """Read `path` (see `finetune.reading.FORMATS`). Columns not named in `mapping` (field -> column, "" for none) are guessed.

    A column of messages takes the place of question and answer. `task` is the task of every row; where it is None, the first
    row that names one decides.

    Raises DatasetError with up to 20 problems (file, row, field, expectation, remedy); with `skip_bad` bad rows are
    listed in `excluded` instead, but a file that cannot be read at all, or that has no good row, stays an error.
    """
    read = read_rows(path)
    columns = columns_of(read.rows)
    used = guess_columns(str(path), columns, mapping or {}) if columns else {}
    notes = list(read.notes)
    if "task" in used and "task" not in (mapping or {}) and not _names_tasks(read.rows, used["task"]):
        notes.append(f'column "{used.pop("task")}" holds no tasks of ours ({", ".join(TASKS)}) and is not read')
    notes += _drop_foreign(read.rows, used, mapping or {})
    tags = guess_tags(read.rows, used["messages"]) if "messages" in used else None
    return collect(str(path), read.rows, Layout(used, tags, task=task), skip_bad=skip_bad, notes=notes)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows if isinstance(row.value, dict) for name in row.value))


def collect(where: str, rows: Sequence[Row], layout: Layout, *, skip_bad: bool, notes: Sequence[str] = ()) -> ReadResult:
    """The pairs of `rows`; `where` names them in messages. Raises DatasetError as `read_pairs` does."""
    layout = replace(layout, task=layout.task or _first_task(rows, layout))
    several = len({row.file for row in rows}) > 1
    bad: list[Excluded] = []
    rejected: list[Excluded] = []
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    for row in rows:
        if isinstance(row.value, Excluded):
            bad.append(row.value)
            continue
        try:
            if not accepted(row.value, layout.columns.get("review")):
                rejected.append(Excluded(row.file, row.number, "review", "was rejected by its reviewer"))
                continue
            found = pairs_of(row, row.value, layout, row.file if several else "")
            twice = next((pair.id for pair in found if pair.id in seen), None)
            if twice is not None:
                raise BadField("id", f'"{twice}" is already the id of row {seen[twice]}; ids must be unique, rename one')
        except BadField as error:
            bad.append(Excluded(row.file, row.number, error.field, error.reason))
            continue
        seen.update((pair.id, row.number) for pair in found)
        pairs += found
    if bad and not skip_bad:
        raise DatasetError(bad_rows(where, bad))
    if not pairs:
        none = f"; all {len(rejected)} rows were rejected" if rejected else "; expected at least one row"
        why = f"; {bad_rows(where, bad)}" if bad else none
        raise DatasetError(f"{where}: no usable row{why}")
    unused = tuple(name for name in columns_of(rows) if name not in layout.taken)
    return ReadResult(pairs, layout.columns, [*bad, *rejected], unused, (*notes, *conversation_notes(rows, layout)))


def _names_tasks(rows: Iterable[Row], column: str) -> bool:
    """Whether any row names a task of ours there: many data sets have a column of that name for something else."""
    said = {row.value.get(column) for row in rows if isinstance(row.value, dict) and isinstance(row.value.get(column), str)}
    return not said or any(value.strip().lower() in TASKS for value in said if isinstance(value, str))


def _drop_foreign(rows: Sequence[Row], used: dict[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Take columns that only share a name with ours out of `used`, with a note for each: passages and sources mean many things."""
    values = [row.value for row in rows if isinstance(row.value, dict)]
    notes: list[str] = []
    column = used.get("passages")
    if column and "passages" not in wanted and not any(_is_reference(value.get(column)) for value in values):
        notes.append(f'column "{used.pop("passages")}" holds no references to passages (doc_id, sha256, start, end, role) and is not read')
    column = used.get("review")
    said = {str(value.get(column)).strip().lower() for value in values} if column else set()
    if column and "review" not in wanted and "passages" not in used and not said & REVIEWS.keys():
        notes.append(f'column "{used.pop("review")}" holds no verdicts ({", ".join(REVIEWS)}) and is not read')
    # Whoever writes the own name means the field.
    for field, read, what in (("doc_ids", names, "ids of documents"), ("lang", _lang, "language of ours (en, zh)")):
        column = used.get(field, field)
        given = [value[column] for value in values if value.get(column) not in (None, "")]
        if column != field and field not in wanted and given and not any(_fits(read, value) for value in given):
            notes.append(f'column "{used.pop(field)}" holds no {what} and is not read')
    return notes


def _lang(field: str, value: Any) -> str | None:
    return choice(field, value, LANGS)


def _fits(read: Callable[[str, Any], object], value: Any) -> bool:
    try:
        read("", value)
    except BadField:
        return False
    return True


def _is_reference(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        return '"sha256"' in value
    return isinstance(value, list) and any(isinstance(item, dict) and "sha256" in item for item in value)


def accepted(row: Mapping[str, Any], column: str | None) -> bool:
    """Whether a row may be used: True where nothing is to be reviewed, False where it was rejected. Raises BadField if it waits."""
    if column is None:
        return True
    verdict = choice(column, row.get(column), REVIEWS)
    if verdict in (None, "pending"):
        raise BadField(column, "is not reviewed yet; accept or reject it with `appliance dataset review FILE`")
    return verdict == "accepted"


def _first_task(rows: Iterable[Row], layout: Layout) -> Task | None:
    column = layout.columns.get("task")
    for row in rows:
        said = row.value.get(column) if column and isinstance(row.value, dict) else None
        if isinstance(said, str) and said.strip().lower() in TASKS:
            return choice("task", said, TASKS)
    return None


def write_pairs(pairs: Iterable[Pair], path: Path) -> None:
    """Write `pairs` as JSON lines in the own format; `read_pairs` gives them back. Raises ValueError for NaN, which JSON lacks."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for pair in pairs:
            handle.write(json.dumps(_plain(pair), ensure_ascii=False, allow_nan=False, default=str) + "\n")


def dataset_version(pairs: Sequence[Pair]) -> str:
    """A sha256 (hex) over everything the pairs say, in order; file and row numbers do not count."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(_plain(pair), ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def split_pairs(pairs: Sequence[Pair], seed: int, val_size: float = 0.1) -> list[Pair]:
    """The same pairs, each with a split. Declared splits stay; of the others a share of `val_size` (from 1 on: so many) goes to dev.

    Near duplicates and the turns of one conversation never straddle the new border: an undeclared pair follows a declared
    near duplicate (test before dev before train), and groups of undeclared ones move together.
    """
    free = [number for number, pair in enumerate(pairs) if pair.split is None]
    if not free:
        return list(pairs)
    chosen: dict[int, Split] = {}
    loose: list[list[int]] = []
    for members in _together(pairs):
        undeclared = [number for number in members if pairs[number].split is None]
        declared = {pairs[number].split for number in members} - {None}
        if declared:
            follow: Split = "test" if "test" in declared else "dev" if "dev" in declared else "train"
            chosen.update(dict.fromkeys(undeclared, follow))
        elif undeclared:
            loose.append(undeclared)
    random.Random(seed).shuffle(loose)
    chosen.update((number, "train") for members in loose for number in members)
    room = held_out(val_size, sum(map(len, loose)))
    held: list[list[int]] = []
    for members in loose:
        if len(members) <= room:
            held.append(members)
            room -= len(members)
    if len(loose) > 1:
        # Where every group is larger than its share, the smallest is held out all the same.
        chosen.update((number, "dev") for members in held or [min(loose, key=len)] for number in members)
    return [replace(pair, split=chosen[number]) if number in chosen else pair for number, pair in enumerate(pairs)]


def _together(pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices of the pairs that belong on one side of a border: near duplicates, and the conversations they are part of."""
    groups = group([asked(pair) for pair in pairs])
    home = {number: place for place, members in enumerate(groups) for number in members}
    parent = list(range(len(groups)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        if pair.conversation is not None:
            a, b = root(home[number]), root(home[first.setdefault(pair.conversation, number)])
            parent[max(a, b)] = min(a, b)
    merged: dict[int, list[int]] = {}
    for number in range(len(pairs)):
        merged.setdefault(root(home[number]), []).append(number)
    return list(merged.values())


def asked(pair: Pair) -> str:
    """What was asked, including the user's earlier turns: the same words after another turn are another question."""
    return "\n".join([*(turn.content for turn in pair.history if turn.role == "user"), pair.question])


def bad_rows(where: str, bad: Sequence[Excluded]) -> str:
    """What is said of rows that cannot be used: how many, the first SHOWN of them, and what to do."""
    lines = [str(item) for item in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"... and {len(bad) - SHOWN} more")
    rows = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    return f"{where}: {rows}; correct them, or pass --skip-bad to leave them out\n  " + "\n  ".join(lines)


def guess_columns(where: str, columns: Sequence[str], wanted: Mapping[str, str], remedies: Mapping[str, str] = _REMEDIES) -> dict[str, str]:
    """Field -> column: what was asked for ("" leaves a field out), else the first alias there is.

    `remedies` say for question and answer how to name a column that is not found. Raises DatasetError with the nearest name.
    """
    used: dict[str, str] = {}
    for field, column in wanted.items():
        if field not in ALIASES:
            raise DatasetError(f'mapping: unknown field "{field}"{nearest(field, ALIASES)}; fields are {", ".join(ALIASES)}')
        for part in column.split("+") if column else ():
            if part not in columns:
                raise DatasetError(f'{where}: no column "{part}" (mapped to {field}){nearest(part, columns)}; it has {", ".join(columns)}')
        used |= {field: column} if column else {}
    taken = {part for column in used.values() for part in column.split("+")}
    for field, aliases in ALIASES.items():
        found = next((name for name in aliases if name in columns and name not in taken), None)
        if field in wanted or found is None:
            continue
        more = _CONTINUES.get(found) if field == "question" else None
        used[field] = f"{found}+{more}" if more in columns and more not in taken else found
        taken.update(used[field].split("+"))
    # A guessed conversation counts only where question and answer have no columns of their own.
    if wanted.get("messages") or ("messages" in used and not {"question", "answer"} <= used.keys()):
        return _of_conversations(where, used, wanted)
    used.pop("messages", None)
    for field in ("question", "answer"):
        if field not in used:
            raise DatasetError(
                f"{where}: no column for the {field}{nearest(field, columns)}; it has {', '.join(columns)}; "
                f"expected one of {', '.join(ALIASES[field])}, or name it with {remedies[field]}"
            )
    return used


def _of_conversations(where: str, used: dict[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The columns beside a conversation: answers only where there are two to prefer between."""
    if wanted.get("question"):
        raise DatasetError(f'{where}: the mapping names both "messages" and "question"; a row is either a conversation or a question')
    if "rejected" in used and "answer" not in used:
        raise DatasetError(f'{where}: no column for the chosen answer beside "{used["rejected"]}"; name it with --map answer=COLUMN')
    beside = {"question", "history", "answerable"} | (set() if "rejected" in used else {"answer"})
    return {field: column for field, column in used.items() if field not in beside}


def _plain(pair: Pair) -> dict[str, Any]:
    """A pair as a row of the own format; what is not said is left out."""
    row: dict[str, Any] = {"id": pair.id, "question": pair.question, "answer": pair.answer, "lang": pair.lang}
    row |= {"domain": pair.domain} if pair.domain else {}
    row |= {"split": pair.split} if pair.split else {}
    row |= {"doc_ids": list(pair.doc_ids)} if pair.doc_ids else {}
    row |= {"history": [{"role": turn.role, "content": turn.content} for turn in pair.history]} if pair.history else {}
    row |= {} if pair.answerable else {"answerable": False}
    row |= {"system": pair.system} if pair.system else {}
    row |= {"rejected": pair.rejected} if pair.rejected is not None else {}
    row |= {"conversation_id": pair.conversation} if pair.conversation else {}
    row |= {"task": pair.task} if pair.task != "qa" else {}
    row |= {"passages": [asdict(passage) for passage in pair.passages]} if pair.passages else {}
    # A column that would be taken for a field of the own format goes one level down; `formats` brings it back.
    clash = {name: value for name, value in pair.meta.items() if name in _RESERVED}
    row |= {META: clash} if clash else {}
    return {**{name: value for name, value in pair.meta.items() if name not in clash}, **row}


def counts(pairs: Iterable[Pair]) -> dict[str, int]:
    """Pairs per split, in the order train, dev, test, undeclared."""
    found = Counter(pair.split or "undeclared" for pair in pairs)
    return {name: found[name] for name in (*get_args(Split), "undeclared") if found[name]}
