from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from finetune.check import check
from finetune.report import html
from finetune.types import Pair, Turn


def _pair(name: str, question: str, answer: str = "An answer.", **more: object) -> Pair:
    return replace(Pair(name, question, answer, "zh" if question[0] > "z" else "en", split="train"), **more)  # type: ignore[arg-type]


def _characters(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    return [
        (len(pair.system or "") + sum(len(turn.content) for turn in pair.history) + len(pair.question), len(pair.answer)) for pair in pairs
    ]


def test_counts_and_histograms() -> None:
    report = check([_pair("a", "One?"), _pair("b", "二？", split="dev"), _pair("c", "Three?" * 10, "", answerable=False, split=None)])
    assert report.total == 3
    assert report.splits == {"train": 1, "dev": 1, "undeclared": 1}
    assert report.planned == {"train": 2, "dev": 1}
    assert report.languages == {"en": 2, "zh": 1}
    assert report.answerable == {"yes": 2, "no": 1}
    assert report.question_characters == {"<= 16": 2, "<= 64": 1}
    assert report.tokens is None
    assert report.without_documents == 3
    assert report.warnings() == []


def test_an_empty_data_set_is_checked_too() -> None:
    report = check([], lengths=[], known_documents=set(), others={"none": []})
    assert (report.total, report.planned) == (0, {})
    assert report.warnings() == []


def test_too_long_prompts_and_answers_are_told_apart() -> None:
    history = (Turn("user", "x" * 20), Turn("assistant", "y" * 20))
    pairs = [
        _pair("fits", "ab", "cd"),
        _pair("prompt", "q", "a", history=history),
        _pair("answer", "q", "长" * 40),
        _pair("together", "q" * 20, "a" * 20),
    ]
    tokens = check(pairs, lengths=_characters(pairs), max_length=30).tokens
    assert tokens is not None
    assert (tokens.prompt_too_long, tokens.answer_too_long, tokens.together_too_long) == (("prompt",), ("answer",), ("together",))


def test_empty_boilerplate_and_repeated_answers() -> None:
    same = "Please ask at the counter of your branch."
    pairs = [
        _pair("empty", "Where?", ""),
        _pair("todo", "When?", "TODO"),
        _pair("model", "Who?", "As an AI language model, I cannot say."),
        _pair("同上", "如何？", "同上。"),
        _pair("抱歉", "为何？", "抱歉，我无法提供这方面的信息。"),
        _pair("sorry", "How?", "I'm sorry, but I cannot help with that."),
        _pair("fine", "Why late?", "Sorry for being late is what the letter says."),
        *(_pair(f"r{number}", f"Question {number}?", same) for number in range(3)),
        _pair("yes1", "Is it open?", "Yes."),
        _pair("yes2", "Is it free?", "Yes."),
        _pair("yes3", "Is it new?", "Yes."),
        _pair("refused", "Why?", "", answerable=False),
    ]
    assert [note.id for note in check(pairs).answers] == ["empty", "todo", "model", "同上", "抱歉", "sorry", "r0", "r1", "r2"]


POOR = (
    "我不知道。",
    "不清楚",
    "答案待补充",
    "I do not know the answer.",
    "To be determined.",
    "n.a.",
    "None",
    "null",
    "-",
    "—",
    "I’m sorry, but I can’t",
)


@pytest.mark.parametrize("answer", POOR)
def test_what_stands_for_no_answer(answer: str) -> None:
    assert [note.id for note in check([_pair("p", "Why?", answer)]).answers] == ["p"]


@pytest.mark.parametrize("answer", ["None of these.", "我不知道的事由医生说明。", "- four euros", "无需预约。"])
def test_what_only_begins_like_no_answer(answer: str) -> None:
    assert check([_pair("p", "Why?", answer)]).answers == ()


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
    assert [(item.answers, item.differ) for item in found] == [
        ({"f": "Yes.", "g": ""}, ("answerable",)),
        ({"a": "Four.", "b": "Five."}, ("wording",)),
    ]


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ("The fee is 4 crowns.", "The fee is 5 crowns.", "numbers"),
        ("挂号费为20元。", "挂号费为25元", "numbers"),
        ("Give it below 10⁹ platelets per litre.", "Give it below 10⁸ platelets per litre.", "numbers"),
        ("一次服用½片。", "一次服用2片。", "numbers"),
        ("The deposit is 1,250 crowns", "the deposit is 1250 crowns.", "wording"),
        ("Visitors may stay overnight.", "Visitors may not stay overnight.", "negation"),
        ("可以退还押金。", "不可以退还押金。", "negation"),
        ("Yes, with a permit.", "No.", "negation"),
        ("需要，提前一天申请。", "无需申请。", "negation"),
        # What only looks like a negation, and what is one although it begins like that.
        ("该药非常有效。", "该药有效。", "wording"),
        ("未来三年的学费会提高。", "三年的学费会提高。", "wording"),
        ("押金的退还与房型无关，特别是两人间。", "押金的退还与房型无关。", "wording"),
        ("未来三年的学费会提高。", "未来三年的学费不会提高。", "negation"),
        ("该药非常有效。", "该药非有效。", "negation"),
        ("患者饭后服用此药。", "患者饭后不服用此药。", "negation"),
        ("法院收到了通知。", "法院没收到通知。", "negation"),
        ("业主同意转让车位。", "业主不同意转让车位。", "negation"),
        ("Ask in room No. 5 of the ward.", "Ask in the room of the ward.", "wording"),
        ("Not only visitors may park there.", "Visitors may park there.", "wording"),
        ("Visitors may park there.", "No visitors may park there.", "negation"),
        ("At the front desk.", "Ask a nurse.", "wording"),
        ("前台办理。", "请咨询护士。", "wording"),
    ],
)
def test_how_answers_to_one_question_differ(one: str, other: str, how: str) -> None:
    (found,) = check(
        [_pair("a", "请问？" if one[0] > "z" else "What now?", one), _pair("b", "请问" if one[0] > "z" else "what now", other)]
    ).contradictions
    assert found.differ == (how,)


def test_languages_declared_and_found() -> None:
    long_en, long_zh = (
        "The registration office on the ground floor issues it.",
        "挂号处在一楼大厅左侧，工作日上午八点开始办理，请携带本人身份证件。",
    )
    pairs = [
        _pair("en", "What is this?", long_en),
        _pair("zh", "这是什么？", long_zh),
        _pair("wrong", "这是什么费用？", long_zh, lang="en"),
        _pair("mixed", "Where do I register?", long_zh),
        _pair("name", "谁写的？", "William Shakespeare"),
    ]
    assert [note.id for note in check(pairs).other_language] == ["wrong", "mixed"]


def test_personal_data_is_found_in_every_field_and_masked() -> None:
    history = (Turn("user", "我的手机是13812345678。"), Turn("assistant", "好的。"))
    pairs = [
        _pair("q", "Is 536-22-8726 my number?", "Yes."),
        _pair("h", "那费用呢？", "二十元。", history=history),
        _pair("s", "Fee?", "Four.", system="Write to anna@example.org"),
    ]
    report = check(pairs)
    assert [(item.id, item.field, item.kind) for item in report.personal] == [
        ("q", "question", "us_ssn"),
        ("h", "history", "chinese_mobile"),
        ("s", "system", "email"),
    ]
    assert "13812345678" not in json.dumps(report.to_json())
    assert report.reasons()["personal_data"] == 3


def test_overlap_with_other_sets_is_a_leak_where_one_trains_and_the_other_measures() -> None:
    ours = [
        _pair("a", "What does parking cost per day?", split="train"),
        _pair("b", "门诊挂号费是多少？", split=None),
        _pair("c", "Who signs the contract?", split="test"),
        _pair("d", "Where is the chapel?", split="train"),
    ]
    others = {
        "exam": [_pair("x", "what does parking cost per day", split="test"), _pair("y", "门诊挂号费是多少", split="dev")],
        "more": [_pair("z", "Who signs the contract", split="train"), _pair("w", "Where is the chapel?", split="train")],
        "expert": [_pair("v", "Where is the chapel", split=None)],
    }
    shared = check(ours, others=others, measured={"expert"}).shared
    assert {(item.id, item.other, item.other_id, item.leak) for item in shared} == {
        ("a", "exam", "x", True),
        ("b", "exam", "y", True),
        ("c", "more", "z", True),
        ("d", "more", "w", False),
        ("d", "expert", "v", True),
    }


def test_undeclared_pairs_do_not_leak_for_they_follow_their_twins() -> None:
    pairs = [_pair("a", "What is the fee for cards?", split="test"), _pair("b", "what is the fee for cards", split=None)]
    report = check(pairs)
    assert (report.leakage, report.planned) == ((), {"test": 2})


def test_turns_of_one_conversation_are_no_near_duplicates() -> None:
    history = (Turn("user", "Which documents prove my residence in Norland for a bank account?"), Turn("assistant", "A lease."))
    pairs = [
        _pair("a#1", history[0].content, conversation="a"),
        _pair("a#2", "For?", history=history, conversation="a"),
        *(_pair(f"x{number}", f"What does item {number} cost?") for number in range(20)),
    ]
    assert [twin for twin in check(pairs).duplicates if "a#1" in (twin.a, twin.b)] == []


def test_the_page_escapes_what_the_data_say() -> None:
    evil = "<script>alert('x')</script>"
    pairs = [_pair("a", evil, "抱歉，<b>无法</b>回答。"), _pair("b", evil, "Five & six"), _pair(evil, "Fee?", "See above", split="dev")]
    page = html(check(pairs, lengths=_characters(pairs), max_length=10), "数据 <集>")
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "<b>" not in page
    assert "数据 &lt;集&gt;" in page
    assert "抱歉，&lt;b&gt;无法" in page
    assert "http" not in page
    assert "Nothing wrong was found" in html(check([]), "empty")


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


def test_near_duplicates_that_are_not_listed_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    form = " ".join(f"form{number}" for number in range(120))
    pairs = [Pair(f"p{number}", f"{form} item{number}", "Yes.", "en") for number in range(30)]
    assert check(pairs).notes == ()
    for place in ("near", "check"):
        monkeypatch.setattr(f"finetune.{place}.MAX_LISTED", 20)
    assert check(pairs).notes == (
        "10 questions have 20 near duplicates or more: of each the first 20 are listed, and there may be more in other splits",
    )


def test_unknown_documents_and_json() -> None:
    report = check([_pair("a", "One?", doc_ids=("x.md", "y.md")), _pair("b", "二？", doc_ids=("x.md",))], known_documents={"x.md"})
    assert report.unknown_documents == {"a": ("y.md",)}
    again = json.loads(json.dumps(report.to_json(), ensure_ascii=False))
    assert again["unknown_documents"] == {"a": ["y.md"]}
