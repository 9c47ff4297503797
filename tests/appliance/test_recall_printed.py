"""The recall of a search that was made approximate is shown where that happens, and by `index status`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from appliance.cli.main import run
from appliance.knowledge.knowledge import Knowledge
from appliance.workspace import Workspace
from retrieval import ann, compact
from tests.retrieval.retrieval_support import HashingEmbedder, write

TOPICS = ["visiting hours", "床位费 标准", "gentamicin dose", "违约金 合同", "parking rules", "门诊 预约"]


def corpus(path: Path, count: int, seed: int) -> Path:
    picked = random.Random(seed)
    rows = [{"id": f"{seed}-{n}", "text": f"{picked.choice(TOPICS)} {picked.choice(TOPICS)} {seed}-{n}"} for n in range(count)]
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_recall_is_printed_by_ingest_rebuild_and_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Knowledge, "_open_model", lambda self, reference: HashingEmbedder())
    monkeypatch.setattr(ann, "ANN_ROWS", 600)
    monkeypatch.setattr(compact, "FANOUT", 2)
    root = str(tmp_path / "workspace")
    Workspace.create(tmp_path / "workspace").close()

    def call(*arguments: str) -> tuple[str, str]:
        assert run(["--workspace", root, *arguments]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    out, err = call("ingest", str(corpus(tmp_path / "a.jsonl", 500, 1)), "--domain", "medical", "--json")
    assert json.loads(out)["merged"] == [] and "merged" not in err
    out, err = call("ingest", str(corpus(tmp_path / "b.jsonl", 500, 2)), "--domain", "medical", "--json")
    (merged,) = json.loads(out)["merged"]
    recall = merged["search"]["recall"]
    assert merged["rows"] == 1000 and min(recall.values()) >= merged["search"]["target"] == 0.98
    line = f"recall@10: passages {recall['passages']}, questions {recall['questions']}"
    assert f"merged: 1000 live rows, search ivf-sq8 ({line})" in err
    table, _ = call("index", "status")
    assert "recall@10" in table and line.partition(": ")[2] in table
    out, err = call("index", "rebuild", "--json")
    assert [made["rows"] for made in json.loads(out)["merged"]] == [1000] and "rows, search ivf-sq8 (recall@10: passages" in err
