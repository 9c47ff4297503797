"""The benchmark of retrieval on a small set of two languages: what it reads, what it measures, what it claims."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.workspace import Workspace
from retrieval.fusion import Fusion
from tests.retrieval.retrieval_support import HashingEmbedder

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
THINGS = {
    "en": ["lockers", "parking", "canteen", "laundry", "library", "chapel", "garden", "pharmacy", "playroom", "workshop", "archive", "gym"],
    "zh": ["储物柜", "停车场", "食堂", "洗衣房", "图书馆", "礼拜堂", "花园", "药房", "游戏室", "车间", "档案室", "健身房"],
}
SAYS = {"en": ("The {} opens at {} o'clock.", "When does the {} open?"), "zh": ("{}每天{}点开门。", "{}几点开门？")}


def _jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set of 24 documents with a question on each, half of them to tune on, and two questions that have no document."""
    corpus: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for lang, things in THINGS.items():
        says, asks = SAYS[lang]
        for number, thing in enumerate(things):
            corpus.append({"id": f"{lang}-{number}", "title": thing, "text": says.format(thing, 6 + number), "lang": lang})
            question = {"question": asks.format(thing), "answer": "–", "lang": lang, "doc_ids": [f"{lang}-{number}"]}
            pairs.append({**question, "split": "dev" if number % 2 else "test"})
        pairs.append({"question": asks.format("?"), "answer": "–", "lang": lang, "doc_ids": [], "split": "test"})
        pairs.append({**pairs[-2], "split": "test", "answerable": False})
    _jsonl(tmp_path / "data" / "tiny" / "corpus.jsonl", corpus)
    _jsonl(tmp_path / "data" / "tiny" / "qa.jsonl", pairs)
    lines = [
        "Set by set:",
        "  tiny test docs 24 q 12 | bm25 nDCG@10 0.900 recall@10 1.000",
        "  tiny test docs 24 q 12 | use  nDCG@10 0.500",
    ]
    (tmp_path / "data" / "REFERENCE-RETRIEVAL.md").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "data"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("retrieval_quality")


@contextmanager
def _brought_in(benchmark: ModuleType, data: Path, folder: Path) -> Iterator[tuple[Knowledge, Any]]:
    found = benchmark.read(data, "tiny", 100, 100)
    with Workspace.create(folder) as workspace:
        knowledge = Knowledge(workspace, ModelStore.default(), HashingEmbedder())
        benchmark.bring_in(knowledge, found, lambda *_, **__: None)
        yield knowledge, found


def test_every_task_has_its_questions_and_shares_none_with_tuning(benchmark: ModuleType, data: Path) -> None:
    found = benchmark.read(data, "tiny", 100, 100)
    assert {lang: len(rows) for lang, rows in found.documents.items()} == {"en": 12, "zh": 12}
    # Questions in one language on documents in the other have no known document here, so that there are no such tasks.
    assert [task.name for task in found.tasks] == ["tiny", "tiny.en-en", "tiny.zh-zh"]
    assert [(len(task.tuning), len(task.test)) for task in found.tasks] == [(12, 12), (6, 6), (6, 6)]
    assert all(not {q.text for q in task.tuning} & {q.text for q in task.test} for task in found.tasks)
    assert benchmark.names(data) == ["tiny"] and len(benchmark.reference(data)) == 2
    _jsonl(data / "without" / "corpus.jsonl", [{"id": "a", "text": "A", "lang": "en"}])
    _jsonl(data / "without" / "qa.jsonl", [{"question": "B?", "answer": "C", "lang": "en", "doc_ids": [], "split": "test"}])
    assert benchmark.read(data, "without", 10, 10) is None


def test_every_method_is_measured_through_the_products_own_search(benchmark: ModuleType, data: Path, tmp_path: Path) -> None:
    with _brought_in(benchmark, data, tmp_path / "workspace") as (knowledge, found):
        rows = [row for task in found.tasks for row in benchmark.measure(knowledge, task, "e5", None, 20)]
        assert [row["method"] for row in rows[:5]] == ["bm25", "dense", "rrf", "default", "tuned"] and len(rows) == 15
        assert {row["questions"] for row in rows if row["set"] == "tiny"} == {12}
        # The thing asked for stands in one document only, so that words find it.
        assert all(row["ndcg10"] == row["recall10"] == 1.0 for row in rows if row["method"] == "bm25")
        assert all(0 <= row["ndcg10"] <= row["recall10"] <= 1 for row in rows)
        # Too few questions to tune on: the default is measured again.
        assert rows[4]["ndcg10"] == rows[3]["ndcg10"] and rows[4]["fusion"].startswith(Fusion().kind)
        judged = benchmark.judge(knowledge, found.tasks[0], found.tasks[0].test)
        alone = benchmark.words_only(judged[0])
        assert len(judged[0].found.dense) and not len(alone.found.dense) and len(alone.found.lexical)


def test_the_claims_are_of_the_worse_model(benchmark: ModuleType, data: Path) -> None:
    def rows(name: str, model: str, tuned: float) -> list[dict[str, Any]]:
        figures = {"bm25": 0.6, "dense": 0.7, "rrf": 0.5, "default": 0.7, "tuned": tuned}
        return [
            {"set": name, "model": model, "method": method, "ndcg10": value, "low": -0.1, "high": 0.1} for method, value in figures.items()
        ]

    table = benchmark.summary([*rows("tiny", "e5", 0.75), *rows("tiny", "minilm", 0.69)], benchmark.reference(data))
    assert [row["tuned_minus_best"] for row in table] == [pytest.approx(0.05), pytest.approx(-0.01)]
    assert {(row["reference_bm25"], row["reference_use"], row["reranked"]) for row in table} == {(0.9, 0.5, "not run")}
    (claim,) = benchmark.claims(table)
    assert (claim.name, claim.value) == ("fused_minus_best.tiny", pytest.approx(-0.01)) and not claim.holds
    wanted, model, _ = benchmark.HEADLINE
    found = benchmark.claims(benchmark.summary(rows(wanted, model, 0.73), []))
    assert [(claim.name, claim.holds) for claim in found] == [(f"fused_minus_best.{wanted}", True), (f"fused_ndcg10.{wanted}", True)]


@pytest.mark.slow
def test_the_command_with_the_real_model(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "retrieval_quality.py"), "--data", str(data), "--sets", "tiny", "--quick"]
    out, kept = tmp_path / "quality.json", ["--cache", str(tmp_path / "cache")]
    done = subprocess.run([*command, *kept, "--json", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["settings"]["sets"] == ["tiny"] and [claim["name"] for claim in found["claims"]] == [
        "fused_minus_best.tiny",
        "fused_minus_best.tiny.en-en",
        "fused_minus_best.tiny.zh-zh",
    ]
    # The second model reads English only.
    assert {row["model"] for row in found["rows"] if "model" in row} == {"e5"}
    # Embeddings are kept.
    again = subprocess.run([*command, *kept, "--models", "e5"], capture_output=True, text=True)
    assert again.returncode == 0 and "tiny with e5: 0 texts embedded anew" in again.stderr
    for given, said in ((["--sets", "none"], "--sets: not below"), (["--sets", "tiny", "--models", "x"], "--models: unknown x")):
        wrong = subprocess.run([*command, *given], capture_output=True, text=True)
        assert wrong.returncode == 2 and said in wrong.stderr
