"""Choosing a domain's fusion on its own questions: joins the data sets with `retrieval.tune`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from appliance.answers.rewrite import self_contained
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import Message
from appliance.errors import ApplianceError, UsageError
from appliance.knowledge.knowledge import Knowledge, Progress
from appliance.store.database import utcnow
from eval.ranking import ndcg_at
from retrieval.text import normalise_question
from retrieval.types import Scope

if TYPE_CHECKING:
    from finetune.types import Pair
    from retrieval.fusion import Fusion
    from retrieval.index import Index
    from retrieval.tune import Judged, Score

DEPTH = 10


@dataclass(frozen=True, slots=True)
class Tuned:
    """The chosen fusion of a domain, the one before, and the evidence as it is stored."""

    domain: str
    fusion: Fusion
    before: Fusion
    evidence: dict[str, Any]
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """The JSON of `appliance index tune --json`."""
        return {"domain": self.domain, "fusion": asdict(self.fusion), "before": asdict(self.before), "kept": self.kept, **self.evidence}


def tune_index(
    knowledge: Knowledge, domain: str, dataset: str | None = None, split: str = "dev", keep: bool = True, progress: Progress | None = None
) -> Tuned:
    """Compare fusions on the questions of a data set whose documents are known, and use the best from now on.

    `dataset` None is the only one of the domain. Raises UsageError where the choice is not clear, ApplianceError with fewer than
    `retrieval.tune.MIN_QUESTIONS` usable questions, and if none of them finds its documents.
    """
    from retrieval.tune import DENSE, LEXICAL, MIN_QUESTIONS, tune

    datasets = Datasets(knowledge.workspace)
    info = _dataset(datasets, domain, dataset)
    live = frozenset(info.id for info in knowledge.documents.documents(domain))
    pairs, counts = _usable(domain, live, datasets.pairs(info), split)
    if len(pairs) < MIN_QUESTIONS:
        left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count) or "it has no others"
        raise ApplianceError(
            f"data set {info.name}: {len(pairs)} usable questions in its {split} split, at least {MIN_QUESTIONS} are needed for a choice "
            f"that means anything (left out: {left_out}); add rows with split, doc_ids of {domain}'s documents and answerable: true"
        )
    hash = knowledge.embedder.hash
    before = knowledge.rankings.fusion([domain], hash)
    index = knowledge.index()
    questions = _judged(knowledge, index, domain, live, pairs, progress)
    best, scores = tune(questions, partial(ndcg_at, DEPTH))
    if not best.mean:
        raise ApplianceError(
            f"data set {info.name}: none of the {len(pairs)} questions finds a document of its doc_ids among the best {DEPTH}, whatever "
            "the fusion: nothing can be chosen; look at some of them with `appliance search`"
        )
    figures = {score.fusion: score for score in scores}
    rows = [("dense", DENSE), ("lexical", LEXICAL)]
    rows += [(kind, _best(scores, kind)) for kind in ("rrf", "convex")] + [("chosen", best.fusion)]
    evidence = {
        "dataset": f"{info.name}@{info.version}",
        "split": split,
        "questions": len(pairs),
        "languages": dict(Counter(question.lang for question in questions)),
        "left_out": {reason: count for reason, count in counts.items() if count},
        "generation": index.generation,
        "candidates": knowledge.workspace.config.retrieval.candidates,
        "measure": f"nDCG@{DEPTH}",
        "figures": [_row(name, figures[fusion]) for name, fusion in rows],
        "tuned_at": utcnow().isoformat(timespec="seconds"),
    }
    if keep:
        knowledge.rankings.keep(domain, best.fusion, hash, evidence)
    return Tuned(domain, best.fusion, before, evidence, keep)


def _dataset(datasets: Datasets, domain: str, name: str | None) -> DatasetInfo:
    if name is not None:
        return datasets.get(name)
    known = [info for info in datasets.all() if info.domain == domain]
    if len(known) != 1:
        listed = ", ".join(info.name for info in known) or "none; register one with `appliance dataset add FILE --domain " + domain + "`"
        raise UsageError(f"name the data set with --dataset; of domain {domain} there are: {listed}")
    return known[0]


def _usable(domain: str, live: frozenset[str], pairs: list[Pair], split: str) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of the split whose documents are among the `live` ones, each question once, and how many are left out, by reason."""
    found: list[Pair] = []
    asked: set[tuple[str, ...]] = set()
    reasons = ("of another split", "of another domain", "unanswerable", "without doc_ids", "whose documents are not live", "asked before")
    counts = dict.fromkeys(reasons, 0)
    for pair in pairs:
        if pair.split != split:
            counts["of another split"] += 1
        elif pair.domain not in (None, domain):
            counts["of another domain"] += 1
        elif not pair.answerable:
            counts["unanswerable"] += 1
        elif not pair.doc_ids:
            counts["without doc_ids"] += 1
        elif live.isdisjoint(pair.doc_ids):
            counts["whose documents are not live"] += 1
        elif (question := tuple(map(normalise_question, (*(turn.content for turn in pair.history), pair.question)))) in asked:
            counts["asked before"] += 1
        else:
            asked.add(question)
            found.append(pair)
    return found, counts


def _judged(
    knowledge: Knowledge, index: Index, domain: str, live: frozenset[str], pairs: list[Pair], progress: Progress | None
) -> list[Judged]:
    from retrieval.tune import Judged

    scope = Scope(frozenset({domain}), knowledge.documents.labels(domain))
    vocabularies = knowledge.rankings.of(scope, knowledge.embedder.hash).vocabularies
    found: list[Judged] = []
    for pair in pairs:
        query = self_contained(pair.question, [Message(role=turn.role, content=turn.content) for turn in pair.history])
        candidates, keys = index.candidates(query, scope, knowledge.workspace.config.retrieval.candidates, vocabularies)
        documents = {place: tuple(key.id for key in sources) for place, sources in keys.items()}
        found.append(Judged(candidates, documents, live & frozenset(pair.doc_ids), pair.lang))
        if progress is not None:
            progress("search", len(found), len(pairs))
    return found


def _best(scores: list[Score], kind: str) -> Fusion:
    fused = [score for score in scores if score.fusion.kind == kind and 0 < score.fusion.weight < 1]
    return max(fused, key=lambda score: score.mean).fusion


def _row(name: str, score: Score) -> dict[str, Any]:
    return {"name": name, **asdict(score.fusion), "all": round(score.mean, 4), **{k: round(v, 4) for k, v in score.by_lang.items()}}
