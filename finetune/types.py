"""The contracts of fine-tuning: pairs as a team writes them, examples as a model learns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "dev", "test"]
# What a data set teaches: it picks the instruction in the prompt and the measures of an evaluation.
Task = Literal["qa", "summary", "classify", "extract"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class PassageRef:
    """A passage that a pair is asked with: a span of a document whose text had the hash `sha256`. Its text stays in the knowledge base.

    "gold" holds the answer, "negative" was found with it and does not; "withheld" would hold the answer and is not shown.
    """

    doc_id: str
    sha256: str
    start: int
    end: int
    role: Literal["gold", "negative", "withheld"]
    heading: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its answer, as read and validated from a file.

    `history` are the turns before the question (user and assistant in turn), `system` is the system message of whoever asks.
    `rejected` is the worse answer of a preference pair. Pairs of one multi-turn row share `conversation`. `doc_ids` are the
    documents the answer rests on, as declared by the row. With `passages` (best first) the question is asked as `hybrid` asks it.
    `row` counts from 1 and is the line (JSONL) or the record (other formats) in `file`.
    """

    id: str
    question: str
    answer: str
    lang: str
    domain: str | None = None
    split: Split | None = None
    doc_ids: tuple[str, ...] = ()
    history: tuple[Turn, ...] = ()
    answerable: bool = True
    file: str = ""
    row: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    rejected: str | None = None
    conversation: str | None = None
    task: Task = "qa"
    passages: tuple[PassageRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """What is trained on: the loss covers the tokens of `completion` (and the end token) only.

    `rejected` is the worse completion of a preference. Without a prompt it is a plain text to be read.
    """

    id: str
    prompt: tuple[Turn, ...]
    completion: str
    rejected: str | None = None


class DatasetError(Exception):
    """Bad data: the message names file, row and field, what was expected, and the remedy."""


class TrainingError(Exception):
    """Training cannot start or go on; the message says why and what to do."""
