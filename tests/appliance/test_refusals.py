"""Which answers decline, on labelled sentences in both languages (refusals.jsonl) and on the shapes that matter most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.answers.refusals import declines
from appliance.prompts import NOTHING_FOUND
from eval.ranking import refusals

LABELLED = [json.loads(line) for line in Path(__file__).with_name("refusals.jsonl").read_text("utf-8").splitlines()]


def measured(half: str, lang: str | None = None) -> tuple[int, dict[str, float]]:
    """How many sentences there are, and precision and recall of the detector on them."""
    rows: list[dict[str, Any]] = [row for row in LABELLED if row["half"] == half and lang in (None, row["lang"])]
    found = refusals([declines(row["text"]) for row in rows], [not row["refusal"] for row in rows])
    return len(rows), {name: found[name] for name in ("refusal_precision", "refusal_recall")}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_sentences_it_was_written_on(lang: str) -> None:
    count, found = measured("choosing", lang)
    assert count >= 140 and found == {"refusal_precision": 1.0, "refusal_recall": 1.0}


def test_sentences_written_afterwards() -> None:
    """The figures in docs/evaluation.md: a change of the patterns that alters them needs new sentences, not these."""
    count, found = measured("test")
    assert count == 56 and found["refusal_precision"] == pytest.approx(20 / 21) and found["refusal_recall"] == pytest.approx(20 / 30)


@pytest.mark.parametrize("text", [*NOTHING_FOUND.values(), "**I don’t know.**", "资料未提及[1]。", "I DON'T KNOW", "抱歉，\n我不知道。"])
def test_declines(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "There is no cure.",
        "挂号费50元；资料中没有说明退费。",
        "急诊处方不超过3日用量。资料中没有说明节假日的安排。",
        "The documents do not say. Still, 5 mg is usual.",
        "资料中没有说明，一般为7日。",
        "Sorry.",
        "Please contact the desk.",
    ],
)
def test_is_an_answer(text: str) -> None:
    assert not declines(text)


def test_long_texts_take_no_time_to_speak_of() -> None:
    for text in (
        "the passages " * 5000,
        "i do not " * 5000,
        "资料" * 20_000,
        "没有" * 20_000,
        "的" * 20_000 + "资料没",
        "provided " * 9000,
    ):
        assert not declines(text + "5 mg")
