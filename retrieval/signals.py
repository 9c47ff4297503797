"""The numbers about evidence that the router reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from retrieval.fusion import FLOOR, Candidates, Scores
from retrieval.lexical import Ordinals
from retrieval.text import Dictionary, content_words, terms_with
from retrieval.types import Passage
from retrieval.vocabulary import Rule

# How far down the two orders the agreement and the entropies look.
TOP = 10
NAMES = (
    *("dense_top", "dense_gap", "dense_entropy", "lexical_top", "lexical_gap", "lexical_share", "lexical_entropy", "agreement"),
    *("overlap", "term_coverage", "coverage_all", "title_coverage", "title_asked", "rarity", "rarest"),
    *("rarest_found", "documents", "top_days", "newest_days", "oldest_days", "passages"),
)


def signals(
    query: str,
    found: Candidates,
    passages: Sequence[Passage],
    weights: Sequence[tuple[str, float]],
    rules: Sequence[Rule],
    dictionaries: Sequence[Dictionary | None] = (),
    stems: dict[str, str] | None = None,
) -> dict[str, float]:
    """All of `NAMES`, as `Evidence` describes them.

    `weights` are the question's content words with their rarities; by `rules`, a passage with a synonym has the word. `dictionaries`
    are those of the domains searched. `stems` carries known stems from call to call; it is filled.
    """
    now = datetime.now(UTC)
    ages = [(now - passage.document.updated_at).total_seconds() / 86_400 for passage in passages]
    words = [word for word, _ in weights]
    covered = [_has(words, rules, dictionaries, _whole(passage), stems) for passage in passages]
    title = passages[0].document.title if passages else ""
    titled = _has(words, rules, dictionaries, title, stems)
    named = words_of(title, dictionaries)
    total = sum(weight for _, weight in weights)
    rarest, weight_of_it = max(weights, key=lambda entry: entry[1], default=("", 0.0))
    both = sum(passage.dense_rank is not None and passage.lexical_rank is not None for passage in passages)

    def share(words: set[str]) -> float:
        return sum(weight for word, weight in weights if word in words) / total if total else 0.0

    return {
        "dense_top": _at(found.cosines, 0),
        "dense_gap": _at(found.centred, 0) - _at(found.centred, 1),
        "dense_entropy": entropy(found.centred[:TOP]),
        "lexical_top": _at(found.bm25, 0),
        "lexical_gap": _at(found.bm25, 0) - _at(found.bm25, 1),
        "lexical_share": min(1.0, _at(found.bm25, 0) / found.bound) if found.bound else 0.0,
        "lexical_entropy": entropy(found.bm25[:TOP]),
        "agreement": agreement(found.dense, found.above(FLOOR).lexical),
        "overlap": both / len(passages) if passages else 0.0,
        "term_coverage": share(covered[0]) if covered else 0.0,
        "coverage_all": share(set().union(*covered)),
        "title_coverage": share(titled),
        "title_asked": len(_has(named, (), dictionaries, query, stems)) / len(named) if named else 0.0,
        "rarity": total / len(weights) if weights else 0.0,
        "rarest": weight_of_it,
        "rarest_found": float(any(rarest in each for each in covered)),
        "documents": float(len({passage.document.key for passage in passages})),
        "top_days": ages[0] if ages else 0.0,
        "newest_days": min(ages, default=0.0),
        "oldest_days": max(ages, default=0.0),
        "passages": float(len(passages)),
    }


def entropy(scores: Scores) -> float:
    """How alike the scores are, in [0, 1]: the entropy of their shares over its largest value; 0 if one stands alone."""
    shares = np.maximum(scores, 0).astype(np.float64)
    shares = shares[shares > 0] / shares.sum() if shares.sum() > 0 else shares[:0]
    return float(-(shares * np.log(shares)).sum() / math.log(len(shares))) if len(shares) > 1 else 0.0


def agreement(first: Ordinals, second: Ordinals) -> float:
    """How alike the beginnings of two orders are, in [0, 1]: the mean share in common over depths 1 to `TOP`.

    Average overlap: Fagin, Kumar and Sivakumar, SODA 2003.
    """
    shares = [len(set(first[:depth].tolist()) & set(second[:depth].tolist())) / depth for depth in range(1, TOP + 1)]
    return sum(shares) / TOP


def words_of(question: str, dictionaries: Sequence[Dictionary | None]) -> list[str]:
    """The question's content words, in the languages of the domains it is asked in."""
    return list(dict.fromkeys(word for dictionary in dictionaries or (None,) for word in content_words(question, dictionary)))


def _whole(passage: Passage) -> str:
    """Everything that may hold a word of the question."""
    return "\n".join((passage.document.title, *passage.chunk.heading, passage.chunk.text))


def _has(
    words: Sequence[str], rules: Sequence[Rule], dictionaries: Sequence[Dictionary | None], whole: str, stems: dict[str, str] | None
) -> set[str]:
    """The words that the text has, or has a synonym of."""
    alternatives = [(rule, [words_of(alternative, dictionaries) for alternative in rule.alternatives]) for rule in rules]
    wanted = {*words, *(word for _, each in alternatives for found in each for word in found)}
    initials = {word[0] for word in wanted}
    terms = {term for dictionary in dictionaries or (None,) for term in terms_with(initials, whole, stems, dictionary)}

    def has(word: str) -> bool:
        # Chinese words are looked up as text, as segmentation may differ.
        return word in terms or (not word.isascii() and word in whole)

    found = {word for word in words if has(word)}
    for rule, each in alternatives:
        if any(all(map(has, alternative)) for alternative in each):
            found.update(words_of(rule.found, dictionaries))
    return found


def _at(scores: Scores, rank: int) -> float:
    return float(scores[rank]) if rank < len(scores) else 0.0
