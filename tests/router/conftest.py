"""Situations as retrieval and the workspace would describe them."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from retrieval.types import Chunk, DocumentInfo, DocumentKey, Evidence, Passage
from router.types import AdapterFacts, Situation

Make = Callable[..., Situation]


@pytest.fixture
def adapter() -> Callable[..., AdapterFacts]:
    def make(**changes: object) -> AdapterFacts:
        facts = {
            "version": "finance@3f2a91c0",
            "pairs": 40,
            "stale_share": 0.0,
            "unlinked": 0,
        }
        return AdapterFacts(**(facts | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def situation() -> Make:
    """`dense` and `coverage` None: nothing was found. Everything else goes to Situation."""

    def make(
        question: str = "How much is the monthly fee?",
        lang: str = "en",
        dense: float | None = 0.91,
        coverage: float = 0.9,
        passage_lang: str | None = None,
        **rest: object,
    ) -> Situation:
        passages: tuple[Passage, ...] = ()
        signals: dict[str, float] = {"passages": 0.0}
        if dense is not None:
            info = DocumentInfo(
                "finance", "fees.md", "fees.md", "Fees", passage_lang or lang, frozenset(), "0", datetime(2026, 1, 1, tzinfo=UTC)
            )
            passages = (Passage(Chunk("1", DocumentKey("finance", "fees.md"), 0, 4, (), None, "Fees"), info, 0.03, 0, 0, dense, 9.0),)
            signals = {"passages": 1.0, "dense_top": dense, "term_coverage": coverage}
        return Situation(question, lang, "finance", Evidence(question, passages, 1, signals), **rest)  # type: ignore[arg-type]

    return make
