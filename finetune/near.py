"""Near-duplicate questions: the same words up to the unimportant ones."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

# Weighted Jaccard similarity from which two questions count as near duplicates.
THRESHOLD = 0.8
# What a word without meaning of its own ("of", "is", "的") weighs against another one that is as rare.
STOP_WEIGHT = 0.25
# Candidates looked at for one text; only texts made of nothing but common words ever have more.
MAX_CANDIDATES = 500


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity), i < j, whose similarity is at least `threshold` (in (0, 1]), in order of i, j.

    The similarity is the Jaccard similarity of the word sets, each word weighing ln(1 + n / texts that have it), stop
    words a quarter of that: "what are the symptoms of" counts little and the disease much. Candidates come from
    prefix filtering (Bayardo, Ma, Srikant 2007: two sets as similar as `threshold` share one of their rarest words), so
    the work grows with the number of likely pairs and not with the square of the texts.
    """
    from retrieval.text import content_words, normalise_question, words

    sets = [frozenset(words(normalise_question(text))) for text in texts]
    frequency = Counter(word for found in sets for word in found)
    weight = {word: math.log(1 + len(texts) / count) * (1.0 if content_words(word) else STOP_WEIGHT) for word, count in frequency.items()}
    total = [sum(weight[word] for word in found) for found in sets]
    index: dict[str, list[int]] = defaultdict(list)
    pairs: list[tuple[int, int, float]] = []
    for number, found in enumerate(sets):
        candidates: dict[int, None] = {}
        rest = total[number]
        for word in sorted(found, key=lambda word: (frequency[word], word)):
            # Words from here on weigh less than the overlap that is needed (with room for rounding).
            if rest < threshold * total[number] * (1 - 1e-9):
                break
            if len(candidates) < MAX_CANDIDATES:
                candidates.update(dict.fromkeys(index[word]))
            index[word].append(number)
            rest -= weight[word]
        for other in candidates:
            common = sum(weight[word] for word in found & sets[other])
            similarity = common / (total[number] + total[other] - common)
            if similarity >= threshold:
                pairs.append((other, number, min(1.0, similarity)))
    return sorted(pairs)


def group(texts: Sequence[str], threshold: float = THRESHOLD) -> list[list[int]]:
    """Indices of `texts` grouped so that near duplicates (and what they are near to) are together, in order."""
    from retrieval.text import normalise_question

    first: dict[str, int] = {}
    home = [first.setdefault(normalise_question(text), number) for number, text in enumerate(texts)]
    unique = list(first.values())
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for left, right, _ in near_duplicates([texts[number] for number in unique], threshold):
        a, b = root(unique[left]), root(unique[right])
        parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        groups[root(home[number])].append(number)
    return list(groups.values())
