"""Near duplicates: texts that share most of their shingles. They are only reported: last year's fee list is not this year's.

A signature is a MinHash (Broder, "On the resemblance and containment of documents", SEQUENCES 1997) of the text's shingles; two
signatures agree in a share of their values that estimates the Jaccard similarity, with a standard error of sqrt(J (1 - J) / 128), at most
0.044. Texts with a band of values in common are candidates (Indyk and Motwani, STOC 1998): with 20 bands of 6 values a pair of
similarity s is one with probability 1 - (1 - s^6)^20, which is 0.998 at 0.8 and 0.92 at 0.7.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.text import detect_lang, words
from retrieval.types import Document, DocumentKey

PERMUTATIONS = 128
THRESHOLD = 0.8
_BANDS, _ROWS = 20, 6
# Words of English and characters of Chinese in a shingle.
_WORDS, _CHARACTERS = 3, 5
# Longer texts are compared by their first part, so that memory and time stay bounded.
_SAMPLE = 1_000_000
_BLOCK = 10_000
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*|[〇零一二三四五六七八九十百千万亿两]{2,}")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """How alike two texts are: Jaccard similarity of their shingles, estimated and exact, and the numbers only one of them has."""

    estimated: float
    jaccard: float
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def __str__(self) -> str:
        """In plain words."""
        if not self.only_first and not self.only_second:
            return f"{self.jaccard:.0%} alike, the same numbers"
        return f"{self.jaccard:.0%} alike, numbers differ: {_listed(self.only_first)} | {_listed(self.only_second)}"


@dataclass(frozen=True, slots=True)
class Copy:
    """A document with exactly the text of another one; both are found by one search of it."""

    key: DocumentKey
    same_as: DocumentKey

    def to_json(self) -> dict[str, str]:
        return {"domain": self.key.domain, "doc_id": self.key.id, "same_as": self.same_as.id}


@dataclass(frozen=True, slots=True)
class Near:
    """Two documents with nearly the same text."""

    first: DocumentKey
    second: DocumentKey
    difference: Difference

    def to_json(self) -> dict[str, Any]:
        found = self.difference
        return {
            "domain": self.first.domain,
            "doc_ids": [self.first.id, self.second.id],
            "estimated": round(found.estimated, 3),
            "jaccard": round(found.jaccard, 3),
            "only_first": list(found.only_first),
            "only_second": list(found.only_second),
        }

    def __str__(self) -> str:
        return f"{self.first.domain}: {self.first.id} and {self.second.id} are {self.difference}"


def copies(groups: Iterable[Sequence[DocumentKey]], new: Collection[DocumentKey]) -> list[Copy]:
    """The documents of `new` that are copies; `groups` are of documents with one text, the first seen first."""
    found: list[Copy] = []
    for group in groups:
        original = next((key for key in group if key not in new), group[0])
        found.extend(Copy(key, original) for key in group if key in new and key != original)
    return found


def compare(first: DocumentKey, second: DocumentKey, read: Callable[[DocumentKey], Document | None]) -> Near | None:
    """Two documents, compared exactly; None if one of them is gone."""
    one, two = read(first), read(second)
    return None if one is None or two is None else Near(first, second, difference(one.text, two.text))


def signature(text: str) -> bytes | None:
    """The MinHash of a text, 128 little-endian uint32; None if there is no word in it."""
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    block: list[bytes] = []
    for shingle in _shingles(text):
        block.append(shingle.encode("utf-8"))
        if len(block) == _BLOCK:
            made.update_batch(block)
            block.clear()
    if block:
        made.update_batch(block)
    return None if made.is_empty() else made.hashvalues.astype("<u4").tobytes()


def estimate(first: bytes, second: bytes) -> float:
    """The estimated Jaccard similarity of the texts of two signatures, in [0, 1]."""
    return float(np.mean(np.frombuffer(first, dtype="<u4") == np.frombuffer(second, dtype="<u4")))


def bands(signature: bytes) -> list[int]:
    """The keys under which a text meets those like it: 20 signed 64-bit numbers."""
    size = 4 * _ROWS
    parts = (bytes([band]) + signature[band * size : (band + 1) * size] for band in range(_BANDS))
    return [int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little", signed=True) for part in parts]


def groups(signatures: Mapping[int, bytes], threshold: float = THRESHOLD) -> list[list[int]]:
    """Texts (by any number) that are alike, directly or through others; each group and the list of them in ascending order.

    The members of a bucket are compared with its first only, so that the cost grows with the texts and not with their pairs.
    """
    buckets: defaultdict[int, list[int]] = defaultdict(list)
    for id in sorted(signatures):
        for key in bands(signatures[id]):
            buckets[key].append(id)
    head = {id: id for id in signatures}

    def find(id: int) -> int:
        while head[id] != id:
            head[id] = id = head[head[id]]
        return id

    for first, *others in buckets.values():
        for other in others:
            one, two = sorted((find(first), find(other)))
            if one != two and estimate(signatures[first], signatures[other]) >= threshold:
                head[two] = one
    found: defaultdict[int, list[int]] = defaultdict(list)
    for id in sorted(signatures):
        found[find(id)].append(id)
    return [group for group in found.values() if len(group) > 1]


def difference(first: str, second: str) -> Difference:
    """Compare two texts."""
    one, two = set(_shingles(first)), set(_shingles(second))
    signed = signature(first), signature(second)
    estimated = estimate(signed[0], signed[1]) if signed[0] is not None and signed[1] is not None else 0.0
    here, there = Counter(_NUMBER.findall(first)), Counter(_NUMBER.findall(second))
    jaccard = len(one & two) / len(one | two) if one | two else 0.0
    return Difference(estimated, jaccard, tuple(here - there), tuple(there - here))


def _shingles(text: str) -> Iterator[str]:
    """Runs of words, with Chinese characters as words of their own."""
    sample = text[:_SAMPLE]
    tokens = words(sample, "en")
    size = _CHARACTERS if detect_lang(sample) == "zh" else _WORDS
    if tokens and len(tokens) < size:
        yield " ".join(tokens)
    for runs in zip(*(tokens[start:] for start in range(size)), strict=False):
        yield " ".join(runs)


def _listed(numbers: Sequence[str]) -> str:
    return ", ".join(numbers[:_SHOWN]) + (" …" if len(numbers) > _SHOWN else "") if numbers else "none"
