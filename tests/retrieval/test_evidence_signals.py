"""What the signals measure, on orders whose measures are plain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from retrieval_support import Knowledge

from retrieval.signals import NAMES, agreement, entropy


def test_entropy_of_shares() -> None:
    assert entropy(np.array([3.0, 0.0, 0.0], dtype=np.float32)) == 0.0 == entropy(np.array([], dtype=np.float32))
    assert entropy(np.array([2.0, 2.0, 2.0, 2.0], dtype=np.float32)) == pytest.approx(1.0)
    assert 0 < entropy(np.array([8.0, 1.0], dtype=np.float32)) < entropy(np.array([5.0, 4.0], dtype=np.float32)) < 1


def test_agreement_of_two_orders() -> None:
    order = np.arange(20)
    assert agreement(order, order) == 1.0 and agreement(order, order + 100) == 0.0 == agreement(order, order[:0])
    assert 0 < agreement(order, order[:10][::-1]) < agreement(order, np.array([1, 0, *range(2, 20)])) < 1


def test_they_are_of_the_question(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    for query in ("adult dose of gentamicin", "普通门诊诊查费是多少？"):
        signals = knowledge.search(query).signals
        assert set(signals) == set(NAMES)
        assert all(0 <= signals[name] <= 1 for name in ("lexical_share", "dense_entropy", "lexical_entropy", "agreement"))
        assert signals["lexical_share"] > 0.2 and signals["newest_days"] <= signals["top_days"] <= signals["oldest_days"]
    assert knowledge.search("zzzqqq").signals["lexical_share"] == 0.0
