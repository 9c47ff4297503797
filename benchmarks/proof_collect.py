"""The long part of router_proof.py: what every arm answers to every question. Stops at any time and goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_cache import CachedEmbedder
from proof_sets import TRAIN, Fold, ProofSet, Row, corpus, folds, write_jsonl

from appliance.cli.session import Progress
from appliance.datasets.registry import Datasets
from appliance.engines.base import Sampling
from appliance.evaluation.runs import answered, evaluator
from appliance.knowledge.knowledge import Knowledge
from appliance.service import Service, open_service
from appliance.training.tuning import tune
from appliance.types import Request
from appliance.workspace import Workspace
from eval.run import load, run
from eval.types import Item, Outcome
from finetune.settings import TrainSettings
from retrieval.embed import SentenceTransformerEmbedder
from router.features import Row as Features
from router.features import row_of
from router.policy import RulePolicy
from router.types import Arm, Situation

ARMS: tuple[Arm, ...] = ("quote", "base", "finetuned", "rag", "hybrid")
MAX_TOKENS, PASSAGE_TOKENS, BATCH = 96, 400, 16
# Of the engine, which may be made to wait, however slow the machine is.
SETTINGS: Mapping[str, Any] = {"max_batch": BATCH, "first_token_seconds": 86_400, "between_tokens_seconds": 86_400, "total_seconds": 86_400}
# Few short pairs want small batches and a higher rate than the default.
TRAINING = TrainSettings(epochs=1, batch_size=4, learning_rate=5e-4)
# So many questions get all their answers before the next ones are asked.
SLICE = 24


def folder_of(state: Path, chosen: ProofSet, number: int, documents: int | None = None) -> Path:
    """The workspace of one fold."""
    return state / (f"{chosen.name}-{number}" + ("" if documents is None else f"-of-{documents}"))


@dataclass(frozen=True, slots=True)
class Size:
    """How much of a set is measured: questions, documents in the index (None: all), and pairs to train on."""

    questions: int | None = None
    documents: int | None = None
    train: int = TRAIN


def collect(data: Path, state: Path, embeddings: Path, chosen: ProofSet, size: Size, progress: Progress) -> None:
    """Bring in the documents, train an adapter for each fold, and ask every arm every question; what is there already is not done again."""
    for number, fold in enumerate(folds(data, chosen, size.questions, size.train)):
        folder = folder_of(state, chosen, number, size.documents)
        with prepared(folder, data, chosen, fold, size.documents, embeddings, progress) as workspace:
            service = open_service(workspace)
            if service.registry.live(chosen.domain) is None:
                version, _ = tune(
                    service, chosen.domain, chosen.name, TRAINING, lambda event: progress("training", event["step"], event["steps"])
                )
                service.registry.promote(version.name, "the only one")
            asyncio.run(answers(service, chosen, fold.items, progress))


def prepared(folder: Path, data: Path, chosen: ProofSet, fold: Fold, most: int | None, embeddings: Path, progress: Progress) -> Workspace:
    """The workspace of a fold with its documents and its data set."""
    if (folder / "prepared").is_file():
        return Workspace(folder)
    settings: dict[str, Any] = {**SETTINGS, "base": chosen.base, "languages": [chosen.lang], "weights": chosen.weights}
    if chosen.chat_template:
        settings["chat_template"] = chosen.chat_template
    workspace = opened(folder, settings)
    service = open_service(workspace)
    bring_in(service, folder / "corpus.jsonl", chosen.domain, corpus(data, chosen, fold, most), embeddings, progress)
    Datasets(workspace).add(write_jsonl(folder / f"{chosen.name}.jsonl", pairs(fold)), domain=chosen.domain)
    (folder / "prepared").touch()
    return workspace


def opened(folder: Path, engine: Mapping[str, Any]) -> Workspace:
    """The workspace in `folder`, which is made where there is none, with these settings of its engine."""
    workspace = Workspace(folder) if (folder / "appliance.toml").is_file() else Workspace.create(folder)
    workspace.save_setting("answering.passage_tokens", PASSAGE_TOKENS)
    for key, value in engine.items():
        workspace.save_setting(f"engines.default.{key}", value)
    workspace.close()
    return Workspace(folder)


def bring_in(service: Service, file: Path, domain: str, documents: Sequence[Row], embeddings: Path, progress: Progress) -> None:
    """Fetch the models and ingest the documents, written to `file`, with vectors from a cache."""
    workspace = service.workspace
    reference = workspace.model(workspace.config.models.embedding)
    for model in (reference, workspace.model(workspace.config.engines["default"].base)):
        service.models.pull(model, progress)
    embedder = CachedEmbedder(SentenceTransformerEmbedder(service.models.path(reference), service.models.model_hash(reference)), embeddings)
    Knowledge(workspace, service.models, embedder).ingest([write_jsonl(file, documents)], domain=domain, progress=progress)


def pairs(fold: Fold) -> list[dict[str, Any]]:
    """What an adapter learns from, as rows of a data set."""
    rows = [{**row, "split": split} for split, part in (("train", fold.train), ("dev", fold.dev)) for row in part]
    return [{key: row[key] for key in ("id", "question", "answer", "doc_ids", "lang", "domain", "split")} for row in rows]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with what every arm made of it, the numbers the router reads, the rules' choice, the situation it was made in, and
    the ms between its evidence and its decision as served: nearest training questions, freshness, approved answers, engine, rules."""

    item: Item
    outcomes: Mapping[Arm, Outcome]
    row: Features
    rules: Arm
    situation: Situation
    deciding_ms: float


def collected(data: Path, state: Path, chosen: ProofSet, size: Size) -> list[Asked]:
    """The questions that every arm has answered so far, with today's features."""
    found: list[Asked] = []
    for number, fold in enumerate(folds(data, chosen, size.questions, size.train)):
        folder = folder_of(state, chosen, number, size.documents)
        if not (folder / "outcomes" / "outputs.jsonl").is_file():
            continue
        outcomes = load(folder / "outcomes").outcomes
        whole = [item for item in fold.items if all(_answered(outcomes.get((item.id, arm))) for arm in ARMS)]
        with Workspace(folder) as workspace:
            service = open_service(workspace)
            situations = asyncio.run(_situations(service, chosen.domain, whole))
        for item, (situation, deciding_ms) in zip(whole, situations, strict=True):
            decision = RulePolicy().decide(situation)
            row = row_of(decision.features)
            found.append(Asked(item, {arm: outcomes[item.id, arm] for arm in ARMS}, row, decision.arm, situation, deciding_ms))
    return found


def _answered(outcome: Outcome | None) -> bool:
    return outcome is not None and (outcome.error is None or outcome.unavailable)


async def _situations(service: Service, domain: str, items: Sequence[Item]) -> list[tuple[Situation, float]]:
    try:
        turns = [await service.answering.decide(Request(item.question, domain=domain), evaluator(service)) for item in items]
        return [(turn.situation, turn.clock.stages["decision"]) for turn in turns]
    finally:
        await service.answering.close()


async def answers(service: Service, chosen: ProofSet, items: Sequence[Item], progress: Progress) -> None:
    """Ask every arm, slice by slice of the questions."""

    async def ask(item: Item, arm: str) -> Outcome:
        return await answered(service, item, arm, chosen.domain, Sampling(max_tokens=MAX_TOKENS))

    try:
        for end in range(SLICE, len(items) + SLICE, SLICE):
            await run(
                items[:end],
                ARMS,
                ask,
                service.workspace.root / "outcomes",
                concurrency=BATCH,
                progress=lambda done, total, end=end: progress(f"{chosen.name}, first {end}", done, total),  # type: ignore[misc]
            )
    finally:
        await service.answering.close()
