"""How well groundedness is judged: whether passages support a sentence.

Two labelled sets. "written" (``groundedness.jsonl``): 40 passages of medicine, law and finance in English and Chinese, each with
sentences it supports (one nearly in its words, one in others), and sentences with a changed number, an exchanged entity, a negation, and
from elsewhere; passages with odd numbers are for choosing, the others for testing. "sample": answer sentences of the sample knowledge
base against their documents, with numbers changed and answers to other questions, on which no weight was fitted. The features were
designed with all of these in view, so that unseen text may be judged worse.
Peers: the support that decides citations (at its threshold), ROUGE-L precision, and the cosine of embeddings, each at its best threshold on
the half for choosing; and the method itself with that cosine as a further feature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from citation_support import _other, _same_language, answer_sentences, changed, document_sentences
from embedding_cache import CachedEmbedder, default_cache
from harness import at_least, finish, options, print_table
from sample import pairs

from appliance.answers.citations import numbers
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_EMBEDDING, AnsweringConfig
from eval.grounded import FEATURES, THRESHOLD, WEIGHTS, Source, features, has_numbers, nearest, source, support
from eval.overlap import rouge_l_precision
from eval.statistics import paired_bootstrap
from retrieval.embed import SentenceTransformerEmbedder
from retrieval.text import content_words, detect_lang

LABELLED = Path(__file__).with_name("groundedness.jsonl")
SUPPORTED = "supported"
KINDS = (SUPPORTED, "number", "entity", "negation", "unrelated")


@dataclass(frozen=True, slots=True)
class Case:
    """A sentence beside a passage; it is supported if `kind` says so."""

    set: str
    lang: str
    kind: str
    sentence: str
    passage: Source

    @property
    def holds(self) -> bool:
        return self.kind == SUPPORTED


def written() -> list[Case]:
    """The set in the file."""
    found: list[Case] = []
    for line in LABELLED.read_text("utf-8").splitlines():
        row = json.loads(line)
        part = "choosing" if int(row["id"][-2:]) % 2 else "test"
        passage = source(row["passage"])
        for kind in KINDS:
            texts = row[kind] if isinstance(row[kind], list) else [row[kind]]
            found += [Case(part, row["lang"], kind, text, passage) for text in texts]
    return found


def sampled(quick: bool) -> list[Case]:
    """The sample knowledge base: gold sentences, the same with another number, and those of other answers."""
    usable = [pair for pair in pairs(quick) if pair.answerable and pair.domain and _same_language(pair)]
    found: list[Case] = []
    for number, pair in enumerate(usable):
        parts = [sentence for doc_id in pair.doc_ids for sentence in document_sentences(str(pair.domain), doc_id)]
        passage = source("\n".join(sentence.text for sentence in parts))
        present = frozenset().union(*(numbers(sentence.text) for sentence in parts))
        gold = answer_sentences(pair.answer)
        found += [Case("sample", pair.lang, SUPPORTED, text, passage) for text in gold]
        found += [Case("sample", pair.lang, "number", text, passage) for one in gold if (text := changed(one, present))]
        found += [Case("sample", pair.lang, "unrelated", text, passage) for text in answer_sentences(_other(usable, number).answer)]
    return found


def lexical(sentence: str, passage: Source) -> float:
    """The rule that decides citations (see `appliance.answers.citations`), over the passage's best sentence."""
    wanted = numbers(sentence)
    asked = frozenset(content_words(sentence)) - wanted
    weight = len(asked) + 2 * len(wanted)
    best = 0.0
    for text in passage.sentences:
        if wanted <= numbers(text):
            best = max(best, (len(asked & frozenset(content_words(text))) + 2 * len(wanted)) / max(1, weight))
    return best


def rouge(sentence: str, passage: Source) -> float:
    """ROUGE-L precision against the passage's best sentence."""
    return max((rouge_l_precision(text, sentence, detect_lang(sentence)) for text in passage.sentences), default=0.0)


def accuracy(cases: Sequence[Case], scores: Sequence[float], threshold: float) -> list[float]:
    """1 for each case that is judged right."""
    return [float((score >= threshold) == case.holds) for case, score in zip(cases, scores, strict=True)]


def best_threshold(cases: Sequence[Case], scores: Sequence[float]) -> float:
    """The score with the highest balanced accuracy as a threshold; of equals the highest."""
    return max(sorted(set(scores)), key=lambda threshold: (round(_balanced(cases, accuracy(cases, scores, threshold)), 9), threshold))


def _balanced(cases: Sequence[Case], right: Sequence[float]) -> float:
    """The mean of both accuracies, as more sentences are wrong than right."""
    halves = [[value for case, value in zip(cases, right, strict=True) if case.holds == holds] for holds in (True, False)]
    return sum(sum(half) / len(half) for half in halves if half) / sum(bool(half) for half in halves)


def fitted(cases: Sequence[Case], rows: Any) -> tuple[Any, list[float]]:
    """A logistic model over the rows of the cases whose numbers hold, and its weights."""
    from sklearn.linear_model import LogisticRegression

    counted = [number for number, case in enumerate(cases) if has_numbers(case.sentence, case.passage)]
    model = LogisticRegression(C=3).fit(rows[counted], [cases[number].holds for number in counted])
    return model, [round(float(value), 2) for value in (*model.coef_[0], model.intercept_[0])]


def main() -> None:
    arguments = options("How well the groundedness of a sentence is judged.").parse_args()
    cases = [*written(), *sampled(arguments.quick)]
    models = ModelStore.default()
    model = SentenceTransformerEmbedder(models.path(DEFAULT_EMBEDDING), models.model_hash(DEFAULT_EMBEDDING))
    embedder = CachedEmbedder(model, default_cache() / "embeddings.db")

    def cosine(sentence: str, passage: Source) -> float:
        one, two = embedder.encode_passages([sentence, passage.sentences[nearest(sentence, passage)]])
        return float(one @ two)

    choosing = [number for number, case in enumerate(cases) if case.set == "choosing"]
    rows = np.array([[*features(case.sentence, case.passage), cosine(case.sentence, case.passage)] for case in cases])
    here = [cases[number] for number in choosing]
    _, weights = fitted(here, rows[choosing][:, : len(FEATURES)])
    wider, _ = fitted(here, rows[choosing])
    numeric = np.array([has_numbers(case.sentence, case.passage) for case in cases])
    methods: dict[str, Callable[[str, Source], float]] = {"citation support": lexical, "ROUGE-L precision": rouge, "cosine": cosine}
    scores = {"grounded": [support(case.sentence, [case.passage]) for case in cases]}
    scores |= {name: [method(case.sentence, case.passage) for case in cases] for name, method in methods.items()}
    scores["grounded and cosine"] = list(wider.predict_proba(rows)[:, 1] * numeric)
    cut = {name: best_threshold(here, [found[number] for number in choosing]) for name, found in scores.items()}
    cut |= {"grounded": THRESHOLD, "grounded and cosine": THRESHOLD, "citation support": AnsweringConfig().support}

    table: list[dict[str, Any]] = []
    right = {name: accuracy(cases, found, cut[name]) for name, found in scores.items()}
    for name, found in right.items():
        for part in ("choosing", "test", "sample"):
            for lang in ("en", "zh", "all"):
                chosen = [number for number, case in enumerate(cases) if case.set == part and lang in (case.lang, "all")]
                if not chosen:
                    continue
                values = [found[number] for number in chosen]
                _, low, high = paired_bootstrap(values, [0.0] * len(values), method="bca")
                kinds = {
                    kind: (sum(of) / len(of) if (of := [found[number] for number in chosen if cases[number].kind == kind]) else None)
                    for kind in KINDS
                }
                row = {"method": name, "set": part, "lang": lang, "n": len(values), "threshold": cut[name]}
                table.append(row | {"accuracy": sum(values) / len(values), "low": low, "high": high} | kinds)
    print_table("accuracy (share judged right, 95 % interval), overall and by kind", table)
    test = [number for number, case in enumerate(cases) if case.set == "test"]
    claims = []
    for name in (*methods, "grounded and cosine"):
        gained = paired_bootstrap([right["grounded"][number] for number in test], [right[name][number] for number in test], method="bca")
        print(f"grounded minus {name}, test: {gained.difference:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]")
        if name in methods:
            claims.append(at_least(f"grounded_minus_{name.replace(' ', '_')}_ci_low.test", gained.low, 0.0, "accuracy"))
    worst = max(abs(one - two) for one, two in zip(weights, WEIGHTS, strict=True))
    print(f"weights fitted now: {weights}; in use: {list(WEIGHTS)}; largest difference {worst:.2f}")
    finish(
        arguments.json, {"quick": arguments.quick, "features": list(FEATURES), "weights": weights, "in_use": list(WEIGHTS)}, table, claims
    )


if __name__ == "__main__":
    main()
