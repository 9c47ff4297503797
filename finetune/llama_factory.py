"""A team's LLaMA-Factory folder, read as it is: `dataset_info.json` and the text data sets it names.

The meaning of every key is that of LLaMA-Factory 0.9.5 (its `data/README.md` and `data/parser.py`), with these differences, each of
which is said: rows it would skip with a log line are errors here; a system prompt is never changed; `num_samples` draws with a fixed
seed, so that the same folder gives the same data set; a file beside the registry is taken before a hub's copy.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.dataset import ALIASES, ReadResult, collect, columns_of, guess_columns
from finetune.fields import nearest
from finetune.formats import SPEAKERS, Layout, Tags, guess_tags
from finetune.hub import Unreachable, hub_rows
from finetune.llama_factory_entry import COLUMNS, TAGS, Entry, read_keys
from finetune.reading import FORMATS, Row, kind, parse_json, read_rows, read_text, torn
from finetune.types import DatasetError, Task

REGISTRY = "dataset_info.json"
_NOT_TEXT = ("images", "videos", "audios", "tools")
_DEFAULT_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_REMEDIES = {"question": '"columns": {"prompt": ...}', "answer": '"columns": {"response": ...}'}


class Unusable(DatasetError):
    """An entry that is right and still cannot be used here: pictures, tool calls, a hub out of reach.

    `no_hub` says that the hub did not answer at all.
    """

    no_hub = False


def read_registry(folder: Path) -> dict[str, Any]:
    """Name -> entry as written. Raises DatasetError if the file is missing or is no object of entries."""
    path = folder / REGISTRY
    if not path.is_file():
        raise DatasetError(f"{folder}: has no {REGISTRY}; name one data file, or the folder that LLaMA-Factory calls dataset_dir")
    if path.stat().st_size == 0:
        raise DatasetError(f'{path}: the file is empty; expected {{"name": {{"file_name": "..."}}}}')
    try:
        data = parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not valid JSON ({error}); correct it there") from error
    if not isinstance(data, dict):
        raise DatasetError(f'{path}: expected an object {{"name": {{"file_name": "..."}}}}, found {kind(data)}')
    if not data:
        raise DatasetError(f"{path}: names no data set; expected at least one entry")
    if torn(data):
        raise DatasetError(f"{path}: contains half of a surrogate pair (\\ud800 to \\udfff); correct it there")
    if "features" in data and ("citation" in data or (folder / "state.json").is_file()):
        files = ", ".join(sorted(file.name for file in folder.glob("*.arrow"))) or "its .arrow file"
        raise DatasetError(f"{folder}: is a data set as Hugging Face saves it, not a LLaMA-Factory folder; add {files} by itself")
    return data


def read_entry(folder: Path, name: str, raw: Any, *, skip_bad: bool = False, task: Task | None = None, hub: bool = True) -> ReadResult:
    """The pairs of one entry; `task` is the one of entries that name none, `hub` whether a hub may be asked.

    Every answer of a conversation and of a history becomes a pair, as LLaMA-Factory trains them all; of a preference pair only the last.
    Raises Unusable where the entry cannot be used here, else DatasetError naming the key, or file, row and column.
    """
    where = f'{folder / REGISTRY} entry "{name}"'
    entry = read_keys(where, name, raw)
    rows = _rows(where, folder, entry, hub)
    rows = _sampled(where, _sliced(where, rows, entry.split) if entry.file_name else rows, entry)
    if not rows:
        raise DatasetError(f"{where}: no usable row; expected at least one row")
    # Without any sound row there is nothing to look for columns in, and what is wrong with each is said.
    layout = _layout(where, entry, rows) if columns_of(rows) else Layout({})
    layout = replace(layout, task=entry.task or task)
    result = collect(where, rows, layout, skip_bad=skip_bad, notes=entry.notes)
    unread = (f'not in "columns", and so not trained on: {", ".join(result.unused)}',) if result.unused else ()
    return replace(result, notes=(*result.notes, *unread))


# --- where the rows come from


def _rows(where: str, folder: Path, entry: Entry, hub: bool) -> list[Row]:
    if entry.columns and "kto_tag" in entry.columns:
        raise Unusable(f"{where}: is for KTO (kto_tag), which is not trained here")
    path = _path(where, folder, entry) if entry.file_name else None
    if path is not None:
        if entry.hub or entry.elsewhere:
            entry.notes.append(f"the file {entry.file_name} is read, not the copy elsewhere")
        return [row for file in _files(where, folder, path) for row in _file_rows(file, entry.notes)]
    if entry.hub:
        try:
            if not hub:
                raise Unreachable("which did not answer before", silent=True)
            return hub_rows(entry.hub, entry.subset, entry.folder, entry.split)
        except Unreachable as error:
            unusable = Unusable(f"{where}: {entry.hub} cannot be had from its hub ({error}); save it as a file")
            unusable.no_hub = error.silent
            raise unusable from error
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from error
    if entry.elsewhere:
        raise Unusable(f"{where}: {entry.elsewhere}")
    raise DatasetError(f"{where}: file_name: no file {entry.file_name!r} in {folder}; check the name")


def _path(where: str, folder: Path, entry: Entry) -> Path | None:
    """The file or folder that file_name names, None where there is none. Raises DatasetError for one outside of the registry's folder."""
    assert entry.file_name is not None
    for name in [entry.file_name, *([f"{entry.folder}/{entry.file_name}"] if entry.folder else [])]:
        if "\0" in name:
            raise DatasetError(f"{where}: file_name: contains a NUL character; remove it")
        _inside(where, folder, folder / name, name)
        try:
            there = (folder / name).exists()
        except OSError as error:
            raise DatasetError(f"{where}: file_name: {name[:40]!r} cannot be looked for ({error.strerror}); rename the file") from error
        if there:
            if name != entry.file_name:
                entry.notes.append(f"read from {name}")
            return folder / name
    return None


def _inside(where: str, folder: Path, path: Path, name: str) -> None:
    remedy = "put the file into the folder, or register it alone with `appliance dataset add FILE`"
    if Path(name).is_absolute():
        raise DatasetError(f"{where}: file_name: {name!r} is an absolute path; {remedy}")
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"{where}: file_name: {name!r} leads in a circle ({error}); {remedy}") from error
    if not resolved.is_relative_to(folder.resolve()):
        raise DatasetError(f"{where}: file_name: {name!r} leads out of {folder}; {remedy}")


def _files(where: str, folder: Path, path: Path) -> list[Path]:
    """The file, or every file of the folder in the order of their names: all of one kind, as LLaMA-Factory demands."""
    if path.is_file():
        return _with_answers(where, path, [path])
    files = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    inner = next((item for item in files if item.is_dir()), None)
    if inner is not None:
        raise DatasetError(f"{where}: file_name: {path.name} holds the folder {inner.name}; put the data files into it directly")
    if not files:
        raise DatasetError(f"{where}: file_name: the folder {path.name} is empty; expected data files ({', '.join(FORMATS)})")
    for file in files:
        _inside(where, folder, file, str(file.relative_to(folder)))
    suffixes = sorted({".json" if item.suffix.lower() == ".jsonl" else item.suffix.lower() for item in files})
    if len(suffixes) > 1:
        raise DatasetError(f"{where}: file_name: {path.name} holds files of several kinds ({', '.join(suffixes)}); keep one kind in it")
    return _with_answers(where, path, files)


def _with_answers(where: str, path: Path, files: list[Path]) -> list[Path]:
    if files[0].suffix.lower() == ".txt":
        raise Unusable(f"{where}: {path.name} is plain text without answers; ingest it as a document and train on documents")
    return files


def _file_rows(file: Path, notes: list[str]) -> list[Row]:
    read = read_rows(file)
    notes.extend(read.notes)
    return read.rows


def _sliced(where: str, rows: list[Row], split: str) -> list[Row]:
    """The rows that `split` names: files are one split, train, of which a part may be named (train[:10%])."""
    if split == "train":
        return rows
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
    except (ValueError, AssertionError) as error:
        raise DatasetError(
            f"{where}: split: {str(error).splitlines()[0]} A file is the split train, or a part of it (train[:10%])"
        ) from error
    return [row for part in parts for row in rows[part.from_ : part.to]]


def _sampled(where: str, rows: list[Row], entry: Entry) -> list[Row]:
    """`num_samples` rows in their order, or, where there are fewer, all of them and again as many as are missing."""
    wanted = entry.num_samples
    if wanted is None or wanted == len(rows) or not rows:
        return rows
    whole, rest = divmod(wanted, len(rows))
    drawn = random.Random(0).sample(range(len(rows)), rest)
    entry.notes.append(f"num_samples: {wanted} of {len(rows)} rows" + (", some of them more than once" if whole else ", drawn with seed 0"))
    copies = [number for number in range(len(rows)) for _ in range(whole)] + drawn
    seen: dict[int, int] = {}
    found: list[Row] = []
    for number in sorted(copies):
        seen[number] = seen.get(number, 0) + 1
        found.append(replace(rows[number], copy=seen[number]))
    return found


# --- what the rows mean


def _layout(where: str, entry: Entry, rows: Sequence[Row]) -> Layout:
    columns = columns_of(rows)
    chosen = dict(entry.columns) if entry.columns is not None else {k: v for k, v in _DEFAULT_COLUMNS.items() if v in columns}
    for name in _NOT_TEXT:
        column = chosen.pop(name, None)
        used = sum(bool(row.value.get(column)) for row in rows if isinstance(row.value, dict)) if column else 0
        if used:
            raise Unusable(f"{where}: {used} of {len(rows)} rows have {name} (column {column!r}), and only text is trained here")
    for name, column in chosen.items():
        if column not in columns:
            raise DatasetError(
                f'{where}: columns: {name}: no column "{column}"{nearest(column, columns)}; the rows have {", ".join(columns)}'
            )
    if entry.formatting == "alpaca":
        return _alpaca(where, entry, chosen, columns)
    chosen = _conversations(where, entry, chosen, columns)
    mapping = {own: chosen[name] for name, own in COLUMNS.items() if own and name in chosen and (entry.ranking or own != "answer")}
    return Layout(mapping, _tags(entry, guess_tags(rows, mapping["messages"])), message_first=True)


def _alpaca(where: str, entry: Entry, chosen: dict[str, str], columns: list[str]) -> Layout:
    _preferences(where, entry, chosen)
    if "prompt" not in chosen and "query" not in chosen:
        if entry.columns is not None or "conversations" in columns or "messages" in columns:
            remedy = (
                'name the column of the question: "columns": {"prompt": ...}'
                if entry.columns is not None
                else 'set "formatting": "sharegpt"'
            )
            raise DatasetError(f"{where}: no column for the prompt; the rows have {', '.join(columns)}; {remedy}")
        asked = {field: column for field, column in guess_columns(where, columns, {}, _REMEDIES).items() if field in ("question", "answer")}
        entry.notes.append("no columns named: " + ", ".join(f"{ALIASES[own][0]}={column}" for own, column in asked.items()))
        return Layout(asked)
    answer = "chosen" if entry.ranking else "response"
    if answer not in chosen:
        if answer == "response" and entry.columns is not None and "query" not in chosen:
            raise Unusable(f"{where}: is text without answers (no response); ingest it as documents and train on documents")
        raise DatasetError(
            f'{where}: no column for the {answer}; the rows have {", ".join(columns)}; name it: "columns": {{"{answer}": ...}}'
        )
    question = "+".join(chosen[name] for name in ("prompt", "query") if name in chosen)
    skipped = ("query", "messages", "response" if entry.ranking else "chosen")
    mapping = {own: chosen[name] for name, own in COLUMNS.items() if own and name in chosen and name not in skipped}
    return Layout({**mapping, "question": question}, all_answers=True)


def _conversations(where: str, entry: Entry, chosen: dict[str, str], columns: list[str]) -> dict[str, str]:
    _preferences(where, entry, chosen)
    if "messages" not in chosen:
        found = next((name for name in ("conversations", "messages") if name in columns), None)
        if found is None or entry.columns:
            raise DatasetError(
                f"{where}: no column for the messages; the rows have {', '.join(columns)}; "
                f'name it: "columns": {{"messages": ...}}, or set "formatting": "alpaca" if a row is one question'
            )
        entry.notes.append(f'no columns named: messages="{found}"')
        chosen["messages"] = found
    return {name: column for name, column in chosen.items() if name not in ("prompt", "query", "response", "history", "answerable")}


def _preferences(where: str, entry: Entry, chosen: Mapping[str, str]) -> None:
    """Both endings and `ranking` belong together: LLaMA-Factory would silently read something else."""
    if entry.ranking and not {"chosen", "rejected"} <= chosen.keys():
        missing = "chosen" if "chosen" not in chosen else "rejected"
        raise DatasetError(f'{where}: ranking: no column for the {missing} answer; name it: "columns": {{"{missing}": ...}}')
    if not entry.ranking and ("chosen" in chosen or "rejected" in chosen):
        raise DatasetError(f'{where}: columns names chosen or rejected answers; set "ranking": true, or leave them out')


def _tags(entry: Entry, guessed: Tags) -> Tags:
    """The declared tags; what is not declared is read as the rows write it, and said."""
    said = entry.tags or {}
    role, content = said.get("role_tag", guessed.role), said.get("content_tag", guessed.content)
    for name, value, usual in (("role_tag", role, "from"), ("content_tag", content, "value")):
        if name not in said and (value != usual or entry.tags is not None):
            entry.notes.append(f'{name} is not said: read as "{value}"')
    declared = {speaker for name, speaker in TAGS.items() if name in said}
    speakers = {word: speaker for word, speaker in SPEAKERS.items() if speaker not in declared}
    if entry.tags is not None:
        for speaker in ("user", "assistant"):
            if speaker not in declared:
                words = " or ".join(word for word, who in speakers.items() if who == speaker)
                entry.notes.append(f"{speaker}_tag is not said: read as {words}")
    speakers |= {said[name]: speaker for name, speaker in TAGS.items() if speaker and name in said}
    return Tags(role, content, speakers)
