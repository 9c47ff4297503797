"""Ingesting, refreshing, pruning and removing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from retrieval_support import HashingEmbedder, Knowledge, write

from appliance.store import schema
from retrieval import segments
from retrieval.maintain import rebuild, remove, rollback
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, RetrievalError, Scope


def test_first_ingest_makes_documents_findable_in_both_languages(knowledge: Knowledge, docs: Path) -> None:
    report = knowledge.ingest(docs)
    assert (report.added, report.updated, report.unchanged, report.removed, report.failed) == (4, 0, 0, 0, [])
    assert report.generation == 1
    assert report.chunks == report.embedded == knowledge.embedder.passages > 4
    assert knowledge.ids("adult dose of gentamicin")[0] == "gentamicin.md"
    assert knowledge.ids("普通门诊诊查费多少钱")[0] == "zh/fees.md"
    assert knowledge.domains == {"medical"}


def test_passages_quote_the_stored_text_exactly(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    for query in ("trough level", "违约金"):
        for passage in knowledge.search(query, k=20).passages:
            document = knowledge.store.document(passage.chunk.doc)
            assert document is not None
            assert document.text[passage.chunk.start : passage.chunk.end] == passage.chunk.text
            assert document.text == (docs / passage.document.id).read_text("utf-8")


def test_unchanged_files_cost_nothing(knowledge: Knowledge, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge.ingest(docs)
    embedded = knowledge.embedder.passages
    for path in docs.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    again = knowledge.ingest(docs)
    assert (again.unchanged, again.added, again.updated, again.generation) == (4, 0, 0, 1)
    monkeypatch.setattr("retrieval.isolation.Parsers.parse", lambda *_: pytest.fail("an unchanged file was parsed"))
    monkeypatch.setattr("retrieval.ingest.hash_file", lambda *_: pytest.fail("a file with its old size and time was read"))
    assert knowledge.ingest(docs).unchanged == 4
    assert knowledge.embedder.passages == embedded


def test_a_changed_file_replaces_its_old_text(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come between 15:30 and 18:30.\n")
    report = knowledge.ingest(docs)
    assert (report.updated, report.unchanged, report.generation) == (1, 3, 2)
    texts = " ".join(passage.chunk.text for passage in knowledge.search("visitors", k=20).passages)
    assert "15:30" in texts and "14:00" not in texts
    old = knowledge.index(1).search("visitors", Scope(), 20)
    assert any("14:00" in passage.chunk.text for passage in old.passages)


def test_content_keeps_the_time_it_was_first_seen(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    before = knowledge.store.document(DocumentKey("medical", "visits.txt"))
    knowledge.ingest(docs, settings=IngestSettings(chunk_tokens=20, chunk_max_tokens=40))
    after = knowledge.store.document(DocumentKey("medical", "visits.txt"))
    assert before is not None and after is not None
    assert before.info.updated_at == after.info.updated_at


def test_a_corpus_refreshes_row_by_row(knowledge: Knowledge, tmp_path: Path) -> None:
    rows = [{"id": str(n), "title": f"Document {n}", "text": f"Fact number {n} about alpha{n}."} for n in range(20)]
    rows[3]["source"] = "source 3"
    corpus = tmp_path / "corpus.jsonl"
    write(corpus, "".join(json.dumps(row) + "\n" for row in rows))
    assert knowledge.ingest(corpus).added == 20
    embedded = knowledge.embedder.passages
    rows[3]["text"] = "第三号事实已经更改。"
    write(corpus, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:-1]))
    report = knowledge.ingest(corpus, prune=True)
    assert (report.updated, report.unchanged, report.removed) == (1, 18, 1)
    assert knowledge.embedder.passages == embedded + 1
    found = knowledge.search("第三号事实").passages[0]
    assert (found.document.id, found.document.uri, found.document.lang) == ("3", "source 3", "zh")


def test_bad_rows_are_named_and_the_others_ingest(knowledge: Knowledge, tmp_path: Path) -> None:
    lines = [
        '{"id": "a", "text": "alpha"}',
        '{"id": "b", "text": 5}',
        "not json",
        "",
        '{"_id": "c", "text": "gamma 丙"}',
        '{"id": "a", "text": "again"}',
        '{"text": "x"}',
    ]
    corpus = write(tmp_path / "corpus.jsonl", "\n".join(lines))
    report = knowledge.ingest(corpus)
    assert report.added == 2
    errors = [failure.error for failure in report.failed]
    assert [f"line {line}" in error for line, error in zip((2, 3, 6, 7), errors, strict=True)] == [True] * 4
    assert 'field "text"' in errors[0] and "line 1" in errors[2]
    write(corpus, '{"id": "c", "text": "gamma 丙"}\nnot json\n')
    assert knowledge.ingest(corpus, prune=True).removed == 0, "which row the bad line was cannot be known"


def test_a_broken_file_is_reported_and_its_old_version_stays(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    (docs / "visits.txt").write_bytes(b"\x00\x01\x02\x03binary")
    (docs / "new.pdf").write_bytes(b"%PDF-1.7 nonsense")
    report = knowledge.ingest(docs, prune=True)
    assert {failure.path for failure in report.failed} == {"visits.txt", "new.pdf"}
    assert (report.unchanged, report.removed) == (3, 0)
    assert knowledge.ids("visitors per patient")[0] == "visits.txt"


def test_prune_removes_only_what_was_under_the_same_root_and_domain(knowledge: Knowledge, docs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other / "extra.md", "# Extra\n\nSomething else entirely.\n")
    knowledge.ingest(docs)
    knowledge.ingest(docs, domain="legal")
    knowledge.ingest(other)
    (docs / "visits.txt").unlink()
    report = knowledge.ingest(docs, prune=True)
    assert report.removed == 1
    keys = {document.key for document in knowledge.store.live_documents()}
    assert DocumentKey("medical", "visits.txt") not in keys
    assert {DocumentKey("legal", "visits.txt"), DocumentKey("medical", "extra.md")} <= keys


@pytest.mark.parametrize("make", ["missing", "empty", "unsupported", "nothing"])
def test_a_wrong_path_changes_nothing(knowledge: Knowledge, docs: Path, tmp_path: Path, make: str) -> None:
    knowledge.ingest(docs)
    wrong = tmp_path / "wrong"
    paths = [docs, wrong]
    if make == "empty":
        wrong.mkdir()
    elif make == "unsupported":
        wrong = write(tmp_path / "wrong.exe", "x")
        paths = [wrong]
    elif make == "nothing":
        write(wrong / "image.png", "x")
    with pytest.raises(RetrievalError, match="wrong"):
        knowledge.ingest(*paths, prune=True)
    assert knowledge.store.live_generation() == 1
    assert len(list(knowledge.store.live_documents())) == 4


def test_hidden_files_links_and_unknown_formats_are_left_out(knowledge: Knowledge, docs: Path, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.md", "# Secret\n\nNot for anyone.\n")
    (docs / "leak.md").symlink_to(secret)
    (docs / "loop").symlink_to(docs)
    (docs / "inside.md").symlink_to(docs / "gentamicin.md")
    write(docs / ".hidden.md", "hidden")
    write(docs / ".git" / "config.txt", "hidden")
    write(docs / "photo.png", "x")
    report = knowledge.ingest(docs)
    assert report.added == 5
    reasons = {skipped.path: skipped.reason for skipped in report.skipped}
    assert set(reasons) == {"leak.md", "loop", "photo.png"}
    assert "leaves the folder" in reasons["leak.md"]


def test_domains_come_from_the_call_the_row_or_the_only_one(knowledge: Knowledge, tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "c.jsonl", '{"id": "a", "text": "x", "domain": "legal"}\n{"id": "b", "text": "y", "domain": "Not A Domain"}\n'
    )
    file = write(tmp_path / "f.md", "text\n")
    with pytest.raises(RetrievalError, match="--domain"):
        knowledge.ingest(file, domain=None)
    report = knowledge.ingest(corpus, domain=None)
    assert report.added == 1 and "Not A Domain" in report.failed[0].error
    assert knowledge.ingest(file, domain=None).added == 1
    assert {document.key.domain for document in knowledge.store.live_documents()} == {"legal"}
    knowledge.domains.add("medical")
    with pytest.raises(RetrievalError, match="legal, medical"):
        knowledge.ingest(file, domain=None)


def test_changed_labels_are_an_update_without_embedding(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    embedded = knowledge.embedder.passages
    report = knowledge.ingest(docs, labels=frozenset({"board", "legal"}))
    assert (report.updated, report.added) == (4, 0)
    assert knowledge.embedder.passages == embedded
    assert knowledge.ids("gentamicin") == []
    assert knowledge.ids("gentamicin", Scope(labels=frozenset({"board"}))) == []
    assert "gentamicin.md" in knowledge.ids("gentamicin", Scope(labels=frozenset({"board", "legal", "more"})))


def test_the_same_id_from_another_root_replaces(knowledge: Knowledge, docs: Path, tmp_path: Path) -> None:
    knowledge.ingest(docs)
    other = tmp_path / "other"
    write(other / "visits.txt", "No visitors at all.\n")
    report = knowledge.ingest(other)
    assert (report.updated, report.added) == (1, 0)
    assert knowledge.search("visitors").passages[0].chunk.text == "No visitors at all."


def test_an_emptied_file_takes_its_text_out_of_the_index(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "visits.txt", "")
    assert knowledge.ingest(docs).updated == 1
    assert "visits.txt" not in knowledge.ids("visitors per patient", k=50)


def test_removed_documents_come_back_from_nowhere(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "gentamicin.md", "# Gentamicin\n\nThe adult dose of gentamicin is 7 mg/kg.\n")
    knowledge.ingest(docs)
    pinned = knowledge.index()
    key = DocumentKey("medical", "gentamicin.md")
    with knowledge.db.lock("index") as lock:
        done = remove([key], store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert done == {"removed": 1, "generation": 3}
    for index in (pinned, *(knowledge.index(generation) for generation in (1, 2, 3))):
        assert all(passage.document.key != key for passage in index.search("adult dose of gentamicin", Scope(), 50).passages)
    with knowledge.db.lock("index") as lock:
        rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert knowledge.store.live_generation() == 1
    assert knowledge.store.document(key) is None
    with knowledge.db.read() as connection:
        texts = connection.execute(sa.select(schema.content_text.c.text)).scalars().all()
        ledger = connection.execute(sa.select(schema.deletion.c.doc_id, schema.deletion.c.sha256)).all()
    assert not any("gentamicin is" in text for text in texts)
    assert [row.doc_id for row in ledger] == ["gentamicin.md"] * 2
    assert knowledge.ingest(docs).added == 1, "ingesting it again is a new act"
    assert knowledge.ids("adult dose of gentamicin")[0] == "gentamicin.md"


def test_removing_an_unknown_document_removes_nothing(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    keys = [DocumentKey("medical", "visits.txt"), DocumentKey("medical", "nothing.md")]
    with knowledge.db.lock("index") as lock, pytest.raises(RetrievalError, match=r"medical/nothing\.md"):
        remove(keys, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert knowledge.store.live_generation() == 1


def test_rollback_and_the_next_ingest(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "visits.txt", "Visitors come at noon.\n")
    write(docs / "added.md", "# Added\n\nA new rule about parking.\n")
    knowledge.ingest(docs)
    with knowledge.db.lock("index") as lock:
        rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert "14:00" in knowledge.search("visitors").passages[0].chunk.text
    assert knowledge.ids("parking rule", k=50).count("added.md") == 0
    embedded = knowledge.embedder.passages
    report = knowledge.ingest(docs)
    assert (report.added, report.updated, report.unchanged, report.generation) == (1, 1, 3, 3)
    assert knowledge.embedder.passages == embedded, "what generation 2 had embedded is used again"
    assert "noon" in knowledge.search("visitors").passages[0].chunk.text
    assert "noon" not in " ".join(p.chunk.text for p in knowledge.index(1).search("visitors", Scope(), 50).passages)


def test_a_new_embedding_model_is_noticed_and_rebuilt_beside_the_live_index(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    knowledge.embedder = HashingEmbedder("hashing-2")
    with pytest.raises(RetrievalError, match="rebuild"):
        knowledge.ingest(docs)
    with pytest.raises(RetrievalError, match="rebuild"):
        knowledge.index()
    with knowledge.db.lock("index") as lock:
        done = rebuild(
            store=knowledge.store, vectors=knowledge.vectors, embedder=knowledge.embedder, lock=lock, settings=IngestSettings(40, 80)
        )
    assert done["documents"] == 4 and done["generation"] == 2
    assert knowledge.ids("adult dose of gentamicin")[0] == "gentamicin.md"
    assert knowledge.ingest(docs).unchanged == 4


def test_a_full_disk_leaves_everything_as_it_was(knowledge: Knowledge, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge.ingest(docs)
    write(docs / "more.md", "# More\n\nAnother document.\n")
    real = segments.sync

    def full(path: Path) -> None:
        if path.name == "lexical.bin":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(segments, "sync", full)
    with pytest.raises(RetrievalError, match="disk is full"):
        knowledge.ingest(docs)
    assert not list((knowledge.folder / "segments").glob("*.tmp"))
    assert knowledge.store.live_generation() == 1
    monkeypatch.setattr(segments, "sync", real)
    assert knowledge.ingest(docs).added == 1


def test_many_small_segments_search_as_one(knowledge: Knowledge, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"Shared words and the marker unique{n} 独特{n}号标记。"} for n in range(60)]
    corpus = write(tmp_path / "corpus.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report = knowledge.ingest(corpus, settings=IngestSettings(40, 80, segment_chunks=7))
    assert report.added == 60 and len(list((knowledge.folder / "segments").iterdir())) == 9
    for n in (0, 31, 59):
        assert knowledge.ids(f"unique{n}")[0] == str(n)
