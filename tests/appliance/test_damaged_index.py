"""A damaged index, as the commands and the gateway show it: an older generation stands in, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with
from starlette.testclient import TestClient

from appliance.admin.keys import Keys
from appliance.answers.feedback import Feedback
from appliance.cli.main import run
from appliance.gateway.app import create_app
from appliance.knowledge.index_status import index_status
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.settings import FeedbackConfig
from appliance.workspace import Workspace
from retrieval import fallback
from tests.retrieval.retrieval_support import HashingEmbedder, write

QUESTION = "When may visitors come?"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Knowledge]:
    """Generation 2 changes one document and adds one; the commands use the tests' embedder, too."""
    monkeypatch.setattr(Knowledge, "_open_model", lambda self, reference: HashingEmbedder())
    docs = tmp_path / "docs"
    write(docs / "visits.md", "# Visits\n\nVisitors may come from 14:00 to 20:00.\n")
    write(docs / "fees.md", "# 收费标准\n\n第一条　每日床位费为20元。\n")
    with Workspace.create(tmp_path / "workspace") as workspace:
        knowledge = Knowledge(workspace, ModelStore.default())
        knowledge.ingest([docs], domain="medical")
        write(docs / "fees.md", "# 收费标准\n\n第一条　每日床位费为50元。\n")
        write(docs / "parking.md", "# Parking\n\nVisitors may come by car and park in the north.\n")
        knowledge.ingest([docs], domain="medical")
        yield knowledge


def _segments(knowledge: Knowledge, generation: int) -> list[Path]:
    info = knowledge.store.generation(generation)
    assert info is not None
    return [knowledge.workspace.root / "index" / "segments" / id for id in knowledge.vectors.read_manifest(info)]


def _flip(path: Path) -> None:
    # In its place: a file that is shorter for a moment kills whoever has it mapped (SIGBUS).
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


@pytest.fixture
def newest(base: Knowledge) -> Path:
    """A file that only generation 2 has."""
    old = _segments(base, 1)
    (segment,) = (segment for segment in _segments(base, 2) if segment not in old)
    return segment / "vectors.npy"


@pytest.fixture
def shared(base: Knowledge) -> Path:
    """A file that both generations have."""
    (segment,) = _segments(base, 1)
    return segment / "vectors.npy"


Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def call(base: Knowledge, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command: its exit code, its JSON, and what it said on stderr."""

    def invoke(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = run(["--workspace", str(base.workspace.root), *arguments, "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out.strip() else {}, captured.err

    return invoke


def test_search_goes_on_and_says_so(base: Knowledge, newest: Path, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    code, found, said = call("search", QUESTION)
    assert (code, found["generation"], "degraded" in found, said) == (0, 2, False, "")
    _flip(newest)
    code, found, _ = call("search", QUESTION)
    assert (code, found["generation"], found["degraded"]) == (0, 1, True)
    assert "14:00 to 20:00" in found["results"][0]["text"]
    # Where nothing else is configured, Python writes this line to stderr.
    (said,) = [record.getMessage() for record in caplog.records if record.name == "appliance.index"]
    assert str(newest) in said and "generation 2 is damaged, 1 serves" in said
    # What was replaced is not served, and what replaced it cannot be.
    assert "床位费" not in str(call("search", "每日床位费是多少？")[1]["results"])


def test_an_answer_warns(base: Knowledge, newest: Path, call: Call) -> None:
    assert call("ask", QUESTION, "--arm", "quote")[1]["warnings"] == []
    _flip(newest)
    code, answer, _ = call("ask", QUESTION, "--arm", "quote")
    assert code == 0 and "14:00 to 20:00" in answer["answer"] and answer["citations"] and answer["generation"] == 1
    assert answer["warnings"] == ["The index is damaged; what is sound of it, or an older state, answers, and documents may be missing."]
    assert call("ask", "探视时间是几点？", "--arm", "refuse")[1]["warnings"] == [
        "索引已损坏，正在使用其完好的部分或较早的状态作答，部分文档可能缺失。"
    ]


def test_status_and_verify_name_the_file_and_rebuild_repairs(base: Knowledge, newest: Path, call: Call) -> None:
    code, status, _ = call("index", "status")
    assert (code, status["generation"], status["parent"], status["serving"], status["problems"]) == (0, 2, 1, 2, [])
    assert (status["documents"], status["chunks"], status["dead_rows"]) == (3, 3, 1)
    assert status["languages"] == {"en": 2, "zh": 1}
    assert sorted((row["rows"], row["live"], row["search"]) for row in status["segments"]) == [(2, 1, "exact"), (2, 2, "exact")]
    size = sum(path.stat().st_size for path in (base.workspace.root / "index" / "segments").rglob("*.npy"))
    assert status["bytes"]["index"] > size and status["bytes"]["database"] > 4096
    assert status["embedding"]["same"] is True and status["embedding"]["configured"].startswith("pypi:")
    (last,) = status["ingests"]
    assert (last["domain"], last["added"], last["updated"], last["generation"]) == ("medical", 1, 1, 2)
    assert last["root"] == str(base.workspace.root.parent / "docs")
    assert call("index", "verify") == (0, {"ok": True, "problems": []}, "")

    _flip(newest)
    code, status, _ = call("index", "status")
    assert (code, status["generation"], status["serving"]) == (0, 2, 1)
    assert len(status["problems"]) == 1 and str(newest) in status["problems"][0] and "appliance index rebuild" in status["problems"][0]
    code, verified, _ = call("index", "verify")
    assert code == 1 and str(newest) in verified["problems"][0]

    assert call("index", "rebuild")[0] == 0
    assert call("index", "verify")[0] == 0
    _, found, _ = call("search", "每日床位费是多少？")
    assert found["generation"] == 3 and "50元" in str(found["results"])


def test_what_is_left_serves_and_says_what_is_missing(base: Knowledge, shared: Path, call: Call) -> None:
    _flip(shared)
    code, found, _ = call("search", QUESTION)
    assert (code, found["generation"], found["degraded"]) == (0, 2, True)
    assert "park in the north" in str(found["results"]) and "14:00" not in str(found["results"])
    assert "50元" in str(call("search", "每日床位费是多少？")[1]["results"])
    assert "documents may be missing" in call("ask", "Where do visitors park?", "--arm", "quote")[1]["warnings"][0]
    code, status, _ = call("index", "status")
    (problem,) = status["problems"]
    assert code == 0 and "serves without 1 of its 3 documents" in problem and str(shared) in problem
    assert call("index", "rebuild")[0] == 0
    assert "14:00" in str(call("search", QUESTION)[1])


def test_nothing_sound_is_one_line_that_says_what_to_do(base: Knowledge, shared: Path, newest: Path, call: Call) -> None:
    _flip(shared)
    _flip(newest)
    for command in (["search", QUESTION], ["ask", QUESTION, "--arm", "quote"]):
        code, _, said = call(*command)
        lines = said.strip().splitlines()
        assert code == 1 and "vectors.npy: the content has changed" in lines[-1] and "appliance index rebuild" in lines[-1]
        assert "Traceback" not in said
    code, status, _ = call("index", "status")
    assert (code, status["serving"]) == (0, None) and "vectors.npy" in status["problems"][0]
    assert call("index", "rebuild")[0] == 0
    assert call("search", QUESTION)[1]["generation"] == 3


def test_the_status_for_people(base: Knowledge, newest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip(newest)
    assert run(["--workspace", str(base.workspace.root), "index", "status"]) == 0
    shown = capsys.readouterr().out
    for words in ("dead rows", "en 2, zh 1", "as configured", "last ingested", "problem: generation 2 is damaged", "exact"):
        assert words in shown


def test_the_status_of_an_empty_workspace(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Knowledge, "_open_model", lambda self, reference: HashingEmbedder())
    assert run(["--workspace", str(workspace.root), "index", "status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["generation"], status["serving"], status["segments"], status["problems"]) == (None, None, [], [])


def test_the_running_gateway(base: Knowledge, newest: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(fallback, "_LOOK_SECONDS", 0.0)
    answering = answering_with(base, ScriptedEngine("Visitors may come from 14:00 to 20:00."))
    parts: Any = {"passage": base.passage, "embedding": lambda: base.embedder, "feedback": Feedback(base.workspace.db, FeedbackConfig())}
    app = create_app(answering, Keys(base.workspace.db), **parts, auth_required=False, version="0")
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as http:
        question = {"question": QUESTION, "domain": "medical", "arm": "quote"}
        while http.get("/readyz").json()["status"] == "starting":
            continue
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"], ready.json()["index"]) == (200, [], {"ok": True, "generation": 2})

        _flip(newest)
        answer = http.post("/v1/answer", json=question)
        assert answer.status_code == 200 and answer.json()["generation"] == 1 and len(answer.json()["warnings"]) == 1
        assert str(base.workspace.root) not in answer.text
        (citation,) = answer.json()["citations"]
        place = f"/v1/documents/medical/{citation['doc_id']}?start={citation['start']}&end={citation['end']}"
        assert http.get(place).json()["quote"] == citation["quote"]
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["degraded"]) == (200, "ready", ["index"])
        assert str(base.workspace.root) not in ready.text

        _flip(newest)
        assert http.get("/readyz").json()["degraded"] == []
        assert http.post("/v1/answer", json=question).json()["generation"] == 2

        _flip(shared)
        answer = http.post("/v1/answer", json=question)
        assert answer.status_code == 200 and answer.json()["generation"] == 2 and len(answer.json()["warnings"]) == 1
        assert http.get("/readyz").json()["degraded"] == ["index"]
        _flip(newest)
        assert http.get("/readyz").status_code == 503
        failed = http.post("/v1/answer", json=question)
        assert failed.status_code == 503 and failed.json()["error"]["code"] == "index_unavailable"
        assert str(shared) not in failed.text
        _flip(shared)
        _flip(newest)
        assert http.post("/v1/answer", json=question).json()["generation"] == 2


def test_the_status_on_postgresql(workspace: Workspace, tmp_path: Path, postgres_url: str) -> None:
    write(tmp_path / "docs" / "visits.md", "# Visits\n\nVisitors may come from 14:00 to 20:00.\n")
    with Workspace(workspace.root, {"database.url": postgres_url}) as remote:
        knowledge = Knowledge(remote, ModelStore.default(), HashingEmbedder())
        knowledge.ingest([tmp_path / "docs"], domain="medical")
        status = index_status(knowledge)
    assert (status["generation"], status["serving"], status["problems"], status["languages"]) == (1, 1, [], {"en": 1})
    (segment,) = status["segments"]
    assert (segment["rows"], segment["live"], segment["search"]) == (1, 1, "exact") and segment["bytes"] > 0
    assert status["bytes"]["database"] > 1 << 20 and status["ingests"][0]["added"] == 1
