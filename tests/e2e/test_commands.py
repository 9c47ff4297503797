"""The commands as scripts use them: contracts, exit codes, and what bad input does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2e_support import make_handbook

from appliance.cli.main import run

ASK = {"id", "answer", "arm", "domain", "citations", "unsupported", "decision", "engine", "adapter", "generation", "timings_ms"}


def test_ingest_search_and_ask_keep_their_contracts(appliance, handbook: Path) -> None:  # type: ignore[no-untyped-def]
    first = appliance("ingest", handbook, "--domain", "medical", "--json")
    assert first.code == 0
    assert {"added", "updated", "unchanged", "removed", "failed", "chunks", "generation", "seconds"} <= set(first.json)
    assert (first.json["added"], first.json["unchanged"], first.json["failed"]) == (3, 0, [])
    again = appliance("ingest", handbook, "--domain", "medical", "--json").json
    assert (again["added"], again["updated"], again["unchanged"], again["generation"]) == (0, 0, 3, first.json["generation"])

    found = appliance("search", "重症监护室可以几个人探视", "--domain", "medical", "-k", 2, "--json").json
    assert set(found) == {"query", "generation", "results"} and len(found["results"]) == 2
    best = found["results"][0]
    assert {"doc_id", "uri", "title", "chunk_id", "start", "end", "text", "score"} <= set(best)
    assert best["doc_id"] == "zh/visiting.md"
    text = (handbook / best["doc_id"]).read_text("utf-8")
    assert text[best["start"] : best["end"]] == best["text"]

    for question, words in (("When may visitors come?", "14:00 to 20:00"), ("探视时间是几点？", "15:00至19:00")):
        answer = appliance("ask", question, "--arm", "quote", "--json").json
        assert set(answer) >= ASK and words in answer["answer"]
        assert {"arm", "domain", "reasons", "predicted", "unavailable", "features"} <= set(answer["decision"])
        assert {"retrieval", "decision", "first_token", "total"} <= set(answer["timings_ms"])
        for citation in answer["citations"]:
            text = (handbook / citation["doc_id"]).read_text("utf-8")
            assert text[citation["start"] : citation["end"]] == citation["quote"]


def test_changes_prunes_and_removals(appliance, handbook: Path) -> None:  # type: ignore[no-untyped-def]
    appliance("ingest", handbook, "--domain", "medical")
    (handbook / "visiting.md").write_text("# Visiting rules\n\nVisitors may come from 10:00 to 12:00.\n", "utf-8")
    (handbook / "parking.txt").unlink()
    kept = appliance("ingest", handbook, "--domain", "medical", "--json").json
    assert (kept["updated"], kept["removed"]) == (1, 0)
    pruned = appliance("ingest", handbook, "--domain", "medical", "--prune", "--json").json
    assert (pruned["updated"], pruned["removed"]) == (0, 1)
    assert all("crowns" not in result["text"] for result in appliance("search", "parking garage crowns", "--json").json["results"])
    removed = appliance("document", "remove", "visiting.md", "--json")
    assert removed.code == 0
    assert [row["doc_id"] for row in appliance("document", "list", "--json").json] == ["zh/visiting.md"]
    assert "10:00 to 12:00" not in appliance("ask", "When may visitors come?", "--arm", "quote", "--json").out
    assert appliance("document", "remove", "visiting.md").code != 0


def test_one_broken_file_does_not_stop_the_others(appliance, handbook: Path) -> None:  # type: ignore[no-untyped-def]
    (handbook / "broken.pdf").write_bytes(b"%PDF-1.7\nthis is not a PDF")
    done = appliance("ingest", handbook, "--domain", "medical", "--json")
    assert done.code == 3
    assert (done.json["added"] == 3 and [failure["path"] for failure in done.json["failed"]] == ["broken.pdf"]) or "broken.pdf" in done.out
    assert "broken.pdf" in done.err


def test_a_corpus_with_a_bad_line_names_the_line(appliance, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"id": f"d{n}", "title": "", "text": f"第{n}号规定：探视时间为{n}点。", "lang": "zh", "domain": "medical"} for n in (1, 2)]
    corpus.write_text(json.dumps(rows[0], ensure_ascii=False) + "\n{not json\n" + json.dumps(rows[1], ensure_ascii=False) + "\n", "utf-8")
    done = appliance("ingest", corpus, "--json")
    assert done.code == 3 and done.json["added"] == 2
    assert "2" in done.json["failed"][0]["path"] + done.json["failed"][0]["error"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with documents, which no bad input may change."""
    root = tmp_path_factory.mktemp("filled")
    (root / "empty").mkdir()
    make_handbook(root / "handbook")
    assert run(["init", str(root / "workspace")]) == 0
    assert run(["--workspace", str(root / "workspace"), "ingest", str(root / "handbook"), "--domain", "medical"]) == 0
    return root


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ingest", "{tmp}/missing", "--domain", "medical"), None, "missing"),
        (("ingest", "{tmp}/empty", "--domain", "medical"), None, "empty"),
        (("ingest", "{handbook}", "--domain", "Big Domain"), 2, "cannot be a domain's name"),
        (("search", "x", "--domain", "law"), 2, "unknown domain 'law'; known: medical"),
        (("search", "  "), 2, "the query is empty"),
        (("ask", "x", "--domain", "law"), 2, "unknown domain 'law'; known: medical"),
        (("ask", "药" * 100_000), 2, "100000 characters"),
        (("ask", ""), 2, "the question is empty"),
        (("ask", "x", "--arm", "magic"), 2, "unknown arm"),
        (("ask", "x", "--arm", "finetuned"), 2, "there is no adapter for this domain"),
        (("tune", "--domain", "medical", "--dataset", "none"), 2, "no data set 'none'"),
        (("adapter", "promote", "medical@00000000"), 2, "no adapter version"),
        (("adapter", "promote", "medical@00000000", "--force"), 2, "--why TEXT"),
        (("adapter", "promote", "medical@00000000", "--why", "x"), 2, "the reason for --force"),
        (("adapter", "diff", "medical@00000000", "a"), 2, "no adapter version"),
        (("adapter", "remove", "../index"), 2, "no adapter version"),
        (("adapter", "rollback", "--domain", "medical"), 2, "no promoted adapter"),
        (("dataset", "add", "{tmp}/missing.jsonl"), 2, "is not a file"),
        (("dataset", "add", "{handbook}/parking.txt", "--map", "question"), 2, "expected ours=theirs"),
        (("eval", "run", "--dataset", "none"), 2, "no data set 'none'"),
        (("eval", "show", "nothing"), 2, "no run 'nothing'"),
        (("key", "create", "x", "--domain", "law"), 2, "unknown domain 'law'"),
        (("key", "revoke", "nobody"), 2, "nobody"),
        (("verified", "remove", "ver-0"), 2, "no verified answer"),
        (("verified", "add", "q", "a", "--doc", "nothing.md"), 2, "no document nothing.md"),
        (("model", "pull", "ftp:x"), 2, "expected hub:org/name"),
        (("advise", "--save", "--knowledge-update-frequency", "high"), 2, "--save needs --domain"),
        (("advise", "--knowledge-update-frequency", "hihg"), 2, "did you mean 'high'?"),
        (("advise", "--reasoning-complexity", "low", "--gpu-hours", "-1"), 2, "gpu_hours"),
        (("--set", "retrieval.k=0", "search", "x"), 2, "retrieval.k"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_bad_input_says_what_is_wrong_and_loses_nothing(  # type: ignore[no-untyped-def]
    filled: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int | None, message: str
) -> None:
    def call(*given: str) -> tuple[int, str, str]:
        code = run(["--workspace", str(filled / "workspace"), *given])
        return code, *capsys.readouterr()

    _, before, _ = call("document", "list", "--json")
    named = (part.format(tmp=filled, handbook=filled / "handbook") if len(part) < 1000 else part for part in arguments)
    found, out, err = call(*named)
    assert found == code if code is not None else found in (1, 2)
    assert message in err and out == ""
    assert call("document", "list", "--json")[1] == before


def test_without_a_domain_the_only_one_is_meant(appliance, handbook: Path) -> None:  # type: ignore[no-untyped-def]
    assert appliance("ingest", handbook).code != 0
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    assert appliance("ingest", handbook).code == 0
    (handbook.parent / "law").mkdir()
    shutil.copy(handbook / "parking.txt", handbook.parent / "law")
    assert appliance("ingest", handbook.parent / "law", "--domain", "legal").code == 0
    done = appliance("ingest", handbook)
    assert done.code != 0 and "legal" in done.err and "medical" in done.err


def test_a_corrupt_index_file_is_named_and_rebuilt(appliance, handbook: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    appliance("ingest", handbook, "--domain", "medical")
    victim = next((tmp_path / "workspace" / "index").rglob("vectors.npy"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 0xFF
    victim.write_bytes(bytes(data))
    done = appliance("search", "visitors")
    assert done.code == 1 and "vectors.npy" in done.err and "appliance index rebuild" in done.err
    assert appliance("index", "verify").code == 1
    assert appliance("index", "rebuild").code == 0
    assert appliance("index", "verify").code == 0
    assert appliance("search", "visitors", "--json").json["results"][0]["doc_id"] == "visiting.md"


def test_advise_is_saved_as_the_routers_prior(appliance, handbook: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    appliance("ingest", handbook, "--domain", "medical")
    file = tmp_path / "scenario.toml"
    file.write_text(
        'knowledge_update_frequency = "high"\naccuracy_requirement = "critical"\n[roi]\ngpu_hours = 100\ngpu_price = 2.5\n'
        "engineer_months = 2\nmonthly_salary = 8000\ndata_volume = 5000\nannotation_price = 0.5\nautomated_tasks = 20000\n"
        "task_value = 1.5\nprocess_speedup = 300\ntime_value = 40\n",
        "utf-8",
    )
    data = appliance("advise", file, "--domain", "medical", "--save", "--json").json
    assert data["choice"] == "rag" and data["conflicts"]
    assert [rule["name"] for rule in data["rules"] if rule["fired"]] == ["knowledge_update_frequency=high"]
    # 100*2.5 + 2*8000 + 5000*0.5 = 18750; 20000*1.5 + 300*40 = 42000; (42000-18750)/18750 = 124 %; 18750/42000*12 = 5.357
    assert data["roi"]["total_cost"] == 18750 and data["roi"]["annual_benefit"] == 42000
    assert data["roi"]["roi_percentage"] == pytest.approx(124.0) and data["roi"]["payback_months"] == pytest.approx(5.35714, abs=1e-4)
    shown = appliance("config", "show", "--origin", "--json").json
    assert shown["domains.medical.scenario"] == {"value": "rag", "origin": "appliance.toml"}


def test_keys_datasets_and_doctor(appliance, handbook: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    appliance("ingest", handbook, "--domain", "medical")
    made = appliance("key", "create", "desk", "--domain", "medical", "--json").json
    assert made["key"] not in appliance("key", "list", "--json").out
    assert made["key"].encode() not in (tmp_path / "workspace" / "appliance.db").read_bytes()
    assert appliance("key", "revoke", made["id"]).code == 0
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("instruction,output\nWhen may visitors come?,From 14:00 to 20:00.\n探视时间？,15:00至19:00。\n", "utf-8")
    added = appliance("dataset", "add", pairs, "--domain", "medical", "--json").json
    assert added["changed"] and added["mapping"]["question"] == "instruction" and added["counts"]["languages"] == {"en": 1, "zh": 1}
    assert not appliance("dataset", "add", pairs, "--domain", "medical", "--json").json["changed"]
    assert appliance("dataset", "check", "pairs", "--json").code == 0
    doctor = appliance("doctor", "--json")
    assert doctor.code == 0, doctor.out
    assert {"python", "memory", "disk", "cpu", "gpu", "database", "index"} <= {finding["check"] for finding in doctor.json}


def test_the_workspace_may_be_named_behind_the_command(handbook: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "other")
    assert run(["init", root]) == 0
    assert run(["ingest", str(handbook), "--domain", "medical", "--workspace", root]) == 0
    capsys.readouterr()
    assert run(["document", "list", "--json", "-w", root]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert run(["document", "list", "--workspace", str(tmp_path / "nowhere")]) == 2
