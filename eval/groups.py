"""Which questions hang together, so that what is learned or resampled treats them as one."""

from __future__ import annotations

from collections.abc import Iterable

from eval.types import Item


def said(item: Item) -> str:
    """The words of a question, by which two of them are the same."""
    return " ".join(item.question.split()).casefold()


def groups_of(items: Iterable[Item]) -> dict[str, str]:
    """By question id the name of its group: questions that share a document, or have the same words, are in one."""
    leader: dict[str, str] = {}

    def top(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    keys: dict[str, str] = {}
    for item in items:
        names = [f"question {said(item)}", *(f"document {name}" for name in item.doc_ids)]
        keys[item.id] = names[0]
        for name in names[1:]:
            leader[top(name)] = top(names[0])
    return {id: top(key) for id, key in keys.items()}
