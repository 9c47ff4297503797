"""A team's language: its own words and its synonyms, as files, and what they make of a question.

Dictionary: one word a line, optionally a frequency after white space. Synonyms: one rule a line, terms separated by commas;
``心梗, 心肌梗死`` makes each find the others, ``MI => myocardial infarction`` makes only the left side find the right. In both,
empty lines and lines that begin with # do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.text import Dictionary, index_terms, phrase_units
from retrieval.types import RetrievalError

# What a synonym's terms count for beside 1 for the question's own: a passage in the question's own words comes first.
EXPANSION_WEIGHT = 0.5
# A question that names more alternatives than these is searched with the first.
_MAX_ALTERNATIVES = 32
_COMMA = re.compile(r"[,，、]")

Units = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A question that has the phrase `found` may be answered by a passage that has one of `alternatives`."""

    found: str
    alternatives: tuple[str, ...]


class Synonyms:
    """The rules of one list. Immutable."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._by_first: dict[str, list[tuple[Units, Rule]]] = {}
        for rule in rules:
            units = tuple(phrase_units(rule.found))
            self._by_first.setdefault(units[0], []).append((units, rule))

    def of(self, question: str) -> list[Rule]:
        """The rules whose phrase is in the question."""
        units = tuple(phrase_units(question))
        found: dict[Rule, None] = {}
        for place, unit in enumerate(units):
            for phrase, rule in self._by_first.get(unit, ()):
                if units[place : place + len(phrase)] == phrase:
                    found[rule] = None
        return list(found)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The language of one domain."""

    dictionary: Dictionary | None = None
    synonyms: Synonyms | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the lexical index is asked: the weight of each term, and the synonym rules that apply."""

    terms: dict[str, float]
    rules: tuple[Rule, ...] = ()


def ask(question: str, vocabularies: Sequence[Vocabulary] = ()) -> Asked:
    """The question in the languages of the domains it is asked in (none: the plain language)."""
    languages = vocabularies or (Vocabulary(),)
    terms = {term: 1.0 for language in languages for term in index_terms(question, dictionary=language.dictionary)}
    rules: list[Rule] = []
    for language in languages:
        for rule in language.synonyms.of(question) if language.synonyms is not None else ():
            rules.append(rule)
            for alternative in rule.alternatives[:_MAX_ALTERNATIVES]:
                for term in index_terms(alternative, dictionary=language.dictionary):
                    terms.setdefault(term, EXPANSION_WEIGHT)
    return Asked(terms, tuple(dict.fromkeys(rules)))


def read_dictionary(path: Path) -> Dictionary:
    """The words of a dictionary file (UTF-8). Raises RetrievalError naming the file and line of what is no word."""
    words: dict[str, int | None] = {}
    for number, line in _lines(path):
        word, *rest = line.split()
        if not phrase_units(word) or len(rest) > 1 or (rest and not re.fullmatch(r"[1-9]\d{0,8}", rest[0])):
            raise RetrievalError(
                f"{path}, line {number}: expected a word, or a word and its frequency, for example 瑞戈非尼 100; found {line!r}"
            )
        words[word] = int(rest[0]) if rest else None
    return Dictionary(words)


def read_synonyms(path: Path) -> Synonyms:
    """The rules of a synonyms file (UTF-8). Raises RetrievalError naming the file and line of what is no rule."""
    rules: list[Rule] = []
    for number, line in _lines(path):
        sides = [[term.strip() for term in _COMMA.split(side)] for side in line.split("=>")]
        terms = [term for side in sides for term in side]
        if len(sides) > 2 or len(terms) < 2 or not all(phrase_units(term) for term in terms):
            raise RetrievalError(
                f"{path}, line {number}: expected terms separated by commas (心梗, 心肌梗死) or one side => the other "
                f"(MI => myocardial infarction); found {line!r}"
            )
        for term in sides[0]:
            others = sides[1] if len(sides) == 2 else [other for other in terms if other != term]
            rules.append(Rule(term, tuple(others)))
    return Synonyms(rules)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise RetrievalError(f"{path}: cannot be read as UTF-8 text: {error}; save it as UTF-8") from error
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()
