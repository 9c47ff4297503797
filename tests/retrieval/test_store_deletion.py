"""What is removed is gone from the database's files, and stays gone when an older copy of the database or of the index comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from appliance.store.database import Database
from appliance.store.documents import SqlDocumentStore
from appliance.store.ledger import apply_ledger
from retrieval.index import Index, verify
from retrieval.maintain import remove, rollback
from retrieval.types import DocumentKey, Scope

SECRETS = ["Zebulon Quackenbush takes 37 mg of flurbiprofen", "欧阳锋每日服用氟比洛芬三十七毫克"]


def _remove(knowledge: Knowledge, *ids: str) -> None:
    with knowledge.db.lock("index") as lock:
        remove([DocumentKey("medical", id) for id in ids], store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def _files_with(root: Path, text: str) -> list[str]:
    return [path.name for path in root.glob("appliance.db*") if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("pages", [1, 40])
def test_the_bytes_of_a_removed_text_are_not_in_the_database(knowledge: Knowledge, docs: Path, secret: str, pages: int) -> None:
    root = knowledge.folder.parent
    filler = "".join(f"Line {number} of the record says nothing. 第{number}行没有内容。\n" for number in range(60 * pages))
    write(docs / "record.md", f"# {secret}\n\n{filler}{secret}.\n{filler}")
    knowledge.ingest(docs)
    write(docs / "record.md", f"# {secret}\n\n{filler}{secret}, since Monday.\n")
    knowledge.ingest(docs)
    assert _files_with(root, secret)
    pinned = knowledge.index()
    _remove(knowledge, "record.md")
    assert _files_with(root, secret) == []
    assert all(secret not in passage.chunk.text for passage in pinned.search(secret, Scope(), 50).passages)


def test_a_reader_may_delay_the_scrubbing_but_does_not_stop_it(knowledge: Knowledge, docs: Path) -> None:
    root = knowledge.folder.parent
    write(docs / "record.md", f"# Record\n\n{SECRETS[0]}.\n")
    knowledge.ingest(docs)
    with knowledge.db.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM document").scalar_one()
        _remove(knowledge, "record.md")
        assert not knowledge.db.scrub()
    assert knowledge.db.scrub()
    assert _files_with(root, SECRETS[0]) == []


def test_an_older_copy_of_the_index_folder_brings_nothing_back(knowledge: Knowledge, docs: Path, tmp_path: Path) -> None:
    write(docs / "record.md", f"# Record\n\n{SECRETS[1]}。\n")
    knowledge.ingest(docs)
    shutil.copytree(knowledge.folder, tmp_path / "copy")
    _remove(knowledge, "record.md")
    shutil.rmtree(knowledge.folder)
    shutil.copytree(tmp_path / "copy", knowledge.folder)
    for generation in (1, None):
        if generation == 1:
            with knowledge.db.lock("index") as lock:
                rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
        assert "record.md" not in knowledge.ids(SECRETS[1], k=50)
    assert knowledge.store.live_generation() == 1 and verify(knowledge.store, knowledge.vectors) == []


def test_the_ledger_is_applied_to_an_older_copy_of_the_database(knowledge: Knowledge, docs: Path, tmp_path: Path) -> None:
    write(docs / "record.md", f"# Record\n\n{SECRETS[0]}.\n")
    write(docs / "twin.md", f"# Record\n\n{SECRETS[0]}.\n")
    write(docs / "kept.md", "# Kept\n\nThis one is removed and comes back with other words.\n")
    knowledge.ingest(docs)
    knowledge.db.close()
    shutil.copytree(knowledge.folder.parent, tmp_path / "backup")
    _remove(knowledge, "record.md", "kept.md")
    write(docs / "kept.md", "# Kept\n\nThe other words.\n")
    (docs / "record.md").unlink()
    knowledge.ingest(docs)
    write(docs / "later.md", "# Later\n\nThis is not in the copy.\n")
    knowledge.ingest(docs)
    _remove(knowledge, "later.md")

    copy = Knowledge(tmp_path / "backup")
    assert apply_ledger(knowledge.db, copy.db) == [DocumentKey("medical", "kept.md"), DocumentKey("medical", "record.md")]
    found = copy.search(SECRETS[0], k=50).passages
    ids = {"gentamicin.md", "visits.txt", "zh/fees.md", "zh/contract.txt", "twin.md"}
    assert {info.id for passage in found for info in passage.sources} == ids
    assert [passage.document.id for passage in found if SECRETS[0] in passage.chunk.text] == ["twin.md"]
    assert verify(copy.store, copy.vectors) == []
    assert apply_ledger(knowledge.db, copy.db) == []
    _remove(copy, "twin.md")
    assert _files_with(tmp_path / "backup", SECRETS[0]) == []
    copy.db.close()


def test_a_pinned_index_survives_in_another_process_view(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    other = Database(knowledge.db.url)
    pinned = Index.open(SqlDocumentStore(other), knowledge.vectors, knowledge.embedder)
    _remove(knowledge, "gentamicin.md")
    assert "gentamicin.md" not in [passage.document.id for passage in pinned.search("dose of gentamicin", Scope(), 50).passages]
    assert pinned.search("visitors", Scope(), 50).passages
    other.close()
