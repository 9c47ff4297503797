"""A team's thresholds: reading the file, and holding them against runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from eval.gate import GateFile, Threshold, failed, judge, read, table, verdict_json
from eval.run import RunResult, run
from eval.types import EvalError, Item, Outcome

ITEMS = [Item(f"q{n}", f"第{n}个问题是什么？", "不超过7日用量", lang="zh", answerable=n % 4 > 0) for n in range(40)]


def ran(folder: Path, right: int) -> RunResult:
    """`rag` answers the first `right` questions well, `base` none; the routed answers are those of `rag`."""

    async def ask(item: Item, arm: str) -> Outcome:
        good = arm != "base" and int(item.id[1:]) < right
        answers = good and item.answerable
        text = item.answer if answers else "" if good else "完全不同的内容"
        return Outcome("rag" if arm == "auto" else arm, text, refused=not text, latency_ms=10.0 + int(item.id[1:]), tokens=5)

    return asyncio.run(run(ITEMS, ["base", "rag", "auto"], ask, folder))


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_reading(tmp_path: Path) -> None:
    text = 'dataset = "手册"\narms = ["rag"]\nlimit = 5\n[[check]]\nmetric = "utility"\nmin = 0.5\nconfidence = 0.9\nagainst = "last"\n'
    found = read(write(tmp_path / "gate.toml", text))
    assert found == GateFile((Threshold("utility", "routed", 0.5, None, "last", 0.9),), "手册", ("rag",), limit=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no thresholds"),
        ("[[check", "not a readable TOML file"),
        ("[[check]]\nmin = 1", "line 1: check 1: metric is missing"),
        ('[[check]]\nmetric = "utility"', "line 1: check 1: neither min nor max"),
        (
            '[[check]]\nmetric = "utility"\nmin = 1\n\n[[check]]\nmetric = "utility"\nmin = "x"',
            "line 7: check 2: min: 'x'; expected",
        ),
        ('[[check]]\nmetric = "utility"\nmin = true', "line 3: check 1: min: True"),
        ('[[check]]\nmetric = "utility"\nminimum = 1', "line 3: check 1: minimum: unknown; known here: metric"),
        ('[[check]]\nmetric = "utility"\nmin = 1\nconfidence = 95', "line 4: check 1: confidence: 95"),
        ('[[check]]\nmetric = "utility"\nmin = 1\nagainst = "routed"', "line 4: check 1: against: 'routed' is the arm itself"),
        ('[[check]]\nmetric = "utility"\nmin = nan', "line 3: check 1: min: nan; give a finite number"),
        ('[[check]]\nmetric = "utility"\nmin = 0.5\nmax = 0.2', "line 3: check 1: min: 0.5 is above max"),
        ('\nlimit = 0\n[[check]]\nmetric = "utility"\nmin = 1', "line 2: limit: 0"),
        ('[[check]]\nmetric = "utillity"\nmin = 1', "line 2: check 1: metric: 'utillity' is none; known: utility"),
        ('[[check]]\nmetric = "bleu"\nmin = 1\nconfidence = 0.9', "line 4: check 1: confidence: bleu is of all answers together"),
        (
            'dataset = "d"\n[[check]]\nmetric = "mrr"\nmin = 1\narm = "ragg"',
            "line 5: check 1: arm: 'ragg' is not asked; arms has base, routed",
        ),
        ('dataset = "d"\narms = ["rag"]\n[[check]]\nmetric = "mrr"\nmin = 1\nagainst = "base"', "line 6: check 1: against: 'base' is not"),
        ('arms = []\n[[check]]\nmetric = "utility"\nmin = 1', "line 1: arms"),
    ],
)
def test_a_wrong_file_is_told_by_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EvalError, match=r"gate\.toml") as caught:
        read(write(tmp_path / "gate.toml", text), ("base",))
    assert said in str(caught.value)
    with pytest.raises(EvalError, match="no such file"):
        read(tmp_path / "none.toml")


def test_thresholds_against_a_run(tmp_path: Path) -> None:
    result, before = ran(tmp_path / "now", 30), ran(tmp_path / "before", 34)

    def status(threshold: Threshold, last: RunResult | None = before) -> str:
        return judge(threshold, result, last).status

    mean = judge(Threshold("utility", low=0.5), result, None)
    assert mean.status == "passed" and mean.n == 40 and mean.low is not None and mean.low < 0.5 < (mean.value or 0)
    # The mean is above, but that is not shown.
    assert status(Threshold("utility", low=0.5, confidence=0.95)) == "missed"
    assert status(Threshold("utility", low=0.2, confidence=0.95)) == "passed"
    assert status(Threshold("utility", "rag", low=0.5, against="base", confidence=0.95)) == "passed"
    assert status(Threshold("utility", low=-0.05, against="last")) == "missed"
    assert status(Threshold("utility", low=-0.2, against="last")) == "passed"
    assert status(Threshold("utility", low=-0.2, against="last"), None) == "skipped"
    assert status(Threshold("latency_p95_ms", high=100)) == "passed"
    assert status(Threshold("latency_p95_ms", high=1, against="base")) == "passed"
    assert status(Threshold("hallucination", high=0.1)) == "missed"
    for threshold, said in (
        (Threshold("utility", "hybrid", low=0), "no usable answers of hybrid"),
        (Threshold("utility", low=0, against="quote"), "no usable answers of quote"),
        (Threshold("speed", low=0), "speed was not measured; known here: n"),
        (Threshold("latency_p95_ms", high=100, confidence=0.9), "leave confidence out"),
    ):
        verdict = judge(threshold, result, before)
        assert verdict.status == "missed" and said in verdict.note
    verdicts = [judge(Threshold("utility", low=0.5, high=0.9), result, None), judge(Threshold("speed", low=0), result, None)]
    assert ">= 0.5 and <= 0.9" in table(verdicts) and json.loads(json.dumps(verdict_json(verdicts[0])))["status"] == "passed"


def test_an_arm_that_failed_misses_the_gate_unless_it_is_told_how_much_it_may(tmp_path: Path) -> None:
    async def ask(item: Item, arm: str) -> Outcome:
        if int(item.id[1:]) >= 20 and arm == "rag":
            return Outcome(arm, error="the engine stopped")
        return Outcome(arm, item.answer, refused=not item.answerable, latency_ms=5.0)

    result = asyncio.run(run(ITEMS, ["rag", "base"], ask, tmp_path))
    threshold = Threshold("latency_p95_ms", "rag", high=10)
    assert judge(threshold, result, None).status == "passed"
    (verdict,) = failed([threshold, threshold], result)
    assert (verdict.status, verdict.value, verdict.threshold.arm, verdict.note) == ("missed", 20, "rag", "the first: the engine stopped")
    assert failed([threshold, Threshold("errors", "rag", high=25)], result) == []
    assert len(failed([Threshold("utility", "base", low=0, against="rag")], result)) == 1
    # Nor is a failure of the other arm a bad answer to be better than.
    compared = judge(Threshold("utility", "base", low=0.1, against="rag"), result, None)
    assert (compared.status, compared.n, compared.value) == ("missed", 20, 0)


def test_few_questions_show_nothing(tmp_path: Path) -> None:
    def of(items: list[Item]) -> RunResult:
        async def ask(item: Item, arm: str) -> Outcome:
            return Outcome(arm, item.answer if arm == "rag" else "", refused=arm != "rag")

        return asyncio.run(run(items, ["rag", "base"], ask, tmp_path / str(len(items))))

    better = Threshold("utility", "rag", low=0.5, against="base", confidence=0.95)
    three = of([Item(f"q{n}", f"question {n}?", "seven days") for n in range(3)])
    verdict = judge(better, three, None)
    assert verdict.status == "missed" and verdict.note.startswith("no difference shown; fewer than 10 questions show nothing")
    assert judge(Threshold("utility", "rag", low=0.5, against="base"), three, None).status == "passed"
    about_one = of([Item(f"q{n}", f"question {n}?", "seven days", ("manual.md",)) for n in range(30)])
    assert "fewer than 10 separate documents" in judge(better, about_one, None).note
    assert judge(better, of([Item(f"q{n}", f"question {n}?", "seven days", (f"{n}.md",)) for n in range(12)]), None).status == "passed"


def test_a_corpus_score_is_what_the_table_shows(tmp_path: Path) -> None:
    result = ran(tmp_path, 30)
    for metric in ("bleu", "chrf"):
        verdict = judge(Threshold(metric, "rag", low=0), result, None)
        assert verdict.value == (result.summary or {})["arms"]["rag"][metric] and verdict.low is None
