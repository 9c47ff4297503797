"""Search in big segments: recall against exact search, filters, languages, tombstones, and what is on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval import ann
from retrieval.generation import Generation
from retrieval.lexical import build
from retrieval.postings import Postings, merge
from retrieval.segments import Segment, merge_segments, open_segment, write_segment
from retrieval.types import IndexCorrupt, Scope

ROWS, DIM = 3_000, 32


def _vectors(count: int, seed: int = 1, languages: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Normalised vectors in 60 clusters, and the language of each row: every language is shifted in a direction of its own."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, languages, count).astype(np.int32)
    centres = random.standard_normal((60, DIM))
    shift = 4 * random.standard_normal((languages, DIM)) / np.sqrt(DIM) * 3
    rows = centres[random.integers(0, 60, count)] + 0.6 * random.standard_normal((count, DIM)) + shift[numbers]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), numbers


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "ANN_ROWS", 1_000)
    monkeypatch.setattr(ann, "FEW", 50)
    monkeypatch.setattr("retrieval.generation.FEW", 50)


def _merged(folder: Path, vectors: NDArray[np.float32], languages: NDArray[np.int32]) -> Segment:
    """The vectors as one big segment, made of two small ones."""
    half = len(vectors) // 2
    for name, part in (("a", slice(0, half)), ("b", slice(half, len(vectors)))):
        write_segment(folder, name, vectors[part], build([f"word{n}" for n in range(len(vectors[part]))]), "model", lambda step: None)
    parts = [(opened := open_segment(folder, name), np.arange(len(opened.vectors))) for name in ("a", "b")]
    merge_segments(folder, "big", parts, languages, "model", lambda step: None)
    return open_segment(folder, "big")


@pytest.fixture(params=[1, 3], ids=["one language", "three languages"])
def big(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Segment, NDArray[np.int32]]]:
    vectors, languages = _vectors(ROWS, languages=request.param)
    yield _merged(tmp_path, vectors, languages), languages


def _recall(generation: Generation, exact: Generation, mask: NDArray[np.bool_], languages: NDArray[np.int64]) -> float:
    """The share of the 10 best of exact search that are found, over 100 questions near passages; cosines must be exact."""
    one, other = generation.visible(Scope(), mask, languages), exact.visible(Scope(), mask, languages)
    random = np.random.default_rng(3)
    hits = total = 0
    for row in random.choice(len(mask), 100):
        query = exact.segments[0].vectors[row] + 0.1 * random.standard_normal(DIM).astype(np.float32)
        query = (query / np.linalg.norm(query)).astype(np.float32)
        places, cosines, ranked = generation.dense(query, one, 10)
        assert cosines == pytest.approx(generation.segments[0].vectors[places] @ query, abs=1e-5)
        assert list(ranked) == sorted(ranked, reverse=True) and mask[places].all()
        expected = exact.dense(query, other, 10)[0]
        assert len(places) == len(expected)
        hits, total = hits + len(set(places) & set(expected)), total + len(expected)
    return hits / total


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.002])
def test_recall_with_filters_and_languages(big: tuple[Segment, NDArray[np.int32]], share: float) -> None:
    """Whatever part is visible: what is missed is little, and in every language the order is that of exact search."""
    segment, numbers = big
    assert segment.ann is not None
    plain = Segment("plain", "", "model", segment.vectors, segment.postings)
    mask = np.random.default_rng(4).random(ROWS) < share
    assert _recall(Generation([segment]), Generation([plain]), mask, numbers.astype(np.int64)) >= 0.95


def test_a_filter_far_from_the_question(tmp_path: Path) -> None:
    """Another domain than the question's: the lists nearest to the question hold none of its rows, and still they are found."""
    random = np.random.default_rng(7)
    clusters = random.integers(0, 60, ROWS)
    vectors = random.standard_normal((60, DIM))[clusters] + 0.6 * random.standard_normal((ROWS, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    generation = Generation([_merged(tmp_path, vectors, np.zeros(ROWS, dtype=np.int32))])
    mask = clusters < 40
    visible = generation.visible(Scope(), mask, np.zeros(ROWS, dtype=np.int64))
    asked = np.flatnonzero(~mask)[::10]
    found = 0
    for row in asked:
        places = generation.dense(vectors[row], visible, 10)[0]
        assert len(places) == 10 and mask[places].all()
        found += len(set(places) & set(np.argsort(np.where(mask, -(vectors @ vectors[row]), np.inf))[:10]))
    assert found / (10 * len(asked)) >= 0.7


def test_what_was_measured_is_stored(tmp_path: Path) -> None:
    vectors, languages = _vectors(ROWS)
    segment = _merged(tmp_path, vectors, languages)
    search = json.loads((tmp_path / "big" / "segment.json").read_text("utf-8"))["search"]
    assert search["method"] == "ivf-sq8" and min(search["recall"].values()) >= search["target"] == 0.98
    assert segment.ann is not None and segment.ann.scanned == search["scanned"] < ROWS


def test_exact_when_the_target_is_missed(tmp_path: Path) -> None:
    """Directions without any structure: no part of the lists holds nearly all of the best."""
    random = np.random.default_rng(5)
    vectors = random.standard_normal((1_500, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = ann.build(vectors, np.zeros(1_500, dtype=np.int32), tmp_path / "ann.faiss")
    assert facts["method"] == "exact" and "recall@10" in facts["why"] and not (tmp_path / "ann.faiss").exists()
    assert ann.build(vectors[:900], np.zeros(900, dtype=np.int32), tmp_path / "ann.faiss")["method"] == "exact"


def test_a_segment_is_mapped_not_loaded(big: tuple[Segment, NDArray[np.int32]]) -> None:
    segment, _ = big
    assert isinstance(segment.vectors, np.memmap)
    for name in Postings.__slots__:
        array = getattr(segment.postings, name)
        while not isinstance(array, np.memmap):
            assert not array.flags.owndata
            array = array.base
    assert not segment.vectors.flags.writeable


@pytest.mark.parametrize("name", ["ann.faiss", "lexical.bin", "vectors.npy"])
def test_damage_of_a_big_segment_is_noticed(tmp_path: Path, name: str) -> None:
    vectors, languages = _vectors(ROWS)
    _merged(tmp_path, vectors, languages)
    path = tmp_path / "big" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexCorrupt, match=name):
        open_segment(tmp_path, "big")
    path.write_bytes(data[:-1])
    with pytest.raises(IndexCorrupt, match="bytes long"):
        open_segment(tmp_path, "big")
    path.unlink()
    with pytest.raises(IndexCorrupt, match="missing"):
        open_segment(tmp_path, "big")


def test_a_checked_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    write_segment(tmp_path, "a", np.eye(4, dtype=np.float32), build(["x"] * 4), "model", lambda step: None)
    checked: dict[Path, tuple[int, int, int]] = {}
    open_segment(tmp_path, "a", checked=checked)
    before = dict(checked)
    assert {path.name for path in before} == {"vectors.npy", "lexical.bin"}
    open_segment(tmp_path, "a", checked=checked)
    assert checked == before
    path = tmp_path / "a" / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IndexCorrupt, match="changed"):
        open_segment(tmp_path, "a", checked=checked)


def test_merged_postings_are_those_of_the_texts(tmp_path: Path) -> None:
    """Some rows of three segments: as if the texts left had been indexed together. Terms of the others are gone."""
    texts = [["dose of 剂量 gentamicin", "visit 探视", "dose dose"], [""], ["付款 期限 乙方", "gentamicin visit visit", "rare 罕见"]]
    rows = [np.array([0, 2]), np.array([0]), np.array([0, 1])]
    merge([(build(part), keep) for part, keep in zip(texts, rows, strict=True)], tmp_path / "lexical.bin")
    merged, expected = Postings.load(tmp_path / "lexical.bin"), build([texts[0][0], texts[0][2], "", texts[2][0], texts[2][1]])
    for name in Postings.__slots__:
        assert np.array_equal(getattr(merged, name), getattr(expected, name)), name
    nothing = tmp_path / "nothing.bin"
    merge([(build([""]), np.array([0]))], nothing)
    assert len(Postings.load(nothing).terms) == 0


def test_merging_in_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    texts = [" ".join(f"w{n}" for n in random.zipf(1.5, 30) if n < 200) for _ in range(300)]
    parts = [(build(texts[:200]), np.arange(0, 200, 2)), (build(texts[200:]), np.arange(100))]
    merge(parts, tmp_path / "whole.bin")
    monkeypatch.setattr("retrieval.postings._BLOCK", 50)
    merge(parts, tmp_path / "blocks.bin")
    assert (tmp_path / "whole.bin").read_bytes() == (tmp_path / "blocks.bin").read_bytes()


def test_postings_of_another_format(tmp_path: Path) -> None:
    for data in (b"", b"PK\x03\x04" * 20):
        (tmp_path / "lexical.bin").write_bytes(data)
        with pytest.raises(IndexCorrupt, match="format"):
            Postings.load(tmp_path / "lexical.bin")
