"""The page of a run: plots that need nothing from elsewhere, text that stays text."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path

import pytest

from eval import plots
from eval.calibration import reliability, risk_coverage
from eval.cost import Price
from eval.page import _risk, page, to_html, to_markdown
from eval.run import RunResult, load, run
from eval.statistics import Interval
from eval.types import Item, Outcome
from eval.utility import Scoring

ITEMS = [Item(f"q{n}", f"第{n}个问题<i>？", "答案 七日", lang="zh", answerable=n % 3 > 0) for n in range(24)]


def ran(folder: Path, arms: tuple[str, ...] = ("base", "rag", "auto")) -> RunResult:
    async def ask(item: Item, arm: str) -> Outcome:
        good = item.answerable and arm != "base"
        facts = {"predicted": 0.9 if good else 0.2, "features": {"length": 3.0}} if arm == "auto" else {}
        text = "答案 七日" if good else "" if arm == "auto" else "| <img src=x> 别的 |"
        times = {"latency_ms": 20.0 if arm == "base" else 900.0, "tokens": 30.0, "generated": 5.0, "engine": "default"}
        return Outcome("rag" if arm == "auto" else arm, text, refused=not text, **times, **facts)  # type: ignore[arg-type]

    return asyncio.run(run(ITEMS, arms, ask, folder))


def test_a_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    made = page(ran(tmp_path), "手册 <评测>", Scoring(prices={"default": Price(1.0, 2.0)}), {"run": "r<1>"})
    assert [plot.name for plot in made.plots] == ["bars", "plane", "risk-coverage", "calibration", "latency"]
    html = to_html(made)
    assert "手册 &lt;评测&gt;" in html and "r&lt;1&gt;" in html and "<img src=x>" not in html and "第1个问题&lt;i&gt;" in html
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", html) and "<script" not in html
    for picture in re.findall(r"base64,([A-Za-z0-9+/=]+)", html):
        drawn = base64.b64decode(picture).decode("utf-8")
        assert drawn.startswith("<?xml") and "<svg" in drawn and "<script" not in drawn
    text, files = to_markdown(made, "run")
    assert set(files) == {f"run-{plot.name}.svg" for plot in made.plots} and all(name in text for name in files)
    assert "\\<img src=x\\>" in text and "no difference shown" in text
    compared = {(entry.arm, entry.metric): entry.verdict for entry in made.comparisons}
    assert compared["base − rag", "utility"] == "lower" and compared["base − rag", "tokens"] == "no difference shown"
    assert compared["routed − rag", "utility"] == "higher"
    assert any("ECE" in note for note in made.notes)


def routed(folder: Path, worth: list[float], expected: list[float]) -> tuple[RunResult, Scoring]:
    """A run in which the router answered such questions, or declined (worth 0)."""
    items = [Item(f"q{n}", f"question {n}", "seven days") for n in range(len(worth))]

    async def ask(item: Item, arm: str) -> Outcome:
        n = int(item.id[1:])
        text = f"answer {n}" if worth[n] else ""
        return Outcome("rag" if text else "refuse", text, refused=not text, predicted=expected[n], features={"length": 1.0})

    result = asyncio.run(run(items, ("auto",), ask, folder))
    return result, Scoring(experts={(f"q{n}", f"answer {n}"): value for n, value in enumerate(worth) if value})


def test_a_router_that_knows_the_worth_of_its_answers_is_calibrated(tmp_path: Path) -> None:
    """Three in four right where it expects that, one in four where it expects that; what wrong answers take off counts on both sides."""
    worth = [1.0, 1.0, 1.0, -0.5] * 10 + [1.0, -0.5, -0.5, -0.5] * 10
    made = page(*_titled(routed(tmp_path, worth, [0.625] * 40 + [-0.125] * 40)))
    assert any("ECE 0.000" in note for note in made.notes)


def test_what_declines_covers_nothing(tmp_path: Path) -> None:
    result, scoring = routed(tmp_path, [1.0, -0.5, 0.0, 0.0], [0.9, 0.5, 0.8, 0.1])
    assert [(point.coverage, point.risk) for point in _risk(result, scoring)] == [(0.25, 0.0), (0.5, 0.5)]
    refusing, scoring = routed(tmp_path / "none", [0.0, 0.0], [0.0, 0.0])
    assert _risk(refusing, scoring) == []
    assert "risk-coverage" not in [plot.name for plot in page(refusing, "x", scoring).plots]


def _titled(found: tuple[RunResult, Scoring]) -> tuple[RunResult, str, Scoring]:
    return found[0], "x", found[1]


def test_equal_runs_give_equal_pages(tmp_path: Path) -> None:
    ran(tmp_path)
    assert to_html(page(load(tmp_path), "x")) == to_html(page(load(tmp_path), "x"))


def test_a_run_of_one_arm_and_an_unfinished_one(tmp_path: Path) -> None:
    result = ran(tmp_path, ("rag",))
    assert [plot.name for plot in page(result, "x").plots] == ["bars", "plane", "latency"] and page(result, "x").comparisons == ()
    with pytest.raises(ValueError, match="not finished"):
        page(RunResult(tmp_path, result.items, result.outcomes, None), "x")


def test_plots_as_png_and_without_a_chinese_font(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(plots, "_CJK", ())
    drawn = plots.bars("评测 $x$", {"基础": Interval(0.5, 0.4, 0.6)}, "utility", "png")
    assert drawn.data.startswith(b"\x89PNG") and drawn.title == "评测 $x$"
    curve = plots.risk_curves("r", {"a": risk_coverage([0.9, 0.1], [0, 1])}, "risk")
    points = plots.reliability_diagram("c", reliability([0.9, 0.1], [1, 0]))
    assert curve.data and points.data and plots.histogram("h", {"a": [0.0, 5.0]}, "ms").data
    assert dict(matplotlib.rcParams) == before


def test_three_questions_show_no_difference(tmp_path: Path) -> None:
    async def ask(item: Item, arm: str) -> Outcome:
        return Outcome(arm, "答案 七日" if arm == "rag" else "别的", latency_ms=1.0)

    items = [Item(f"q{n}", f"第{n}个问题？", "答案 七日", lang="zh") for n in range(3)]
    made = page(asyncio.run(run(items, ("rag", "base"), ask, tmp_path)), "x")
    assert {entry.verdict for entry in made.comparisons} == {"no difference shown (fewer than 10 questions)"}
    assert not any(entry.shown for entry in made.comparisons)
