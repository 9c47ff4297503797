"""Sets whose documents change after an adapter was trained: in a third of them the numbers of its training answers become other numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proof_sets import Row, digest, rows_of

from appliance.demo import DOMAINS, SAMPLE
from eval.types import Item

# Neither a year, a written date, a clause nor the number of a form.
_NUMBER = re.compile(r"(?<![\w.,/-])(?!(?:19|20)\d\d\b)\d+(?:[.,]\d+)*(?![\w/-])")
# Longer answers hold more than the number they are asked for.
_CHARS = 160
CUAD = "legal-en-cuad"


@dataclass(frozen=True, slots=True)
class ChangedSet:
    """English questions whose answer is a number of one document. `after` has the documents and the gold answers of `before` with other
    numbers in the documents `changed`; the rest is the same."""

    name: str
    documents: tuple[Row, ...]
    documents_after: tuple[Row, ...]
    before: tuple[Item, ...]
    after: tuple[Item, ...]
    changed: frozenset[str]

    def about_changed(self, item: Item) -> bool:
        return item.doc_ids[0] in self.changed


def changed_sets(data: Path | None, names: Sequence[str], questions: int, documents: int) -> list[ChangedSet]:
    """Up to `questions` questions and `documents` documents of each; CUAD is left out where there is no data."""
    made = []
    for name in names:
        if name == "sample":
            made.append(_changed(name, *_sample(), questions, documents))
        elif data is not None and (data / CUAD).is_dir():
            made.append(_changed(name, rows_of(data / CUAD / "corpus.jsonl"), rows_of(data / CUAD / "qa.jsonl"), questions, documents))
    return made


def _sample() -> tuple[list[Row], list[Row]]:
    """The English documents and questions of all domains of the sample knowledge base."""
    documents: list[Row] = []
    pairs: list[Row] = []
    for domain in DOMAINS:
        folder = SAMPLE / domain / "documents"
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt")):
            documents.append({"id": f"{domain}/{file.relative_to(folder)}", "title": file.stem, "text": file.read_text("utf-8")})
        pairs += [{**row, "doc_ids": [f"{domain}/{name}" for name in row["doc_ids"]]} for row in rows_of(SAMPLE / domain / "qa.jsonl")]
    return documents, pairs


def _changed(name: str, documents: Sequence[Row], pairs: Sequence[Row], questions: int, most: int) -> ChangedSet:
    texts = {row["id"]: row["text"] for row in documents}
    asked: list[Row] = []
    for row in sorted(pairs, key=lambda row: digest(row["id"])):
        single = len(row["doc_ids"]) == 1 and row["lang"] == "en" and len(row["answer"]) <= _CHARS and not row.get("history")
        if single and set(_NUMBER.findall(row["answer"])) & set(_NUMBER.findall(texts.get(row["doc_ids"][0], ""))):
            asked.append(row)
    asked = asked[:questions]
    names = sorted({row["doc_ids"][0] for row in asked}, key=digest)
    others = sorted((row["id"] for row in documents if row["id"] not in names), key=digest)[: max(0, most - len(names))]
    kept = [row for row in documents if row["id"] in {*names, *others}]
    numbers = {
        document: {number for row in asked if row["doc_ids"][0] == document for number in _NUMBER.findall(row["answer"])}
        for document in names[: -(-len(names) // 3)]
    }
    before = tuple(
        Item(row["id"], row["question"], row["answer"], tuple(row["doc_ids"]), "en", name, metric="numeric_match") for row in asked
    )
    return ChangedSet(
        name,
        tuple(kept),
        tuple({**row, "text": edited(row["text"], numbers.get(row["id"], ()))} for row in kept),
        before,
        # A number of the answer that the document does not have stays.
        tuple(
            replace(item, answer=edited(item.answer, numbers.get(item.doc_ids[0], set()) & set(_NUMBER.findall(texts[item.doc_ids[0]]))))
            for item in before
        ),
        frozenset(numbers),
    )


def edited(text: str, numbers: Iterable[str]) -> str:
    """The text with another first digit, never 0, in each of these numbers."""
    chosen = set(numbers)
    return _NUMBER.sub(lambda found: _other(found[0]) if found[0] in chosen else found[0], text)


def _other(number: str) -> str:
    return str((int(number[0]) + 2) % 9 + 1) + number[1:]
