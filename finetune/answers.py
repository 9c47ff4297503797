"""Answers that teach nothing or contradict each other, in English and Chinese."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.dataset import asked
from finetune.types import Pair

_BOILERPLATE = re.compile(
    r"(lorem ipsum|to ?do|tb[ad]|to be (determined|announced|added)|n[/.]?a|none|null|nil|[-–—]+|placeholder"
    r"|see (the )?(document|attachment|above)|same as above|i (do not|don['’]t) know( the answer)?"
    r"|同上|(答案)?待(定|补充|填写|完善)|见(附件|文件|上文)|略|无|我?(不知道|不清楚)(答案)?|暂无(答案|数据|信息)?)",
    re.IGNORECASE,
)
# What a model says of itself, or a refusal to answer, at the beginning of an answer.
_OPENING = re.compile(
    r"as an? (ai|artificial intelligence|(large )?language model)\b|i(['’]m| am) (just |only )?an? (ai|(large )?language model)\b"
    r"|(i(['’]m| am) )?sorry, (but )?(i|as an)\b|i apologi[sz]e\b|i(['’]m| am) (unable|not able) to\b"
    r"|i (cannot|can['’]t) (answer|help|assist|provide)\b"
    r"|作为一[个名]?(ai|人工智能|语言模型|大模型)|我是一[个名](ai|人工智能|语言模型)|(很|非常)?抱歉|(很)?对不起|我无法(回答|提供|帮助)",
    re.IGNORECASE,
)
# The same answer to this many different questions, if it is long enough to say something of its own.
_REPEATED, _REPEATED_LENGTH = 3, 20
# Answers that share at least this much of the shorter one's words speak of the same, so that a number or a "not" decides.
_SAME_MATTER = 0.5
# Long answers differ in some number or "not" whatever they say.
_LONG = 40
# With its power, as normalising leaves it: 10⁹ is neither 10⁸ nor 109.
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:⁻?[⁰¹²³⁴-⁹])*|[¼-¾⅐-⅞]")
_NEGATION = re.compile(r"\b(?:no|not|never|none|neither|nor|cannot|without)\b|n't\b|[不没无未非勿否]|禁止", re.IGNORECASE)
_YES = re.compile(r"(?:yes|correct|right)\b|(?:是|对|可以|能|会|需要|应该|有)(?:的)?(?:$|[，,。.;；：:！!\s])", re.IGNORECASE)
_NO = re.compile(r"(?:no|incorrect|wrong)\b(?!\.? ?\d)|不|否|没有|无需|无须|禁止", re.IGNORECASE)

Difference = Literal["numbers", "negation", "answerable", "wording"]


@dataclass(frozen=True, slots=True)
class Note:
    """A finding about one pair."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One question (with the same history) that has several answers; `answers` maps pair id to answer.

    `differ` says how: "numbers" and "negation" in answers that otherwise speak of the same, "answerable" where only some have an
    answer; "wording" alone may be the same said in other words.
    """

    question: str
    answers: dict[str, str]
    differ: tuple[Difference, ...] = ()


def short(text: str) -> str:
    """The beginning of a text in one line."""
    return " ".join(text[:60].split())


def poor_answers(pairs: Sequence[Pair]) -> tuple[Note, ...]:
    """Empty, boilerplate and repeated answers of answerable questions."""
    from retrieval.text import normalise_question

    asking: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        asking[normalise_question(pair.answer)].add(normalise_question(asked(pair)))
    notes: list[Note] = []
    for pair in pairs:
        answer = normalise_question(pair.answer)
        if not pair.answerable or pair.task == "classify":
            continue
        if not answer:
            notes.append(Note(pair.id, "the answer is empty"))
        elif _BOILERPLATE.fullmatch(answer) or _OPENING.match(answer):
            notes.append(Note(pair.id, f"boilerplate: {short(pair.answer)}"))
        elif len(answer) >= _REPEATED_LENGTH and len(asking[answer]) >= _REPEATED:
            notes.append(Note(pair.id, f"the same answer as to {len(asking[answer]) - 1} other questions: {short(pair.answer)}"))
    return tuple(notes)


def by_question(pairs: Iterable[Pair]) -> Mapping[str, list[Pair]]:
    """The pairs by what they ask, normalised, with the user's earlier turns."""
    from retrieval.text import normalise_question

    same: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        same[normalise_question(asked(pair))].append(pair)
    return same


def contradictions(pairs: Sequence[Pair]) -> tuple[Contradiction, ...]:
    """Questions with more than one answer, those whose numbers or negation differ first. Preferences name a worse one on purpose."""
    from retrieval.text import normalise_question

    found: list[Contradiction] = []
    for same in by_question(pairs).values():
        if len({(pair.answerable, normalise_question(pair.answer)) for pair in same}) > 1:
            differ = {difference(same[0], other) for other in same[1:]} - {None}
            kinds = tuple(kind for kind in ("numbers", "negation", "answerable", "wording") if kind in differ)
            found.append(Contradiction(same[0].question, {pair.id: pair.answer for pair in same}, kinds))
    return tuple(sorted(found, key=lambda item: item.differ == ("wording",)))


def difference(one: Pair, other: Pair) -> Difference | None:
    """How the answers of two pairs that ask the same differ; None if they are the same."""
    from retrieval.text import NO_DENIAL, content_words, normalise_question

    if one.answerable != other.answerable:
        return "answerable"
    first, second = normalise_question(one.answer), normalise_question(other.answer)
    if first == second:
        return None
    said = _verdict(first), _verdict(second)
    if None not in said and said[0] != said[1]:
        return "negation"
    numbers = [{number.replace(",", "") for number in _NUMBER.findall(text)} for text in (first, second)]
    words = [{word for word in content_words(text) if not word[0].isdigit()} for text in (first, second)]
    shared = len(words[0] & words[1]) / least if (least := min(map(len, words))) else 1.0
    if shared >= _SAME_MATTER and max(map(len, words)) <= _LONG:
        if numbers[0] and numbers[1] and numbers[0] != numbers[1]:
            return "numbers"
        if bool(_NEGATION.search(NO_DENIAL.sub(" ", first))) != bool(_NEGATION.search(NO_DENIAL.sub(" ", second))):
            return "negation"
    return "wording"


def _verdict(answer: str) -> bool | None:
    """What an answer that begins with yes or no says."""
    from retrieval.text import NO_DENIAL

    denied = _NO.match(answer) and not NO_DENIAL.match(answer)
    return False if denied else True if _YES.match(answer) else None
