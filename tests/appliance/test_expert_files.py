"""Tasks of experts through spreadsheets and editors, and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import click
import pytest
from expert_support import command, make_run

from appliance.experts.files import guarded, take_in, unguarded
from appliance.experts.tasks import ExpertTasks
from appliance.knowledge.knowledge import Knowledge
from appliance.store.tables_experts import expert_task
from retrieval.embed import Embedder
from retrieval.types import Scope
from tests.retrieval.retrieval_support import HashingEmbedder

ALL = Scope(None, frozenset({"management"}))
GOOD = {"correctness": 5, "completeness": 4, "citation": 5, "harm": 5}
BAD = {"correctness": 1, "completeness": 2, "harm": 4}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def light(self: Knowledge, reference: str) -> Embedder:
        return HashingEmbedder()

    monkeypatch.setattr(Knowledge, "_open_model", light)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


def write(file: Path, made: list[dict[str, str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return file


def test_through_a_spreadsheet_and_back(light: Knowledge, tmp_path: Path) -> None:
    run = make_run(light)
    assert command(light, "eval", "expert", "prepare", "last", "--expert", "王医生", "--expert", "li")["assigned"] == {"王医生": 8, "li": 8}
    file = tmp_path / "任务.csv"
    assert command(light, "eval", "expert", "export", "run-1", file, "-e", "王医生", "--bom")["tasks"] == 8
    assert file.read_bytes().startswith(b"\xef\xbb\xbf") and "'=免费" in file.read_text("utf-8")
    made = rows(file)
    for number, row in enumerate(made[:5]):
        scores = GOOD if row["sources_a"] else BAD
        made[number] |= {name: str(value) for name, value in scores.items()}
    made[0]["correction"] = "'=50元"
    made[5]["cannot_judge"] = "不是我的专业"
    made[6]["correctness"] = "9"
    back = write(tmp_path / "back.csv", made)
    done = command(light, "eval", "expert", "import", "run-1", back, "-e", "王医生", code=3)
    assert done["counts"] == {"new": 6, "changed": 0, "unchanged": 0, "empty": 1}
    assert [(row["row"], row["field"]) for row in done["bad"]] == [(7, "correctness")] and "from 1 to 5" in done["bad"][0]["reason"]
    again = command(light, "eval", "expert", "import", "run-1", back, "-e", "王医生", code=3)
    assert again["counts"] == {"new": 0, "changed": 0, "unchanged": 6, "empty": 1}
    made[6] |= {name: str(value) for name, value in (GOOD if made[6]["sources_a"] else BAD).items()}
    made[1]["comment"] = "改主意了"
    counts = command(light, "eval", "expert", "import", "run-1", write(back, made), "-e", "王医生")["counts"]
    assert counts == {"new": 1, "changed": 1, "unchanged": 5, "empty": 1}
    said = [judged.judgement for judged, _ in ExpertTasks(light.workspace.db).judged(run.id)]
    assert len(said) == 7 and "=50元" in {one.correction for one in said}
    # What is done is not given out again.
    rest = tmp_path / "rest.jsonl"
    assert command(light, "eval", "expert", "export", "run-1", rest, "-e", "王医生")["tasks"] == 1
    status = command(light, "eval", "expert", "status", "run-1")
    assert status["experts"]["王医生"] == {"open": 1, "done": 6, "cannot": 1, "skipped": 0} and status["complete"] == 0
    assert "quote" not in json.dumps(status)


def test_a_file_in_the_way_or_of_another_run(light: Knowledge, tmp_path: Path) -> None:
    make_run(light)
    command(light, "eval", "expert", "prepare", "run-1")
    file = tmp_path / "tasks.jsonl"
    command(light, "eval", "expert", "export", "run-1", file, "-e", "li", "--limit", "2")
    with pytest.raises(Exception, match="is there already, perhaps with judgements"):
        command(light, "eval", "expert", "export", "run-1", file, "-e", "li")
    with pytest.raises(Exception, match=r"ending in \.csv or \.jsonl"):
        command(light, "eval", "expert", "export", "run-1", tmp_path / "x.xlsx", "-e", "li")
    with light.workspace.db.write() as connection:
        connection.execute(expert_task.update().values(answer_a="药" * 40_000))
    with pytest.raises(Exception, match=r"a text of 40,000 characters, a cell holds 32,767; export to a \.jsonl file"):
        command(light, "eval", "expert", "export", "run-1", tmp_path / "long.csv", "-e", "zhao")
    command(light, "eval", "expert", "export", "run-1", tmp_path / "long.jsonl", "-e", "zhao")
    (tmp_path / "other.jsonl").write_text('{"task": "task-1", "correctness": 5}\n', "utf-8")
    with pytest.raises(Exception, match=r"no row names a task of run run-1.*leave this column as it was"):
        command(light, "eval", "expert", "import", "run-1", tmp_path / "other.jsonl", "-e", "li")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(Exception, match="the file is empty"):
        command(light, "eval", "expert", "import", "run-1", tmp_path / "empty.csv", "-e", "li")
    twice = file.read_text("utf-8").splitlines()[0].replace('"cannot_judge": ""', '"cannot_judge": "?"')
    file.write_text(f"{twice}\n{twice}\nnot json\n", "utf-8")
    done = take_in(ExpertTasks(light.workspace.db), "li", ALL, "run-1", file)
    assert done.counts["new"] == 1 and [bad.row for bad in done.bad] == [2, 3] and "is in row 1 already" in done.bad[0].reason
    with pytest.raises(click.UsageError):
        command(light, "eval", "expert", "export", "run-1", file)


@pytest.mark.parametrize("cell", ["=1+1", "+4", "-4", "@sum", " =x", "\t=x", "＝1", "=HYPERLINK(1)"])
def test_no_cell_is_a_formula(cell: str) -> None:
    assert guarded(cell) == f"'{cell}" and unguarded(guarded(cell)) == cell


@pytest.mark.parametrize("cell", ["", "50元", "'quoted'", "3 - 4", "a=b"])
def test_other_cells_stay(cell: str) -> None:
    assert guarded(cell) == unguarded(cell) == cell
