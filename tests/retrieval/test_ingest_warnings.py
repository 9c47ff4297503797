"""What is said about a file is said at every ingest, without reading it again; a text that is none is said too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.isolation import Parsers
from retrieval.parsers import Options
from retrieval.staging import IngestSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workbook with a hidden sheet, an empty file, a page of pictures, a document with nothing but white space, and a good one."""
    import docx
    import openpyxl

    place = tmp_path / "folder"
    place.mkdir()
    book = openpyxl.Workbook()
    book.active.append(["项目", "金额"])  # type: ignore[union-attr]
    book.active.append(["床位费", 50])  # type: ignore[union-attr]
    book.create_sheet("草稿").sheet_state = "hidden"
    book.save(place / "fees.xlsx")
    document = docx.Document()
    document.add_paragraph(" ")
    document.save(str(place / "blank.docx"))
    write(place / "empty.md", "")
    write(place / "pictures.html", "<html><body><img src='a.png'><img src='b.png'></body></html>")
    write(place / "good.md", "# Good\n\nText.\n")
    for path in place.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return place


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    real = Parsers.parse
    monkeypatch.setattr(Parsers, "parse", lambda self, path, name: (read.append(name), real(self, path, name))[1])
    return read


def test_warnings_stand_while_the_file_does(knowledge: Knowledge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = knowledge.ingest(folder)
    none = "there is no text, so nothing of it can be found; ingest a version with text if it shows any"
    expected = {f"{name}: {none}" for name in ("blank.docx", "empty.md", "pictures.html")}
    (hidden,) = set(first.warnings) - expected
    assert expected < set(first.warnings) and hidden.startswith("fees.xlsx") and "草稿" in hidden
    assert (first.added, first.failed) == (5, [])
    read = count_reads(monkeypatch)
    again = knowledge.ingest(folder)
    assert (again.unchanged, again.warnings, read) == (5, first.warnings, []), "an unchanged file is not read again"
    # The same after labels, which are an update, and after times that only look different.
    assert knowledge.ingest(folder, labels=frozenset({"board"})).warnings == first.warnings
    for path in folder.iterdir():
        os.utime(path, (1_700_000_005, 1_700_000_005))
    assert (knowledge.ingest(folder).warnings, read) == (first.warnings, [])
    write(folder / "empty.md", "# 不再空白\n\n正文。\n")
    assert len(knowledge.ingest(folder).warnings) == 3 and read == ["empty.md"]


def test_other_options_of_reading_read_again_what_had_warnings(knowledge: Knowledge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge.ingest(folder)
    read = count_reads(monkeypatch)
    settings = IngestSettings(40, 80, options=Options(ocr=True, ocr_languages="chi_sim"))
    warned = ["blank.docx", "empty.md", "fees.xlsx", "pictures.html"]
    assert (knowledge.ingest(folder, settings=settings).unchanged, read) == (5, warned)
    assert (knowledge.ingest(folder, settings=settings).unchanged, read) == (5, warned)


def test_rows_without_text_are_counted(knowledge: Knowledge, tmp_path: Path) -> None:
    rows = '{"id": "a", "text": ""}\n{"id": "b", "text": " \\n"}\n{"id": "丙", "text": "有"}\n'
    report = knowledge.ingest(write(tmp_path / "corpus.jsonl", rows))
    assert report.added == 3 and [one.partition("; ")[0] for one in report.warnings] == [
        "corpus.jsonl: in 2 of its documents there is no text, so nothing of it can be found"
    ]
