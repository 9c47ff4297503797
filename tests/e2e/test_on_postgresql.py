"""The product on PostgreSQL: the real commands and model, and two machines that share nothing but the database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_support import make_handbook

from appliance.cli.main import run
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.types import Caller
from appliance.workspace import Workspace
from retrieval.types import DocumentKey, Scope


@pytest.fixture
def machine(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a workspace on the shared database, in a folder of its own."""
    monkeypatch.setenv("APPLIANCE_DATABASE__URL", postgres_url)

    def make(name: str) -> Path:
        assert run(["init", str(tmp_path / name)]) == 0
        return tmp_path / name

    return make


def test_two_gateways_see_a_new_generation_at_once(machine: Callable[[str], Path], tmp_path: Path) -> None:
    handbook, models = make_handbook(tmp_path / "handbook"), ModelStore.default()
    with Workspace(machine("one")) as first, Workspace(machine("two")) as second:
        one, two = Knowledge(first, models), Knowledge(second, models)
        assert two.search("visitors", Scope()).passages == ()
        report = one.ingest([handbook], domain="medical")
        assert (report.added, report.generation) == (3, 1)
        question = "重症监护室可以几个人探视"
        assert [found.search(question, Scope()).passages for found in (one, two)][1][0].document.id == "zh/visiting.md"
        assert one.search(question, Scope()).passages == two.search(question, Scope()).passages

        (handbook / "parking.txt").write_text("Parking in the north garage is free.\n", "utf-8")
        two.ingest([handbook], domain="medical")
        assert one.search("parking in the north garage", Scope()).generation == 2
        one.remove([DocumentKey("medical", "zh/visiting.md")])
        assert "zh/visiting.md" not in {found.document.id for found in two.search(question, Scope()).passages}
        two.rollback(1)
        found = one.search("parking in the north garage crowns", Scope())
        assert found.generation == 1 and "3 crowns" in found.passages[0].chunk.text
        assert "zh/visiting.md" not in {passage.document.id for passage in one.search(question, Scope()).passages}
        assert two.passage("medical", "visiting.md", 0, 10, Caller()) is not None
        # No vectors are in the workspace: the copies of postings are all there is.
        assert {path.suffix for path in (second.root / "index").rglob("*") if path.is_file()} == {".postings"}


@pytest.mark.slow
def test_the_commands(machine: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, handbook = machine("one"), make_handbook(tmp_path / "handbook")

    def appliance(*arguments: object) -> dict[str, object]:
        capsys.readouterr()
        code = run(["--workspace", str(root), *map(str, arguments), "--json"])
        out = capsys.readouterr().out
        assert code == 0, out
        found: dict[str, object] = json.loads(out)
        return found

    assert appliance("ingest", handbook, "--domain", "medical")["added"] == 3
    assert appliance("ingest", handbook, "--domain", "medical")["unchanged"] == 3
    assert "14:00 to 20:00" in json.dumps(appliance("ask", "When may visitors come?", "--arm", "quote"))
    assert appliance("document", "remove", "visiting.md")["removed"] == 1
    appliance("index", "rollback", 1)
    assert "14:00" not in json.dumps(appliance("search", "When may visitors come?"))
    assert "postgresql+pg8000://postgres:***@" in json.dumps(appliance("config", "show"))
    for command in ("verify", "compact", "rebuild", "verify", "status"):
        appliance("index", command)
    assert "20:00" not in json.dumps(appliance("search", "visitors"))
