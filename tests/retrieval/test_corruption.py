"""Damaged files of a generation are noticed and named, an older one or what is left serves meanwhile, and the index can be rebuilt."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from retrieval_support import HashingEmbedder, Knowledge, write

from appliance.store import pgindex
from retrieval import fallback
from retrieval.compact import compact
from retrieval.fallback import LiveIndex, Serving
from retrieval.folder import FolderVectors
from retrieval.index import Index, verify
from retrieval.maintain import rebuild, remove, rollback
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, IndexCorrupt, Scope

SETTINGS = IngestSettings(40, 80, segment_chunks=2)


# --- ways to damage a file


def _flip(place: Callable[[int], int]) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place(len(data))] ^= 0x40
        path.write_bytes(data)

    return flip


def _cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)]) and None


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


_RANDOM = random.Random(7)
DAMAGES: dict[str, Callable[[Path], None]] = {
    "first byte": _flip(lambda size: 0),
    "middle byte": _flip(lambda size: size // 2),
    "last byte": _flip(lambda size: size - 1),
    "some byte": _flip(_RANDOM.randrange),
    "some other byte": _flip(_RANDOM.randrange),
    "one byte less": _cut(lambda size: size - 1),
    "half": _cut(lambda size: size // 2),
    "empty": _cut(lambda size: 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0") and None,
    "missing": Path.unlink,
    "a folder": _folder,
}


@contextmanager
def _damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """The file damaged as a bad disk does it, with its times as they were; repaired at the end."""
    data, state = path.read_bytes(), path.stat()
    damage(path)
    if path.exists():
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    try:
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)


def _files(knowledge: Knowledge) -> list[Path]:
    """Every file of the index folder."""
    return sorted(path for path in knowledge.folder.rglob("*") if path.is_file())


def _fresh(knowledge: Knowledge) -> FolderVectors:
    """As another process sees the folder: nothing was checked before."""
    return FolderVectors(knowledge.folder)


def _rebuild(knowledge: Knowledge) -> None:
    with knowledge.db.lock("index") as lock:
        rebuild(store=knowledge.store, vectors=knowledge.vectors, embedder=knowledge.embedder, lock=lock, settings=SETTINGS)


def _remove(knowledge: Knowledge, *ids: str) -> None:
    with knowledge.db.lock("index") as lock:
        remove([DocumentKey("medical", id) for id in ids], store=knowledge.store, vectors=knowledge.vectors, lock=lock)


# --- noticed and named


@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "compacted"])
def test_every_damage_of_every_file_is_noticed_and_named(knowledge: Knowledge, docs: Path, merged: bool) -> None:
    knowledge.ingest(docs, settings=SETTINGS)
    if merged:
        with knowledge.db.lock("index") as lock:
            compact(store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    live = knowledge.store.live_generation()
    files = [path for path in _files(knowledge) if path.parent.name != "manifests" or path.name == f"{live}.json"]
    assert {path.name for path in files} >= {"vectors.npy", "lexical.bin", "segment.json", f"{live}.json"}
    for path in files:
        for name, damage in DAMAGES.items():
            with _damaged(path, damage):
                vectors = _fresh(knowledge)
                with pytest.raises(IndexCorrupt, match="appliance index rebuild") as raised:
                    Index.open(knowledge.store, vectors, knowledge.embedder)
                assert str(path) in str(raised.value), name
                assert any(str(path) in problem for problem in verify(knowledge.store, vectors)), name
    assert verify(knowledge.store, _fresh(knowledge)) == []


def test_a_big_segment_with_its_approximate_index(knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrieval import ann

    monkeypatch.setattr(ann, "ANN_ROWS", 500)
    monkeypatch.setattr(ann, "TARGET", 0.0)
    rows = "".join(
        f'{{"id": "{n}", "text": "Part {n} of the rule {n % 7}: the fee is {n} crowns. 第{n}条 费用{n}元。"}}\n' for n in range(600)
    )
    knowledge.ingest(write(tmp_path / "corpus.jsonl", rows))
    _remove(knowledge, "3")
    with knowledge.db.lock("index") as lock:
        compact(store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    (path,) = [path for path in _files(knowledge) if path.name == "ann.faiss"]
    for name, damage in DAMAGES.items():
        with _damaged(path, damage), pytest.raises(IndexCorrupt) as raised:
            Index.open(knowledge.store, _fresh(knowledge), knowledge.embedder)
        assert str(path) in str(raised.value), name


def test_rebuild_repairs_whatever_is_damaged(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs, settings=SETTINGS)
    before = knowledge.search("违约金", k=20)
    for name in ("vectors.npy", "lexical.bin", "segment.json", "manifest"):
        live = knowledge.store.live_generation()
        segments = knowledge.vectors.read_manifest(knowledge.store.generation(live))  # type: ignore[arg-type]
        path = knowledge.folder / (f"manifests/{live}.json" if name == "manifest" else f"segments/{next(iter(segments))}/{name}")
        DAMAGES["middle byte"](path)
        _rebuild(knowledge)
        after = knowledge.search("违约金", k=20)
        assert [passage.chunk for passage in after.passages] == [passage.chunk for passage in before.passages]
        assert verify(knowledge.store, _fresh(knowledge)) == []
    assert knowledge.ingest(docs, settings=SETTINGS).unchanged == 4


def test_a_damaged_generation_is_not_rolled_back_to(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "new.md", "# New\n\nA new document about parking.\n")
    knowledge.ingest(docs)
    for path in _new_files(knowledge, 2):
        with _damaged(path, DAMAGES["some byte"]), knowledge.db.lock("index") as lock, pytest.raises(IndexCorrupt):
            rollback(2, store=knowledge.store, vectors=_fresh(knowledge), lock=lock)
    with knowledge.db.lock("index") as lock:
        rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert knowledge.index().search("visitors", Scope()).passages


def test_an_ingest_over_a_damaged_manifest_stops(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    DAMAGES["middle byte"](knowledge.folder / "manifests" / "1.json")
    write(docs / "new.md", "# New\n\nMore.\n")
    with pytest.raises(IndexCorrupt, match="rebuild"):
        knowledge.ingest(docs)
    assert knowledge.store.live_generation() == 1


def test_work_of_an_interrupted_run_is_not_used_if_it_is_damaged(knowledge: Knowledge, docs: Path) -> None:
    def stop(name: str) -> None:
        if name == "before-commit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        knowledge.ingest(docs, settings=SETTINGS, step=stop)
    for path in (knowledge.folder / "segments").glob("*/vectors.npy"):
        DAMAGES["middle byte"](path)
    assert knowledge.ingest(docs, settings=SETTINGS).added == 4
    assert verify(knowledge.store, _fresh(knowledge)) == []
    assert len(knowledge.search("the of 的 visitors dose", k=50).passages) > 3


# --- the older generation that stands in


def _new_files(knowledge: Knowledge, generation: int) -> list[Path]:
    """The files that only this generation has: its manifest, and the segments its parent lacks."""
    info = knowledge.store.generation(generation)
    assert info is not None and info.parent is not None
    parent = knowledge.store.generation(info.parent)
    assert parent is not None
    new = knowledge.vectors.read_manifest(info).keys() - knowledge.vectors.read_manifest(parent).keys()
    return [
        knowledge.folder / "manifests" / info.manifest,
        *(path for id in new for path in (knowledge.folder / "segments" / id).iterdir()),
    ]


def _serving(knowledge: Knowledge) -> Serving:
    return LiveIndex(knowledge.store, _fresh(knowledge)).serving(knowledge.embedder)


def _texts(serving: Serving, query: str = "the of 的 dose visitors rule fee 元", scope: Scope | None = None) -> str:
    return "\n".join(passage.chunk.text for passage in serving.index.search(query, scope or Scope(), 100).passages)


@pytest.fixture
def changed(knowledge: Knowledge, docs: Path) -> Knowledge:
    """Generation 2 adds, changes, deletes and hides a document of generation 1."""
    write(docs / "pay.md", "# Pay\n\nThe head nurse earns 5400 crowns.\n")
    write(docs / "secret" / "plan.md", "# Plan\n\nThe ward closes in May.\n")
    knowledge.ingest(docs, settings=SETTINGS)
    write(docs / "gentamicin.md", "# Gentamicin\n\nThe adult dose of gentamicin is 7 mg/kg once daily.\n")
    write(docs / "new.md", "# New\n\nA new rule about parking. 停车规定。\n")
    (docs / "zh" / "fees.md").unlink()
    knowledge.ingest(docs, prune=True, settings=SETTINGS)
    assert knowledge.store.live_generation() == 2
    return knowledge


def test_the_previous_generation_serves_whichever_file_is_damaged(changed: Knowledge) -> None:
    files = _new_files(changed, 2)
    assert len(files) >= 4
    for path in files:
        for name in ("middle byte", "half", "missing"):
            with _damaged(path, DAMAGES[name]):
                serving = _serving(changed)
            assert (serving.index.generation, serving.live) == (1, 2), (path, name)
            assert "generation 2 is damaged, 1 serves" in serving.problem
            assert str(path) in serving.problem and "appliance index rebuild" in serving.problem
            found = _texts(serving)
            # What both generations have is there; what was changed or deleted since is not, and neither is what only 2 has.
            assert "Visitors may come" in found and "违约金" in found
            assert "5 mg/kg" not in found and "20元" not in found and "parking" not in found
    assert _serving(changed).problem == "" and "7 mg/kg" in _texts(_serving(changed))


def test_what_was_hidden_since_stays_hidden(changed: Knowledge, docs: Path) -> None:
    changed.ingest(docs / "pay.md", labels=frozenset({"management"}))
    write(docs / "last.md", "# Last\n\nThe last rule.\n")
    changed.ingest(docs / "last.md")
    with _damaged(_new_files(changed, changed.store.live_generation() or 0)[-1], DAMAGES["some byte"]):
        serving = _serving(changed)
    assert serving.problem
    assert "5400" not in _texts(serving, "what does the head nurse earn")
    assert "5400" in _texts(serving, "what does the head nurse earn", Scope(labels=frozenset({"management"})))


def test_what_is_removed_while_an_older_generation_serves_is_gone(changed: Knowledge) -> None:
    with _damaged(next(path for path in _new_files(changed, 2) if path.name == "vectors.npy"), DAMAGES["some byte"]):
        serving = _serving(changed)
        assert "Visitors may come" in _texts(serving)
        _remove(changed, "visits.txt")
        assert "Visitors may come" not in _texts(serving), "an index that is open already"
        again = _serving(changed)
        assert again.live == 3 and "Visitors may come" not in _texts(again)


def test_generations_that_were_rolled_back_do_not_serve(changed: Knowledge, docs: Path) -> None:
    with changed.db.lock("index") as lock:
        rollback(1, store=changed.store, vectors=changed.vectors, lock=lock)
    write(docs / "third.md", "# Third\n\nThe third rule.\n")
    changed.ingest(docs / "third.md")
    with _damaged(_new_files(changed, 3)[0], DAMAGES["some byte"]):
        serving = _serving(changed)
    assert serving.index.generation == 1, "3 was made from 1"


def test_something_serves_whichever_file_of_the_index_is_damaged(changed: Knowledge) -> None:
    """Also a file that every generation shares: then what is left of the live one serves."""
    _remove(changed, "visits.txt")
    live = changed.store.live_generation()
    info = changed.store.generation(live or 0)
    assert info is not None and live == 3
    said = {
        "7 mg/kg": ("gentamicin.md",),
        "A new rule": ("new.md",),
        "违约金": ("zh/contract.txt",),
        "5400": ("pay.md",),
        "closes in May": ("secret/plan.md",),
    }
    segments = changed.vectors.read_manifest(info)
    paths = [path for id in segments for path in sorted((changed.folder / "segments" / id).iterdir())]
    kinds = set()
    for path in [changed.folder / "manifests" / info.manifest, *paths]:
        for name in ("some byte", "half", "missing"):
            with _damaged(path, DAMAGES[name]):
                serving = _serving(changed)
                found = _texts(serving, "the of 的 dose visitors rule 违约金 nurse earns ward closes May")
            kinds.add(serving.index.generation == live)
            assert serving.live == live and str(path) in serving.problem and "appliance index rebuild" in serving.problem, (path, name)
            there = {words for words in said if words in found}
            assert there and "Visitors may come" not in found and "5 mg/kg" not in found and "20元" not in found
            if serving.index.generation == live:
                lost = len(said) - len(there)
                assert f"generation {live} is damaged and serves without {lost} of its 5 documents: " in serving.problem
    assert kinds == {True, False}
    assert _serving(changed).problem == ""


def test_the_larger_part_serves(knowledge: Knowledge, docs: Path) -> None:
    """An old generation that has next to nothing does not stand in for one that has lost little."""
    knowledge.ingest(docs / "visits.txt", settings=SETTINGS)
    knowledge.ingest(docs, settings=SETTINGS)
    path = _new_files(knowledge, 2)[-1]
    assert len(_new_files(knowledge, 2)) > 4, "two segments at least"
    with _damaged(path, DAMAGES["some byte"]):
        serving = _serving(knowledge)
    assert serving.index.generation == 2 and "Visitors may come" in _texts(serving)


def test_where_nothing_is_left_it_is_an_error_that_says_what_to_do(changed: Knowledge) -> None:
    info = changed.store.generation(2)
    assert info is not None
    paths = [changed.folder / "segments" / id / "vectors.npy" for id in changed.vectors.read_manifest(info)]
    following = LiveIndex(changed.store, _fresh(changed))
    with ExitStack() as damages:
        for path in paths:
            damages.enter_context(_damaged(path, DAMAGES["some byte"]))
        for _ in range(2):
            with pytest.raises(IndexCorrupt, match="appliance index rebuild") as raised:
                following.serving(changed.embedder)
            assert any(str(path) in str(raised.value) for path in paths)
        _rebuild(changed)
        serving = following.serving(changed.embedder)
    assert serving.live == 3 and not serving.problem and "Visitors" in _texts(serving)


def test_an_older_generation_of_another_model_does_not_serve(changed: Knowledge, docs: Path) -> None:
    changed.embedder = HashingEmbedder("hashing-2")
    _rebuild(changed)
    path = _new_files(changed, 3)[0]
    with _damaged(path, DAMAGES["some byte"]), pytest.raises(IndexCorrupt) as raised:
        _serving(changed)
    assert str(path) in str(raised.value)


def test_the_live_generation_is_tried_again(changed: Knowledge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fallback, "_RETRY_SECONDS", 0.0)
    following = LiveIndex(changed.store, _fresh(changed))
    path = _new_files(changed, 2)[-1]
    with _damaged(path, DAMAGES["some byte"]):
        assert following.serving(changed.embedder).index.generation == 1
        assert following.serving(changed.embedder).index.generation == 1
        assert [(one.name, one.levelname) for one in caplog.records].count(("appliance.index", "ERROR")) == 1, "said once"
    assert following.serving(changed.embedder).index.generation == 2
    assert "generation 2 is sound and serves again" in caplog.text


def test_damage_under_an_open_index_is_noticed(changed: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(fallback, "_RETRY_SECONDS", 0.0)
    following = LiveIndex(changed.store, _fresh(changed))
    assert following.serving(changed.embedder).index.generation == 2
    paths = [path for path in _new_files(changed, 2) if path.name in ("vectors.npy", "lexical.bin")]
    for path in paths:
        data = path.read_bytes()
        for name in ("middle byte", "half", "missing"):
            DAMAGES[name](path)
            serving = following.serving(changed.embedder)
            assert (serving.index.generation, serving.live) == (1, 2), (path, name)
            assert str(path) in serving.problem
            assert "Visitors may come" in _texts(serving)
            path.write_bytes(data)
            assert following.serving(changed.embedder).problem == ""


@pytest.mark.parametrize("generation", [None, 1], ids=["live", "pinned"])
def test_a_segment_that_goes_while_the_index_is_opened_is_no_damage(
    changed: Knowledge, monkeypatch: pytest.MonkeyPatch, generation: int | None
) -> None:
    """Another process removes documents between the moment this one reads what there is and the moment it opens it."""
    real = FolderVectors.open
    removed: list[str] = []

    def late(self: FolderVectors, *arguments: Any) -> Any:
        if not removed:
            removed.extend(["visits.txt", "zh/contract.txt", "gentamicin.md"])
            _remove(changed, *removed)
        return real(self, *arguments)

    monkeypatch.setattr(FolderVectors, "open", late)
    index = Index.open(changed.store, _fresh(changed), changed.embedder, generation)
    assert index.generation == (generation or 2)
    found = "\n".join(passage.chunk.text for passage in index.search("the of 的 dose visitors rule", Scope(), 50).passages)
    assert "Visitors may come" not in found and "违约金" not in found and "5400" in found


def test_an_older_generation_serves_on_postgresql(postgres_url: str, tmp_path: Path, docs: Path) -> None:
    knowledge = Knowledge(tmp_path / "workspace", url=postgres_url)
    try:
        knowledge.ingest(docs, settings=SETTINGS)
        write(docs / "gentamicin.md", "# Gentamicin\n\nThe adult dose of gentamicin is 7 mg/kg once daily.\n")
        knowledge.ingest(docs, settings=SETTINGS)
        with knowledge.db.write() as connection:
            newest = sa.select(sa.func.max(pgindex.row.c.position)).scalar_subquery()
            connection.execute(pgindex.row.delete().where(pgindex.row.c.position == newest))
        serving = LiveIndex(knowledge.store, knowledge.vectors).serving(knowledge.embedder)
        assert (serving.index.generation, serving.live) == (1, 2) and "vectors, expected" in serving.problem
        found = _texts(serving)
        assert "Visitors may come" in found and "5 mg/kg" not in found
        with knowledge.db.write() as connection:
            # Beyond the document that was changed since.
            oldest = sa.select(pgindex.row.c.position).order_by(pgindex.row.c.position).limit(3)
            connection.execute(pgindex.row.delete().where(pgindex.row.c.position.in_(oldest)))
        serving = LiveIndex(knowledge.store, knowledge.vectors).serving(knowledge.embedder)
        assert serving.index.generation == 2 and "serves without" in serving.problem and _texts(serving)
        _rebuild(knowledge)
        assert "7 mg/kg" in _texts(LiveIndex(knowledge.store, knowledge.vectors).serving(knowledge.embedder))
    finally:
        knowledge.db.close()
