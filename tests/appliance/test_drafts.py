"""Draft pairs as people edit them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.datasets.drafts import review
from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError
from appliance.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.create(tmp_path / "workspace") as made:
        yield made


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_draft_may_hold_any_text_and_come_back_from_any_editor(workspace: Workspace, tmp_path: Path, encoding: str) -> None:
    # Separators that Python, and not JSON, takes for the end of a line.
    answer = (
        "门诊时间为每天八点至十七点，\u2028周末休息，\x85预约须提前三天办理。" if encoding != "gb18030" else "门诊时间为每天八点至十七点。"
    )
    row = {"id": "a", "review": "pending", "question": "门诊什么时候开放？", "answer": answer}
    file = tmp_path / "pairs.jsonl"
    file.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode(encoding))
    assert review(file, ["all"], []) == [{**row, "review": "accepted"}]
    assert Datasets(workspace).add(file, domain="medical").preview[0].answer == answer


def test_a_draft_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b'{"id": "a", "review": "pending", "answer": "caf\xe9"}\n')
    with pytest.raises(ApplianceError, match=r"pairs\.jsonl: not UTF-8 at byte"):
        review(file, ["all"], [])
    file.write_text("{" * 100_000, "utf-8")
    with pytest.raises(ApplianceError, match="row 1: not valid JSON"):
        review(file, [], [])
