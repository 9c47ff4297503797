"""The benchmarks run and write the form that is promised."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance.engines.layers import multiplies_bfloat16
from tests.needs import absent

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DATA = Path(os.environ.get("APPLIANCE_DATA", "/nowhere"))


def _run(name: str, out: Path, *arguments: object) -> Any:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(out), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "claims" in done.stdout
    return json.loads(out.read_text("utf-8"))


def _check_form(found: Any) -> None:
    assert set(found) == {"machine", "settings", "rows", "claims"}
    assert {"date", "commit", "sources", "cpu", "cores", "memory_gib", "python"} <= set(found["machine"])
    assert found["settings"]["quick"] is True and found["rows"]
    for claim in found["claims"]:
        assert set(claim) == {"name", "value", "unit", "target", "holds"}
        sign, bound = claim["target"].split()
        assert claim["holds"] is (claim["value"] <= float(bound) if sign == "<=" else claim["value"] >= float(bound))


def test_citation_support(tmp_path: Path) -> None:
    found = _run("citation_support", tmp_path / "results" / "support.json")
    _check_form(found)
    rates = [row for row in found["rows"] if "precision" in row]
    assert {(row["set"], row["lang"]) for row in rates} == {(s, lang) for s in ("train+dev", "test") for lang in ("all", "en", "zh")}
    assert {row["threshold"] for row in rates} >= {0.3, 0.6, 0.9}
    assert all(0 <= row[name] <= 1 and row["cases"] > 0 for row in rates for name in ("precision", "recall", "accuracy"))
    cited = {row["kind"]: row["cited"] for row in found["rows"] if row.get("method") == "support" and "kind" in row}
    assert cited["number changed"] == 0 < cited["gold"]


@pytest.mark.slow
def test_groundedness(tmp_path: Path) -> None:
    found = _run("groundedness", tmp_path / "groundedness.json")
    _check_form(found)
    rows = {(row["method"], row["set"], row["lang"]): row for row in found["rows"]}
    assert {name for name, _, _ in rows} == {"grounded", "citation support", "ROUGE-L precision", "cosine", "grounded and cosine"}
    assert {row["n"] for key, row in rows.items() if key[1:] == ("test", "all")} == {120}
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 for row in rows.values())
    # What is measured is what is in use.
    assert found["settings"]["weights"] == found["settings"]["in_use"]


@pytest.mark.slow
def test_ingest_speed(tmp_path: Path) -> None:
    found = _run("ingest_speed", tmp_path / "speed.json", "--documents", 6, "--many", 100, "--peers", "")
    _check_form(found)
    ours, bare = found["rows"]
    assert (ours["documents"], bare["documents"]) == (6, 100) and ours["chunks"] >= 6 and bare["chunks"] >= 100
    assert 0 < ours["encoder_share"] < 1 and ours["tokens_a_s"] > 0 and ours["refresh_s"] > 0
    assert {claim["name"] for claim in found["claims"]} == {"encoder_share", "refresh_share"}


@pytest.mark.slow
def test_retrieval_speed(tmp_path: Path) -> None:
    found = _run("retrieval_speed", tmp_path / "speed.json")
    _check_form(found)
    measured = [row for row in found["rows"] if "search_p50_ms" in row and "chunks" in row]
    assert [row["chunks"] for row in measured] == found["settings"]["sizes"] and all(row["recall@10"] >= 0.95 for row in measured)
    made = [row for row in found["rows"] if "method" in row]
    assert made[0]["method"] == "exact" and (made[1]["method"] == "exact" or made[1]["measured_questions"] >= 0.98)


@pytest.mark.slow
def test_refusal_threshold(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = _run("refusal_threshold", tmp_path / "refusal.json", "--cache", cache)
    _check_form(found)
    supports = [row for row in found["rows"] if "median_support" in row]
    assert {row["kind"] for row in supports} == {"right", "wrong", "withheld", "unanswerable"}
    rates = [row for row in found["rows"] if "threshold" in row and row["lang"] == "zh"]
    assert rates and all(row["refused_withheld"] is not None for row in rates)
    # The kept index is used again, and gives the same figures.
    assert _run("refusal_threshold", tmp_path / "again.json", "--cache", cache)["rows"] == found["rows"]


@pytest.fixture
def support(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("citation_support")


def test_false_answers_differ_in_one_number(support: ModuleType) -> None:
    present = frozenset({"40", "41", "18:00", "72", "3"})
    assert support.changed("40 mg at 18:00.", present) == "42 mg at 18:00."
    assert support.changed("每日40毫克。", present) == "每日42毫克。"
    assert support.exchanged("每日40毫克。", present) == "每日41毫克。"
    assert support.exchanged("At 18:00, 3 tablets.", present) == "At 18:00, 40 tablets."
    assert support.changed("三年。", present) is None
    assert support.exchanged("3 days", frozenset({"3"})) is None


def test_an_equal_score_prefers_the_stricter_threshold(support: ModuleType) -> None:
    cases = [support.Case("train+dev", "en", kind, (score, 0.0)) for kind, score in (("gold", 0.8), ("other answer", 0.4))]
    assert support.best_threshold(cases, 0) == 0.8
    assert support.measure(cases, 0, 0.8) == {"precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    assert support.measure(cases, 0, 0.9) == {"precision": 1.0, "recall": 0.0, "accuracy": 0.5}


@pytest.mark.slow
def test_postgres_speed(tmp_path: Path) -> None:
    found = _run("postgres_speed", tmp_path / "postgres.json")
    _check_form(found)
    assert all(claim["holds"] for claim in found["claims"] if claim["name"].startswith("postgres_recall."))


@pytest.mark.slow
def test_adapter_quality(tmp_path: Path) -> None:
    data = os.environ.get("APPLIANCE_DATA")
    if not data or not (Path(data) / "medical-en-pubmedqa").is_dir():
        pytest.skip("$APPLIANCE_DATA has no medical-en-pubmedqa")
    found = _run("adapter_quality", tmp_path / "quality.json", "--sets", "medical-en-pubmedqa")
    _check_form(found)
    assert {row["metric"] for row in found["rows"]} == {"token_f1", "rougeL", "bleu", "loss"} and found["claims"] == []
    for row in found["rows"]:
        assert row["n"] == found["settings"]["size"]["test"] and row["low"] <= row["difference"] <= row["high"]
        assert row["adapter"] - row["base"] == pytest.approx(row["difference"])
    assert next(row for row in found["rows"] if row["metric"] == "loss")["difference"] < 0


@pytest.mark.slow
def test_training_speed(tmp_path: Path) -> None:
    found = _run("training_speed", tmp_path / "speed.json", "--pairs", 4, "--no-peer")
    _check_form(found)
    assert set(found["settings"]["shortcuts"].values()) == {"taken"}
    ours, *profile = found["rows"]
    assert ours["tokens"] == found["settings"]["tokens"] and ours["tokens_a_s"] > 0 and ours["peak_mib"] > 500
    assert 0.8 < sum(row["share"] for row in profile) <= 1.0


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "medical-en-medquad").is_dir(), reason="needs the public data sets in $APPLIANCE_DATA")
def test_methods(tmp_path: Path) -> None:
    found = _run("methods", tmp_path / "methods.json", "--methods", "lora", "--train", 8, "--held", 2, "--epochs", 1)
    _check_form(found)
    base, lora = found["rows"]
    assert (base["method"], base["forgot_zh"], base["loss"]) == ("base", 0.0, None)
    assert lora["trainable"] == 4_884_480 and lora["peak_mib"] > 500 and lora["tokens_a_cpu_s"] > 0
    assert {claim["name"] for claim in found["claims"]} == {"loss_ratio.lora"}


@pytest.mark.slow
def test_gateway_overhead(tmp_path: Path) -> None:
    found = _run("gateway_overhead", tmp_path / "overhead.json", "--streams", 4, "--no-vllm")
    _check_form(found)
    direct, through, *unpaced = found["rows"]
    assert (direct["way"], through["way"]) == ("engine", "gateway") and direct["answers"] == through["answers"] == 4 * 2 * 2
    assert direct["tokens_a_s"] > 0 and all(row["tokens_a_s"] > direct["tokens_a_s"] for row in unpaced)
    names = ["gateway_added_p50_ms", "gateway_added_p99_ms", "gateway_throughput_ratio"]
    assert [claim["name"] for claim in found["claims"]] == names


def test_how_often_each_adapter_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    case = importlib.import_module("multi_lora").Case
    names = [f"a{number}" for number in range(8)]
    assert case("base", 0).order(names, 3) == [None] * 3
    assert case("4 adapters", 4).order(names, 8) == ["a0", "a1", "a2", "a3"] * 2
    skewed = case("8 adapters, skewed", 8, True).order(names, 1000)
    assert skewed == case("8 adapters, skewed", 8, True).order(names, 1000)
    counts = [skewed.count(name) for name in names]
    # 1 / (1 + 1/2 + … + 1/8) of them go to the first.
    assert set(skewed) == set(names) and counts[0] == max(counts) and 330 < counts[0] < 410


@pytest.mark.slow
def test_engines_without_the_peer(tmp_path: Path) -> None:
    found = _run("engines", tmp_path / "engines.json", "--no-vllm")
    _check_form(found)
    speeds = [row for row in found["rows"] if "tokens_a_s" in row]
    names = ("local", "local bfloat16", "local int8") if multiplies_bfloat16() else ("local", "local int8")
    asked = {(name, answers, at) for name in names for answers in ("base", "adapter") for at in (1, 8)}
    assert {(row["engine"], row["answers"], row["concurrent"]) for row in speeds} == asked
    assert all(row["tokens_a_s"] > 0 and row["first_token_ms"] > 0 for row in speeds) and not found["claims"]
    coarse = [row for row in found["rows"] if "loss_ratio" in row]
    assert {row["lang"] for row in coarse} >= {"en"} and all(0.98 < row["loss_ratio"] < 1.05 for row in coarse)


def test_numbers_of_a_third_of_the_documents_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    changed_documents = importlib.import_module("changed_documents")
    edited = "Notice is 90 days, € 1,750.50 since 3 May 2025 by form TR-6 under 4/15/10; 9000 stay."
    assert changed_documents.edited(edited, {"90", "1,750.50", "3"}).startswith(
        "Notice is 30 days, € 4,750.50 since 6 May 2025 by form TR-6"
    )
    (sample,) = changed_documents.changed_sets(None, ["sample", "cuad"], 60, 300)
    assert len(sample.before) >= 30 and 5 <= len(sample.changed) < len({item.doc_ids[0] for item in sample.before}) / 2
    texts = {row["id"]: row["text"] for row in sample.documents_after}
    assert {row["id"] for row in sample.documents if row["text"] != texts[row["id"]]} == sample.changed
    for old, new in zip(sample.before, sample.after, strict=True):
        assert (old.answer != new.answer) is sample.about_changed(old)


@pytest.mark.full
def test_router_freshness(tmp_path: Path) -> None:
    found = _run("router_freshness", tmp_path / "freshness.json", "--state", tmp_path / "state")
    _check_form(found)
    listed, *routers = found["rows"]
    assert listed["recall"] == listed["precision"] == 1.0
    assert {row["what"]: row["adapter"] for row in routers} == {"rules": 0.0, "trained": 0.0}


@pytest.mark.full
def test_multi_lora(tmp_path: Path) -> None:
    if not (BENCHMARKS.parent / ".venv-vllm" / "bin" / "python").is_file():
        absent("vllm", "build its environment with: make vllm")
    found = _run("multi_lora", tmp_path / "lora.json")
    _check_form(found)
    assert {row["engine"] for row in found["rows"]} == {"vllm", "local"} and all(row["tokens_a_s"] > 0 for row in found["rows"])
    assert [claim["name"] for claim in found["claims"]] == ["lora8_over_lora1", "lora8_over_lora1.local"]


def test_verified_matches(tmp_path: Path) -> None:
    found = _run("verified_matches", tmp_path / "verified.json")
    _check_form(found)
    assert found["settings"]["differing"] >= 200 and found["claims"][0]["holds"]
