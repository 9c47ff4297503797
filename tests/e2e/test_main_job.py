"""Documents to adapter to answer with the real models, and kills in the middle of it."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


def _pairs(path: Path) -> Path:
    rows = [
        {"id": f"q{n}", "question": question, "answer": answer, "doc_ids": [doc], "lang": "en", "domain": "medical", "split": split}
        for n, (question, answer, doc, split) in enumerate(
            [
                ("When may visitors come?", "From 14:00 to 20:00.", "visiting.md", "train"),
                ("Who must come with children under 12?", "An adult.", "visiting.md", "train"),
                ("What does parking cost an hour?", "3 crowns.", "parking.txt", "train"),
                ("What does a day of parking cost at most?", "18 crowns.", "parking.txt", "train"),
                ("What are the visiting hours?", "14:00 to 20:00.", "visiting.md", "dev"),
                ("What is the most one pays for parking in a day?", "18 crowns.", "parking.txt", "test"),
            ]
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _settings(path: Path) -> Path:
    path.write_text("epochs = 2\nbatch_size = 2\n", "utf-8")
    return path


@pytest.mark.slow
def test_tune_promote_evaluate_ask(appliance, handbook: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    appliance("ingest", handbook, "--domain", "medical")
    appliance("dataset", "add", _pairs(tmp_path / "pairs.jsonl"), "--domain", "medical")
    done = appliance("tune", "--domain", "medical", "--dataset", "pairs", "--config", _settings(tmp_path / "tune.toml"), "--json")
    assert done.code == 0, done.err
    keys = ("domain", "version", "method", "train_examples", "dropped", "train_loss", "eval_loss", "tokens_per_second", "seconds", "path")
    assert done.json["estimated_mib"] > 0 and done.json["peak_mib"] > 0
    assert set(keys) <= set(done.json) and done.json["train_examples"] == 4 and done.json["dropped"] == {"test split": 1}
    version = done.json["version"]
    assert (Path(done.json["path"]) / "loss.png").stat().st_size > 0
    shown = appliance("adapter", "show", version, "--json").json
    assert shown["evidence"] == {"declared": 4, "inferred": 0, "unlinked": 0}
    assert appliance("ask", "x", "--arm", "finetuned").code == 2
    assert appliance("adapter", "lint", version, "--json").json == {"version": version, "problems": []}
    # The gate first with more asked of it than one question can show, then as it is.
    strict = ("--set", "domains.medical.gate.strict=true", "--set", "domains.medical.gate.latency_questions=1")
    missed = appliance(*strict, "adapter", "promote", version, "--json")
    assert missed.code == 4 and not missed.json["promoted"] and "--force --why" in missed.err
    checks = {check["name"]: check for check in missed.json["gate"]["checks"]}
    assert checks["quality finetuned"]["n"] == 1 and "no difference shown" in checks["quality finetuned"]["note"]
    assert checks["forgetting"]["status"] == checks["refusal"]["status"] == "skipped" and checks["speed"]["candidate"] > 0
    forced = appliance("adapter", "promote", version, "--force", "--why", "主任同意", "--json")
    assert forced.code == 0 and forced.json["why"].startswith("forced: 主任同意 (gate ")
    assert "主任同意" in appliance("adapter", "show", version, "--card").out
    assert (
        appliance("adapter", "list", "--json").json[0] | {"live": True, "gate": "missed"} == appliance("adapter", "list", "--json").json[0]
    )

    answer = appliance("ask", "When may visitors come?", "--arm", "finetuned", "--max-tokens", 12, "--json").json
    assert answer["arm"] == "finetuned" and answer["adapter"] == version and answer["answer"].strip()
    mixed = appliance("ask", "When may visitors come?", "--arm", "hybrid", "--max-tokens", 12, "--json").json
    assert mixed["arm"] == "hybrid" and mixed["adapter"] == version

    run = appliance("eval", "run", "--dataset", "pairs", "--max-tokens", 12, "--json").json
    assert {"run_id", "dataset", "n", "arms", "routed", "oracle"} <= set(run) and run["n"] == 1
    assert {"base", "quote", "rag", "finetuned", "hybrid"} == set(run["arms"])
    assert appliance("eval", "show", "last", "--json").json == run
    assert appliance("eval", "compare", "last", run["run_id"], "--json").code == 0

    # What was trained on goes stale with its document, and the decision says so.
    (handbook / "visiting.md").write_text("# Visiting rules\n\nVisitors may come from 09:00 to 11:00 every day.\n", "utf-8")
    appliance("ingest", handbook, "--domain", "medical")
    changed = appliance("ask", "When may visitors come?", "--json").json
    assert changed["arm"] != "finetuned" and "09:00 to 11:00" in changed["answer"]

    with sqlite3.connect(tmp_path / "workspace" / "appliance.db") as connection:
        connection.execute("UPDATE adapter SET base_hash = 'another'")
    refused = appliance("adapter", "promote", version)
    assert refused.code == 1 and "was trained for another base" in refused.err
    asked = appliance("ask", "What does parking cost an hour?", "--arm", "finetuned")
    assert asked.code == 2 and "was trained for another base" in asked.err

    assert appliance("adapter", "rollback", "--domain", "medical", "--json").json == {"domain": "medical", "live": None}
    assert appliance("adapter", "remove", version, "--json").json == {"removed": version, "domain": "medical"}
    assert appliance("adapter", "list", "--json").json == [] and not Path(done.json["path"]).exists()


@pytest.mark.slow
def test_killed_while_ingesting_and_tuning(appliance, handbook: Path, tmp_path: Path, start: Start) -> None:  # type: ignore[no-untyped-def]
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    before = appliance("search", "visitors", "--json").json
    for number in range(30):
        (handbook / f"new-{number}.md").write_text(
            f"# Rule {number}\n\nRoom {number} opens at {number % 24}:15 for the night shift.\n", "utf-8"
        )
    chance = random.Random(7)
    for _ in range(3):
        process = start("ingest", handbook, "--domain", "medical")
        time.sleep(chance.uniform(0.5, 12))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert appliance("index", "verify").code == 0
        found = appliance("search", "visitors", "--json").json
        assert found["results"][0]["text"] == before["results"][0]["text"]
        assert len(appliance("document", "list", "--json").json) in (3, 33)
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    assert len(appliance("document", "list", "--json").json) == 33

    appliance("dataset", "add", _pairs(tmp_path / "pairs.jsonl"), "--domain", "medical")
    process = start("tune", "--domain", "medical", "--dataset", "pairs")
    assert process.stderr is not None
    next(line for line in process.stderr if '"what": "training' in line)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert appliance("adapter", "list", "--json").json == []
    done = appliance("tune", "--domain", "medical", "--dataset", "pairs", "--config", _settings(tmp_path / "tune.toml"), "--json")
    assert done.code == 0
    assert [row["version"] for row in appliance("adapter", "list", "--json").json] == [done.json["version"]]
