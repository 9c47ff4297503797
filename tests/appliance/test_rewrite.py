from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.answers.rewrite import is_follow_up, self_contained
from appliance.demo import DOMAINS, SAMPLE
from appliance.engines.base import Message

LANGS = ("en", "zh")


def _rows(path: Path, at_most: int | None = None) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, at_most)]


# Questions of both kinds, written for these tests.
WRITTEN = _rows(Path(__file__).parent / "follow_ups.jsonl")
SAMPLE_PAIRS = [pair for domain in DOMAINS for pair in _rows(SAMPLE / domain / "qa.jsonl")]
# Sets of questions that were each asked alone (those on a passage shown with them, as SQuAD's, say "this" of it).
PUBLIC = ("finance-en-tatqa", "legal-en-cuad", "legal-zh-lecoqa", "medical-en-medquad", "medical-en-pubmedqa", "medical-zh-huatuo")


def _history(*turns: str) -> list[Message]:
    return [Message(role="user" if n % 2 == 0 else "assistant", content=turn) for n, turn in enumerate(turns)]


@pytest.mark.parametrize(
    "question",
    [
        "And for children?",
        "What about weekends?",
        "Why?",
        "那儿童呢？",
        "如果是门诊病人呢？",
        "它的上限是多少？",
        "How much is it?",
        "还有别的表格吗？",
        "Is that the same for adults?",
        "By what time?",
        "要停多久？",
        "丢了怎么办？",
    ],
)
def test_follow_ups_are_recognised(question: str) -> None:
    assert is_follow_up(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is the standard prophylactic dose of enoxaparin for an adult inpatient?",
        "Who can release prothrombin complex concentrate?",
        "出院时需要带走哪些材料？",
        "国际电汇的手续费是多少？",
        "mortgage early repayment fee 2026",
        "By when must expense claims be submitted?",
        "From what contract value are two signatures required?",
        "需要带哪些材料才能办理出院手续？",
        "最多可以带几个人探视重症病人？",
        "孕妇应该避免哪些食物？",
        "成人高血压患者每天应该吃多少盐？",
        "员工因此请假怎么办理手续？",
        "那曲市的门诊在哪里？",
        "Is there a visiting rule for children on the ward?",
        "How should patients store their insulin at home?",
    ],
)
def test_questions_that_stand_alone_are_left_alone(question: str) -> None:
    assert not is_follow_up(question)
    assert self_contained(question, _history("What is the visiting time?", "14:00 to 20:00.")) == question


def test_a_follow_up_gets_the_question_it_leans_on() -> None:
    history = _history("What is the dose of gentamicin for adults?", "5 mg/kg once daily.")
    assert self_contained("And for children?", history) == "What is the dose of gentamicin for adults? And for children?"


def test_a_chain_of_follow_ups_goes_back_to_the_question_that_stands_alone() -> None:
    history = _history("挂号费是多少？", "普通号20元。", "那专家号呢？", "50元。")
    assert self_contained("那儿童呢？", history) == "挂号费是多少？ 那专家号呢？ 那儿童呢？"


def test_without_history_nothing_changes() -> None:
    assert self_contained("And for children?", []) == "And for children?"


@pytest.mark.parametrize("lang", LANGS)
def test_at_least_nine_of_ten_follow_ups_are_recognised(lang: str) -> None:
    mine = [row["question"] for row in WRITTEN if row["lang"] == lang and row["follow_up"]]
    mine += [pair["question"] for pair in SAMPLE_PAIRS if pair["lang"] == lang and pair.get("history")]
    missed = [question for question in mine if not is_follow_up(question)]
    assert len(mine) >= 60 and len(missed) <= len(mine) / 10, missed


@pytest.mark.parametrize("lang", LANGS)
def test_no_question_of_the_sample_that_stands_alone_is_taken_for_a_follow_up(lang: str) -> None:
    mine = [pair["question"] for pair in SAMPLE_PAIRS if pair["lang"] == lang and not pair.get("history")]
    assert len(mine) >= 50 and [question for question in mine if is_follow_up(question)] == []


@pytest.mark.parametrize("lang", LANGS)
def test_words_that_only_look_as_if_they_pointed_back_do_not(lang: str) -> None:
    mine = [row["question"] for row in WRITTEN if row["lang"] == lang and not row["follow_up"]]
    taken = [question for question in mine if is_follow_up(question)]
    assert len(mine) >= 50 and len(taken) <= 1, taken


@pytest.mark.parametrize("name", PUBLIC)
def test_public_questions_stand_alone(name: str) -> None:
    path = Path(os.environ.get("APPLIANCE_DATA", "/nowhere")) / name / "qa.jsonl"
    if not path.is_file():
        pytest.skip(f"$APPLIANCE_DATA has no {name}")
    alone = [row["question"] for row in _rows(path, 500) if not row.get("history")]
    taken = [question for question in alone if is_follow_up(question)]
    assert len(alone) >= 400 and len(taken) <= len(alone) / 100, taken


def test_a_pronoun_that_the_question_itself_explains_does_not_point_back() -> None:
    assert is_follow_up("How do I block it?") and not is_follow_up("If I lose my bank card, how do I block it?")
    assert is_follow_up("他们的年终奖怎么发放？") and not is_follow_up("员工离职后，他们的年终奖怎么发放？")


@pytest.mark.parametrize("question", ["", "  ", "？", "dose " + "its " * 20_000, "剂量" + "呢 " * 20_000, "too" + " " * 50_000 + "x"])
def test_empty_and_huge_questions_are_judged_at_once(question: str) -> None:
    is_follow_up(question)
