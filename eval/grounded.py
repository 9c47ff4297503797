"""Whether passages support a sentence: its numbers, words and negation, beside the passage sentence that is nearest to it.

A number that the passage lacks, with its unit, scale and rounding, decides alone: a wrong dose in the right words is the error that
matters most. For the rest a logistic model weighs five features (see `features`). Its weights were fitted on the half "choosing" of the
labelled set ``benchmarks/groundedness.jsonl``; what they reach on the other half and on the sample knowledge base, beside simpler methods
and beside the cosine of embeddings as a further feature (which adds nothing), is measured by ``benchmarks/groundedness.py``.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from eval.numeric import Quantity, quantities, same
from retrieval.text import NO_DENIAL, content_words, detect_lang, index_terms, sentences, words

FEATURES: Final = ("words", "words_anywhere", "unknown", "exchanged", "negation")
# Of each feature, then the constant.
WEIGHTS: Final = (1.47, 1.81, -2.58, -2.82, -3.79, -0.96)
# From this probability on a sentence counts as supported.
THRESHOLD: Final = 0.5

_NEGATION: Final = {
    "en": re.compile(r"\b(?:not|no|never|none|nor|neither|without|cannot|unable|fails? to|failed to)\b|n['’]t\b", re.IGNORECASE),
    "zh": re.compile(r"不|没|未|无|非|勿|禁|免|别"),
}
# Bounds deny nothing: their numbers are compared.
_BOUND: Final = re.compile(
    r"不超过|不少于|不低于|不高于|不满(?!意)|不足|\b(?:not|no) (?:more|less|fewer|later|earlier|longer) than\b", re.IGNORECASE
)
_NUMBER: Final = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.:/]\d+)*")
# How an answer to a question may begin.
_YES_NO: Final = re.compile(r"^\s*(?:yes|no|是的?|不是|否|可以|不可以|能|不能|有|没有|不会|会)[,，.。;；:：]\s*", re.IGNORECASE)
# Words that another word took the place of: at most so many, of characters in Chinese.
_EXCHANGED: Final = {"en": 3, "zh": 4}


@dataclass(frozen=True, slots=True)
class Source:
    """One passage, cut up once for all the sentences that are compared with it."""

    sentences: tuple[str, ...]
    words: tuple[frozenset[str], ...]
    numbers: tuple[tuple[Quantity, ...], ...]
    digits: tuple[frozenset[str], ...]


def source(text: str) -> Source:
    """A passage as `support` takes it."""
    parts = tuple(part for start, end in sentences(text) if (part := text[start:end].strip()))
    numbers = tuple(tuple(quantities(part)) for part in parts)
    return Source(parts, tuple(_words(part) for part in parts), numbers, tuple(_digits(part) for part in parts))


def support(sentence: str, sources: Sequence[Source]) -> float:
    """The probability in [0, 1] that one of the passages supports the sentence; 0 without passages, or if none has its numbers."""
    return max((_probability(sentence, passage) for passage in sources), default=0.0)


def grounded(answer: str, passages: Sequence[str]) -> float | None:
    """The share of the sentences of an answer that the passages support; None if it has no sentence that says anything."""
    claims = claims_of(answer)
    if not claims:
        return None
    sources = [source(text) for text in passages]
    return sum(support(claim, sources) >= THRESHOLD for claim in claims) / len(claims)


def claims_of(answer: str) -> list[str]:
    """The sentences of an answer that say something: those with words that carry meaning, or numbers."""
    found = [answer[start:end].strip() for start, end in sentences(answer)]
    return [text for text in found if content_words(text)]


def has_numbers(sentence: str, passage: Source) -> bool:
    """Whether the sentence's numbers are those of its nearest sentence and the one before and after it: the digits as they are written, or
    the same quantity written otherwise, with its unit.
    """
    place = nearest(sentence, passage)
    around = slice(max(0, place - 1), place + 2)
    others = [other for numbers in passage.numbers[around] for other in numbers]
    there = frozenset().union(*passage.digits[around])
    wanted = quantities(sentence)
    # The passage's number may be rounded to the digits of the sentence's, not the other way round.
    if not all(any(same(quantity, other) for other in others) for quantity in wanted):
        return False
    otherwise = {
        digits
        for quantity in wanted
        if any(quantity.unit == other.unit != "" and same(quantity, other) for other in others)
        for digits in _digits(quantity.written)
    }
    return _digits(sentence) <= there | otherwise


def nearest(sentence: str, passage: Source) -> int:
    """The place of the passage's sentence that has most of the words and numbers; of equals the shortest, then the first."""
    wanted, digits = _words(sentence), _digits(sentence)

    def shared(place: int) -> tuple[float, int]:
        # Numbers count as much as all words together.
        words = len(wanted & passage.words[place]) / max(1, len(wanted))
        return words + len(digits & passage.digits[place]) / max(1, len(digits)), -len(passage.sentences[place])

    return max(range(len(passage.sentences)), key=shared, default=0)


def features(sentence: str, passage: Source) -> tuple[float, ...]:
    """What is weighed, in the order of FEATURES, each in [0, 1]; the passage must have a sentence.

    ``words``: the share of the sentence's words that its nearest sentence has; ``words_anywhere``: that the passage has. ``unknown``: how
    many words the passage lacks, 4 and more are 1. ``exchanged``: how much of the sentence is word for word the nearest sentence's, if
    a few words in between were exchanged for others, as an entity for another. ``negation``: 1 if either the sentence or that part of
    the nearest one that it repeats denies something. Words are stems in English, characters and their pairs in Chinese.
    """
    lang = detect_lang(sentence)
    wanted, beside = _words(sentence), passage.sentences[nearest(sentence, passage)]
    anywhere = frozenset().union(*passage.words)
    lacking = {word for word in wanted - anywhere if lang == "en" or len(word) == 1}
    blocks = _blocks(sentence, beside)
    return (
        len(wanted & _words(beside)) / max(1, len(wanted)),
        len(wanted & anywhere) / max(1, len(wanted)),
        min(len(lacking), 4) / 4,
        _exchanged(blocks, lang),
        float(_denies(_YES_NO.sub("", sentence), lang) != _denies(_between(blocks, lang), lang)),
    )


def _probability(sentence: str, passage: Source) -> float:
    if not passage.sentences or not has_numbers(sentence, passage):
        return 0.0
    *weights, constant = WEIGHTS
    weighed = sum(weight * value for weight, value in zip(weights, features(sentence, passage), strict=True))
    return 1 / (1 + math.exp(-weighed - constant))


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Two sentences word by word (Chinese: by character), and what turns one into the other (see `difflib`)."""

    theirs: list[str]
    ours: list[str]
    steps: Sequence[tuple[str, int, int, int, int]]


def _blocks(sentence: str, beside: str) -> _Blocks:
    theirs, ours = words(beside, "en"), words(sentence, "en")
    return _Blocks(theirs, ours, SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes())


def _exchanged(blocks: _Blocks, lang: str) -> float:
    between, most = " " if lang == "en" else "", _EXCHANGED[lang]
    swapped = 0
    for kind, start, end, first, last in blocks.steps:
        if kind == "replace" and end - start <= most and last - first <= most:
            theirs, ours = between.join(blocks.theirs[start:end]), between.join(blocks.ours[first:last])
            one, two = _words(theirs), _words(ours)
            # Quantities are compared by what they mean.
            swapped += bool(one and two and not one & two and not (_digits(theirs) and _digits(ours)))
    alike = sum(last - first for kind, _, _, first, last in blocks.steps if kind == "equal") / max(1, len(blocks.ours))
    return min(1.0, swapped * alike)


def _between(blocks: _Blocks, lang: str) -> str:
    """The part of the nearest sentence that is repeated, with two words before it, which may deny it."""
    equal = [(start, end) for kind, start, end, _, _ in blocks.steps if kind == "equal"]
    if not equal:
        return ""
    return (" " if lang == "en" else "").join(blocks.theirs[max(0, equal[0][0] - 2) : equal[-1][1]])


def _denies(text: str, lang: str) -> bool:
    return len(_NEGATION[lang].findall(NO_DENIAL.sub(" ", _BOUND.sub(" ", text)))) % 2 == 1


def _digits(text: str) -> frozenset[str]:
    """The numbers of a text as they are written, without thousands separators."""
    return frozenset(number.replace(",", "") for number in _NUMBER.findall(unicodedata.normalize("NFKC", text)))


def _words(text: str) -> frozenset[str]:
    """What is compared: no numbers, which are compared by what they mean."""
    found = index_terms(text) if detect_lang(text) == "zh" else content_words(text)
    return frozenset(word for word in found if not word.replace(".", "").isdigit())
