"""Retrieval, citation and refusal measures over document ids; relevance is binary: a document is gold or not."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def recall_at(k: int, ranked: Sequence[str], gold: Collection[str]) -> float:
    """Share of the gold documents among the first `k` different documents of `ranked`. Raises ValueError without gold."""
    return len(set(_distinct(ranked)[:k]) & _wanted(gold)) / len(_wanted(gold))


def ndcg_at(k: int, ranked: Sequence[str], gold: Collection[str]) -> float:
    """nDCG with gains 0 and 1, discount 1 / log2(rank + 1), ranks from 1 (Järvelin and Kekäläinen 2002). Raises ValueError without gold."""
    wanted = _wanted(gold)
    gained = sum(1 / math.log2(rank + 2) for rank, doc in enumerate(_distinct(ranked)[:k]) if doc in wanted)
    return gained / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))


def reciprocal_rank(ranked: Sequence[str], gold: Collection[str]) -> float:
    """1 / rank of the first gold document, 0 if there is none; its mean is the MRR. Raises ValueError without gold."""
    wanted = _wanted(gold)
    return next((1 / rank for rank, doc in enumerate(_distinct(ranked), 1) if doc in wanted), 0.0)


def citation_precision(cited: Sequence[str], gold: Collection[str]) -> float | None:
    """Share of the citations that name a gold document, None if nothing was cited."""
    return sum(doc in gold for doc in cited) / len(cited) if cited else None


def citation_recall(cited: Sequence[str], gold: Collection[str]) -> float:
    """Share of the gold documents that are cited. Raises ValueError without gold."""
    return len(set(cited) & _wanted(gold)) / len(_wanted(gold))


def refusals(refused: Sequence[bool], answerable: Sequence[bool]) -> dict[str, float]:
    """How right the refusals were, each in [0, 1]; a measure with nothing to divide by is left out.

    ``refusal_correct``: share of questions refused exactly if unanswerable. ``refusal_precision``: share of the refusals that
    were due. ``refusal_recall``: share of the unanswerable questions that were refused. ``hallucination``: share of those that were
    answered, as if there were an answer.
    """
    pairs = list(zip(refused, answerable, strict=True))
    due = sum(was and not could for was, could in pairs)
    measures = {
        "refusal_correct": (sum(was != could for was, could in pairs), len(pairs)),
        "refusal_precision": (due, sum(was for was, _ in pairs)),
        "refusal_recall": (due, sum(not could for _, could in pairs)),
        "hallucination": (sum(not was and not could for was, could in pairs), sum(not could for _, could in pairs)),
    }
    return {name: part / whole for name, (part, whole) in measures.items() if whole}


def _distinct(ranked: Sequence[str]) -> list[str]:
    """Several passages of one document count once, at its best rank."""
    return list(dict.fromkeys(ranked))


def _wanted(gold: Collection[str]) -> set[str]:
    if not gold:
        raise ValueError("the gold documents are not known; retrieval cannot be scored for this question")
    return set(gold)
