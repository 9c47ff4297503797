"""Public sets of questions whose documents are known, as they lie below --data: what is searched, what is tuned on, what is tested."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFERENCE = "REFERENCE-RETRIEVAL.md"
# Fewer development questions than these, and those of the training split are tuned on as well.
_ENOUGH = 50


@dataclass(frozen=True, slots=True)
class Question:
    """One question and the ids of the documents that answer it."""

    text: str
    lang: str
    gold: frozenset[str]


@dataclass(frozen=True, slots=True)
class Task:
    """Questions on the documents of `targets`, the languages searched; `tuning` and `test` share no question."""

    name: str
    targets: frozenset[str]
    tuning: tuple[Question, ...]
    test: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """A folder of documents by language, and its tasks: all in one, and in several languages each pair of languages too."""

    name: str
    documents: Mapping[str, tuple[Mapping[str, Any], ...]]
    tasks: tuple[Task, ...]


def names(data: Path) -> list[str]:
    """The sets below `data`: folders with a corpus and questions."""
    found = [folder for folder in sorted(data.iterdir()) if (folder / "corpus.jsonl").is_file()]
    return [folder.name for folder in found if (folder / "qa.jsonl").is_file() or (folder / "queries.jsonl").is_file()]


def read(data: Path, name: str, tuning: int, test: int) -> QuestionSet | None:
    """A set with at most so many questions for each task, the first of each split; None if no question has documents."""
    documents: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(data / name / "corpus.jsonl"):
        documents[row.get("lang", "en")].append(row)
    langs = {str(row.get("_id", row.get("id"))): lang for lang, rows in documents.items() for row in rows}
    splits: dict[str, list[Question]] = defaultdict(list)
    for split, question in _beir(data / name) if (data / name / "queries.jsonl").is_file() else _pairs(data / name):
        if question.gold:
            splits[split].append(question)
    dev = splits["dev"] if len(splits["dev"]) >= _ENOUGH else splits["train"] + splits["dev"]

    def task(label: str, asked: frozenset[str], targets: frozenset[str]) -> Task | None:
        def chosen(questions: list[Question], most: int) -> tuple[Question, ...]:
            kept = [(q.text, q.lang, frozenset(id for id in q.gold if langs.get(id) in targets)) for q in questions if q.lang in asked]
            return tuple(Question(*one) for one in [one for one in kept if one[2]][:most])

        made = Task(label, targets, chosen(dev, tuning), chosen(splits["test"], test))
        return made if made.test else None

    everything = frozenset(documents)
    tasks: list[Task | None] = []
    # Where a question's own language is never gold, the passage it was made from would stand before its translation.
    if all(any(langs.get(id) == question.lang for id in question.gold) for question in splits["test"]):
        tasks.append(task(name, everything, everything))
    if len(documents) > 1:
        pairs = [(asked, target) for asked in sorted(documents) for target in sorted(documents)]
        tasks += [task(f"{name}.{asked}-{target}", frozenset({asked}), frozenset({target})) for asked, target in pairs]
    found = tuple(one for one in tasks if one is not None)
    return QuestionSet(name, {lang: tuple(rows) for lang, rows in documents.items()}, found) if found else None


def reference(data: Path) -> list[dict[str, Any]]:
    """What simple retrievers reach, as written beside the sets: set, split, documents, questions, method, nDCG@10; empty without it."""
    file = data / REFERENCE
    if not file.is_file():
        return []
    line = re.compile(r"\s*(\S+) (\w+) docs (\d+) q (\d+) \| (\S+)\s.*nDCG@10 ([\d.]+)")
    found = [match for text in file.read_text("utf-8").splitlines() if (match := line.match(text))]
    return [
        {"set": m[1], "split": m[2], "documents": int(m[3]), "questions": int(m[4]), "method": m[5], "ndcg10": float(m[6])} for m in found
    ]


def _pairs(folder: Path) -> Iterator[tuple[str, Question]]:
    for row in _rows(folder / "qa.jsonl"):
        gold = row.get("doc_ids", ()) if row.get("answerable", True) else ()
        yield str(row.get("split")), Question(row["question"], row.get("lang", "en"), frozenset(gold))


def _beir(folder: Path) -> Iterator[tuple[str, Question]]:
    texts = {str(row["_id"]): str(row["text"]) for row in _rows(folder / "queries.jsonl")}
    for split in ("train", "dev", "test"):
        gold: dict[str, set[str]] = defaultdict(set)
        file = folder / "qrels" / f"{split}.tsv"
        for line in file.read_text("utf-8").splitlines()[1:] if file.is_file() else ():
            query, document, relevance = line.split("\t")
            if int(relevance) > 0:
                gold[query].add(document)
        for query, ids in gold.items():
            yield split, Question(texts[query], "en", frozenset(ids))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
