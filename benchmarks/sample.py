"""The sample knowledge base as labelled material: its pairs, and where its documents lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.demo import DOMAINS, SAMPLE
from finetune.dataset import read_pairs
from finetune.types import Pair

# Constants are chosen on train and dev; test is only reported.
CHOOSING, TEST = "train+dev", "test"


def domains(quick: bool) -> Sequence[str]:
    """The domains of the sample; only the first with --quick."""
    return DOMAINS[:1] if quick else DOMAINS


def pairs(quick: bool) -> list[Pair]:
    """Every pair of these domains."""
    return [pair for domain in domains(quick) for pair in read_pairs(SAMPLE / domain / "qa.jsonl").pairs]


def slices() -> Iterator[tuple[str, str]]:
    """Every (set, language) that is reported; language "all" is both."""
    for name in (CHOOSING, TEST):
        for lang in ("all", "en", "zh"):
            yield name, lang
