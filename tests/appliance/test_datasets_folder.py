"""`dataset add` of a whole folder and with a task, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import llama_factory_folder
import pytest

from appliance.cli.main import run
from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.workspace import Workspace
from finetune.llama_factory import read_entry


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    return llama_factory_folder.build(tmp_path / "data")


def _add(workspace: Workspace, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = run(["--workspace", str(workspace.root), "dataset", "add", *map(str, arguments), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def _statuses(data: dict[str, Any]) -> dict[str, str]:
    return {entry["entry"]: entry["status"] for entry in data["entries"]}


def test_a_folder_registers_what_can_be_used_and_lists_the_rest(
    workspace: Workspace, team: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, data = _add(workspace, capsys, team, "--domain", "finance")
    usable = [name for name in llama_factory_folder.REGISTRY if name not in llama_factory_folder.UNUSABLE]
    assert (code, data["registered"]) == (3, len(usable))
    assert _statuses(data) == {**dict.fromkeys(usable, "registered"), **dict.fromkeys(llama_factory_folder.UNUSABLE, "unusable")}
    for entry in data["entries"]:
        assert llama_factory_folder.UNUSABLE.get(entry["entry"], "") in entry["reason"]
    datasets = Datasets(workspace)
    assert sorted(info.name for info in datasets.all()) == sorted(usable)
    fees = datasets.get("fees_zh")
    assert fees.domain == "finance" and fees.source.endswith("dataset_info.json#fees_zh")
    assert [(pair.system, pair.domain, pair.conversation) for pair in datasets.pairs(fees)] == [
        ("你是柜台助手。", "finance", None),
        (None, "finance", "fees-2"),
        (None, "finance", "fees-2"),
    ]
    assert datasets.pairs(datasets.get("prefer"))[0].rejected == "Much."
    assert (datasets.get("prefer").counts["preferences"], fees.counts["conversations"]) == (1, 1)


def test_adding_again_changes_only_what_changed(workspace: Workspace, team: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = _add(workspace, capsys, team)
    _, again = _add(workspace, capsys, team / "dataset_info.json")
    assert set(_statuses(again).values()) == {"unchanged", "unusable"}
    (team / "identity.json").write_text('[{"instruction": "你是谁？", "output": "理赔助手。"}]', "utf-8")
    _, changed = _add(workspace, capsys, team)
    assert [name for name, status in _statuses(changed).items() if status == "registered"] == ["identity"]
    versions = [next(entry["version"] for entry in data["entries"] if entry["entry"] == "identity") for data in (first, again, changed)]
    assert versions[0] == versions[1] != versions[2]


def test_a_bad_entry_stops_no_other_one(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = {"identity": {"file_name": "identity.json"}, "typo": {"file_nam": "x"}, "fees_zh": {"file_name": "../fees.jsonl"}}
    team = llama_factory_folder.build(tmp_path / "data", registry)
    code, data = _add(workspace, capsys, team)
    assert (code, _statuses(data)) == (3, {"identity": "registered", "typo": "failed", "fees_zh": "failed"})
    assert 'mean "file_name"' in data["entries"][1]["reason"]
    code, data = _add(workspace, capsys, team, "--only", "typo")
    assert (code, data["registered"]) == (1, 0)


def test_a_file_that_cannot_be_opened_stops_no_other_entry(workspace: Workspace, team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(folder: Path, name: str, *more: Any, **options: Any) -> Any:
        if name == "identity":
            raise PermissionError(13, "Permission denied", str(folder / "identity.json"))
        return read_entry(folder, name, *more, **options)

    monkeypatch.setattr("appliance.datasets.registry.read_entry", refusing)
    found = {entry.name: entry for entry in Datasets(workspace).add_folder(team)}
    assert found["identity"].status == "failed"
    assert found["identity"].reason == 'entry "identity": file_name: identity.json: Permission denied; make it readable'
    assert found["fees_zh"].status == "registered"


def test_a_folder_added_again_keeps_domain_and_task(workspace: Workspace, team: Path) -> None:
    datasets = Datasets(workspace)
    datasets.add_folder(team, only=["identity"], domain="finance", task="extract")
    (team / "identity.json").write_text('[{"instruction": "你是谁？", "output": "理赔助手。"}]', "utf-8")
    (entry,) = datasets.add_folder(team, only=["identity"])
    assert entry.added is not None and entry.added.changed
    assert (entry.added.info.domain, entry.added.info.task) == ("finance", "extract")


def test_names_that_cannot_be_ours_are_changed_and_said(workspace: Workspace, tmp_path: Path) -> None:
    registry = {"手续费 2026": {"file_name": "identity.json"}, "手续费/2026": {"file_name": "identity.json"}, "//": {}}
    team = llama_factory_folder.build(tmp_path / "data", registry)
    first, second, third = Datasets(workspace).add_folder(team)
    assert first.added is not None and first.added.info.name == "手续费-2026" and '"手续费 2026" is registered as' in first.added.notes[-1]
    assert (second.status, third.status) == ("failed", "failed") and "is registered as 手续费-2026 already" in second.reason
    assert Datasets(workspace).pairs(Datasets(workspace).get("手续费-2026"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--name", "x"), "--name and --map are for a single file"),
        (("--map", "question=a"), "--name and --map are for a single file"),
        (("--only", "y"), "has no entry 'y'; it has identity"),
    ],
)
def test_options_that_do_not_fit_a_folder(
    workspace: Workspace, team: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], says: str
) -> None:
    assert run(["--workspace", str(workspace.root), "dataset", "add", str(team), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_without_a_registry(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match=r"has no dataset_info\.json"):
        Datasets(workspace).add_folder(tmp_path)
    with pytest.raises(UsageError, match="is not a file"):
        Datasets(workspace).add(tmp_path)


def test_a_file_with_a_task_and_its_preview(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "分类.csv"
    file.write_bytes("instruction,output\n客户要求退款,投诉\n营业时间是几点,咨询\n".encode("gb18030"))
    code, data = _add(workspace, capsys, file, "--task", "classify")
    assert (code, data["task"], data["mapping"]) == (0, "classify", {"question": "instruction", "answer": "output"})
    assert data["preview"][0] == {"id": "分类-1", "question": "客户要求退款", "answer": "投诉"}
    assert data["notes"] == ["分类.csv: read as GB18030"]
    datasets = Datasets(workspace)
    assert datasets.get("分类").task == "classify" and {pair.task for pair in datasets.pairs(datasets.get("分类"))} == {"classify"}
    _, again = _add(workspace, capsys, file)
    assert again["task"] == "classify" and not again["changed"]
    _, other = _add(workspace, capsys, file, "--task", "qa")
    assert other["task"] == "qa" and other["changed"] and other["version"] != data["version"]
    assert other["notes"][-1] == "its task is qa now and was classify before; --task names it"


def test_a_damaged_copy_is_written_again(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"question": "问", "answer": "答"}\n', "utf-8")
    datasets = Datasets(workspace)
    info = datasets.add(file).info
    info.path.unlink()
    assert datasets.add(file).changed and datasets.pairs(info)[0].answer == "答"
