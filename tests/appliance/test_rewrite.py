from __future__ import annotations

import pytest

from appliance.answers.rewrite import is_follow_up, self_contained
from appliance.engines.base import Message


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
