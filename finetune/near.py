"""Near-duplicate questions: the same words up to the unimportant ones."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Weighted Jaccard similarity from which two questions count as near duplicates.
THRESHOLD = 0.8
# What a word without meaning of its own ("of", "is", "的") weighs against another one that is as rare.
STOP_WEIGHT = 0.25
# Near duplicates listed of one text. Only the many copies of a long form with a word or two between have more.
MAX_LISTED = 500
# Sums of the same weights in another order differ by less.
_ROUNDING = 1e-9

# The places of the word sets that one of them is near to, and how near.
Near = tuple[int, "npt.NDArray[np.int64]", "npt.NDArray[np.float64]"]


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
    each paired with the first of them, which stands for all of them in the other pairs. Of a text near to more than MAX_LISTED
    earlier ones the first MAX_LISTED are paired with it; `group` and `overlaps` leave out none.
    """
    members = list(_same_words(texts).items())
    pairs = [(numbers[0], number, 1.0) for _, numbers in members for number in numbers[1:]]
    for number, others, similarity in _near_sets(members, len(texts), threshold):
        listed = islice(zip(others.tolist(), similarity.tolist(), strict=True), MAX_LISTED)
        pairs += [(members[other][1][0], members[number][1][0], value) for other, value in listed]
    return sorted(pairs)


def group(texts: Sequence[str], threshold: float = THRESHOLD) -> list[list[int]]:
    """Indices of `texts` grouped so that near duplicates (and what they are near to) are together, in order."""
    import numpy as np

    members = list(_same_words(texts).items())
    label = np.arange(len(members))
    for number, others, _ in _near_sets(members, len(texts), threshold):
        first, *more = np.unique(label[others])
        label[number] = first
        for later in more:
            label[label == later] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for (_, numbers), home in zip(members, label.tolist(), strict=True):
        groups[home] += numbers
    return sorted(sorted(numbers) for numbers in groups.values())


def overlaps(left: Sequence[str], right: Sequence[str], threshold: float = THRESHOLD) -> list[Overlap]:
    """For each question of `left` that is also in `right`, exactly or nearly: the closest one there (the first of equals).

    Similarity as in `near_duplicates`, words weighing by their rarity in both lists together.
    """
    import numpy as np

    from retrieval.text import normalise_question

    exact: dict[str, int] = {}
    for number, text in enumerate(right):
        exact.setdefault(normalise_question(text), number)
    members = list(_same_words([*left, *right]).items())
    # The first text of `right` with these words, and of every set the nearest set that has one: itself at best.
    of_right = [next((number - len(left) for number in numbers if number >= len(left)), -1) for _, numbers in members]
    is_right = np.array(of_right, np.int64) >= 0
    best, nearest = is_right.astype(np.float64), np.arange(len(members))
    for number, others, similarity in _near_sets(members, len(left) + len(right), threshold):
        ours = np.where(is_right[others], similarity, 0.0)
        closest = int(ours.argmax())
        if ours[closest] > best[number]:
            best[number], nearest[number] = ours[closest], others[closest]
        if is_right[number]:
            closer = similarity > best[others]
            best[others[closer]], nearest[others[closer]] = similarity[closer], number
    found: dict[int, Overlap] = {}
    for place, (_, numbers) in enumerate(members):
        if best[place]:
            there, value = of_right[nearest[place]], float(best[place])
            found |= {number: Overlap(number, there, value, False) for number in numbers if number < len(left)}
    for number, form in enumerate(map(normalise_question, left)):
        if form in exact:
            found[number] = Overlap(number, exact[form], 1.0, True)
    return [found[number] for number in sorted(found)]


def _same_words(texts: Sequence[str]) -> dict[frozenset[str], list[int]]:
    """The places of the texts by their set of words."""
    from retrieval.text import normalise_question, words

    found: dict[frozenset[str], list[int]] = {}
    for number, text in enumerate(texts):
        found.setdefault(frozenset(words(normalise_question(text))), []).append(number)
    return found


def _near_sets(members: Sequence[tuple[frozenset[str], list[int]]], texts: int, threshold: float) -> Iterator[Near]:
    """Each set that is as near as `threshold` to earlier, different ones, with those in order; a set counts as often as its texts.

    Candidates come from prefix filtering (Bayardo, Ma, Srikant 2007: two sets as similar as `threshold` share one of their rarest
    words), which unlike MinHash misses none, so the work grows with the number of likely pairs and not with the square of the texts.
    """
    import numpy as np

    from retrieval.text import content_words

    frequency: Counter[str] = Counter()
    for found, numbers in members:
        frequency.update(dict.fromkeys(found, len(numbers)))
    weight = {word: math.log(1 + texts / count) * (1.0 if content_words(word) else STOP_WEIGHT) for word, count in frequency.items()}
    # All sets one behind the other as numbers of words: texts of a few common words are candidates of each other by the thousand.
    called = {word: number for number, word in enumerate(weight)}
    weights = np.fromiter(weight.values(), np.float64, len(weight))
    size = np.fromiter((len(found) for found, _ in members), np.int64, len(members))
    start = np.cumsum(size) - size
    every = np.fromiter((called[word] for found, _ in members for word in found), np.int32, int(size.sum()))
    total = np.fromiter((sum(weight[word] for word in found) for found, _ in members), np.float64, len(members))
    here = np.zeros(len(weight))
    index: dict[str, list[int]] = defaultdict(list)
    for number, (found, _) in enumerate(members):
        candidates: set[int] = set()
        whole = float(total[number])
        rest, least = whole, threshold * whole * (1 - _ROUNDING)
        for word in sorted(found, key=lambda word: (frequency[word], word)):
            # Words from here on weigh less than the overlap that is needed.
            if rest < least:
                break
            candidates.update(index[word])
            index[word].append(number)
            rest -= weight[word]
        if not candidates:
            continue
        others = np.fromiter(candidates, np.int64, len(candidates))
        # A set much lighter or heavier than this one cannot be as similar.
        others = np.sort(others[(total[others] >= least) & (total[others] * least <= whole * whole)])
        if not len(others):
            continue
        words = every[start[number] : start[number] + size[number]]
        here[words] = weights[words]
        end = np.cumsum(size[others])
        begin = end - size[others]
        # What each of the others has in common with this one: the weights of its words that are here, summed from its begin to its end.
        common = np.add.reduceat(here[every[np.arange(end[-1]) + np.repeat(start[others] - begin, size[others])]], begin)
        here[words] = 0.0
        similarity = np.minimum(common / (whole + total[others] - common), 1.0)
        near = similarity >= threshold * (1 - _ROUNDING)
        if near.any():
            yield number, others[near], similarity[near]
