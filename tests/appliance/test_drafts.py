"""Draft pairs as people edit them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.main import run
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


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("review", [], "expected pending, accepted, rejected, found a list"),
        ("review", "yes", "expected pending, accepted, rejected, found the text 'yes'"),
        ("id", 3, r"expected a text, found a number \(3\)"),
        ("quotes", ["x"], """expected objects with "text", "doc_id", "start" and "end", found the text 'x'"""),
        ("quotes", "x", "expected a list, found the text 'x'"),
    ],
)
def test_a_draft_that_was_edited_wrongly_names_row_and_field(tmp_path: Path, field: str, value: object, says: str) -> None:
    good = {"id": "a", "review": "pending", "quotes": [{"text": "t", "doc_id": "d", "start": 0, "end": 1}]}
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (good, {**good, "id": "b", field: value})), "utf-8")
    with pytest.raises(ApplianceError, match=rf'pairs\.jsonl row 2, field "{field}": {says}; correct the line'):
        review(file, ["all"], [])


def test_an_empty_draft_has_nothing_to_review(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n", "utf-8")
    assert run(["--workspace", str(workspace.root), "dataset", "review", str(file)]) == 0
    said = capsys.readouterr().err
    assert "there is nothing in" in said and "all are reviewed" not in said
    file.write_text('{"id": "a", "review": "pending", "quotes": null}\n', "utf-8")
    assert run(["--workspace", str(workspace.root), "dataset", "review", str(file)]) == 0
