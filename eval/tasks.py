"""What is measured for which task, and the measures that only one task has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from eval.types import Task

# The measures that tell how well a task was done, the deciding one first; see `eval.metrics` for their meaning.
MEASURES: Mapping[Task, tuple[str, ...]] = {
    "qa": ("utility", "token_f1", "rougeL"),
    "summary": ("rougeL", "rouge1", "rouge2", "chrf"),
    "classify": ("accuracy",),
    "extract": ("item_f1", "token_f1"),
}
# Items are written one a line, or in one line with these between them.
_BETWEEN: Final = re.compile(r"[\n;；、]|,\s|，")
_AROUND: Final = " .,:;!?\"'`()[]{}<>。、「」『』【】《》“”‘’"
_BULLET: Final = re.compile(r"^([-*•·]|\d+[.)、])\s*")


def of_task(task: Task, gold: str, answer: str) -> dict[str, float]:
    """The measures of one answer that only `task` has, by name; empty for the tasks that word overlap measures."""
    if task == "classify":
        return {"accuracy": float(_label(gold) == _label(answer))}
    return {"item_f1": item_f1(gold, answer)} if task == "extract" else {}


def item_f1(gold: str, answer: str) -> float:
    """F1 over the sets of items, equal up to case, width and surrounding punctuation; two texts without items are equal: 1."""
    one, two = _items(gold), _items(answer)
    if not one or not two:
        return float(one == two)
    return 2 * len(one & two) / (len(one) + len(two))


def _items(text: str) -> frozenset[str]:
    found = (_label(_BULLET.sub("", part.strip())) for part in _BETWEEN.split(text))
    return frozenset(item for item in found if item)


def _label(text: str) -> str:
    """A label as it is compared: without case, width, doubled spaces, and the punctuation that people put around one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)
