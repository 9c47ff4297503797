"""The check of a data set: as one of which domain it is looked at, what it is compared with, and that its three forms say the same."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import run
from appliance.datasets.checks import examine
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.service import Service, open_service
from finetune.check import CheckReport
from tests.finetune.finetune_model import build_model

PAIRS: list[dict[str, Any]] = [
    {"id": "t1", "question": "How much is parking in the north garage?", "answer": "3 crowns an hour.", "doc_ids": ["parking.md"]},
    {"id": "t2", "question": "普通门诊挂号费是多少？", "answer": "20元。", "doc_ids": ["zh/registration.md", "zh/moved.md"]},
    {"id": "t3", "question": "Which nurse keeps the amber key?", "answer": "Nurse Amber keeps it."},
    {"id": "t4", "question": "甲乙科的钥匙由谁保管？", "answer": "由护士长保管。"},
]


@pytest.fixture
def service(light: Knowledge, tmp_path: Path) -> Service:
    light.workspace.save_setting("engines.default.base", f"path:{build_model(tmp_path / 'base')}")
    return replace(open_service(light.workspace), knowledge=light)


def _add(service: Service, name: str, rows: Sequence[dict[str, Any]], **more: Any) -> DatasetInfo:
    file = service.workspace.root.parent / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return Datasets(service.workspace).add(file, **more).info


def _leaks(report: CheckReport) -> set[tuple[str, str]]:
    return {(item.id, item.other) for item in report.shared if item.leak}


def test_a_set_of_no_domain_is_checked_as_one_of_the_only_domain(service: Service) -> None:
    report = examine(service, _add(service, "pairs", PAIRS), searched=0)
    assert report.notes == ()
    assert report.tokens is not None and sum(report.tokens.prompt.values()) == 4
    assert report.coverage is not None and report.coverage.declared == 2
    assert report.unknown_documents == {"t2": ("zh/moved.md",)}


@pytest.mark.parametrize(
    ("name", "text"), [("parking.md", "# Parking\n\nIt costs 5 crowns.\n"), ("zh/registration.md", "# 挂号\n\n挂号费为30元。\n")]
)
def test_pairs_that_name_a_document_which_changed_later_are_counted(service: Service, tmp_path: Path, name: str, text: str) -> None:
    info = _add(service, "pairs", PAIRS)
    assert examine(service, info, searched=0).notes == ()
    folder = tmp_path / "copy" / "documents"
    (folder / name).write_text(text, "utf-8")
    service.knowledge.ingest([folder], domain="medical")
    (note,) = examine(service, info, searched=0).notes
    assert note.startswith("1 pairs name documents that changed after the set was registered")


def test_with_several_domains_one_is_named_or_the_note_says_what_was_not_done(service: Service) -> None:
    service.workspace.create_domain("legal")
    info = _add(service, "pairs", PAIRS)
    report = examine(service, info, searched=0)
    assert report.tokens is None and report.coverage is None
    assert report.notes == ("the data set has no domain: no tokens were counted and no documents looked for; name one with --domain",)
    named = examine(service, info, domain="medical", searched=0)
    assert named.tokens is not None and named.coverage is not None and named.notes == ()
    assert examine(service, info, domain="legal", searched=0).notes == (
        "legal has no documents: whether the pairs rest on any was not looked at",
    )
    with pytest.raises(UsageError, match="unknown domain 'leagl'"):
        examine(service, info, domain="leagl")


def test_pairs_of_other_domains_do_not_count_as_in_training(service: Service) -> None:
    service.workspace.create_domain("legal")
    info = _add(service, "mixed", [{**row, "domain": "medical" if n % 2 else "legal"} for n, row in enumerate(PAIRS)])
    report = examine(service, info, domain="medical", searched=0)
    assert report.total == 2 and sum(report.planned.values()) == 2
    assert report.notes == ("2 pairs are of other domains and were not looked at; name theirs with --domain",)
    service.workspace.create_domain("finance")
    with pytest.raises(UsageError, match="no pair of mixed is of finance: they are of legal, medical"):
        examine(service, info, domain="finance")


def test_a_leak_into_a_set_of_no_domain_is_seen(service: Service) -> None:
    """As it is into one of the domain; a set of another domain is none of ours."""
    info = _add(service, "pairs", PAIRS, domain="medical")
    _add(service, "exam", [{**row, "split": "test"} for row in PAIRS[:2]])
    _add(service, "other", [{**row, "split": "test"} for row in PAIRS], domain="legal")
    report = examine(service, info, searched=0)
    assert report.compared == ("exam",)
    assert _leaks(report) == {("t1", "exam"), ("t2", "exam")}
    # And the other way round, from the exam's side, which is of no domain among two.
    assert _leaks(examine(service, Datasets(service.workspace).get("exam"), searched=0)) == {("t1", "pairs"), ("t2", "pairs")}


def test_several_sets_checked_together_are_not_compared_with_themselves(service: Service) -> None:
    _add(service, "some", PAIRS[:2], domain="medical")
    _add(service, "rest", PAIRS[1:], domain="medical")
    _add(service, "exam", [{**PAIRS[0], "split": "test"}])
    report = examine(service, Datasets(service.workspace).get("some, rest"), searched=0)
    assert report.compared == ("exam",) and _leaks(report) == {("some/t1", "exam")}
    assert {(twin.a, twin.b) for twin in report.duplicates} == {("some/t2", "rest/t2")}


def test_another_set_that_cannot_be_read_is_noted_and_stops_no_check(service: Service) -> None:
    info = _add(service, "pairs", PAIRS, domain="medical")
    _add(service, "exam", [{**row, "split": "test"} for row in PAIRS[:2]])
    _add(service, "broken", PAIRS[2:]).path.write_text("{", "utf-8")
    report = examine(service, info, searched=0)
    assert report.compared == ("exam",) and _leaks(report) == {("t1", "exam"), ("t2", "exam")}
    assert len(report.notes) == 1 and report.notes[0].startswith("not compared with broken: ")
    assert "or remove it with `appliance dataset remove broken`" in report.notes[0]
    with pytest.raises(ApplianceError, match="data set broken"):
        examine(service, info, against=["broken"], searched=0)


def test_what_the_gate_asks_is_measured_on_without_being_declared_so(service: Service) -> None:
    info = _add(service, "pairs", PAIRS, domain="medical")
    _add(service, "exam", PAIRS[:2])
    _add(service, "everyday", PAIRS[2:])
    assert _leaks(examine(service, info, searched=0)) == set()
    service.workspace.save_setting("domains.medical.gate.dataset", "exam")
    service.workspace.save_setting("domains.medical.gate.general", "everyday")
    service = replace(open_service(service.workspace), knowledge=service.knowledge)
    assert _leaks(examine(service, info, searched=0)) == {("t1", "exam"), ("t2", "exam"), ("t3", "everyday"), ("t4", "everyday")}


def test_table_json_and_page_say_the_same(service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        *({**row, "split": "train"} for row in PAIRS),
        {"id": "twin", "question": "which nurse keeps the amber key", "answer": "Nurse Birch does not.", "split": "train"},
        {"id": "leak", "question": "甲乙科的钥匙由谁保管", "answer": "不知道", "split": "test"},
        {"id": "data", "question": "Whom do I call?", "answer": "Call 13812345678.", "split": "train"},
        {"id": "long", "question": "为什么？" * 400, "answer": "因为" * 5, "split": "train"},
        {
            "id": "langs",
            "question": "Where do I register?",
            "answer": "挂号处在一楼大厅左侧，工作日上午八点开始办理，请携带证件。",
            "split": "dev",
        },
        {"id": "bad", "question": "", "answer": "x"},
    ]
    _add(service, "pairs", rows, skip_bad=True)
    _add(service, "exam", [{**row, "id": f"x{row['id']}", "split": "test"} for row in PAIRS[:1]])
    folder = service.workspace.root.parent
    monkeypatch.setenv("COLUMNS", "200")
    command = ["dataset", "check", "pairs", "--searched", "0", "--workspace", str(service.workspace.root)]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert run([*command, "--html", str(folder / "page.html"), "--strict"]) == 4
    table = capsys.readouterr().out
    page = html.unescape((folder / "page.html").read_text("utf-8"))
    assert (report["excluded"], report["compared"], report["notes"]) == (1, ["exam"], [])
    for form in (table, page):
        for what in ("rows left out when it was registered", "compared with", "exam", "pairs that name no documents"):
            assert what in form
        for warning in report["warnings"]:
            assert warning in form
    assert set(report["reasons"]) == {
        "leakage", "leakage_across_sets", "contradictions", "different_answers", "personal_data", "prompt_too_long", "poor_answers",
        "other_language", "unknown_documents", "duplicates",
    }  # fmt: skip
    facts = [
        *(twin["b"] for kind in ("duplicates", "leakage") for twin in report[kind]),
        *(item["other_id"] for item in report["shared"]),
        *(name for item in report["contradictions"] for name in item["answers"]),
        *(item["masked"] for item in report["personal"]),
        *(report["tokens"]["prompt_too_long"]),
        *(note["id"] for kind in ("answers", "other_language") for note in report[kind]),
        *(name for names in report["unknown_documents"].values() for name in names),
    ]
    assert len(facts) >= 10
    for fact in facts:
        assert fact in table and fact in page, fact


def test_notes_stand_on_the_page_and_qualify_that_nothing_was_found(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    service.workspace.create_domain("legal")
    _add(service, "pairs", PAIRS)
    folder = service.workspace.root.parent
    assert run(["dataset", "check", "pairs", "--html", str(folder / "p.html"), "--workspace", str(service.workspace.root)]) == 0
    said, page = capsys.readouterr(), (folder / "p.html").read_text("utf-8")
    assert "Nothing wrong was found in what could be looked at; see the notes" in said.out and "see the notes" in page
    assert "no tokens were counted" in said.err and "no tokens were counted" in page
