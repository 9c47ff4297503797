"""What a training method learns from: the pairs of a data set, its preferences, or the documents of the domain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from appliance.adapters.evidence import Link
from appliance.datasets.registry import DatasetInfo, Datasets, several
from appliance.errors import UsageError
from appliance.service import Service
from appliance.training.examples import evidence_links, examples, outdated, question
from finetune.dataset import split_pairs
from finetune.settings import TrainSettings, learns_from
from finetune.types import Example, Pair
from retrieval.types import DocumentInfo

# What stands in the place of a data set's name where documents were read.
DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Examples, and where they come from. Either `pairs` (those of `train`) or `documents` are what they were made of.

    `left_out` counts what was not taken, by reason. `dataset` and `version` name the data set, or the documents by their hashes.
    """

    train: list[Example]
    dev: list[Example]
    dataset: str
    version: str
    task: str
    left_out: dict[str, int]
    pairs: Sequence[Pair] = ()
    documents: Sequence[DocumentInfo] = ()

    def links(self, service: Service, domain: str) -> list[Link]:
        """What each trained pair, or each document that was read, rests on."""
        read = [Link(info.id, "declared", info.domain, info.id, info.sha256) for info in self.documents]
        return read + evidence_links(service, domain, self.pairs)

    def questions(self) -> list[tuple[str, str]]:
        """The id of each pair and what it asks."""
        return [(pair.id, question(pair)) for pair in self.pairs]


def gather(service: Service, domain: str, dataset: str | None, settings: TrainSettings, languages: Sequence[str]) -> TrainingData:
    """The data for `settings.method`, split as `split_pairs` does it for the whole data set.

    So pairs are on the same side of the border whatever method or engine takes some of them, and none like those of the test split is
    trained on. If no pair for dev is among those taken, `val_size` of the others is held out. Raises UsageError if there is nothing to
    train on, no data set is named where one is needed, or one is named where documents are read.
    """
    if learns_from(settings.method) == "texts":
        if dataset is not None:
            raise UsageError(
                f"method {settings.method} reads the documents of {domain}, not the data set {dataset}; leave the data set out"
            )
        return _documents(service, domain, languages)
    if dataset is None:
        raise UsageError(f"method {settings.method} needs a data set: name one with --dataset or dataset = in the file")
    datasets = Datasets(service.workspace)
    info = dataset_of(datasets, dataset, settings)
    pairs = _pairs(datasets, info, settings)
    taken, left_out = _usable(service, split_pairs(pairs, settings.seed, settings.val_size), domain, settings.method, languages)
    if all(pair.split == "train" for pair in taken):
        if settings.eval_dataset is not None:
            raise UsageError(f"no pair of the eval_dataset {settings.eval_dataset} can measure {domain}: {left_out}")
        taken = split_pairs([replace(pair, split=None) for pair in taken], settings.seed, settings.val_size)
    train, dev = ([pair for pair in taken if pair.split == name] for name in ("train", "dev"))
    made = examples(service, domain, train), examples(service, domain, dev)
    return TrainingData(*made, info.name, info.version, info.task, left_out, pairs=train)


def dataset_of(datasets: Datasets, dataset: str, settings: TrainSettings) -> DatasetInfo:
    """What is trained on, and what it is measured on if the settings name that, as one. Raises UsageError for a name in both."""
    measured = several(settings.eval_dataset or "")
    if both := set(measured) & set(several(dataset)):
        raise UsageError(f"{', '.join(sorted(both))}: named as dataset and as eval_dataset; what is measured on must not be trained on")
    return datasets.get(", ".join([dataset, *measured]))


def _pairs(datasets: Datasets, info: DatasetInfo, settings: TrainSettings) -> list[Pair]:
    """The pairs of the first `max_samples` rows of each data set; with an `eval_dataset` its pairs are for dev, and no others."""
    measured = several(settings.eval_dataset or "")
    found: list[Pair] = []
    for name, one in datasets.by_name(info).items():
        if settings.max_samples is not None:
            rows = set(islice(dict.fromkeys(pair.conversation or pair.id for pair in one), settings.max_samples))
            one = [pair for pair in one if (pair.conversation or pair.id) in rows]
        if name in measured:
            one = [replace(pair, split="dev") for pair in one]
        elif measured:
            one = [pair if pair.split == "test" else replace(pair, split="train") for pair in one]
        found += one
    return found


def documents_version(service: Service, domain: str, languages: Sequence[str]) -> str:
    """The sha256 (hex) over the ids and hashes of the documents that would be read."""
    return _version(_readable(service, domain, languages)[0])


def _documents(service: Service, domain: str, languages: Sequence[str]) -> TrainingData:
    taken, left_out = _readable(service, domain, languages)
    if not taken:
        raise UsageError(f"{domain} has no document to read: {left_out or 'it is empty'}; ingest documents in {', '.join(languages)} first")
    passages = [service.knowledge.documents.whole_passage(info.key) for info in taken]
    texts = [Example(info.id, (), passage.chunk.text) for info, passage in zip(taken, passages, strict=True) if passage is not None]
    return TrainingData(texts, [], DOCUMENTS, _version(taken), "qa", left_out, documents=taken)


def _readable(service: Service, domain: str, languages: Sequence[str]) -> tuple[list[DocumentInfo], dict[str, int]]:
    """The live documents that may be trained on, each text once, and what was left out, by reason."""
    reader = service.knowledge.documents
    flagged = service.workspace.config.retrieval.flagged == "exclude"
    seen: set[str] = set()
    taken: list[DocumentInfo] = []
    left_out: dict[str, int] = {}
    for info in reader.documents(domain):
        reason = (
            f"language {info.lang} not declared by the engine" if info.lang not in languages
            else "the same text as another document" if info.sha256 in seen
            else "it contains instructions to the model" if flagged and any(chunk.flags for chunk in reader.chunks(info.key))
            else None
        )  # fmt: skip
        if reason is None:
            taken.append(info)
            seen.add(info.sha256)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return taken, left_out


def _version(documents: Sequence[DocumentInfo]) -> str:
    lines = "".join(f"{info.id}\0{info.sha256}\n" for info in documents)
    return hashlib.sha256(lines.encode()).hexdigest()


def _usable(
    service: Service, pairs: Sequence[Pair], domain: str, method: str, languages: Sequence[str]
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of this domain in languages the base knows that `method` can learn from, and what was left out, by reason."""
    old = outdated(service, domain, pairs)
    preferences = learns_from(method) == "preferences"
    left_out: dict[str, int] = {}
    kept: list[Pair] = []
    for pair in pairs:
        reason = (
            "other domain" if pair.domain not in (None, domain)
            else "no rejected answer" if preferences and pair.rejected is None
            else "unanswerable" if not (pair.answerable or pair.passages)
            else "its documents were changed or removed" if pair.id in old
            else f"language {pair.lang} not declared by the engine" if pair.lang not in languages
            else "test split" if pair.split == "test"
            else None
        )  # fmt: skip
        if reason is None:
            kept.append(pair)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not kept:
        wanted = "pairs with a rejected answer beside the better one" if preferences else "answerable pairs"
        raise UsageError(
            f"no pair of this data set can train {domain}: {left_out or 'it is empty'}; {wanted} in {', '.join(languages)} are needed"
        )
    return kept, left_out
