"""Choosing how dense and lexical are fused, on questions whose documents are known. Pure functions: what was found goes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from retrieval.fusion import FLOOR, Candidates, Fusion

# Fewer questions say little: with 20, the standard error of a mean nDCG is about 0.08.
MIN_QUESTIONS = 20
DENSE, LEXICAL = Fusion("convex", 1.0, 1.0), Fusion("convex", 0.0, 0.0)
_WEIGHTS = tuple(step / 10 for step in range(1, 10))
_FLOORS = (0.0, FLOOR, 0.3)

Measure = Callable[[Sequence[str], Collection[str]], float]
"""How good a ranking of document ids is for the gold ones, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found for a question, the documents of each candidate, and those that answer it."""

    found: Candidates
    documents: Mapping[int, Sequence[str]]
    gold: frozenset[str]
    lang: str


@dataclass(frozen=True, slots=True)
class Score:
    """The measure of one fusion on each question, with its means over all and by language."""

    fusion: Fusion
    values: tuple[float, ...]
    mean: float
    by_lang: Mapping[str, float]


def grid() -> list[Fusion]:
    """The fusions that are compared; the default one first."""
    made = [Fusion(), DENSE, LEXICAL]
    made += [Fusion("rrf", weight, floor) for floor in _FLOORS for weight in (0.3, 0.5, 0.7)]
    return made + [Fusion("convex", weight, floor) for floor in _FLOORS for weight in _WEIGHTS]


def ranked(fusion: Fusion, question: Judged) -> list[str]:
    """The documents in the order of a fusion, each at its best candidate."""
    places = (place for place, _ in fusion.fuse(question.found))
    return list(dict.fromkeys(document for place in places for document in question.documents.get(place, ())))


def score(fusion: Fusion, questions: Sequence[Judged], measure: Measure) -> Score:
    """The mean of a measure under one fusion. Raises ValueError without questions."""
    values = [(question.lang, measure(ranked(fusion, question), question.gold)) for question in questions]
    if not values:
        raise ValueError("there are no questions to measure on")
    langs = sorted({lang for lang, _ in values})
    by_lang = {lang: fmean(value for own, value in values if own == lang) for lang in langs}
    return Score(fusion, tuple(value for _, value in values), fmean(value for _, value in values), by_lang)


def tune(questions: Sequence[Judged], measure: Measure) -> tuple[Score, list[Score]]:
    """The fusion to use and the scores of all of `grid`.

    The best, unless the default is as good: less than a standard error of their differences away (the rule of one standard error:
    Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984) and no worse than either retriever alone. The chosen
    one is never worse than the better single retriever on these questions.
    """
    scores = [score(fusion, questions, measure) for fusion in grid()]
    best, default = max(scores, key=lambda found: found.mean), scores[0]
    single = max(found.mean for found in scores if found.fusion in (DENSE, LEXICAL))
    differences = [high - low for high, low in zip(best.values, default.values, strict=True)]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return (default if default.mean >= single and best.mean - default.mean <= error else best), scores
