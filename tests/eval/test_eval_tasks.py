from __future__ import annotations

from typing import get_args

import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from eval.metrics import of_arm, of_outcome
from eval.tasks import MEASURES, accuracy, choice, chosen, item_f1, of_task, of_task_whole
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
        ("complaint", "Category: complaint", 1.0),
        ("complaint", "**Label:** Complaint.", 1.0),
        ("high risk", "The class is high risk", 1.0),
        ("high risk", "Category: low risk", 0.0),
        ("投诉", "类别：投诉", 1.0),
        ("投诉", "该文本的类别是“投诉”。", 1.0),
        ("投诉", "分类：咨询", 0.0),
        ("complaint", "This is a complaint.", 0.0),
    ],
)
def test_accuracy_compares_labels_up_to_how_they_are_written(gold: str, answer: str, score: float) -> None:
    assert of_task(Item("i", "q", gold, task="classify"), answer) == {"accuracy": score}


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
    asked = [Item(str(n), "q", gold, task="classify") for n, gold in enumerate(golds)]
    assert of_task_whole("classify", asked, answers) == {"macro_f1": pytest.approx(wanted)}
    sets, given = [{"a", "b"}, {"c"}, set("ab")], [{"a"}, {"c", "b"}, set("ab")]
    matrix = MultiLabelBinarizer().fit([set("abc")])
    wanted = f1_score(matrix.transform(sets), matrix.transform(given), average="micro")
    asked = [Item(str(n), "q", "; ".join(sorted(one)), task="extract") for n, one in enumerate(sets)]
    found = of_task_whole("extract", asked, ["\n".join(sorted(one)) for one in given])
    assert found == {"micro_f1": pytest.approx(wanted)}
    assert of_task_whole("qa", [Item("i", "q", "a")], ["a"]) == {} and of_task_whole("classify", [], []) == {}
    found = of_task(Item("i", "q", "a; b", task="extract"), "a; c")
    assert found == {"item_f1": 0.5, "item_precision": 0.5, "item_recall": 0.5}


def test_labels_that_are_declared_are_found_in_a_sentence() -> None:
    risk = (("", "low risk"), ("", "high risk"), ("", "risk"))
    item = Item("i", "q", "high risk", task="classify", choices=risk)
    assert accuracy(item, "This contract is high risk because it has no cap.") == 1
    assert accuracy(item, "This contract is low risk.") == accuracy(item, "Either low risk or high risk.") == 0
    asked = [item, Item("j", "q", "low risk", task="classify", choices=risk)]
    assert of_task_whole("classify", asked, ["I would say: high risk.", "The label is low risk."]) == {"macro_f1": 1.0}


LETTERED = (("A", "7日"), ("B", "不超过3日"), ("C", "28日"), ("D", "3日"))


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C) 28日", 2),
        ("C 28日", 2),
        ("B、不超过3日", 1),
        ("答案是B。", 1),
        ("正确答案：Ｃ", 2),
        ("答案：A 7日", 0),
        ("根据资料，应选C。", 2),
        ("我选B，因为急诊", 1),
        ("不选A，选B", 1),
        ("选项A不对。答案应为D", 3),
        ("B项正确，A项错误。", 1),
        ("The answer is (D).", 3),
        ("the ANSWER IS d", 3),
        ("I think the answer is B", 1),
        ("I think it is option C, not option A.", 2),
        ("A careful reading of the rule shows that the answer is C.", 2),
        ("Answer: B", 1),
        ("**Answer:** B. Three days.", 1),
        ("answer: b", 1),
        ("Answer: A", 0),
        ("The answer is A because of the first clause.", 0),
        ("At first the answer is A. But it is an emergency, so the answer is B.", 1),
        ("A. is wrong here; the correct option is B.", 1),
        ("The correct answer to this question is therefore C", 2),
        ("B is the correct answer, option A is too long.", 1),
        ("The answer is B, since option A is too long.", 1),
        ("Option B", 1),
        ("不超过3日", 1),
        ("急诊处方不超过3日用量。", 1),
        ("28日", 2),
        ("也许是7日，也许是28日", None),
        ("The answer is A or B.", None),
        ("选项A或选项B", None),
        ("A、B都对", None),
        ("Because it is late", None),
        ("I do not know", None),
        ("A patient may take it", None),
        ("A 3-day course", None),
        ("The answer is a matter of time", None),
        ("Answer: A patient may ask for it", None),
        ("The answer is C-reactive protein", None),
        ("B超检查显示正常", None),
        ("A类药物", None),
        ("The answer is not A", None),
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
        ("no", "Based on the trial, the answer is no.", 1.0),
        ("yes", "Not for children. The answer is: yes", 1.0),
        ("no", "答案是：不可以。", 1.0),
        ("no", "无法报销。", 1.0),
        ("no", "并不可以。", 1.0),
        ("yes", "会，三天内通知。", 1.0),
        ("yes", "需要监护人签字。", 1.0),
        ("yes", "会议纪要没有记录。", 0.0),
        ("no", "No doubt it does.", 0.0),
        ("yes", "是否可以取决于合同。", 0.0),
        ("yes", "对于儿童没有数据。", 0.0),
        ("no", "不仅可以，而且免费。", 0.0),
        ("yes", "有关规定见附件。", 0.0),
        ("Yes. In consideration of it, 5%.", "yes", 1.0),
        ("投诉", "“投诉”。", 1.0),
        ("投诉", "咨询", 0.0),
        ("yes", "", 0.0),
    ],
)
def test_yes_no_maybe(gold: str, answer: str, score: float) -> None:
    assert choice(gold, answer) == score
