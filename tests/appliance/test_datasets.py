from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.workspace import Workspace


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
