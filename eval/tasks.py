"""What is measured for which task, and the measures that only one task has."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from eval.types import Task

# The measures that tell how well a task was done, the deciding one first; see `eval.metrics` for their meaning.
MEASURES: Mapping[Task, tuple[str, ...]] = {
    "qa": ("utility", "token_f1", "rougeL"),
    "summary": ("rougeL", "rouge1", "rouge2", "chrf"),
    "classify": ("accuracy", "macro_f1"),
    "extract": ("item_f1", "item_precision", "item_recall", "micro_f1", "token_f1"),
}
# Items are written one a line, or in one line with these between them.
_BETWEEN: Final = re.compile(r"[\n;；、]|,\s|，")
_AROUND: Final = " .,:;!?\"'`()[]{}<>。、「」『』【】《》“”‘’"
_BULLET: Final = re.compile(r"^([-*•·]|\d+[.)、])\s*")


_LETTER: Final = re.compile(
    r"^[(（\[]?([A-Za-z])(?:[)）\].、:：,，\s]|$)|(?:答案|正确选项|选项|应选|故选|选择|选)(?:是|为|应为|应该是)?[:：]?\s*[(（]?([A-Za-z])(?![A-Za-z])"
    r"|(?:answer|option|choice)(?:\s+is)?:?\s*[(\[]?([A-Z])(?![A-Za-z])"
)
# What people say for the three labels, by the label as data sets write it.
_YES_NO: Final = (("", "yes"), ("", "no"), ("", "maybe"))
_SAID: Final[Mapping[str, tuple[str, ...]]] = {
    "yes": ("yes", "是的", "是", "有", "可以", "能", "对"),
    "no": ("no", "不是", "否", "没有", "不可以", "不能", "不会", "不"),
    "maybe": ("maybe", "possibly", "perhaps", "unclear", "不确定", "可能", "不一定"),
}


def of_task(task: Task, gold: str, answer: str) -> dict[str, float]:
    """The measures of one answer that only `task` has, by name; empty for the tasks that word overlap measures."""
    if task == "classify":
        return {"accuracy": float(_label(gold) == _label(answer))}
    if task != "extract":
        return {}
    wanted, found = _items(gold), _items(answer)
    hits = len(wanted & found)
    shares = {"item_f1": item_f1(gold, answer)}
    shares |= {"item_precision": hits / len(found)} if found else {}
    return shares | ({"item_recall": hits / len(wanted)} if wanted else {})


def of_task_whole(task: Task, golds: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """The measures that a set of answers has as a whole, by name.

    ``macro_f1`` of a classification: the mean of each gold label's F1, so that rare labels count as much as frequent ones; an answer that
    is no label is wrong. ``micro_f1`` of an extraction: F1 over all items of all answers. Both as in scikit-learn's `f1_score`.
    """
    if task == "classify":
        pairs = [(_label(gold), _label(answer)) for gold, answer in zip(golds, answers, strict=True)]
        right, wanted, given = (Counter(g for g, a in pairs if g == a), Counter(g for g, _ in pairs), Counter(a for _, a in pairs))
        return {"macro_f1": sum(2 * right[label] / (wanted[label] + given[label]) for label in wanted) / len(wanted)} if wanted else {}
    if task == "extract":
        sets = [(_items(gold), _items(answer)) for gold, answer in zip(golds, answers, strict=True)]
        total = sum(len(one) + len(two) for one, two in sets)
        return {"micro_f1": 2 * sum(len(one & two) for one, two in sets) / total} if total else {}
    return {}


def choice(gold: str, answer: str, choices: Sequence[tuple[str, str]] = ()) -> float:
    """1 if the answer chooses what the gold answer is, else 0; `choices` are (letter, text), by default the labels yes, no and maybe.

    Without choices, gold answers that are none of these labels are compared as labels.
    """
    offered = choices or _YES_NO
    wanted = chosen(gold, offered)
    if wanted is None:
        return float(_label(gold) == _label(answer))
    return float(chosen(answer, offered) == wanted)


def chosen(answer: str, choices: Sequence[tuple[str, str]]) -> int | None:
    """The place of the choice that an answer names: by its whole text, its letter ("B.", "答案是B", "the answer is B"), the label it begins
    with, or the only text of a choice that it contains; None if it names none, or more than one."""
    whole = _label(answer)
    texts = [_label(text) for _, text in choices]
    letters = [letter.casefold() for letter, _ in choices]
    if whole in texts:
        return texts.index(whole)
    if any(letters):
        if whole in letters:
            return letters.index(whole)
        said = _LETTER.search(unicodedata.normalize("NFKC", answer).strip())
        letter = next((group.casefold() for group in said.groups() if group), "") if said else ""
        if letter in letters:
            return letters.index(letter)
    else:
        begins = [(len(word), place) for place, text in enumerate(texts) for word in _SAID.get(text, (text,)) if _begins(whole, word)]
        if begins:
            return max(begins)[1]
    inside = [place for place, text in enumerate(texts) if _contains(whole, text)]
    # The text of a choice may be part of another's.
    inside = [place for place in inside if not any(texts[place] != texts[other] and texts[place] in texts[other] for other in inside)]
    return inside[0] if len(inside) == 1 else None


def item_f1(gold: str, answer: str) -> float:
    """F1 over the sets of items, equal up to case, width and surrounding punctuation; two texts without items are equal: 1."""
    one, two = _items(gold), _items(answer)
    if not one or not two:
        return float(one == two)
    return 2 * len(one & two) / (len(one) + len(two))


def _begins(text: str, word: str) -> bool:
    """Whether the text begins with the word as a whole; Chinese words need no border."""
    return bool(word) and text.startswith(word) and not (word[-1].isascii() and text[len(word) : len(word) + 1].isalnum())


def _contains(text: str, part: str) -> bool:
    """Whether a text has the part in it as words; what is too short to tell is not looked for."""
    if part.isascii():
        return len(part) > 2 and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None
    return len(part) > 1 and part in text


def _items(text: str) -> frozenset[str]:
    found = (_label(_BULLET.sub("", part.strip())) for part in _BETWEEN.split(text))
    return frozenset(item for item in found if item)


def _label(text: str) -> str:
    """A label as it is compared: without case, width, doubled spaces, and the punctuation that people put around one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)
