"""A team's thresholds: reading the file, and holding them against runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from eval.gate import GateFile, Threshold, judge, read, table, verdict_json
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
        ('[[check]]\nmetric = "u"\nmin = 1\n\n[[check]]\nmetric = "u"\nmin = "x"', "line 7: check 2: min: 'x'; expected a number"),
        ('[[check]]\nmetric = "u"\nmin = true', "line 3: check 1: min: True"),
        ('[[check]]\nmetric = "u"\nminimum = 1', "line 3: check 1: minimum: unknown; known here: metric"),
        ('[[check]]\nmetric = "u"\nmin = 1\nconfidence = 95', "line 4: check 1: confidence: 95"),
        ('[[check]]\nmetric = "u"\nmin = 1\nagainst = "routed"', "line 4: check 1: against: 'routed' is the arm itself"),
        ('[[check]]\nmetric = "u"\nmin = nan', "line 3: check 1: min: nan; give a finite number"),
        ('[[check]]\nmetric = "u"\nmin = 0.5\nmax = 0.2', "line 3: check 1: min: 0.5 is above max"),
        ('\nlimit = 0\n[[check]]\nmetric = "u"\nmin = 1', "line 2: limit: 0"),
        ('arms = []\n[[check]]\nmetric = "u"\nmin = 1', "line 1: arms"),
    ],
)
def test_a_wrong_file_is_told_by_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EvalError, match=r"gate\.toml") as caught:
        read(write(tmp_path / "gate.toml", text))
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
