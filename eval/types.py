"""The contracts of evaluation: a question with its gold answer, and what an arm made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Metric = Literal["token_f1", "rougeL", "exact_match", "numeric_match", "choice", "accuracy", "item_f1"]
Task = Literal["qa", "summary", "classify", "extract"]

AUTO = "auto"
UNAVAILABLE = "unavailable: "


class EvalError(Exception):
    """An evaluation cannot run or be read; the message names the file, line or field and the remedy."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a QA set.

    `answer` is the gold answer ('' if unanswerable or unknown), `doc_ids` the gold documents ('' unknown: empty), `lang`
    decides how words are cut ("zh" or else English), `history` the turns before it as (role, content). `metric` is the one
    the data set declares for its answers, None means by task and answer length (see `eval.utility`). `system` is the system message of
    whoever asks, `task` what the set asks for (see `eval.tasks`). `choices` are the answers to choose from, as (letter, text), or
    labels with '' for the letter; they are not shown to the arms.
    """

    id: str
    question: str
    answer: str = ""
    doc_ids: tuple[str, ...] = ()
    lang: str = "en"
    domain: str | None = None
    answerable: bool = True
    history: tuple[tuple[str, str], ...] = ()
    metric: Metric | None = None
    system: str | None = None
    task: Task = "qa"
    choices: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.id or not self.question.strip():
            raise EvalError(f"item {self.id!r}: id and question must not be empty")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm made of one item.

    `arm` is the arm that answered (for a routed question the router's choice); `citations` are document ids, one for each
    citation; `retrieved` the ids of the passages' documents, best first, None if nothing was searched. Times are in ms,
    `tokens` counts read and generated ones, of which `generated` were generated. `error` says why there is no answer; one that
    begins with "unavailable: " means that the arm cannot be used for this item, any other is a failure.

    `engine` is the name of the one that generated it and `adapter` that of the version it used, None if there was none. `grounded` is the
    share of the answer's sentences that the passages found support (see `eval.grounded`), None where there are no sentences or no
    passages. `predicted` is what the router expected the answer to be worth, in [-1, 1], `features` what it decided by; both are there for
    routed questions only.
    """

    arm: str
    answer: str = ""
    refused: bool = False
    citations: tuple[str, ...] = ()
    retrieved: tuple[str, ...] | None = None
    latency_ms: float | None = None
    first_token_ms: float | None = None
    tokens: float | None = None
    error: str | None = None
    generated: float | None = None
    engine: str | None = None
    grounded: float | None = None
    predicted: float | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    adapter: str | None = None

    @property
    def unavailable(self) -> bool:
        return self.error is not None and self.error.startswith(UNAVAILABLE)

    @property
    def text(self) -> str:
        """The answer as far as it counts: a refusal's wording and a failure's remains are no answer."""
        return "" if self.refused or self.error is not None else self.answer

    @property
    def declined(self) -> bool:
        """Whether no answer was given: it was refused, failed, or is empty."""
        return not self.text.strip()


Outcomes = Mapping[tuple[str, str], Outcome]  # (item id, arm asked for, which may be "auto")


def strings(value: object) -> tuple[str, ...]:
    """A JSON list of strings as a tuple. Raises TypeError on anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"a list of strings was expected, not {value!r}")
    return tuple(value)


def item_from_json(row: Mapping[str, Any]) -> Item:
    """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError on a row of another shape."""
    history = tuple((str(role), str(content)) for role, content in row["history"])
    choices = tuple((str(letter), str(text)) for letter, text in row.get("choices", ()))
    return Item(**{**row, "doc_ids": strings(row["doc_ids"]), "history": history, "choices": choices})


def outcome_from_json(row: Mapping[str, Any]) -> Outcome:
    """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError on a row of another shape."""
    retrieved = None if row["retrieved"] is None else strings(row["retrieved"])
    return Outcome(**{**row, "citations": strings(row["citations"]), "retrieved": retrieved})
