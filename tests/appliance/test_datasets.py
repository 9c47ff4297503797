from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.admin.audit import find
from appliance.cli.main import run
from appliance.datasets.registry import Datasets
from appliance.datasets.removal import remove
from appliance.errors import ApplianceError, UsageError
from appliance.jobs.jobs import Jobs
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.locks import Locked
from appliance.workspace import Workspace
from finetune.dataset import write_pairs
from finetune.types import Pair


def _file(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


ROW = {"question": "门诊挂号费是多少？", "answer": "20元。", "label": "费用", "domain": "hospital", "split": "train"}


def test_what_is_registered_comes_back_with_its_extra_columns(workspace: Workspace, tmp_path: Path) -> None:
    datasets = Datasets(workspace)
    info = datasets.add(_file(tmp_path / "pairs.jsonl", ROW), domain="medical").info
    pair = datasets.pairs(datasets.get("pairs"))[0]
    assert (pair.question, pair.answer, pair.meta["label"]) == ("门诊挂号费是多少？", "20元。", "费用")
    assert (info.domain, pair.domain) == ("medical", "medical")


def test_a_changed_file_is_a_new_version_and_an_unchanged_one_is_not(workspace: Workspace, tmp_path: Path) -> None:
    datasets = Datasets(workspace)
    first = datasets.add(_file(tmp_path / "pairs.jsonl", ROW), domain="medical")
    again = datasets.add(_file(tmp_path / "pairs.jsonl", ROW), domain="medical")
    other = datasets.add(_file(tmp_path / "pairs.jsonl", {**ROW, "answer": "25元。"}), domain="medical")
    assert (first.changed, again.changed, other.changed) == (True, False, True)
    assert again.info.version == first.info.version != other.info.version
    assert [info.version for info in datasets.all()] == [other.info.version]


def test_a_bad_row_is_an_error_or_a_listed_exclusion(workspace: Workspace, tmp_path: Path) -> None:
    datasets = Datasets(workspace)
    file = _file(tmp_path / "pairs.jsonl", ROW, {"question": "", "answer": "x"})
    with pytest.raises(ApplianceError, match=r"pairs\.jsonl.*2"):
        datasets.add(file)
    added = datasets.add(file, skip_bad=True)
    assert added.info.counts["pairs"] == 1 and [excluded.row for excluded in added.excluded] == [2]


def test_an_altered_file_is_noticed(workspace: Workspace, tmp_path: Path) -> None:
    datasets = Datasets(workspace)
    info = datasets.add(_file(tmp_path / "pairs.jsonl", ROW), domain="medical").info
    info.path.write_text(info.path.read_text("utf-8").replace("20元", "90元"), "utf-8")
    with pytest.raises(ApplianceError, match="was altered after it was registered"):
        datasets.pairs(info)


def test_names(workspace: Workspace, tmp_path: Path) -> None:
    datasets = Datasets(workspace)
    with pytest.raises(UsageError, match="cannot be a data set's name"):
        datasets.add(_file(tmp_path / "pairs.jsonl", ROW), name="../evil")
    with pytest.raises(UsageError, match="no data set 'x'; known: none yet"):
        datasets.get("x")


PLAIN = {"question": "门诊挂号费是多少？", "answer": "20元。"}


def test_what_is_not_read_back_as_it_was_written_is_not_registered(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = Datasets(workspace)
    first = datasets.add(_file(tmp_path / "pairs.jsonl", PLAIN)).info

    def lossy(pairs: Sequence[Pair], path: Path) -> None:
        write_pairs([replace(pair, answer=pair.answer.replace("坏", "")) for pair in pairs], path)

    monkeypatch.setattr("appliance.datasets.registry.write_pairs", lossy)
    rows = [{"question": "一？", "answer": "好"}, {"question": "二？", "answer": "好坏"}, {"question": "三？", "answer": "坏"}]
    with pytest.raises(ApplianceError, match=r"^pairs\.jsonl row 2: cannot be stored .*nothing was registered"):
        datasets.add(_file(tmp_path / "pairs.jsonl", *rows))
    with pytest.raises(ApplianceError, match=r'^pairs\.jsonl row 1: cannot be stored \(field "answer": .*empty'):
        datasets.add(_file(tmp_path / "pairs.jsonl", rows[2], rows[0]))
    assert [info.version for info in datasets.all()] == [first.version]
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_a_set_added_again_keeps_its_domain_and_task(workspace: Workspace, tmp_path: Path) -> None:
    datasets, file = Datasets(workspace), tmp_path / "med.jsonl"
    datasets.add(_file(file, PLAIN), domain="medical", task="extract")
    changed = datasets.add(_file(file, {**PLAIN, "answer": "25元。"}))
    assert (changed.info.domain, changed.info.task, changed.notes) == ("medical", "extract", ())
    assert not datasets.add(file).changed
    other = datasets.add(file, domain="legal", task="qa")
    assert (other.info.domain, other.info.task) == ("legal", "qa")
    assert other.notes == (
        "its domain is legal now and was medical before; --domain names it",
        "its task is qa now and was extract before; --task names it",
    )
    # What the rows say is theirs to say.
    assert datasets.add(_file(file, {**PLAIN, "task": "classify"})).info.task == "classify"


def test_the_domain_that_rows_name_changes_with_them(workspace: Workspace, tmp_path: Path) -> None:
    datasets, file = Datasets(workspace), tmp_path / "ward.jsonl"
    assert datasets.add(_file(file, ROW)).info.domain == "hospital"
    moved = datasets.add(_file(file, {**ROW, "domain": "clinic"}))
    assert moved.info.domain == "clinic" and "its domain is clinic now and was hospital before" in moved.notes[-1]
    assert datasets.add(_file(file, {**PLAIN, "answer": "30元。"})).info.domain == "clinic"


def test_rows_of_other_domains_are_counted_where_they_are_taken_for_one(workspace: Workspace, tmp_path: Path) -> None:
    datasets, file = Datasets(workspace), tmp_path / "exam.jsonl"
    rows = [{"question": f"{n}?", "answer": "x", "domain": name} for n, name in enumerate(("heart", "heart", "skin", "medical"))]
    note = "3 pairs name another domain (heart 2, skin 1) and count as medical"
    assert datasets.add(_file(file, *rows), domain="medical").notes == (note,)
    again = datasets.add(_file(file, *rows[:3], {"question": "?", "answer": "y"}))
    assert again.info.domain == "medical" and again.notes == (note,)


def test_a_refused_file_makes_no_domain(workspace: Workspace, tmp_path: Path) -> None:
    datasets, known = Datasets(workspace), workspace.domains()
    with pytest.raises(ApplianceError):
        datasets.add(_file(tmp_path / "pairs.jsonl", {"question": "", "answer": ""}), domain="typo")
    with pytest.raises(UsageError, match="cannot be a domain's name"):
        datasets.add(_file(tmp_path / "pairs.jsonl", PLAIN), domain="No Domain")
    (tmp_path / "dataset_info.json").write_text('{"x": {"file_name": "none.json"}}', "utf-8")
    assert datasets.add_folder(tmp_path, domain="typo")[0].status == "failed"
    assert workspace.domains() == known
    datasets.add(_file(tmp_path / "pairs.jsonl", PLAIN), domain="new")
    assert "new" in workspace.domains()


def test_columns_that_are_not_read_are_named(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _file(tmp_path / "alpaca.jsonl", {"instruction": "Translate", "input": "Hallo", "output": "Hello", "level": 2})
    command = ["--workspace", str(workspace.root), "dataset", "add", str(file), "--map", "question=instruction,answer=output"]
    note = "not read, kept beside the pair: input, level"
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]
    assert Datasets(workspace).pairs(Datasets(workspace).get("alpaca"))[0].meta == {"input": "Hallo", "level": 2}
    assert run(command) == 0
    assert f"note: {note}" in capsys.readouterr().err


def test_a_field_is_mapped_once(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _file(tmp_path / "pairs.jsonl", {"a": "x", "b": "y", "answer": "z"})
    assert run(["--workspace", str(workspace.root), "dataset", "add", str(file), "--map", "question=a,question=b"]) == 2
    assert "names question twice; to join columns write question=a+b" in capsys.readouterr().err


def test_a_field_mapped_to_nothing_is_read_from_no_column(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "什么是变量？", "answer": "变量是一个名字。", "language": word} for word in ("python", "en")]
    command = ["--workspace", str(workspace.root), "dataset", "add", str(_file(tmp_path / "code.jsonl", *rows))]
    assert run(command) == 1
    assert 'field "language": expected en or zh' in capsys.readouterr().err
    assert run([*command, "--map", "lang="]) == 0
    assert "not read, kept beside the pair: language" in capsys.readouterr().err


def _remove(workspace: Workspace, capsys: pytest.CaptureFixture[str], name: str = "pairs") -> dict[str, Any]:
    assert run(["--workspace", str(workspace.root), "dataset", "remove", name, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def _run_over(workspace: Workspace, name: str, version: str) -> str:
    row = {"id": f"run-{version}", "dataset": name, "dataset_version": version, "path": "runs/x", "settings": {}, "created_at": utcnow()}
    with workspace.db.write() as connection:
        connection.execute(schema.run.insert().values(**row))
    return str(row["id"])


def test_a_removed_set_is_gone_but_for_what_rests_on_it(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = Datasets(workspace)
    old, asked, live = (datasets.add(_file(tmp_path / "pairs.jsonl", {**PLAIN, "answer": text})).info for text in "甲乙丙")
    identity = _run_over(workspace, "other,pairs", f"01234567,{asked.version[:8]}")
    data = _remove(workspace, capsys)
    assert set(data["removed"]) == {old.version, live.version} and data["kept"] == {asked.version: [f"run {identity}"]}
    assert datasets.all() == [] and [path.name for path in live.path.parent.iterdir()] == [asked.path.name]
    assert datasets.pairs(datasets.state("pairs", asked.version))[0].answer == "乙"
    with pytest.raises(UsageError, match="no data set 'pairs'"):
        datasets.get("pairs")
    with workspace.db.write() as connection:
        connection.execute(schema.run.delete())
    assert _remove(workspace, capsys) == {"name": "pairs", "removed": [asked.version], "kept": {}}
    assert not asked.path.exists()
    with pytest.raises(UsageError, match="no data set 'pairs'"):
        remove(workspace, "pairs")
    # The name is free.
    assert datasets.add(tmp_path / "pairs.jsonl").changed
    assert [entry["action"] for entry in find(workspace.db, "dataset.remove", None, 10)] == ["dataset.remove"]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("eval-run", {"dataset": "other, pairs"}),
        ("tune", {"dataset": None, "settings": {"stages": [{"dataset": "x", "eval_dataset": "pairs"}]}}),
    ],
)
def test_a_set_that_a_job_or_a_setting_names_is_not_removed(
    workspace: Workspace, tmp_path: Path, kind: str, arguments: dict[str, Any]
) -> None:
    datasets = Datasets(workspace)
    datasets.add(_file(tmp_path / "pairs.jsonl", PLAIN), domain="medical")
    job = Jobs(workspace.db).add(kind, arguments, "medical")
    with pytest.raises(UsageError, match=f"pairs is used by {job.id} \\({kind}, queued\\); wait for it"):
        remove(workspace, "pairs")
    Jobs(workspace.db).cancel(job.id)
    with workspace.db.lock("tune:medical"), pytest.raises(Locked):
        remove(workspace, "pairs")
    workspace.save_setting("domains.medical.gate.general", "everyday, pairs")
    with pytest.raises(UsageError, match=r"\[domains\.medical\] gate\.general names pairs; change that first"):
        remove(workspace, "pairs")
    assert datasets.pairs(datasets.get("pairs"))
