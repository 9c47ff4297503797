"""The proof of the router: which questions lose their documents, and that its comparisons say what they must."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from router.fit import families

ROOT = Path(__file__).parent.parent


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "router"))
    return importlib.import_module("proof_sets"), importlib.import_module("proof_strategies")


def write_set(folder: Path) -> None:
    """Ninety test questions, three to a document, every tenth without an answer, and training pairs on other documents."""
    folder.mkdir(parents=True)
    documents = [{"id": f"d{n}", "title": f"规定{n}", "text": f"第{n}条 押金为{n}元。", "lang": "zh"} for n in range(60)]
    rows = [
        {
            "id": f"q{n}",
            "question": f"第{n}条的押金是多少？",
            "answer": f"{n}元",
            "doc_ids": [] if n % 10 == 0 else [f"d{n // 3}"],
            "lang": "zh",
            "domain": "legal",
            "split": "test" if n < 90 else "train",
            "answerable": n % 10 != 0,
        }
        for n in range(150)
    ]
    for name, content in (("corpus", documents), ("qa", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")


@pytest.mark.parametrize("folds", [1, 5])
def test_a_third_of_the_questions_loses_its_documents_and_no_other_does(proof: tuple[ModuleType, ModuleType], tmp_path: Path, folds: int):
    sets, _ = proof
    write_set(tmp_path / "law")
    chosen = sets.ProofSet("law", "law", "legal", "zh", 150, folds)
    made = sets.folds(tmp_path, chosen)
    asked = [item for fold in made for item in fold.items]
    assert len(made) == folds and len({item.id for item in asked}) == len(asked) == (90 if folds == 1 else 150)
    unanswerable = sum(not item.answerable for item in asked)
    assert len(asked) / 3 - 3 <= unanswerable <= len(asked) / 3
    for fold in made:
        learnt = (*fold.train, *fold.dev)
        assert not {row["id"] for row in learnt} & {item.id for item in fold.items}
        # Of each document some questions are in other folds; an adapter that learnt from those would know it.
        assert learnt and (
            folds == 1 or not {name for row in learnt for name in row["doc_ids"]} & {name for i in fold.items for name in i.doc_ids}
        )
        kept = {row["id"] for row in sets.corpus(tmp_path, chosen, fold)}
        for item in fold.items:
            assert item.answerable is (bool(item.doc_ids) and set(item.doc_ids) <= kept)
        fewer = {row["id"] for row in sets.corpus(tmp_path, chosen, fold, 40)}
        assert len(fewer) == 40 and {name for item in fold.items if item.answerable for name in item.doc_ids} <= fewer
    # Fewer questions are the first of more.
    few = sets.folds(tmp_path, chosen, 30)
    assert all(one.items == whole.items[: len(one.items)] for one, whole in zip(few, made, strict=True))


def test_a_router_that_only_equals_the_best_arm_proves_nothing(proof: tuple[ModuleType, ModuleType]) -> None:
    claims = importlib.import_module("router_proof").claims_of
    equal = {"strategy": "router", "low": 0.0, "few": "", "token_ratio": 0.0, "oracle_share": 0.0}
    assert [claim.holds for claim in claims("x", [equal])] == [False, True, False]
    better = {**equal, "low": 0.01, "oracle_share": 0.2}
    assert all(claim.holds for claim in claims("x", [better]))
    # By a handful of questions, however many were asked.
    assert not claims("x", [{**better, "few": "only 4 of 300 differ, 6 are needed"}])[0].holds


def test_the_comparison_tells_the_router_from_chance(proof: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    _, strategies = proof
    tried = families()
    monkeypatch.setattr("router.fit.families", lambda: (tried[0], tried[-1]))
    monkeypatch.setattr(strategies, "WITHOUT", {"router": (), "without evidence": ("evidence",)})
    monkeypatch.setattr(strategies, "TARGETS", (0.4,))
    questions = tuple(importlib.import_module("router_support").labelled(100))
    generated = tuple({arm: 0.0 if arm in ("quote", "refuse") else 80.0 for arm in one.utility} for one in questions)
    answerable = tuple(one.utility["refuse"] == 0.0 for one in questions)
    costs = {arm: strategies.Costs(1000, 0 if arm in ("quote", "refuse") else 600) for arm in strategies.LEARNT}
    found = strategies.Labelling(questions, generated, answerable, tuple("quote" for _ in questions), costs)
    rows = {row["strategy"]: row for row in strategies.compare("x", found)}
    assert rows["router"]["low"] > 0 > rows["random, same mix"]["gain"]
    assert rows["oracle"]["oracle_share"] == 1.0 and 0.3 < rows["router"]["oracle_share"] < 1.0
    assert rows["router"]["utility"] > rows["without evidence"]["utility"] + 0.1
    no_answer, right = strategies.calibration("x", found)
    assert no_answer["brier"] < no_answer["brier_of_the_share"] and 0 <= right["ece"] <= 1
    surest, *_, told = strategies.risk("x", found)
    assert surest["coverage"] == pytest.approx(0.1, abs=0.05) and told["target"] == 0.4
    assert strategies.signals("x", found)[0]["feature"] == "e_term_coverage"
