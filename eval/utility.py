"""Utility: the one number, in [-1, 1], behind labels, the oracle and comparisons of arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from eval.cost import Price
from eval.numeric import numeric_f1
from eval.overlap import exact_match, rouge_l, token_f1
from eval.tasks import accuracy, choice, item_f1
from eval.types import Item, Metric, Outcome, Task
from retrieval.text import words


@dataclass(frozen=True, slots=True)
class UtilitySettings:
    """What each case is worth to a team.

    An answer scoring below `wrong_below` counts `wrong`: a bad answer is worse than none. Gold answers of more than
    `long_words` words are scored by ROUGE-L, shorter ones by token F1, unless the data set declares its metric or its task has one.
    """

    refuse_answerable: float = 0.0
    wrong_below: float = 0.2
    wrong: float = -0.5
    refuse_unanswerable: float = 1.0
    answer_unanswerable: float = -0.5
    long_words: int = 30


@dataclass(frozen=True, slots=True)
class Scoring:
    """What answers are worth and what they cost.

    `experts` are scores in [-1, 1] by (item id, text of the answer), which take the place of the declared metric whichever arm gave that
    answer, asked itself or by the router; `prices` are by engine.
    """

    worth: UtilitySettings = UtilitySettings()
    experts: Mapping[tuple[str, str], float] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)


def metric_of(item: Item, settings: UtilitySettings) -> Metric:
    """The declared metric, else that of the task, else by the length of the gold answer."""
    if (named := item.metric or _OF_TASK.get(item.task)) is not None:
        return named
    return "rougeL" if len(words(item.answer, item.lang)) > settings.long_words else "token_f1"


def declared(item: Item, answer: str, metric: Metric) -> float:
    """The score in [0, 1] of an answer by one metric. `numeric_match` of a gold answer without a quantity is token F1."""
    return _SCORES[metric](item, answer)


def utility(item: Item, outcome: Outcome, scoring: Scoring | None = None) -> float | None:
    """The worth of an outcome in [-1, 1]; None where it cannot be known: the arm was unavailable, or there is no gold answer to compare
    with and no expert has scored it.

    A failure is worth 0 (nobody is misled, nobody is helped). An empty answer counts as a refusal.
    """
    scoring = scoring or Scoring()
    worth = scoring.worth
    if outcome.unavailable:
        return None
    if (scored := scoring.experts.get((item.id, outcome.text))) is not None and outcome.text:
        return scored
    if item.answerable and not item.answer.strip():
        return None
    if outcome.error is not None:
        return 0.0
    if not item.answerable:
        return worth.refuse_unanswerable if outcome.declined else worth.answer_unanswerable
    if outcome.declined:
        return worth.refuse_answerable
    value = declared(item, outcome.answer, metric_of(item, worth))
    return worth.wrong if value < worth.wrong_below else value


def _numeric(item: Item, answer: str) -> float:
    found = numeric_f1(item.answer, answer, item.question)
    return token_f1(item.answer, answer, item.lang) if found is None else found


_SCORES: Final[Mapping[Metric, Callable[[Item, str], float]]] = {
    "token_f1": lambda item, answer: token_f1(item.answer, answer, item.lang),
    "rougeL": lambda item, answer: rouge_l(item.answer, answer, item.lang),
    "exact_match": lambda item, answer: exact_match(item.answer, answer, item.lang),
    "numeric_match": _numeric,
    "choice": lambda item, answer: choice(item.answer, answer, item.choices),
    "accuracy": accuracy,
    "item_f1": lambda item, answer: item_f1(item.answer, answer),
}
_OF_TASK: Final[Mapping[Task, Metric]] = {"summary": "rougeL", "classify": "accuracy", "extract": "item_f1"}
