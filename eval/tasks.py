"""What is measured for which task, and the measures that only one task has."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from eval.types import Item, Task

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
# A label may be said with what it is: "Category: complaint", "类别是投诉".
_IS_LABEL: Final = re.compile(
    r"^(?:the )?(?:category|class|label|classification|intent|sentiment)(?: is| of [^:：]{1,40} is|[:：])[:：]? *"
    r"|^(?:(?:该|这段|此)?文本的?)?(?:类别|分类|标签|类型|意图)(?:名称|结果)?(?:是|为|[:：])[:：]? *"
)


# One letter that is no word: "a" and "I" are words wherever another one follows, except what gives the reason for a choice.
_ALONE: Final = r"[b-hj-zB-HJ-Z](?![A-Za-z'’]|-[A-Za-z])|[AaIi](?= *(?:$|[^\sA-Za-z0-9'’-]|(?:because|since|as|for)\b))"
# What stands before the answer. The last one counts: people weigh the others first.
_LEAD: Final = re.compile(
    r"(?:\banswer|\b(?:correct|right|best) (?:option|choice|one))(?: (?:to|for|here)\b[^.:\n]{0,80}?)?"
    r"(?:(?: (?:is|was|(?:should|must|would) be))(?: (?:therefore|thus|clearly|probably|most likely|likely))?:?|:)\s*"
    r"(?:(?:option|choice) )?"
    r"|(?:答案|正确选项)(?:应该是|应为|应是|是|为|选)?[:：]?\s*|(?:应选|故选)(?:择)?[:：]?\s*",
    re.IGNORECASE,
)
_LED: Final = {"en": re.compile(rf"[(\[\"'“]?({_ALONE})"), "zh": re.compile(r"[(\[\"'“]?([A-Za-z])(?![A-Za-z])")}
_IS_RIGHT: Final = re.compile(
    r"(?<![\w'’-])([A-Za-z])[)\]]?(?: is (?:the )?(?:correct|right|best)(?: (?:answer|option|choice|one))?|(?:项)?(?:是|为)?正确)"
)
_BEFORE_TEXT: Final = re.compile(r"[(\[【]?([A-Za-z])(?:[)\].、:,】]|$)")
_OPTION: Final = re.compile(
    rf"(?<!not )(?<!nor )\b(?i:option|choice) [(\[]?({_ALONE})|(?<![不非别])选(?:项|择)?[:：]?\s*[(\[]?([A-Za-z])(?![A-Za-z])"
)
# Another letter beside the one that was named: the answer names more than one.
_ANOTHER: Final = re.compile(r"[)\]]?\s*(?:[/、,&]|or\b|and\b|或|和|及)\s*[(\[]?([A-Z])(?![A-Za-z'’])")
# What people say for the three labels, by the label as data sets write it.
_YES_NO: Final = (("", "yes"), ("", "no"), ("", "maybe"))
_SAID: Final[Mapping[str, tuple[str, ...]]] = {
    "yes": ("yes", "是的", "是", "有", "可以", "能", "会", "需要", "对"),
    "no": ("no", "不是", "否", "没有", "不可以", "不能", "不会", "不", "无法", "无需", "并不", "并非"),
    "maybe": ("maybe", "possibly", "perhaps", "unclear", "不确定", "可能", "不一定"),
}
# Words that only begin like one of them.
_ONLY_BEGINS: Final = re.compile(
    r"no (?:doubt|matter|wonder)\b|是否|有关|有些|有时|有的|有没有|能否|可否|对于|对照|对比|不仅|不但|不过|不同|不论|不管"
    r"|会[议计员诊客场费]|会不会"
)


def of_task(item: Item, answer: str) -> dict[str, float]:
    """The measures of one answer that only the item's task has, by name; empty for the tasks that word overlap measures."""
    if item.task == "classify":
        return {"accuracy": accuracy(item, answer)}
    if item.task != "extract":
        return {}
    wanted, found = _items(item.answer), _items(answer)
    hits = len(wanted & found)
    shares = {"item_f1": item_f1(item.answer, answer)}
    shares |= {"item_precision": hits / len(found)} if found else {}
    return shares | ({"item_recall": hits / len(wanted)} if wanted else {})


def of_task_whole(task: Task, items: Sequence[Item], answers: Sequence[str]) -> dict[str, float]:
    """The measures that a set of answers has as a whole, by name.

    ``macro_f1`` of a classification: the mean of each gold label's F1, so that rare labels count as much as frequent ones; an answer that
    is no label is wrong. ``micro_f1`` of an extraction: F1 over all items of all answers. Both as in scikit-learn's `f1_score`.
    """
    if task == "classify":
        pairs = [(label(item, item.answer), label(item, answer)) for item, answer in zip(items, answers, strict=True)]
        right, wanted, given = (Counter(g for g, a in pairs if g == a), Counter(g for g, _ in pairs), Counter(a for _, a in pairs))
        return {"macro_f1": sum(2 * right[name] / (wanted[name] + given[name]) for name in wanted) / len(wanted)} if wanted else {}
    if task == "extract":
        sets = [(_items(item.answer), _items(answer)) for item, answer in zip(items, answers, strict=True)]
        total = sum(len(one) + len(two) for one, two in sets)
        return {"micro_f1": 2 * sum(len(one & two) for one, two in sets) / total} if total else {}
    return {}


def accuracy(item: Item, answer: str) -> float:
    """1 if the answer names the item's label, else 0."""
    return float(label(item, item.answer) == label(item, answer))


def label(item: Item, text: str) -> str:
    """The label that a text names: the one of the item's choices where it declares any and the text names one, else the text itself,
    up to how labels are written ("Category: complaint." is "complaint")."""
    place = chosen(text, item.choices) if item.choices else None
    return _label(item.choices[place][1]) if place is not None else _IS_LABEL.sub("", _label(text.replace("*", ""))).strip(_AROUND)


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
    """The place of the choice that an answer names; None if it names none, or more than one.

    By its whole text, by what follows the last "the answer is" or "答案是", by its letter ("B.", "option B", "选B") or the label it begins
    with, else by the only text of a choice that it contains.
    """
    whole, said = _label(answer), unicodedata.normalize("NFKC", answer).replace("*", "").strip()
    texts = [_label(text) for _, text in choices]
    if whole in texts:
        return texts.index(whole)
    letters = [letter.casefold() for letter, _ in choices]
    if any(letters):
        if named := _letters(said) & set(letters):
            return letters.index(named.pop()) if len(named) == 1 else None
        for place, letter in enumerate(letters):
            if whole.startswith(letter) and _begins(whole.removeprefix(letter).lstrip(_AROUND), texts[place]):
                return place
    else:
        led = [_label(said[found.end() :]) for found in _LEAD.finditer(said)]
        for part in [*reversed(led), whole]:
            begins = [(len(word), place) for place, text in enumerate(texts) for word in _SAID.get(text, (text,)) if _begins(part, word)]
            if begins and not _ONLY_BEGINS.match(part):
                return max(begins)[1]
    inside = [place for place, text in enumerate(texts) if _contains(whole, text)]
    # The text of a choice may be part of another's.
    inside = [place for place in inside if not any(texts[place] != texts[other] and texts[place] in texts[other] for other in inside)]
    return inside[0] if len(inside) == 1 else None


def _letters(said: str) -> set[str]:
    """The letters that the surest way of naming one has in the text."""
    led = [match for lead in _LEAD.finditer(said) if (match := _LED["en" if lead[0][0].isascii() else "zh"].match(said, lead.end()))]
    for found in (led[-1:], list(_IS_RIGHT.finditer(said))[-1:], [match] if (match := _BEFORE_TEXT.match(said)) else []):
        if found:
            another = _ANOTHER.match(said, found[0].end(1))
            return {found[0][1].casefold()} | ({another[1].casefold()} if another else set())
    return {(match[1] or match[2]).casefold() for match in _OPTION.finditer(said)}


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
