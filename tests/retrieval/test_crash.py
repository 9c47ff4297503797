"""A killed ingest leaves the old generation or the new one; the next run completes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from retrieval_support import HashingEmbedder, Knowledge, write

from retrieval.index import verify
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey

HERE = Path(__file__).parent
SETTINGS = IngestSettings(40, 80, segment_chunks=1)
STEPS = [
    ("parsed", 1),
    pytest.param("parsed", 3, marks=pytest.mark.slow),
    ("embedded", 1),
    pytest.param("embedded", 2, marks=pytest.mark.slow),
    ("segment-written", 1),
    pytest.param("segment-written", 2, marks=pytest.mark.slow),
    ("segment-renamed", 1),
    pytest.param("segment-renamed", 2, marks=pytest.mark.slow),
    ("staged", 1),
    pytest.param("staged", 2, marks=pytest.mark.slow),
    ("ready", 1),
    ("manifest-written", 1),
    ("before-commit", 1),
    ("committed", 1),
    ("collected", 1),
]


def _kill(root: Path, docs: Path, step: str, times: int) -> None:
    command = [sys.executable, str(HERE / "crash_worker.py"), str(root), str(docs), step, str(times)]
    environment = {"PYTHONPATH": f"{HERE.parent.parent}:{HERE}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=60)
    assert done.returncode == 9, f"the step {step} was not reached {times} times"


def _texts(knowledge: Knowledge) -> dict[DocumentKey, str]:
    return {document.key: knowledge.store.document(document.key).text for document in knowledge.store.live_documents()}  # type: ignore[union-attr]


def _is_whole(knowledge: Knowledge) -> None:
    """Every live document is searchable and quotes its text; nothing else is found."""
    assert verify(knowledge.store, knowledge.vectors) == []
    texts = _texts(knowledge)
    found = knowledge.search("the of 的 visitors dose patient rule 元 甲方 乙方", k=100).passages
    assert {passage.document.key for passage in found} == set(texts)
    for passage in found:
        assert texts[passage.chunk.doc][passage.chunk.start : passage.chunk.end] == passage.chunk.text


@pytest.mark.parametrize(("step", "times"), STEPS)
def test_killed_at_a_step(tmp_path: Path, docs: Path, step: str, times: int) -> None:
    root = tmp_path / "workspace"
    first = Knowledge(root)
    first.ingest(docs, settings=SETTINGS)
    old = _texts(first)
    first.db.close()
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come at noon, one visitor per patient.\n")
    write(docs / "gentamicin.md", "# Gentamicin\n\nThe dose is 7 mg/kg.\n\n## Rule\n\nAsk the pharmacist about the dose.\n")
    write(docs / "zh" / "新增.md", "# 新增规定\n\n新的停车规定：每小时的费用为5元。\n")
    (docs / "zh" / "contract.txt").unlink()

    _kill(root, docs, step, times)

    after = Knowledge(root)
    live = after.store.live_generation()
    assert live == (2 if step in ("committed", "collected") else 1)
    assert (_texts(after) == old) == (live == 1)
    _is_whole(after)

    embedder = HashingEmbedder()
    after.embedder = embedder
    report = after.ingest(docs, prune=True, settings=SETTINGS)
    assert report.generation == 2 and not report.failed
    assert (report.added, report.updated, report.removed) == ((1, 2, 1) if live == 1 else (0, 0, 0))
    _is_whole(after)
    assert _texts(after)[DocumentKey("medical", "visits.txt")] == (docs / "visits.txt").read_text("utf-8")
    if step in ("ready", "manifest-written", "before-commit"):
        assert embedder.passages == 0, "what was staged is used again"
    kept = {entry.name for entry in (after.folder / "segments").iterdir()}
    assert not any(name.endswith(".tmp") for name in kept)
    assert {entry.name for entry in (after.folder / "manifests").iterdir()} == {"1.json", "2.json"}
    after.db.close()


def test_killed_during_the_first_ingest(tmp_path: Path, docs: Path) -> None:
    root = tmp_path / "workspace"
    _kill(root, docs, "before-commit", 1)
    after = Knowledge(root)
    assert after.store.live_generation() is None
    assert after.search("anything").passages == ()
    assert after.ingest(docs, settings=SETTINGS).added == 4
    _is_whole(after)
    after.db.close()
