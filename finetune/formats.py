"""How a row becomes pairs: question and answer in columns, or a conversation in one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

from finetune.fields import (
    LANGS,
    MAX_IDENTIFIER,
    SPLITS,
    TASKS,
    BadField,
    alternating,
    choice,
    history,
    identifier,
    listed,
    names,
    passages,
    string,
    text,
    truth,
)
from finetune.reading import Row, kind
from finetune.types import Pair, Task, Turn

Speaker = Literal["system", "user", "assistant", "tool"]

# The words for who speaks that are in use.
SPEAKERS: Mapping[str, Speaker] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "tool",
}
# Where the own format keeps columns that would be taken for a field of its own.
META = "meta"
_TOOLS = "tool calls cannot be trained here; remove the row"


@dataclass(frozen=True, slots=True)
class Tags:
    """How a message is written: the keys of who speaks and of what is said, and the words for who speaks."""

    role: str = "role"
    content: str = "content"
    speakers: Mapping[str, Speaker] = field(default_factory=lambda: SPEAKERS)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a data set become pairs.

    `columns` maps a field (see `finetune.dataset.ALIASES`) to its column; "a+b" joins two. With `tags` the column of `messages` holds a
    conversation, and every answer in it becomes a pair; in a preference pair `answer` and `rejected` then name the two endings.
    With `all_answers` the answers in `history` become pairs too; with `message_first` a conversation's system message counts, and not
    the column `system` beside it, which otherwise is an error. `task` is the task of every row, None until a row names one.
    """

    columns: Mapping[str, str]
    tags: Tags | None = None
    all_answers: bool = False
    message_first: bool = False
    task: Task | None = None

    @property
    def taken(self) -> frozenset[str]:
        """The columns that are read."""
        return frozenset(part for column in self.columns.values() for part in column.split("+"))


def guess_tags(rows: Iterable[Row], column: str) -> Tags:
    """The keys of the first message there is in `column`."""
    for row in rows:
        for first in _messages(row.value, column)[:1]:
            return Tags("from", "value") if "from" in first and "role" not in first else Tags()
    return Tags()


def conversation_notes(rows: Iterable[Row], layout: Layout) -> list[str]:
    """What the conversations hold that is not trained on, in plain words."""
    if layout.tags is None:
        return []
    unweighted = twice = 0
    for row in rows:
        messages = _messages(row.value, layout.columns["messages"])
        unweighted += len(_unweighted(messages, layout.tags)) if "rejected" not in layout.columns else 0
        spoken = bool(messages) and _speaker(messages[0], layout.tags) == "system"
        twice += spoken and isinstance(row.value, dict) and bool(row.value.get(layout.columns.get("system", "")))
    notes = [f'answers with "weight": 0 are context only, not trained: {unweighted}'] if unweighted else []
    if twice and layout.message_first:
        notes.append(f'a system message of the conversation counts, not the column "{layout.columns["system"]}", in rows: {twice}')
    return notes


def _messages(value: Any, column: str) -> list[dict[str, Any]]:
    """The messages of a row that are any, whatever is wrong with the others."""
    try:
        messages = listed(column, value.get(column), "") if isinstance(value, dict) else []
    except BadField:
        return []
    return [item for item in messages if isinstance(item, dict)]


def _speaker(message: Mapping[str, Any], tags: Tags) -> Speaker | None:
    word = message.get(tags.role)
    return tags.speakers.get(word) if isinstance(word, str) else None


def _unweighted(messages: Iterable[Mapping[str, Any]], tags: Tags) -> set[int]:
    """Which answers of a conversation (from 1) are not to be trained, as OpenAI's files say it."""
    answers = [message for message in messages if _speaker(message, tags) == "assistant"]
    return {number for number, message in enumerate(answers, 1) if message.get("weight") == 0}


def pairs_of(row: Row, values: Mapping[str, Any], layout: Layout, prefix: str = "") -> list[Pair]:
    """The pairs of one row: one, or as many as a conversation has answers that are to be trained. Raises BadField.

    Their ids are the row's id, else `prefix` (the file's name without its ending) and the row's number; of a conversation, with the
    number of the answer behind a '#'.
    """
    column = layout.columns
    value = {name: values.get(wanted) for name, wanted in column.items() if "+" not in wanted}
    if layout.tags is not None:
        system, turns, answer, rejected = _conversation(values, layout.columns, layout.tags)
        answerable = True
    else:
        answerable = truth(column.get("answerable", ""), value.get("answerable"), True)
        system, before = history(column.get("history", ""), value.get("history"))
        turns = [*before, Turn("user", text(values, "question", column["question"]))]
        answer = text(values, "answer", column["answer"], empty=not answerable)
        rejected = text(values, "rejected answer", column["rejected"]) if "rejected" in column else None
    if rejected is not None and rejected == answer:
        raise BadField(column["rejected"], "is the same as the chosen answer; nothing can be learned from it, remove the row")
    if value.get("system") and (system is None or not layout.message_first):
        if system is not None:
            raise BadField(column["system"], "the conversation has a system message of its own; leave one of them out")
        system = string(column["system"], value["system"]) or None
    name = identifier(value.get("id"), column.get("id", "")) or f"{prefix or PurePath(row.file).stem}-{row.number}"
    name += f"~{row.copy}" if row.copy > 1 else ""
    lang = choice(column.get("lang", ""), value.get("lang"), LANGS)
    last = Pair(
        id=name,
        question=turns[-1].content,
        answer=answer,
        lang=lang or "",
        domain=identifier(value.get("domain"), column.get("domain", "")) or None,
        split=choice(column.get("split", ""), value.get("split"), SPLITS),
        doc_ids=names(column.get("doc_ids", ""), value.get("doc_ids")),
        history=tuple(turns[:-1]),
        answerable=answerable,
        file=row.file,
        row=row.number,
        meta=_meta({key: item for key, item in values.items() if key not in layout.taken}),
        system=system,
        rejected=rejected,
        conversation=identifier(value.get("conversation"), column.get("conversation", "")) or None,
        task=_task(column.get("task", ""), value.get("task"), layout.task),
        passages=passages(column.get("passages", ""), value.get("passages")),
    )
    every = layout.all_answers or layout.tags is not None
    pairs = _answers(last) if every and rejected is None and len(turns) > 1 else [last]
    if layout.tags is not None and rejected is None:
        left_out = _unweighted(_messages(values, column["messages"]), layout.tags)
        pairs = [pair for number, pair in enumerate(pairs, 1) if number not in left_out]
    longest = max((len(pair.id) for pair in pairs), default=0)
    if longest > MAX_IDENTIFIER:
        what = f"the id has {longest} characters with its number, at most {MAX_IDENTIFIER} are allowed"
        raise BadField(column.get("id", ""), f"{what}; shorten it, or the file's name")
    return pairs if lang else [replace(pair, lang=_language(pair.question)) for pair in pairs]


def _meta(rest: dict[str, Any]) -> dict[str, Any]:
    """What a row holds beside its fields, with an object in the column META spread out; what is empty is left out."""
    rest = _filled(rest)
    inner = rest.get(META)
    if isinstance(inner, dict) and not inner.keys() & rest.keys() - {META}:
        return _filled({**{name: value for name, value in rest.items() if name != META}, **inner})
    return rest


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _language(question: str) -> str:
    from retrieval.text import detect_lang

    return detect_lang(question)


def _task(column: str, value: Any, declared: Task | None) -> Task:
    said = choice(column, value, TASKS)
    if said and declared and said != declared:
        raise BadField(column, f"the data set's task is {declared}, this row's is {said}; register each task as a data set of its own")
    return said or declared or "qa"


def _answers(last: Pair) -> list[Pair]:
    """A pair for each answer of the conversation that ends with `last`, each with what was said before it as its history."""
    turns = last.history
    earlier = [
        replace(last, question=turns[place - 1].content, answer=turns[place].content, history=turns[: place - 1], answerable=True)
        for place in range(1, len(turns), 2)
    ]
    name = last.conversation or last.id
    return [replace(pair, id=f"{last.id}#{number}", conversation=name) for number, pair in enumerate([*earlier, last], 1)]


def _conversation(
    values: Mapping[str, Any], columns: Mapping[str, str], tags: Tags
) -> tuple[str | None, list[Turn], str, str | None]:  # fmt: skip
    """(system, turns up to the last question, answer, rejected answer) of a conversation."""
    column = columns["messages"]
    if values.get(column) is None:
        raise BadField(column, "the conversation is missing; every row needs it")
    example = f'[{{"{tags.role}": ..., "{tags.content}": ...}}]'
    messages = [_message(column, number, item, tags) for number, item in enumerate(listed(column, values[column], example), 1)]
    if not messages:
        raise BadField(column, "the conversation is empty; write it or remove the row")
    system, turns = alternating(column, messages, "message")
    if "rejected" in columns:
        if not turns or turns[-1].role != "user":
            raise BadField(column, "ends with the assistant; a preference pair ends with the user, its answers are in columns of their own")
        return system, list(turns), _ending(values, columns["answer"], tags), _ending(values, columns["rejected"], tags)
    if not turns or turns[-1].role != "assistant":
        raise BadField(column, "ends with the user; add the answer or remove the last message")
    return system, list(turns[:-1]), turns[-1].content, None


def _ending(values: Mapping[str, Any], column: str, tags: Tags) -> str:
    """The answer of a preference pair: a message of the assistant, or its text alone."""
    value = values.get(column)
    if value is None:
        raise BadField(column, "the answer is missing; a preference pair needs both")
    turn = Turn("assistant", string(column, value)) if isinstance(value, str) else _message(column, 1, value, tags)
    if turn.role != "assistant":
        raise BadField(column, f"expected an answer of the assistant, found the role {turn.role}")
    if not turn.content:
        raise BadField(column, "the answer is empty; write it or remove the row")
    return turn.content


def _message(column: str, number: int, item: Any, tags: Tags) -> Turn:
    where = f"message {number}"
    if not isinstance(item, dict):
        raise BadField(column, f'{where}: expected {{"{tags.role}": ..., "{tags.content}": ...}}, found {kind(item)}')
    if item.get("tool_calls"):
        raise BadField(column, f"{where}: {_TOOLS}")
    for key in (tags.role, tags.content):
        if key not in item:
            raise BadField(column, f'{where}: has no "{key}"; it has {", ".join(map(str, item)) or "nothing"}')
    word, speaker = item[tags.role], _speaker(item, tags)
    if speaker is None:
        said = repr(word) if isinstance(word, str) else kind(word)
        known = ", ".join(name for name, role in tags.speakers.items() if role != "tool")
        raise BadField(column, f'{where}: unknown {said} in "{tags.role}"; known: {known}')
    if speaker == "tool":
        raise BadField(column, f"{where}: {_TOOLS}")
    return Turn(speaker, _said(column, where, item[tags.content]))


def _said(column: str, where: str, value: Any) -> str:
    """The text of a message, which some write as a list of parts."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise BadField(column, f"{where}: holds something other than text ({json.dumps(value, default=str)[:60]}); remove the row")
        value = "\n".join(str(part) for part in parts)
    try:
        return string(column, value)
    except BadField as error:
        raise BadField(column, f"{where}: {error.reason}") from error
