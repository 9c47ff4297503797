"""All measures of one outcome, and of all outcomes of an arm.

Word overlap is in [0, 1], ``bleu`` and ``chrf`` in [0, 100] as sacrebleu gives them. Word measures cover answerable
questions with a gold answer (a refusal or failure counts as an empty answer), retrieval and citation measures those with
gold documents, refusal measures all. ``numeric_match`` and ``choice`` are there where a data set declares them. A measure that
nothing can be said about is left out, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.cost import cost
from eval.overlap import bleu, chrf, exact_match, rouge, sentence_bleu, token_f1
from eval.ranking import citation_precision, citation_recall, ndcg_at, recall_at, reciprocal_rank, refusals
from eval.tasks import of_task, of_task_whole
from eval.types import Item, Outcome
from eval.utility import Scoring, declared, utility

RECALL_CUTS = (1, 5, 10)
# Shares of the times that are reported, by measure.
PERCENTILES = {"latency": (50, 95, 99), "first_token": (50, 95, 99)}
# The measures that all answers of an arm have together, as corpus scores, percentiles and counts.
WHOLE = frozenset(
    {"n", "refused", "errors", "unavailable", "bleu", "chrf", "macro_f1", "micro_f1", "refusal_precision", "refusal_recall"}
    | {f"{name}_p{share}_ms" for name, shares in PERCENTILES.items() for share in shares}
)
# Every measure there is, where it applies.
METRICS = WHOLE | frozenset(
    {"utility", "answered", "refusal_correct", "hallucination", "grounded", "latency_ms", "first_token_ms", "tokens", "generated", "cost"}
    | {"rouge1", "rouge2", "rougeL", "token_f1", "exact_match", "numeric_match", "choice", "accuracy"}
    | {"item_f1", "item_precision", "item_recall", "citation_precision", "citation_recall", "ndcg@10", "mrr"}
    | {f"recall@{k}" for k in RECALL_CUTS}
)


def of_outcome(item: Item, outcome: Outcome, scoring: Scoring | None = None) -> dict[str, float]:
    """The measures of one outcome; empty if its arm was unavailable."""
    if outcome.unavailable:
        return {}
    scoring = scoring or Scoring()
    found: dict[str, float] = {}
    worth = utility(item, outcome, scoring)
    if worth is not None:
        found["utility"] = worth
    if _has_words(item):
        found |= rouge(item.answer, outcome.text, item.lang)
        found["bleu"] = sentence_bleu(item.answer, outcome.text, item.lang)
        found["chrf"] = chrf([item.answer], [outcome.text])
        found["token_f1"] = token_f1(item.answer, outcome.text, item.lang)
        found["exact_match"] = exact_match(item.answer, outcome.text, item.lang)
        found |= of_task(item, outcome.text)
        if item.metric is not None:
            found[item.metric] = declared(item, outcome.text, item.metric)
    answers = bool(outcome.text.strip())
    found["answered"] = float(answers)
    if outcome.error is None:
        found["refusal_correct"] = float(answers == item.answerable)
        found |= {} if item.answerable else {"hallucination": float(answers)}
    if item.doc_ids:
        found |= _against_documents(item, outcome, answers)
    measured = {
        "grounded": outcome.grounded,
        "latency_ms": outcome.latency_ms,
        "first_token_ms": outcome.first_token_ms,
        "tokens": outcome.tokens,
        "generated": outcome.generated,
        "cost": cost(outcome, scoring.prices),
    }
    return found | {name: value for name, value in measured.items() if value is not None}


def of_arm(items: Sequence[Item], outcomes: Sequence[Outcome], scoring: Scoring | None = None) -> dict[str, float]:
    """The measures of an arm: means over its outcomes, corpus BLEU and chrF, percentiles of the times.

    Beside them ``n`` (outcomes scored), ``refused``, ``errors`` and ``unavailable`` (counts). ``answered`` is the share that was answered
    without a person. Unavailable outcomes are not scored. BLEU is computed for each language with its own tokenizer and averaged by number
    of questions.
    """
    pairs = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if not outcome.unavailable]
    row = {
        "n": float(len(pairs)),
        "refused": float(sum(outcome.refused for _, outcome in pairs)),
        "errors": float(sum(outcome.error is not None for _, outcome in pairs)),
        "unavailable": float(len(items) - len(pairs)),
    }
    if not pairs:
        return row
    rows = [of_outcome(item, outcome, scoring) for item, outcome in pairs]
    for name in dict.fromkeys(name for found in rows for name in found):
        if name not in ("latency_ms", "first_token_ms"):
            row[name] = _mean([found[name] for found in rows if name in found])
    told = [(not outcome.text.strip(), item.answerable) for item, outcome in pairs if outcome.error is None]
    row |= refusals([refused for refused, _ in told], [answerable for _, answerable in told])
    with_words = [(item, outcome) for item, outcome in pairs if _has_words(item)]
    row |= _corpus_scores(with_words)
    for task in dict.fromkeys(item.task for item, _ in with_words):
        of_it = [(item, outcome.text) for item, outcome in with_words if item.task == task]
        row |= of_task_whole(task, [item for item, _ in of_it], [answer for _, answer in of_it])
    for name, shares in PERCENTILES.items():
        values = [found[f"{name}_ms"] for found in rows if f"{name}_ms" in found]
        row |= {f"{name}_p{share}_ms": percentile(values, share) for share in shares if values}
    return row


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile `share` in [0, 100] by linear interpolation between the closest ranks. Raises ValueError without values."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _has_words(item: Item) -> bool:
    return item.answerable and bool(item.answer.strip())


def _against_documents(item: Item, outcome: Outcome, answers: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    if outcome.retrieved is not None:
        found |= {f"recall@{k}": recall_at(k, outcome.retrieved, item.doc_ids) for k in RECALL_CUTS}
        found["ndcg@10"] = ndcg_at(10, outcome.retrieved, item.doc_ids)
        found["mrr"] = reciprocal_rank(outcome.retrieved, item.doc_ids)
    if answers and outcome.retrieved is not None:
        found["citation_recall"] = citation_recall(outcome.citations, item.doc_ids)
    cited = citation_precision(outcome.citations, item.doc_ids)
    return found if cited is None else found | {"citation_precision": cited}


def _corpus_scores(pairs: Sequence[tuple[Item, Outcome]]) -> dict[str, float]:
    if not pairs:
        return {}
    total = 0.0
    for zh in (False, True):
        group = [(item.answer, outcome.text) for item, outcome in pairs if (item.lang == "zh") == zh]
        if group:
            total += len(group) * bleu([gold for gold, _ in group], [answer for _, answer in group], "zh" if zh else "en")
    return {
        "bleu": total / len(pairs),
        "chrf": chrf([item.answer for item, _ in pairs], [outcome.text for _, outcome in pairs]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
