"""A text with more chunks than a segment has: staged in parts, never live in part, and taken up again where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from retrieval_support import Knowledge, write

from appliance.store import schema
from appliance.store.texts import PIECE, Slice, insert_texts, read_slices, read_text
from retrieval.maintain import rebuild, remove
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey

SETTINGS = IngestSettings(40, 80, segment_chunks=8)
HUGE = DocumentKey("medical", "huge.md")


class Killed(Exception):
    """The run ends here."""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Knowledge]:
    made = Knowledge(tmp_path / "other")
    yield made
    made.db.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one long document in both languages."""
    sections = "".join(
        f"## Section {n}\n\nThe dose of substance{n} is {n} mg/kg once daily, unless its level is above {n + 1} mg/L.\n\n"
        f"第{n}种药品的剂量为每日{n}毫克，编号专属{n}号，肾功能不全者减半使用。\n\n"
        for n in range(60)
    )
    return write(tmp_path / "docs" / "huge.md", "# All doses 全部剂量\n\n" + sections).parent


def stop_at(wanted: str, times: int) -> Callable[[str], None]:
    left = times

    def step(name: str) -> None:
        nonlocal left
        left -= name == wanted
        if name == wanted and left == 0:
            raise Killed

    return step


def chunks(knowledge: Knowledge) -> list[tuple[str, int, int]]:
    """The live chunks in the order of the text."""
    chunk, version, document = schema.chunk, schema.document_version, schema.document
    live = sa.select(version.c.content_id).join(document, document.c.version_id == version.c.id)
    query = sa.select(chunk.c.chunk_id, chunk.c.start, chunk.c.end).where(chunk.c.content_id.in_(live)).order_by(chunk.c.start)
    with knowledge.db.read() as connection:
        return [(row.chunk_id, row.start, row.end) for row in connection.execute(query)]


def rows(knowledge: Knowledge, table: sa.Table) -> int:
    with knowledge.db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_parts_make_the_same_document_as_one_piece(knowledge: Knowledge, other: Knowledge, folder: Path) -> None:
    report = knowledge.ingest(folder, settings=SETTINGS)
    assert other.ingest(folder, settings=IngestSettings(40, 80, segment_chunks=10_000)).chunks == report.chunks >= 60
    assert chunks(knowledge) == chunks(other)
    for query, wanted in (("substance0", "substance0 "), ("substance59", "substance59 "), ("专属31号", "专属31号")):
        assert any(wanted in passage.chunk.text for passage in knowledge.search(query).passages)
    document = knowledge.store.document(HUGE)
    assert document is not None and document.text == (folder / "huge.md").read_text("utf-8")
    assert knowledge.ingest(folder, settings=SETTINGS).unchanged == 1


def test_segments_stay_small_and_documents_around_come_along(knowledge: Knowledge, folder: Path) -> None:
    write(folder / "a.md", "A small one before: alpha.\n")
    write(folder / "z.txt", "后面的一个小文件：欧米伽。\n")
    seen: list[int] = []

    def step(name: str) -> None:
        if name == "embedded":
            seen.append(knowledge.embedder.passages)

    report = knowledge.ingest(folder, settings=SETTINGS, step=step)
    sizes = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert report.added == 3 and sum(sizes) == report.chunks and max(sizes) < 2 * SETTINGS.segment_chunks < report.chunks
    assert knowledge.ids("alpha")[0] == "a.md" and knowledge.ids("欧米伽")[0] == "z.txt"


@pytest.mark.parametrize("where", ["embedded", "segment-written", "segment-renamed", "texts-staged"])
def test_an_interrupted_text_goes_on_where_it_was(knowledge: Knowledge, other: Knowledge, folder: Path, where: str) -> None:
    whole = other.ingest(folder, settings=SETTINGS)
    with pytest.raises(Killed):
        knowledge.ingest(folder, settings=SETTINGS, step=stop_at(where, 5))
    assert knowledge.store.live_generation() is None and len(knowledge.index()) == 0
    report = knowledge.ingest(folder, settings=SETTINGS)
    assert report.embedded == whole.embedded - (5 if where == "texts-staged" else 4) * SETTINGS.segment_chunks
    assert chunks(knowledge) == chunks(other)
    assert rows(knowledge, schema.content) == 1


def test_a_part_is_never_taken_for_the_whole(knowledge: Knowledge, folder: Path) -> None:
    small = write(folder.parent / "small.md", "A small document about beta.\n")
    knowledge.ingest(small, settings=SETTINGS)
    with pytest.raises(Killed):
        knowledge.ingest(folder, settings=SETTINGS, step=stop_at("texts-staged", 3))
    assert rows(knowledge, schema.content) == 2
    assert knowledge.ids("dose of substance0") == ["small.md"]
    # A run that does not name it makes nothing of it live, and clears it away.
    write(small, "A small document about gamma, 伽马。\n")
    assert knowledge.ingest(small, settings=SETTINGS).updated == 1
    assert [document.key.id for document in knowledge.store.live_documents()] == ["small.md"]
    with knowledge.db.read() as connection:
        assert not [text for text in connection.execute(sa.select(schema.content_text.c.text)).scalars() if "substance" in text]


def test_a_text_that_changed_meanwhile_starts_anew(knowledge: Knowledge, folder: Path) -> None:
    with pytest.raises(Killed):
        knowledge.ingest(folder, settings=SETTINGS, step=stop_at("texts-staged", 3))
    path = folder / "huge.md"
    write(path, path.read_text("utf-8").replace("substance0 ", "substance0 (新名称) "))
    report = knowledge.ingest(folder, settings=SETTINGS)
    assert report.embedded == report.chunks and rows(knowledge, schema.content) == 1


def test_a_damaged_part_is_made_anew(knowledge: Knowledge, other: Knowledge, folder: Path) -> None:
    with pytest.raises(Killed):
        knowledge.ingest(folder, settings=SETTINGS, step=stop_at("texts-staged", 3))
    next((knowledge.folder / "segments").iterdir()).joinpath("segment.json").unlink()
    report = knowledge.ingest(folder, settings=SETTINGS)
    assert report.embedded == report.chunks
    other.ingest(folder, settings=SETTINGS)
    assert chunks(knowledge) == chunks(other)


def test_other_sizes_of_chunks_are_another_text(knowledge: Knowledge, other: Knowledge, folder: Path) -> None:
    with pytest.raises(Killed):
        knowledge.ingest(folder, settings=SETTINGS, step=stop_at("texts-staged", 3))
    finer = IngestSettings(20, 40, segment_chunks=8)
    assert knowledge.ingest(folder, settings=finer).embedded == other.ingest(folder, settings=finer).embedded
    assert chunks(knowledge) == chunks(other)


def test_an_interrupted_rebuild_goes_on_in_the_middle_of_a_text(knowledge: Knowledge, folder: Path) -> None:
    knowledge.ingest(folder, settings=SETTINGS)
    before, parts = chunks(knowledge), {"vectors": knowledge.vectors, "embedder": knowledge.embedder, "settings": SETTINGS}
    seen: list[tuple[float, float | None]] = []
    with knowledge.db.lock("index") as lock, pytest.raises(Killed):
        rebuild(store=knowledge.store, lock=lock, step=stop_at("texts-staged", 4), **parts)
    embedded = knowledge.embedder.passages
    with knowledge.db.lock("index") as lock:
        report = rebuild(store=knowledge.store, lock=lock, progress=lambda what, done, total, **_: seen.append((done, total)), **parts)
    assert knowledge.embedder.passages - embedded == report["chunks"] - 4 * SETTINGS.segment_chunks
    assert chunks(knowledge) == before and seen[-1][0] <= (seen[-1][1] or 0)


def test_removing_a_long_text_leaves_nothing_of_it(knowledge: Knowledge, folder: Path) -> None:
    write(folder / "small.md", "A small document about beta.\n")
    knowledge.ingest(folder, settings=SETTINGS)
    with knowledge.db.lock("index") as lock:
        remove([HUGE], store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert knowledge.ids("dose of substance31") == ["small.md"]
    assert rows(knowledge, schema.content) == rows(knowledge, schema.content_text) == 1


@pytest.mark.parametrize("text", ["", "短", "a" * PIECE, "药🧪" * PIECE, "ab中\n" * PIECE])
def test_texts_in_pieces_read_as_they_were(knowledge: Knowledge, text: str) -> None:
    row = {"domain": "d", "sha256": "0", "recipe": "r", "labels": "[]", "title": "t", "lang": "zh"}
    with knowledge.db.write() as connection:
        inserted = connection.execute(schema.content.insert().values(row)).inserted_primary_key
        assert inserted is not None
        id = inserted[0]
        insert_texts(connection, [(id, text)])
        assert read_text(connection, id) == text
        edges = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, len(text)]
        wanted = [Slice(id, start, end) for start in edges for end in edges if start <= end]
        assert read_slices(connection, wanted) == {item: text[item.start : item.end] for item in wanted}


def test_progress_is_in_tokens_and_ends_at_the_total(knowledge: Knowledge, folder: Path) -> None:
    write(folder / "small.md", "A small document about beta, 贝塔。\n")
    seen: list[tuple[float, float | None]] = []
    facts: dict[str, object] = {}

    def progress(what: str, done: float, total: float | None, **more: object) -> None:
        assert what == "ingest" and total is not None and done <= total
        seen.append((done, total))
        facts.update(more)

    report = knowledge.ingest(folder, settings=SETTINGS, progress=progress)
    end = seen[-1][1]
    assert end is not None and seen[-1] == (end, end) and end > 20 * report.chunks
    assert facts == {"unit": "tokens", "chunks": report.chunks, "documents": 2, "documents_total": 2}
    # The estimate is good as soon as a part of the long text is read, and the share done only grows.
    assert all(0.5 * end < total < 2 * end for _, total in seen if total is not None)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    seen.clear()
    knowledge.ingest(folder, settings=SETTINGS, progress=progress)
    assert seen and set(seen) == {(0, 0)}


def test_a_corpus_is_estimated_from_its_first_rows(knowledge: Knowledge, tmp_path: Path) -> None:
    lines = "".join(f'{{"id": "{n}", "text": "Fact {n} about item{n}. 第{n}条说明，共{n}项。"}}\n' for n in range(100))
    corpus = write(tmp_path / "corpus.jsonl", lines)
    seen: list[float | None] = []
    knowledge.ingest(corpus, settings=SETTINGS, progress=lambda what, done, total, **_: seen.append(total))
    end = seen[-1]
    assert len(seen) > 10 and end and all(total is not None and 0.8 * end < total < 1.25 * end for total in seen)
