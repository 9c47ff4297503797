from __future__ import annotations

import json
from dataclasses import replace

from finetune.check import check
from finetune.types import Pair, Turn


def _pair(name: str, question: str, answer: str = "An answer.", **more: object) -> Pair:
    return replace(Pair(name, question, answer, "zh" if question[0] > "z" else "en", split="train"), **more)  # type: ignore[arg-type]


def test_counts_and_histograms() -> None:
    report = check([_pair("a", "One?"), _pair("b", "二？", split="dev"), _pair("c", "Three?" * 10, "", answerable=False, split=None)])
    assert report.total == 3
    assert report.splits == {"train": 1, "dev": 1, "undeclared": 1}
    assert report.languages == {"en": 2, "zh": 1}
    assert report.answerable == {"yes": 2, "no": 1}
    assert report.question_characters == {"<= 16": 2, "<= 64": 1}
    assert report.tokens is None
    assert report.without_documents == 3
    assert report.warnings() == []


def test_an_empty_data_set_is_checked_too() -> None:
    report = check([], count_tokens=len, known_documents=set())
    assert report.total == 0
    assert report.warnings() == []


def test_too_long_prompts_and_answers_are_told_apart() -> None:
    history = (Turn("user", "x" * 20), Turn("assistant", "y" * 20))
    pairs = [
        _pair("fits", "ab", "cd"),
        _pair("prompt", "q", "a", history=history),
        _pair("answer", "q", "长" * 40),
        _pair("together", "q" * 20, "a" * 20),
    ]
    tokens = check(pairs, count_tokens=len, max_length=30).tokens
    assert tokens is not None
    assert (tokens.prompt_too_long, tokens.answer_too_long, tokens.together_too_long) == (("prompt",), ("answer",), ("together",))


def test_empty_boilerplate_and_repeated_answers() -> None:
    same = "Please ask at the counter of your branch."
    pairs = [
        _pair("empty", "Where?", ""),
        _pair("todo", "When?", "TODO"),
        _pair("model", "Who?", "As an AI language model, I cannot say."),
        _pair("同上", "如何？", "同上。"),
        *(_pair(f"r{number}", f"Question {number}?", same) for number in range(3)),
        _pair("yes1", "Is it open?", "Yes."),
        _pair("yes2", "Is it free?", "Yes."),
        _pair("yes3", "Is it new?", "Yes."),
        _pair("refused", "Why?", "", answerable=False),
    ]
    assert [note.id for note in check(pairs).answers] == ["empty", "todo", "model", "同上", "r0", "r1", "r2"]


def test_contradictions_need_the_same_question_in_the_same_talk() -> None:
    talk = (Turn("user", "About cards."), Turn("assistant", "Yes?"))
    pairs = [
        _pair("a", "What is the fee?", "Four."),
        _pair("b", "what is the fee", "Five."),
        _pair("c", "What is the fee?", "Six.", history=talk),
        _pair("d", "手续费多少？", "四元。"),
        _pair("e", "手续费多少", "四元"),
        _pair("f", "Open on Sunday?", "Yes."),
        _pair("g", "Open on Sunday?", "", answerable=False),
    ]
    found = check(pairs).contradictions
    assert [item.answers for item in found] == [{"a": "Four.", "b": "Five."}, {"f": "Yes.", "g": ""}]


def test_leakage_and_duplicates_are_told_apart() -> None:
    pairs = [
        _pair("a", "Which documents prove my residence in Norland?"),
        _pair("b", "which documents prove my residence in Norland", split="test"),
        _pair("c", "Which documents prove my residency in Norland?", split="test"),
        _pair("d", "外币账户的开户条件有哪些？", split="dev"),
        _pair("e", "外币账户的开户条件有哪些", split="dev"),
        *(_pair(f"x{number}", f"What does item {number} cost?") for number in range(20)),
    ]
    report = check(pairs)
    assert {(twin.a, twin.b, twin.exact) for twin in report.leakage} >= {("a", "b", True)}
    assert all({twin.a_split, twin.b_split} == {"train", "test"} for twin in report.leakage)
    assert ("d", "e", True) in {(twin.a, twin.b, twin.exact) for twin in report.duplicates}
    assert "straddle" in report.warnings()[0]


def test_thousands_of_equal_questions_are_listed_once_each() -> None:
    pairs = [_pair(f"p{number}", "The same?", split="train" if number % 2 else "test") for number in range(4000)]
    report = check(pairs)
    assert len(report.duplicates) == 3998
    assert len(report.leakage) == 1


def test_unknown_documents_and_json() -> None:
    report = check([_pair("a", "One?", doc_ids=("x.md", "y.md")), _pair("b", "二？", doc_ids=("x.md",))], known_documents={"x.md"})
    assert report.unknown_documents == {"a": ("y.md",)}
    again = json.loads(json.dumps(report.to_json(), ensure_ascii=False))
    assert again["unknown_documents"] == {"a": ["y.md"]}
