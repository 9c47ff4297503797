"""Question/answer pairs from a team's files: columns found or named, every row checked, none dropped silently."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from finetune.near import group
from finetune.reading import Excluded, kind, read_rows
from finetune.types import DatasetError, Pair, Split, Turn

# Field -> the column names it is known under, the own name first. The first that a file has is taken.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "instruction", "prompt", "query", "input", "问题"),
    "answer": ("answer", "output", "response", "completion", "target", "答案", "回答"),
    "id": ("id", "_id", "qid"),
    "doc_ids": ("doc_ids", "doc_id", "documents", "sources"),
    "lang": ("lang", "language"),
    "domain": ("domain",),
    "split": ("split",),
    "answerable": ("answerable",),
    "history": ("history",),
}
# Columns that carry the rest of a question: instruction + input, prompt + query.
_CONTINUES = {"instruction": "input", "prompt": "query"}
_SPLITS: Mapping[str, Split] = {"train": "train", "dev": "dev", "test": "test", "validation": "dev", "valid": "dev", "val": "dev"}
_LANGS = {"en": "en", "english": "en", "zh": "zh", "chinese": "zh", "中文": "zh"}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
MAX_TEXT = 200_000
SHOWN = 20


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a file held. `mapping` is field -> column as used ("a+b" joins two), `unused` the columns kept only in `Pair.meta`."""

    pairs: list[Pair]
    mapping: Mapping[str, str]
    excluded: list[Excluded]
    unused: tuple[str, ...]


Choice = TypeVar("Choice", bound=str)


class _Bad(Exception):
    """One problem of one row."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field, self.reason = field, reason


def read_pairs(path: Path, *, mapping: Mapping[str, str] | None = None, skip_bad: bool = False) -> ReadResult:
    """Read `path` (.jsonl, .json, .csv, .tsv; UTF-8). Columns not named in `mapping` (field -> column) are guessed.

    Raises DatasetError with up to 20 problems (file, row, field, expectation, remedy); with `skip_bad` bad rows are
    listed in `excluded` instead, but a file that cannot be read at all, or that has no good row, stays an error.
    """
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row))
    bad = [row for _, row in rows if isinstance(row, Excluded)]
    pairs: list[Pair] = []
    used: dict[str, str] = {}
    if columns:
        used = _columns(path, columns, mapping or {})
        seen: dict[str, int] = {}
        for number, row in rows:
            if isinstance(row, Excluded):
                continue
            try:
                pair = _pair(path, number, row, used)
                if pair.id in seen:
                    raise _Bad("id", f'"{pair.id}" is already the id of row {seen[pair.id]}; ids must be unique, rename one')
            except _Bad as error:
                bad.append(Excluded(path.name, number, error.field, error.reason))
                continue
            seen[pair.id] = number
            pairs.append(pair)
    bad.sort(key=lambda item: item.row)
    if bad and not skip_bad:
        raise DatasetError(_summary(path, bad))
    if not pairs:
        why = f"; {_summary(path, bad)}" if bad else "; expected at least one row"
        raise DatasetError(f"{path}: no usable row{why}")
    taken = {part for column in used.values() for part in column.split("+")}
    return ReadResult(pairs, used, bad, tuple(name for name in columns if name not in taken))


def write_pairs(pairs: Iterable[Pair], path: Path) -> None:
    """Write `pairs` as JSON lines in the own format; `read_pairs` gives them back."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for pair in pairs:
            handle.write(json.dumps(_plain(pair), ensure_ascii=False, default=str) + "\n")


def dataset_version(pairs: Sequence[Pair]) -> str:
    """A sha256 (hex) over everything the pairs say, in order; file and row numbers do not count."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(_plain(pair), ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def split_pairs(pairs: Sequence[Pair], seed: int, dev_share: float = 0.1) -> list[Pair]:
    """The same pairs, each with a split. Declared splits stay; the others go 90/10 to train and dev.

    Near duplicates never straddle the new border: an undeclared pair follows a declared near duplicate (test before
    dev before train), and groups of undeclared ones move together.
    """
    free = [number for number, pair in enumerate(pairs) if pair.split is None]
    if not free:
        return list(pairs)
    chosen: dict[int, Split] = {}
    loose: list[list[int]] = []
    for members in group([asked(pair) for pair in pairs]):
        undeclared = [number for number in members if pairs[number].split is None]
        declared = {pairs[number].split for number in members} - {None}
        if declared:
            follow: Split = "test" if "test" in declared else "dev" if "dev" in declared else "train"
            chosen.update(dict.fromkeys(undeclared, follow))
        elif undeclared:
            loose.append(undeclared)
    random.Random(seed).shuffle(loose)
    chosen.update((number, "train") for members in loose for number in members)
    room = max(1, round(dev_share * sum(map(len, loose))))
    held: list[list[int]] = []
    for members in loose:
        if len(members) <= room:
            held.append(members)
            room -= len(members)
    if len(loose) > 1:
        # Where every group is larger than its share, the smallest is held out all the same.
        chosen.update((number, "dev") for members in held or [min(loose, key=len)] for number in members)
    return [replace(pair, split=chosen[number]) if number in chosen else pair for number, pair in enumerate(pairs)]


def asked(pair: Pair) -> str:
    """What was asked, including the user's earlier turns: the same words after another turn are another question."""
    return "\n".join([*(turn.content for turn in pair.history if turn.role == "user"), pair.question])


def _summary(path: Path, bad: Sequence[Excluded]) -> str:
    lines = [str(item) for item in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"... and {len(bad) - SHOWN} more")
    rows = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    return f"{path}: {rows}; correct them, or pass --skip-bad to leave them out\n  " + "\n  ".join(lines)


def _columns(path: Path, columns: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Field -> column for this file: what was asked for, else the first alias there is."""
    used: dict[str, str] = {}
    for field, column in wanted.items():
        if field not in ALIASES:
            raise DatasetError(f'mapping: unknown field "{field}"{_nearest(field, ALIASES)}; fields are {", ".join(ALIASES)}')
        for part in column.split("+"):
            if part not in columns:
                raise DatasetError(f'{path}: no column "{part}" (mapped to {field}){_nearest(part, columns)}; it has {", ".join(columns)}')
        used[field] = column
    taken = {part for column in used.values() for part in column.split("+")}
    for field, names in ALIASES.items():
        found = next((name for name in names if name in columns and name not in taken), None)
        if field in used or found is None:
            continue
        more = _CONTINUES.get(found) if field == "question" else None
        used[field] = f"{found}+{more}" if more in columns and more not in taken else found
        taken.update(used[field].split("+"))
    for field in ("question", "answer"):
        if field not in used:
            raise DatasetError(
                f"{path}: no column for the {field}{_nearest(field, columns)}; it has {', '.join(columns)}; "
                f"expected one of {', '.join(ALIASES[field])}, or name it with --map {field}=COLUMN"
            )
    return used


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _pair(path: Path, number: int, row: Mapping[str, Any], used: Mapping[str, str]) -> Pair:
    from retrieval.text import detect_lang

    value = {field: row.get(column) for field, column in used.items() if "+" not in column}
    answerable = _answerable(value.get("answerable"))
    question = _text(row, "question", used["question"])
    answer = _text(row, "answer", used["answer"], empty=not answerable)
    taken = {part for column in used.values() for part in column.split("+")}
    return Pair(
        id=_identifier(value.get("id")) or f"{path.stem}-{number}",
        question=question,
        answer=answer,
        lang=_choice("lang", value.get("lang"), _LANGS) or detect_lang(question),
        domain=_identifier(value.get("domain"), "domain") or None,
        split=_choice("split", value.get("split"), _SPLITS),
        doc_ids=_doc_ids(value.get("doc_ids")),
        history=_history(value.get("history")),
        answerable=answerable,
        file=path.name,
        row=number,
        meta={name: item for name, item in row.items() if name not in taken and item not in (None, "")},
    )


def _text(row: Mapping[str, Any], field: str, column: str, empty: bool = False) -> str:
    parts = [(name, row.get(name)) for name in column.split("+")]
    first = parts[0][0]
    if first not in row:
        raise _Bad(first, f"the {field} is missing; every row needs it")
    if parts[0][1] is None and empty:
        return ""
    # Only the first of joined columns must be there.
    texts = [_string(name, value) for name, value in parts if name == first or value is not None]
    text = "\n".join(part for part in texts if part)
    if not text and not empty:
        remedy = ', or set "answerable": false if there is no answer' if field == "answer" else ""
        raise _Bad(first, f"the {field} is empty; write it{remedy}")
    return text


def _string(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad(field, f"expected text, found {kind(value)}; put it in quotes")
    if "\0" in value:
        raise _Bad(field, "contains a NUL character; remove it")
    if len(value) > MAX_TEXT:
        raise _Bad(field, f"has {len(value):,} characters, at most {MAX_TEXT:,} are allowed; shorten it or split the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(field, f"contains half of a surrogate pair at character {error.start}; export the text again") from error
    return value.strip()


def _identifier(value: Any, field: str = "id") -> str:
    if value is None:
        return ""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _string(field, value)
    if len(text) > 200:
        raise _Bad(field, f"has {len(text)} characters, at most 200 are allowed")
    return text


def _choice(field: str, value: Any, known: Mapping[str, Choice]) -> Choice | None:
    if value is None or value == "":
        return None
    # zh-CN, en_US: the region does not matter here.
    text = _string(field, value).lower()
    found = known.get(text) or (known.get(text.replace("_", "-").split("-")[0]) if field == "lang" else None)
    if found is None:
        names = " or ".join(dict.fromkeys(known.values()))
        raise _Bad(field, f"expected {names}, found {value!r}{_nearest(text, known)}; correct it or leave it out")
    return found


def _answerable(value: Any) -> bool:
    if value is None or value == "":
        return True
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    raise _Bad("answerable", f"expected true or false, found {kind(value)}")


def _listed(field: str, value: Any, example: str) -> list[Any]:
    """A list, or the JSON of one in a text (CSV cells)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _Bad(field, f"not a valid JSON list ({error}); expected {example}") from error
    if not isinstance(value, list):
        raise _Bad(field, f"expected a list like {example}, found {kind(value)}")
    return value


def _doc_ids(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.split(";")
    names = [_identifier(item, "doc_ids") for item in _listed("doc_ids", value, '["guide.md"]')]
    return tuple(dict.fromkeys(name for name in names if name))


def _history(value: Any) -> tuple[Turn, ...]:
    if value is None or value == "":
        return ()
    turns: list[Turn] = []
    example = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    for number, item in enumerate(_listed("history", value, example), 1):
        if isinstance(item, list) and len(item) == 2:
            turns += [Turn("user", _string("history", item[0])), Turn("assistant", _string("history", item[1]))]
        elif isinstance(item, dict) and {"role", "content"} <= item.keys():
            if item["role"] not in ("system", "user", "assistant"):
                raise _Bad("history", f"turn {number}: expected the role system, user or assistant, found {item['role']!r}")
            turns.append(Turn(item["role"], _string("history", item["content"])))
        else:
            raise _Bad("history", f'turn {number}: expected {{"role": ..., "content": ...}} or [question, answer], found {kind(item)}')
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns[first:]):
        expected, place = "assistant" if number % 2 else "user", f"turn {number + first + 1}"
        if turn.role != expected:
            raise _Bad("history", f"{place}: expected the role {expected}, found {turn.role}; user and assistant alternate")
        if not turn.content:
            raise _Bad("history", f"{place}: the content is empty; write it or leave out the turn")
    if (len(turns) - first) % 2:
        raise _Bad("history", "ends with the user; the last turn before the question must be the assistant's")
    return tuple(turns)


def _plain(pair: Pair) -> dict[str, Any]:
    """A pair as a row of the own format; what is not said is left out."""
    row: dict[str, Any] = {"id": pair.id, "question": pair.question, "answer": pair.answer, "lang": pair.lang}
    row |= {"domain": pair.domain} if pair.domain else {}
    row |= {"split": pair.split} if pair.split else {}
    row |= {"doc_ids": list(pair.doc_ids)} if pair.doc_ids else {}
    row |= {"history": [{"role": turn.role, "content": turn.content} for turn in pair.history]} if pair.history else {}
    row |= {} if pair.answerable else {"answerable": False}
    return {**pair.meta, **row}


def counts(pairs: Iterable[Pair]) -> dict[str, int]:
    """Pairs per split, in the order train, dev, test, undeclared."""
    found = Counter(pair.split or "undeclared" for pair in pairs)
    return {name: found[name] for name in (*get_args(Split), "undeclared") if found[name]}
