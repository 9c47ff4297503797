"""What has become empty deletes nothing, and says so."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from retrieval_support import Knowledge, write

from appliance.store import schema
from retrieval.staging import IngestSettings
from retrieval.types import RetrievalError

SETTINGS = IngestSettings(chunk_tokens=40, chunk_max_tokens=80, archives=True)
ROWS = '{"id": "a", "text": "alpha"}\n{"id": "乙", "text": "第二行"}\n'
PAIRS = "question,answer\nWhat is the fee?,20 euros\n床位费是多少？,每日50元\n"


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)
    return path


def emptied(folder: Path, what: str, empty: bool) -> Path:
    if what == "archive":
        return archive(folder / "all.zip", {} if empty else {"a.md": "# A\n\nalpha\n", "乙.txt": "第二行\n"})
    if what == "skipped":
        return archive(folder / "all.zip", {"a.exe": "x"} if empty else {"a.md": "# A\n\nalpha\n", "乙.txt": "第二行\n"})
    name, full, rest = {
        "corpus": ("corpus.jsonl", ROWS, ""),
        "blank corpus": ("corpus.jsonl", ROWS, "\n\n"),
        "header of pairs": ("qa.csv", PAIRS, "question,answer\n"),
        "pairs": ("qa.csv", PAIRS, ""),
    }[what]
    return write(folder / name, rest if empty else full)


EVERY = ["corpus", "blank corpus", "header of pairs", "pairs", "archive", "skipped"]


def ledger(knowledge: Knowledge) -> int:
    with knowledge.db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(schema.deletion)).scalar_one())


@pytest.mark.parametrize("what", EVERY)
def test_pruning_from_what_is_empty_is_an_error_that_removes_nothing(knowledge: Knowledge, tmp_path: Path, what: str) -> None:
    path = emptied(tmp_path, what, empty=False)
    assert knowledge.ingest(path, settings=SETTINGS).added == 2
    emptied(tmp_path, what, empty=True)
    for _ in range(2):
        with pytest.raises(RetrievalError, match="2 documents came from it before; nothing was changed"):
            knowledge.ingest(path, prune=True, settings=SETTINGS)
        # Without --prune nothing is removed either, and what is empty then does not count as filled later.
        knowledge.ingest(path, settings=SETTINGS)
    assert ledger(knowledge) == 0
    assert len(knowledge.search("alpha 第二行 fee 床位费", k=9).passages) == 2
    emptied(tmp_path, what, empty=False)
    assert knowledge.ingest(path, prune=True, settings=SETTINGS).unchanged == 2


@pytest.mark.parametrize("what", EVERY)
def test_an_emptied_corpus_among_other_files_keeps_its_rows(knowledge: Knowledge, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "folder"
    write(folder / "other.md", "# Other\n\nAnother document.\n")
    write(folder / "gone.md", "# Gone\n\nThis one goes.\n")
    emptied(folder, what, empty=False)
    assert knowledge.ingest(folder, settings=SETTINGS).added == 4
    emptied(folder, what, empty=True)
    (folder / "gone.md").unlink()
    report = knowledge.ingest(folder, prune=True, settings=SETTINGS)
    assert report.removed == 1 and ledger(knowledge) == 1, "a file that is gone is known by its name"
    assert len(report.warnings) == 1 and "there is no" in report.warnings[0]


def test_the_last_row_may_go_when_others_are_there(knowledge: Knowledge, tmp_path: Path) -> None:
    path = write(tmp_path / "corpus.jsonl", ROWS)
    knowledge.ingest(path)
    write(path, '{"id": "new", "text": "all is new"}\n')
    assert knowledge.ingest(path, prune=True).removed == 2


def test_an_empty_corpus_that_was_always_empty_is_no_error(knowledge: Knowledge, tmp_path: Path) -> None:
    report = knowledge.ingest(write(tmp_path / "corpus.jsonl", ""), prune=True)
    assert (report.added, report.removed, report.warnings) == (0, 0, ["corpus.jsonl: there is no document in it"])
