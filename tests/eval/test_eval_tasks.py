from __future__ import annotations

from typing import get_args

import pytest

from eval.metrics import of_outcome
from eval.tasks import MEASURES, item_f1, of_task
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
        found = of_outcome(Item("i", "q", "投诉", lang="zh", task=task), Outcome("base", "投诉"))
        assert set(names) <= set(found)
    assert "accuracy" not in of_outcome(Item("i", "q", "a"), Outcome("base", "a"))
