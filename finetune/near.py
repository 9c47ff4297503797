"""Near-duplicate questions: the same words up to the unimportant ones."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

# Weighted Jaccard similarity from which two questions count as near duplicates.
THRESHOLD = 0.8
# What a word without meaning of its own ("of", "is", "的") weighs against another one that is as rare.
STOP_WEIGHT = 0.25
# Candidates compared for one text; only texts made of nothing but common words ever have more.
MAX_CANDIDATES = 500


@dataclass(frozen=True, slots=True)
class Overlap:
    """`left` and `right` are places in two lists of questions; `exact` ones are equal after normalisation (`similarity` 1.0)."""

    left: int
    right: int
    similarity: float
    exact: bool


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity), i < j, whose similarity is at least `threshold` (in (0, 1]), in order of i, j.

    The similarity is the Jaccard similarity of the word sets, each word weighing ln(1 + n / texts that have it), stop
    words a quarter of that: "what are the symptoms of" counts little and the disease much. Texts of exactly the same words are
    each paired with the first of them, which stands for all of them in the other pairs. Candidates come from
    prefix filtering (Bayardo, Ma, Srikant 2007: two sets as similar as `threshold` share one of their rarest words), which unlike
    MinHash misses none, so the work grows with the number of likely pairs and not with the square of the texts.
    """
    members = list(_same_words(texts).items())
    pairs = [(numbers[0], number, 1.0) for _, numbers in members for number in numbers[1:]]
    for left, right, similarity in _near_sets(members, len(texts), threshold):
        first, second = members[left][1][0], members[right][1][0]
        pairs.append((min(first, second), max(first, second), similarity))
    return sorted(pairs)


def group(texts: Sequence[str], threshold: float = THRESHOLD) -> list[list[int]]:
    """Indices of `texts` grouped so that near duplicates (and what they are near to) are together, in order."""
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for left, right, _ in near_duplicates(texts, threshold):
        a, b = root(left), root(right)
        parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        groups[root(number)].append(number)
    return list(groups.values())


def overlaps(left: Sequence[str], right: Sequence[str], threshold: float = THRESHOLD) -> list[Overlap]:
    """For each question of `left` that is also in `right`, exactly or nearly: the closest one there (the first of equals).

    Similarity as in `near_duplicates`, words weighing by their rarity in both lists together.
    """
    from retrieval.text import normalise_question

    first: dict[str, int] = {}
    for number, text in enumerate(right):
        first.setdefault(normalise_question(text), number)
    best: dict[int, Overlap] = {
        number: Overlap(number, first[form], 1.0, True) for number, form in enumerate(map(normalise_question, left)) if form in first
    }
    members = list(_same_words([*left, *right]).items())
    near = [(place, place, 1.0) for place in range(len(members))] + _near_sets(members, len(left) + len(right), threshold)
    for one, other, similarity in near:
        for here, there in {(one, other), (other, one)}:
            of_right = next((number - len(left) for number in members[there][1] if number >= len(left)), None)
            for number in members[here][1] if of_right is not None else ():
                if number < len(left) and of_right is not None and (number not in best or similarity > best[number].similarity):
                    best[number] = Overlap(number, of_right, similarity, False)
    return [best[number] for number in sorted(best)]


def _same_words(texts: Sequence[str]) -> dict[frozenset[str], list[int]]:
    """The places of the texts by their set of words."""
    from retrieval.text import normalise_question, words

    found: dict[frozenset[str], list[int]] = {}
    for number, text in enumerate(texts):
        found.setdefault(frozenset(words(normalise_question(text))), []).append(number)
    return found


def _near_sets(members: Sequence[tuple[frozenset[str], list[int]]], texts: int, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of different word sets as near as `threshold`; a set counts as often as there are texts of it."""
    from retrieval.text import content_words

    frequency: Counter[str] = Counter()
    for found, numbers in members:
        frequency.update(dict.fromkeys(found, len(numbers)))
    weight = {word: math.log(1 + texts / count) * (1.0 if content_words(word) else STOP_WEIGHT) for word, count in frequency.items()}
    total = [sum(weight[word] for word in found) for found, _ in members]
    index: dict[str, list[int]] = defaultdict(list)
    pairs: list[tuple[int, int, float]] = []
    for number, (found, _) in enumerate(members):
        candidates: dict[int, None] = {}
        rest, least, most = total[number], threshold * total[number] * (1 - 1e-9), total[number] / threshold * (1 + 1e-9)
        for word in sorted(found, key=lambda word: (frequency[word], word)):
            # Words from here on weigh less than the overlap that is needed (with room for rounding).
            if rest < least:
                break
            if len(candidates) < MAX_CANDIDATES:
                # A set much lighter or heavier than this one cannot be as similar.
                alike = (other for other in index[word] if least <= total[other] <= most)
                candidates.update(dict.fromkeys(itertools.islice(alike, MAX_CANDIDATES - len(candidates))))
            index[word].append(number)
            rest -= weight[word]
        for other in candidates:
            common = sum(weight[word] for word in found & members[other][0])
            similarity = common / (total[number] + total[other] - common)
            if similarity >= threshold:
                pairs.append((other, number, min(1.0, similarity)))
    return pairs
