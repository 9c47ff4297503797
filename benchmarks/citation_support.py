"""Justifies [answering] support, the share of a sentence that a passage must support to be cited.

Labelled set: each sentence of a gold answer against its gold document in the same language (must be cited); the same
sentence with its first number changed, with that number exchanged for another one of the document, and a sentence that
answers another question of the domain (must not be cited). A document is taken as one passage: a citation is one sentence of it,
which chunking never cuts. Peer: ROUGE-L precision of the answer sentence against the best passage sentence, by rouge-score
with the project's own words, at its best threshold.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness import at_least, at_most, finish, options, print_table
from sample import CHOOSING, TEST, pairs, slices

from appliance.answers.citations import Sentence, numbers, passage_sentences, support
from appliance.demo import SAMPLE
from appliance.settings import AnsweringConfig
from finetune.types import Pair
from retrieval.parsers import Parsed, parse
from retrieval.text import content_words, detect_lang, sentences, words
from retrieval.types import Chunk, DocumentInfo, DocumentKey, Passage

THRESHOLDS = tuple(step / 20 for step in range(6, 21))
METHODS = ("support", "ROUGE-L precision")
# Some of these are true by themselves: without its question, "5 days." is what another sentence of the document says.
EXCHANGED = "number exchanged"
# A threshold is "clearly better" only from this much accuracy on.
CLEARLY = 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """One answer sentence beside one document: how each method scores it, and what it is."""

    set: str
    lang: str
    kind: str
    scores: tuple[float, float]

    @property
    def holds(self) -> bool:
        return self.kind == "gold"


class _Words:
    """The project's words as a rouge-score tokenizer; each text is cut once."""

    def __init__(self) -> None:
        self._known: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self._known:
            self._known[text] = words(text, detect_lang(text))
        return self._known[text]


def document_sentences(domain: str, doc_id: str) -> list[Sentence]:
    """The sentences of a sample document, as parsed by the product."""
    parsed = next(iter(parse(SAMPLE / domain / "documents" / doc_id, doc_id)))
    if not isinstance(parsed, Parsed):
        raise parsed
    key = DocumentKey(domain, doc_id)
    info = DocumentInfo(domain, doc_id, parsed.uri, parsed.title, detect_lang(parsed.text), frozenset(), "", datetime.now(UTC))
    return passage_sentences([Passage(Chunk(doc_id, key, 0, len(parsed.text), (), None, parsed.text), info, 1.0, None, None)])


def answer_sentences(answer: str) -> list[str]:
    """The sentences that alignment looks at."""
    found = [answer[start:end].strip() for start, end in sentences(answer)]
    return [text for text in found if content_words(text) or numbers(text)]


def changed(text: str, present: frozenset[str]) -> str | None:
    """`text` with its first number replaced by the next one that the document does not have; None without a number."""
    match = re.search(r"\d+", text)
    if match is None:
        return None
    value = int(match.group()) + 1
    while str(value) in present:
        value += 1
    return f"{text[: match.start()]}{value}{text[match.end() :]}"


def exchanged(text: str, present: frozenset[str]) -> str | None:
    """`text` with its first number replaced by the nearest other plain number of the document; None if there is none."""
    match = re.search(r"(?<![\d.,:/])\d+(?![.,:/]?\d)", text)
    if match is None:
        return None
    value = int(match.group())
    others = sorted((int(n) for n in present - numbers(text) if n.isdecimal()), key=lambda other: (abs(other - value), other))
    return f"{text[: match.start()]}{others[0]}{text[match.end() :]}" if others else None


def cases(chosen: Sequence[Pair]) -> list[Case]:
    """The labelled set."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    known: dict[tuple[str, str], list[Sentence]] = {}
    usable = [pair for pair in chosen if pair.answerable and pair.domain and _same_language(pair)]
    made: list[Case] = []
    for number, pair in enumerate(usable):
        domain = str(pair.domain)
        for doc_id in pair.doc_ids:
            if (domain, doc_id) not in known:
                known[domain, doc_id] = document_sentences(domain, doc_id)
        candidates = [sentence for doc_id in pair.doc_ids for sentence in known[domain, doc_id]]
        present = frozenset().union(*(sentence.numbers for sentence in candidates))
        gold = answer_sentences(pair.answer)
        variants: list[tuple[str, Iterable[str | None]]] = [
            ("gold", gold),
            ("number changed", (changed(text, present) for text in gold)),
            (EXCHANGED, (exchanged(text, present) for text in gold)),
            ("other answer", answer_sentences(_other(usable, number).answer)),
        ]
        for kind, texts in variants:
            for text in texts:
                if text is not None:
                    scores = (_best(support, text, candidates), _best(_precision(scorer), text, candidates))
                    made.append(Case(TEST if pair.split == TEST else CHOOSING, pair.lang, kind, scores))
    return made


def _same_language(pair: Pair) -> bool:
    return bool(pair.doc_ids) and all(doc_id.startswith(f"{pair.lang}/") for doc_id in pair.doc_ids)


def _other(usable: Sequence[Pair], number: int) -> Pair:
    """The next pair of the same domain, language and set that rests on other documents."""
    pair = usable[number]
    for step in range(1, len(usable)):
        other = usable[(number + step) % len(usable)]
        same = (other.domain, other.lang, other.split == TEST) == (pair.domain, pair.lang, pair.split == TEST)
        if same and not set(other.doc_ids) & set(pair.doc_ids):
            return other
    raise ValueError(f"{pair.id}: no pair of {pair.domain} in {pair.lang} rests on other documents; add one to the sample")


def _precision(scorer: Any) -> Callable[[str, Sentence], float]:
    return lambda text, sentence: float(scorer.score(sentence.text, text)["rougeL"].precision)


def _best(score: Callable[[str, Sentence], float], text: str, candidates: Sequence[Sentence]) -> float:
    return max((score(text, sentence) for sentence in candidates), default=0.0)


def measure(found: Sequence[Case], method: int, threshold: float) -> dict[str, float]:
    """Precision, recall and accuracy of "cited from this threshold on", in [0, 1]."""
    cited = [case for case in found if case.scores[method] >= threshold]
    right = sum(case.holds for case in cited)
    positives = sum(case.holds for case in found)
    return {
        "precision": right / len(cited) if cited else 1.0,
        "recall": right / positives if positives else 0.0,
        "accuracy": (right + len(found) - positives - (len(cited) - right)) / len(found),
    }


def best_threshold(found: Sequence[Case], method: int) -> float:
    """The threshold with the highest accuracy; of equals the highest, as an unsupported citation is the worse error."""
    return max(THRESHOLDS, key=lambda threshold: (measure(found, method, threshold)["accuracy"], threshold))


def main() -> None:
    parser = options("The threshold from which a citation supports an answer sentence.")
    arguments = parser.parse_args()
    in_use = AnsweringConfig().support
    found = cases(pairs(arguments.quick))
    by_slice: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in found:
        by_slice[case.set, case.lang].append(case)
        by_slice[case.set, "all"].append(case)
    rows: list[dict[str, Any]] = []
    for method, name in enumerate(METHODS):
        for part, lang in slices():
            here = by_slice[part, lang]
            for threshold in THRESHOLDS:
                row = {"method": name, "set": part, "lang": lang, "threshold": threshold, "cases": len(here)}
                rows.append(row | measure(here, method, threshold))
    for name in METHODS:
        print_table(name, [row for row in rows if row["method"] == name and (row["lang"] == "all" or row["threshold"] == in_use)])
    best = [best_threshold(by_slice[CHOOSING, "all"], method) for method in range(len(METHODS))]
    kinds = [
        {"method": name, "threshold": at, "set": part, "kind": kind, "cases": len(here), "cited": sum(hits) / len(here)}
        for method, (name, at) in enumerate(zip(METHODS, (in_use, best[1]), strict=True))
        for part in (CHOOSING, TEST)
        for kind in dict.fromkeys(case.kind for case in found)
        if (here := [case for case in by_slice[part, "all"] if case.kind == kind])
        for hits in [[case.scores[method] >= at for case in here]]
    ]
    print_table("share cited by kind (only gold should be)", kinds)

    def accuracy(part: str, method: int, threshold: float) -> float:
        return measure(by_slice[part, "all"], method, threshold)["accuracy"]

    plain = [case for case in by_slice[CHOOSING, "all"] if case.kind != EXCHANGED]
    best_plain = best_threshold(plain, 0)
    regret_plain = measure(plain, 0, best_plain)["accuracy"] - measure(plain, 0, in_use)["accuracy"]
    claims = [
        at_most(f"support_regret.{CHOOSING}", accuracy(CHOOSING, 0, best[0]) - accuracy(CHOOSING, 0, in_use), CLEARLY, "accuracy"),
        at_most(f"support_regret_without_exchanged.{CHOOSING}", regret_plain, CLEARLY, "accuracy"),
        at_least(f"support_minus_rouge_l.{TEST}", accuracy(TEST, 0, in_use) - accuracy(TEST, 1, best[1]), 0.0, "accuracy"),
    ]
    settings = {
        "quick": arguments.quick,
        "in_use": in_use,
        f"best on {CHOOSING}": dict(zip(METHODS, best, strict=True)),
        f"best on {CHOOSING} without exchanged numbers": best_plain,
        "peer": "rouge-score, ROUGE-L precision",
    }
    print_table("thresholds", [{"setting": name, "value": str(value)} for name, value in settings.items()])
    finish(arguments.json, settings, [*rows, *kinds], claims)


if __name__ == "__main__":
    main()
