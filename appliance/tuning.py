"""`appliance tune`: from a registered data set to an adapter version with its evidence."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance import prompts, tuned_questions
from appliance.adapters import AdapterVersion, Link
from appliance.datasets import Datasets
from appliance.engines.base import Message
from appliance.errors import ApplianceError, UsageError
from appliance.rewrite import self_contained
from appliance.service import Service
from finetune.dataset import split_pairs
from finetune.settings import TrainSettings
from finetune.types import Example, Pair, TrainingError, Turn
from retrieval.text import detect_lang
from retrieval.types import DocumentKey, Scope

# Below this share of the answer's words in the passage, a retrieved passage is no evidence for a pair.
_INFERRED_SUPPORT = 0.6


def tune(
    service: Service, domain: str, dataset: str, settings: TrainSettings, progress: Callable[[dict[str, Any]], None]
) -> tuple[AdapterVersion, dict[str, Any]]:
    """Train an adapter for `domain` and register it; nothing goes live. Returns the version and the JSON of `tune --json`.

    Raises UsageError and ApplianceError; an interrupted run leaves no version behind.
    """
    from finetune.train import TrainJob, train
    from finetune.version import finish_version

    workspace = service.workspace
    workspace.check_domain(domain)
    datasets = Datasets(workspace)
    info = datasets.get(dataset)
    engine_name, engine = workspace.config.engine_of(domain)
    if engine.kind != "local":
        raise UsageError(
            f"engine {engine_name} of {domain} is {engine.kind}: training needs a base model here, name a local engine for the domain"
        )
    reference = workspace.model(engine.base)
    base, base_hash = service.models.path(reference), service.models.model_hash(reference)
    turns = workspace.config.answering.max_history_messages
    train_pairs, dev_pairs, left_out = _usable(datasets.pairs(info), domain, engine.languages, settings.seed)
    with workspace.db.lock(f"tune:{domain}"):
        work = Path(tempfile.mkdtemp(prefix=f".{domain}-", suffix=".tmp", dir=workspace.folder("adapters")))
        try:
            job = TrainJob(
                base=base,
                base_ref=engine.base,
                base_hash=base_hash,
                train=[example(pair, domain, turns) for pair in train_pairs],
                dev=[example(pair, domain, turns) for pair in dev_pairs],
                settings=settings,
                work=work,
                chat_template=engine.chat_template,
            )
            result = train(job, progress)
            links = evidence_links(service, domain, train_pairs)
            live = service.registry.live(domain)
            parent = live.name if live else None
            labels = _labels(service, links)
            folder = finish_version(
                result,
                workspace.folder("adapters"),
                domain,
                dataset=info.name,
                dataset_version=info.version,
                parent=parent,
                labels=sorted(labels),
                evidence=[asdict(link) for link in links],
            )
            tuned_questions.save(folder.path, [_question(pair) for pair in train_pairs], service.knowledge.embedder)
        except TrainingError as error:
            raise ApplianceError(str(error)) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        dropped = {**left_out, **result.dropped}
        version = AdapterVersion(
            name=folder.name,
            domain=domain,
            base=engine.base,
            base_hash=base_hash,
            method=settings.method,
            path=folder.path,
            sha256=folder.sha256,
            dataset=info.name,
            dataset_version=info.version,
            parent=parent,
            labels=labels,
            config={**asdict(settings), "task": info.task},
            metrics={**result.metrics(), "dropped": dropped},
            created_at=folder.created_at,
        )
        service.registry.register(version, links)
    shown = {
        "domain": domain,
        "version": version.name,
        "method": settings.method,
        "train_examples": result.train_examples,
        "dropped": dropped,
        "train_loss": result.train_loss,
        "eval_loss": result.eval_loss,
        "tokens_per_second": result.tokens_per_second,
        "seconds": result.seconds,
        "path": str(version.path),
    }
    return version, shown


def example(pair: Pair, domain: str, turns: int) -> Example:
    """A pair as it is trained on: the very prompt that `finetuned` sends for the same question, task, system message and history.

    `turns` is [answering] max_history_messages. Serving detects the language by the question, so training does.
    """
    history = prompts.recent(_messages(pair), turns)
    messages = prompts.direct(domain, detect_lang(pair.question), _question(pair), history, pair.system, pair.task)
    return Example(pair.id, tuple(Turn(message["role"], message["content"]) for message in messages), pair.answer)


def evidence_links(service: Service, domain: str, pairs: Sequence[Pair]) -> list[Link]:
    """What each pair rests on: its declared documents, else the best passage that supports its answer, else nothing."""
    documents = service.knowledge.documents
    links: list[Link] = []
    for pair in pairs:
        declared = [(doc_id, documents.current(DocumentKey(domain, doc_id))) for doc_id in pair.doc_ids]
        found = [Link(pair.id, "declared", domain, doc_id, info.sha256) for doc_id, info in declared if info is not None]
        links += found or [_inferred(service, domain, pair)]
    return links


def _inferred(service: Service, domain: str, pair: Pair) -> Link:
    from appliance.citations import align

    # Training may use labelled documents; the adapter carries their labels.
    scope = Scope(frozenset({domain}), service.knowledge.documents.labels(domain))
    evidence = service.knowledge.search(_question(pair), scope)
    cited, _ = align(pair.answer, evidence.passages, _INFERRED_SUPPORT)
    if not cited:
        return Link(pair.id, "unlinked")
    best = max(cited, key=lambda citation: citation.support)
    return Link(pair.id, "inferred", domain, best.doc_id, best.sha256, best.support)


def _labels(service: Service, links: Sequence[Link]) -> frozenset[str]:
    """The union of the labels of everything the adapter was trained on."""
    labels: set[str] = set()
    for domain, doc_id in {(link.domain, link.doc_id) for link in links if link.domain is not None and link.doc_id is not None}:
        info = service.knowledge.documents.current(DocumentKey(domain, doc_id))
        labels |= info.labels if info is not None else set()
    return frozenset(labels)


def _usable(pairs: Sequence[Pair], domain: str, languages: Sequence[str], seed: int) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """Train and dev pairs of this domain in languages the base knows, and what was left out, by reason."""
    left_out: dict[str, int] = {}
    kept: list[Pair] = []
    for pair in pairs:
        reason = (
            "other domain" if pair.domain not in (None, domain)
            else "unanswerable" if not pair.answerable
            else f"language {pair.lang} not declared by the engine" if pair.lang not in languages
            else "test split" if pair.split == "test"
            else None
        )  # fmt: skip
        if reason is None:
            kept.append(pair)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not kept:
        raise UsageError(
            f"no pair of this data set can train {domain}: {left_out or 'it is empty'}; "
            f"answerable pairs in {', '.join(languages)} are needed"
        )
    split = split_pairs(kept, seed)
    return [pair for pair in split if pair.split == "train"], [pair for pair in split if pair.split == "dev"], left_out


def _messages(pair: Pair) -> list[Message]:
    return [Message(role=turn.role, content=turn.content) for turn in pair.history]


def _question(pair: Pair) -> str:
    return self_contained(pair.question.strip(), _messages(pair))
