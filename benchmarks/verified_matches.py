"""How often a question is taken for another one that an expert has answered, and how often a paraphrase is recognised.

    python benchmarks/verified_matches.py [--quick] --json benchmarks/results/verified_matches.json

The pairs are in `verified_pairs.jsonl`: templates whose values differ by a number, a negation, an age group, who does something to
whom, or something else that matters (each value against the next and the one after that, values of one meaning left out), and questions
with their paraphrases. Compared are the embedding alone at several thresholds, and what the appliance does:
`appliance.answers.same_question` and the embedding.
`--quick` leaves the embedding out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import harness

from appliance.answers.same_question import meaning, same
from appliance.answers.verified import SIMILAR
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.workspace import Workspace

PAIRS = Path(__file__).with_name("verified_pairs.jsonl")
ALIKE = "paraphrase"
# What takes the same place in a template and means the same.
_SYNONYMS = (
    frozenset({"不可以", "不能", "没有", "无", "不", "未", "没", "禁止", "不要", "不赔付", "未赔付"}),
    frozenset({"not", "never", "unsafe", "not safe", "is not", "is never"}),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions; `kind` says in what they differ, or that they are paraphrases."""

    one: str
    other: str
    kind: str
    lang: str


def pairs() -> list[Pair]:
    """All of them, in the order of the file."""
    made: list[Pair] = []
    for row in map(json.loads, PAIRS.read_text("utf-8").splitlines()):
        values: list[str] = row["values"]
        if row["kind"] == ALIKE:
            made += [Pair(values[0], other, ALIKE, row["lang"]) for other in values[1:]]
            continue
        template = Template(row["template"])
        for one, other in [*pairwise(values), *zip(values, values[2:], strict=False)]:
            if not any({one, other} <= group for group in _SYNONYMS):
                first, second = (" ".join(template.substitute(n=value).split()) for value in (one, other))
                made.append(Pair(first, second, row["kind"], row["lang"]))
    return made


def similarities(found: Sequence[Pair]) -> dict[Pair, float]:
    """The cosine of each pair's questions, by the embedding model that a new workspace has."""
    texts = list(dict.fromkeys(text for pair in found for text in (pair.one, pair.other)))
    with tempfile.TemporaryDirectory(prefix="verified-matches-") as folder, Workspace.create(Path(folder) / "workspace") as workspace:
        embedder = Knowledge(workspace, ModelStore.default()).embedder
        vectors = dict(zip(texts, embedder.encode_queries(texts), strict=True))
    return {pair: float(vectors[pair.one] @ vectors[pair.other]) for pair in found}


def row(name: str, found: Sequence[Pair], matches: Callable[[Pair], bool]) -> dict[str, Any]:
    """Percent of the differing pairs that match, by kind and in all, and of the paraphrases, by language."""
    matched = {pair: matches(pair) for pair in found}

    def share(of: Callable[[Pair], bool]) -> float:
        group = [matched[pair] for pair in found if of(pair)]
        return round(100 * sum(group) / len(group), 1)

    kinds = dict.fromkeys(pair.kind for pair in found if pair.kind != ALIKE)
    return {
        "way": name,
        **{f"false {kind} %": share(lambda pair, kind=kind: pair.kind == kind) for kind in kinds},  # type: ignore[misc]
        "false %": share(lambda pair: pair.kind != ALIKE),
        **{f"found {lang} %": share(lambda pair, lang=lang: pair.kind == ALIKE and pair.lang == lang) for lang in ("en", "zh")},  # type: ignore[misc]
    }


def main() -> None:
    options = harness.options(__doc__ or "").parse_args()
    found = pairs()
    told = {pair: same(meaning(pair.one), meaning(pair.other)) for pair in found}
    rows = [row("words", found, lambda pair: told[pair])]
    settings: dict[str, Any] = {"quick": options.quick, "pairs": len(found), "differing": sum(pair.kind != ALIKE for pair in found)}
    if not options.quick:
        cosine = similarities(found)
        rows += [row(f"embedding {at:g}", found, lambda pair, at=at: cosine[pair] >= at) for at in (0.9, 0.95, 0.97, 0.99)]  # type: ignore[misc]
        rows.append(row("words and embedding", found, lambda pair: told[pair] and cosine[pair] >= SIMILAR))
        settings |= {"threshold": SIMILAR, "lowest_alike": round(min(cosine[pair] for pair in found if told[pair]), 4)}
    harness.print_table(f"{len(found)} pairs", rows)
    harness.finish(options.json, settings, rows, [harness.at_most("verified_false_matches", rows[-1]["false %"], 1, "%")])


if __name__ == "__main__":
    main()
