"""Utility: the one number, in [-1, 1], behind labels, the oracle and comparisons of arms."""

from __future__ import annotations

from dataclasses import dataclass

from eval.overlap import exact_match, rouge_l, token_f1
from eval.types import Item, Metric, Outcome
from retrieval.text import words


@dataclass(frozen=True, slots=True)
class UtilitySettings:
    """What each case is worth to a team.

    An answer scoring below `wrong_below` counts `wrong`: a bad answer is worse than none. Gold answers of more than
    `long_words` words are scored by ROUGE-L, shorter ones by token F1, unless the data set declares its metric.
    """

    refuse_answerable: float = 0.0
    wrong_below: float = 0.2
    wrong: float = -0.5
    refuse_unanswerable: float = 1.0
    answer_unanswerable: float = -0.5
    long_words: int = 30


def metric_of(item: Item, settings: UtilitySettings) -> Metric:
    """The declared metric, else by the length of the gold answer."""
    if item.metric is not None:
        return item.metric
    return "rougeL" if len(words(item.answer, item.lang)) > settings.long_words else "token_f1"


def utility(item: Item, outcome: Outcome, settings: UtilitySettings | None = None) -> float | None:
    """The worth of an outcome; None where it cannot be known: the arm was unavailable, or there is no gold answer to compare with.

    A failure is worth 0 (nobody is misled, nobody is helped). An empty answer counts as a refusal.
    """
    worth = settings or UtilitySettings()
    if outcome.unavailable or (item.answerable and not item.answer.strip()):
        return None
    if outcome.error is not None:
        return 0.0
    refused = outcome.refused or not outcome.answer.strip()
    if not item.answerable:
        return worth.refuse_unanswerable if refused else worth.answer_unanswerable
    if refused:
        return worth.refuse_answerable
    score = {"token_f1": token_f1, "rougeL": rouge_l, "exact_match": exact_match}[metric_of(item, worth)]
    value = score(item.answer, outcome.answer, item.lang)
    return worth.wrong if value < worth.wrong_below else value
