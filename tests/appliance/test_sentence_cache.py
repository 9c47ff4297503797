"""The vectors of sentences that questions are compared with: made once, and only while the generation they are of is live."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.knowledge import embedding
from appliance.knowledge.knowledge import Knowledge
from retrieval.types import DocumentKey

sys.path.append(str(Path(__file__).parent.parent / "gateway"))
from gateway_real import make_knowledge


@pytest.fixture
def knowledge(tmp_path: Path) -> Iterator[Knowledge]:
    made = make_knowledge(tmp_path)
    yield made
    made.workspace.close()


@pytest.fixture
def encoded(knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that was embedded as a passage."""
    seen: list[str] = []
    encode = knowledge.embedder.encode_passages

    def noted(texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return encode(texts)

    monkeypatch.setattr(knowledge.embedder, "encode_passages", noted)
    return seen


def test_a_sentence_is_embedded_once_whatever_is_asked(knowledge: Knowledge, encoded: list[str]) -> None:
    texts = ["Visitors may come from 14:00.", "探视时间为14点。", "Visitors may come from 14:00."]
    first = knowledge.similarity("When?", texts)
    assert encoded == texts[:2] and first[0] == first[2] != first[1]
    assert (
        knowledge.similarity("When?", texts) == first
        and knowledge.similarity("几点？", [*texts, "Third."])
        and encoded == [*texts[:2], "Third."]
    )
    fresh = knowledge.embedder.encode_passages(texts) @ knowledge.embedder.encode_queries(["When?"])[0]
    assert np.allclose(first, fresh, atol=1e-5)


def test_a_deletion_forgets_them_and_they_are_bounded(knowledge: Knowledge, encoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    knowledge.similarity("When?", ["one", "two"])
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    monkeypatch.setattr(embedding, "_SENTENCES", 2)
    knowledge.similarity("When?", ["three"])
    assert len(knowledge._sentences._known) == 1
    assert len(knowledge.similarity("When?", ["one", "two", "three", "four"])) == 4 and len(knowledge._sentences._known) == 2
