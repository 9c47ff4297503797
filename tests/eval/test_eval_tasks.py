from __future__ import annotations

from typing import get_args

import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from eval.metrics import of_arm, of_outcome
from eval.tasks import MEASURES, choice, chosen, item_f1, of_task, of_task_whole
from eval.types import Item, Outcome, Task


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("Complaint", " complaint. ", 1.0),
        ("投诉", "“投诉”。", 1.0),
        ("Ａ类", "a类", 1.0),
        ("A", "B", 0.0),
        ("A", "", 0.0),
        ("C", "C++", 0.0),
        ("the complaint", "complaint", 0.0),
    ],
)
def test_accuracy_compares_labels_up_to_how_they_are_written(gold: str, answer: str, score: float) -> None:
    assert of_task("classify", gold, answer) == {"accuracy": score}


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("aspirin\nibuprofen", "- Ibuprofen\n- aspirin", 1.0),
        ("阿司匹林；布洛芬", "1. 阿司匹林\n2. 对乙酰氨基酚", 0.5),
        ("1,200 euros", "1,200 euros", 1.0),
        ("a, b, c", "a", 0.5),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_item_f1(gold: str, answer: str, score: float) -> None:
    assert item_f1(gold, answer) == pytest.approx(score)


def test_every_task_names_measures_that_exist() -> None:
    assert set(MEASURES) == set(get_args(Task))
    for task, names in MEASURES.items():
        found = of_arm([Item("i", "q", "投诉", lang="zh", task=task)], [Outcome("base", "投诉")])
        assert set(names) <= set(found)
    assert "accuracy" not in of_outcome(Item("i", "q", "a"), Outcome("base", "a"))


def test_macro_and_micro_f1_are_those_of_scikit_learn() -> None:
    labels = ["投诉", "咨询", "表扬"]
    golds = [labels[n % 3] for n in range(12)] + ["投诉"] * 4
    answers = [*golds[:6], "咨询", "投诉", "我不知道", "投诉。", "“咨询”", "表扬", *golds[12:]]
    told = [answer.strip("“”。") for answer in answers]
    wanted = f1_score(golds, told, labels=labels, average="macro")
    assert of_task_whole("classify", golds, answers) == {"macro_f1": pytest.approx(wanted)}
    sets, given = [{"a", "b"}, {"c"}, set("ab")], [{"a"}, {"c", "b"}, set("ab")]
    matrix = MultiLabelBinarizer().fit([set("abc")])
    wanted = f1_score(matrix.transform(sets), matrix.transform(given), average="micro")
    found = of_task_whole("extract", ["; ".join(sorted(one)) for one in sets], ["\n".join(sorted(one)) for one in given])
    assert found == {"micro_f1": pytest.approx(wanted)}
    assert of_task_whole("qa", ["a"], ["a"]) == {} and of_task_whole("classify", [], []) == {}
    assert of_task("extract", "a; b", "a; c") == {"item_f1": 0.5, "item_precision": 0.5, "item_recall": 0.5}


LETTERED = (("A", "7日"), ("B", "不超过3日"), ("C", "28日"), ("D", "3日"))


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C) 28日", 2),
        ("答案是B。", 1),
        ("正确答案：Ｃ", 2),
        ("The answer is (D).", 3),
        ("不超过3日", 1),
        ("急诊处方不超过3日用量。", 1),
        ("28日", 2),
        ("也许是7日，也许是28日", None),
        ("Because it is late", None),
        ("", None),
    ],
)
def test_which_choice_an_answer_names(answer: str, place: int | None) -> None:
    assert chosen(answer, LETTERED) == place


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("yes", "Yes, within three days.", 1.0),
        ("yes", "Yesterday it was.", 0.0),
        ("no", "不是，需要预约。", 1.0),
        ("yes", "不可以。", 0.0),
        ("是", "可以，凭身份证。", 1.0),
        ("maybe", "Unclear from the trial.", 1.0),
        ("Yes. In consideration of it, 5%.", "yes", 1.0),
        ("投诉", "“投诉”。", 1.0),
        ("投诉", "咨询", 0.0),
        ("yes", "", 0.0),
    ],
)
def test_yes_no_maybe(gold: str, answer: str, score: float) -> None:
    assert choice(gold, answer) == score
