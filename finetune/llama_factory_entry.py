"""One entry of a LLaMA-Factory registry: its keys, checked and under their proper names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.fields import TASKS, nearest
from finetune.formats import Speaker
from finetune.reading import kind
from finetune.types import DatasetError, Task

Formatting = Literal["alpaca", "sharegpt", "openai"]
_FORMATTINGS: Mapping[str, Formatting] = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "openai"}
_FORMATTING_ALIASES: Mapping[str, Formatting] = {"prompt_answer": "alpaca", "chat": "sharegpt"}
_ELSEWHERE = {
    "ms_hub_url": "is on ModelScope: download it into the folder and name it with file_name",
    "om_hub_url": "is on Modelers: download it into the folder and name it with file_name",
    "cloud_file_name": "is in a cloud bucket: download it into the folder and name it with file_name",
    "script_url": "needs a loading script, and code that comes with data is not run: save the rows as JSON lines",
}
_SOURCES = ("file_name", "hf_hub_url", *_ELSEWHERE)
_KEYS = (*_SOURCES, "formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags", "task", "file_sha1")
# Column role -> field of the own format; None where it decides something else. The last line is ours: LLaMA-Factory ignores it.
COLUMNS: Mapping[str, str | None] = {
    **{"prompt": "question", "query": None, "response": "answer", "history": "history", "messages": "messages", "system": "system"},
    **{"chosen": "answer", "rejected": "rejected", "tools": None, "images": None, "videos": None, "audios": None, "kto_tag": None},
    **{name: name for name in ("id", "doc_ids", "lang", "domain", "split", "answerable", "task")},
}
_COLUMN_ALIASES = {"instruction": "prompt", "input": "query", "output": "response", "question": "prompt", "answer": "response"}
_COLUMN_ALIASES |= {"conversations": "messages"}
TAGS: Mapping[str, Speaker | None] = {
    **{"role_tag": None, "content_tag": None, "user_tag": "user", "assistant_tag": "assistant"},
    **{"observation_tag": "tool", "function_tag": "tool", "system_tag": "system"},
}
_TAG_ALIASES = {name.removesuffix("_tag"): name for name in TAGS}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the registry, its keys in LLaMA-Factory's words. `columns` and `tags` are None where the entry has none."""

    name: str
    file_name: str | None = None
    hub: str | None = None
    formatting: Formatting = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    columns: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None
    task: Task | None = None
    elsewhere: str = ""
    notes: list[str] = field(default_factory=list)


def read_keys(where: str, name: str, raw: Any) -> Entry:
    """The entry `name` as it is written in `raw`. Raises DatasetError naming the key and the nearest known one."""
    if not isinstance(raw, dict):
        raise DatasetError(f'{where}: expected an object like {{"file_name": "..."}}, found {kind(raw)}')
    notes: list[str] = []
    values = _known(where, raw, dict.fromkeys(_KEYS), {}, notes)
    texts = {key: _text(where, key, values.get(key)) for key in (*_SOURCES, "subset", "folder", "split", "formatting", "task")}
    if not any(texts[key] for key in _SOURCES):
        raise DatasetError(f"{where}: says nowhere where the data are; expected file_name or hf_hub_url")
    if "file_sha1" in values:
        notes.append("file_sha1 is not compared")
    columns, tags = values.get("columns"), values.get("tags")
    ranking, samples = values.get("ranking", False), values.get("num_samples")
    if not isinstance(ranking, bool):
        raise DatasetError(f"{where}: ranking: expected true or false, found {kind(ranking)}")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise DatasetError(f"{where}: num_samples: expected a whole number above 0, found {kind(samples)}")
    elsewhere = next((reason for key, reason in _ELSEWHERE.items() if texts[key]), "")
    return Entry(
        name=name,
        file_name=texts["file_name"],
        hub=texts["hf_hub_url"],
        formatting=_formatting(where, texts["formatting"], notes),
        ranking=ranking,
        subset=texts["subset"],
        split=texts["split"] or "train",
        folder=texts["folder"],
        num_samples=samples,
        columns=None if columns is None else _names(where, "columns", columns, COLUMNS, _COLUMN_ALIASES, notes),
        tags=None if tags is None else _names(where, "tags", tags, TAGS, _TAG_ALIASES, notes),
        task=_task(where, texts["task"]),
        elsewhere=elsewhere,
        notes=notes,
    )


def _known(where: str, given: Mapping[str, Any], known: Mapping[str, Any], aliases: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """The keys under their proper names. Raises DatasetError with the nearest name for one nobody knows."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        proper = key if key in known else aliases.get(key)
        if proper is None:
            raise DatasetError(f'{where}: unknown key "{key}"{nearest(key, [*known, *aliases])}; known keys are {", ".join(known)}')
        if proper in found:
            raise DatasetError(f'{where}: "{key}" says "{proper}" a second time; leave one out')
        if proper != key:
            notes.append(f'"{key}" is read as "{proper}"')
        found[proper] = value
    return found


def _names(where: str, key: str, given: Any, known: Mapping[str, Any], aliases: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    if not isinstance(given, dict):
        raise DatasetError(f"{where}: {key}: expected an object, found {kind(given)}")
    values = _known(f"{where}: {key}", given, known, aliases, notes)
    texts = {name: _text(f"{where}: {key}", name, value) for name, value in values.items()}
    return {name: value for name, value in texts.items() if value}


def _text(where: str, key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DatasetError(f"{where}: {key}: expected text, found {kind(value)}")
    return value or None


def _formatting(where: str, value: str | None, notes: list[str]) -> Formatting:
    value = value or "alpaca"
    found = _FORMATTINGS.get(value)
    if value in _FORMATTING_ALIASES:
        found = _FORMATTING_ALIASES[value]
        notes.append(f'formatting "{value}" is read as "{found}"')
    if found is None:
        names = [*_FORMATTINGS, *_FORMATTING_ALIASES]
        raise DatasetError(f'{where}: unknown formatting "{value}"{nearest(value, names)}; expected {", ".join(_FORMATTINGS)}')
    return found


def _task(where: str, value: str | None) -> Task | None:
    if value is not None and value not in TASKS:
        raise DatasetError(f'{where}: unknown task "{value}"{nearest(value, TASKS)}; expected {", ".join(TASKS)}')
    return TASKS[value] if value else None
