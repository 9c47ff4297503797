"""Model versions: trained on the domain's documents, used as a base, and bound to what they were trained on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_engines_local import base
from waiting import until

from appliance.adapters.registry import AdapterVersion
from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.cli.main import cli
from appliance.datasets.registry import Datasets
from appliance.engines.pool import EnginePool
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.routing.costs import CostBook
from appliance.service import Service, open_service
from appliance.store import locks, schema
from appliance.store.database import utcnow
from appliance.store.locks import Locked
from appliance.training import stages
from appliance.training.stages import tune_plan
from appliance.training.tuning import tune
from appliance.types import Answer, Caller, Request
from appliance.workspace import Workspace
from finetune.settings import TrainSettings
from finetune.stages import Plan, Stage
from finetune.train import TrainJob
from retrieval.types import DocumentKey, Scope

__all__ = ["base"]
QUICK = TrainSettings(rank=2, alpha=4, epochs=1, batch_size=4, micro_batch=4, max_length=700, learning_rate=1e-2, patience=0)
SPLITS = ["train"] * 6 + ["dev"] * 2
PAIRS = [
    {"question": f"挂号费第{n}档是多少？", "answer": f"{n}元。", "rejected": "不知道。", "split": split}
    for n, split in enumerate(SPLITS, 1)
]


@pytest.fixture
def service(knowledge: Knowledge, base: Path, tmp_path: Path) -> Iterator[Service]:
    yield _service(knowledge.workspace, knowledge, f"path:{base}", tmp_path)


def _service(workspace: Workspace, knowledge: Knowledge, reference: str, tmp_path: Path) -> Service:
    """The service with `reference` as base of the default engine, and a store of models of its own."""
    workspace.save_setting("engines.default.base", reference)
    workspace.save_setting("engines.default.languages", ["en", "zh"])
    whole, models = open_service(workspace), ModelStore(tmp_path / "models")
    engines = EnginePool(workspace, models)
    answering = Answering(knowledge, engines, whole.registry, whole.verified, whole.answering.router, CostBook())
    return replace(whole, models=models, knowledge=knowledge, engines=engines, answering=answering)


def _tune(service: Service, method: str, dataset: str | None = None, start: AdapterVersion | None = None) -> AdapterVersion:
    return tune(service, "medical", dataset, replace(QUICK, method=method), lambda event: None, start=start)[0]


def _ask(service: Service, labels: frozenset[str]) -> Answer:
    async def ask() -> Answer:
        try:
            caller = Caller(scope=Scope(frozenset({"medical"}), labels))
            return await service.answering.ask(Request("门诊挂号费是多少？", domain="medical", arm="base"), caller)
        finally:
            await service.engines.close()

    return asyncio.run(ask())


def _command(workspace: Workspace, *words: str) -> Any:
    done = CliRunner().invoke(cli, ["--workspace", str(workspace.root), *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_from_documents_to_a_base_and_adapters_on_it(service: Service, tmp_path: Path) -> None:
    workspace, registry, knowledge = service.workspace, service.registry, service.knowledge
    model = _tune(service, "pretrain")
    # Immutable, complete, listed, and of every document it read.
    assert model.kind == "model" and model.path == workspace.root / "models" / model.name
    assert [version.name for version in registry.versions("medical")] == [model.name]
    assert {(link.doc_id, link.kind) for link in registry.links(model.name)} == {
        (name, "declared") for name in ("visiting.md", "parking.md", "zh/registration.md", "pay.md")
    }
    assert model.labels == {"management"} and model.parent is None
    with pytest.raises(UsageError, match=rf'is a model, .*base = "path:models/{model.name}"'):
        registry.promote(model.name)

    on_it = _service(workspace, knowledge, model.reference, tmp_path)
    with pytest.raises(ArmUnavailable, match="引擎的模型用调用者无权查看的文档训练过"):
        _ask(on_it, frozenset())
    assert _ask(_service(workspace, knowledge, model.reference, tmp_path), frozenset({"management"})).arm == "base"

    assert registry.in_use() == {model.name}
    with pytest.raises(UsageError, match=r"is the base of engine default"):
        registry.remove(model.name)
    assert model.reference in {row["reference"] for row in _command(workspace, "model", "list")}
    listed = [(row["version"], row["kind"], row["live"]) for row in _command(workspace, "adapter", "list")]
    assert listed == [(model.name, "model", True)]
    assert _command(workspace, "adapter", "show", model.name)["method"] == "pretrain"

    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), "utf-8")
    Datasets(workspace).add(file, domain="medical")
    lora = _tune(on_it, "lora", "pairs")
    assert (lora.base, lora.base_hash, lora.kind) == (model.reference, on_it.models.model_hash(workspace.model(model.reference)), "adapter")
    assert lora.base_hash != model.base_hash
    assert (lora.metrics["rank"], model.metrics["rank"]) == (QUICK.rank, None)
    dpo = _tune(on_it, "dpo", "pairs", start=lora)
    assert (dpo.base, dpo.parent) == (model.reference, lora.name)
    frozen = _tune(on_it, "freeze", "pairs")
    assert (frozen.base, frozen.parent, frozen.labels) == (model.reference, model.name, model.labels)

    knowledge.remove([DocumentKey("medical", "pay.md")])
    deleted = registry.deleted()
    assert {name for name, keys in deleted.items() if DocumentKey("medical", "pay.md") in keys} >= {model.name, frozen.name}


def test_what_cannot_be_trained_on_is_said(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text(json.dumps({"question": "When?", "answer": "At noon."}) + "\n", "utf-8")
    Datasets(service.workspace).add(file, domain="medical")
    with pytest.raises(UsageError, match=r"\{'no rejected answer': 1\}; pairs with a rejected answer"):
        _tune(service, "dpo", "plain")
    with pytest.raises(UsageError, match="method lora needs a data set"):
        _tune(service, "lora")
    refused = CliRunner().invoke(
        cli, ["--workspace", str(service.workspace.root), "tune", "--dataset", "plain", "--method", "full", "--promote"]
    )
    assert "method full makes a model, which no alias points at" in str(refused.exception)
    service.workspace.save_setting("engines.default.languages", ["de"])
    with pytest.raises(UsageError, match="medical has no document to read"):
        _tune(service, "pretrain")


def test_training_ends_when_its_lock_is_lost_and_the_next_clears_what_kills_left(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = service.workspace
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), "utf-8")
    Datasets(workspace).add(file, domain="medical")
    left = [workspace.folder(name) / "medical@0123abcd.tmp" for name in ("adapters", "models")]
    others = workspace.folder("adapters") / "law@0123abcd.tmp"
    for folder in (*left, others):
        folder.mkdir()
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)

    def robbed(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> None:
        with workspace.db.write() as connection:
            connection.execute(schema.lock.update().values(owner="other:1:2:3"))
        until(lambda: progress({}))

    monkeypatch.setattr("finetune.train.train", robbed)
    with pytest.raises(Locked, match="was lost"):
        _tune(service, "lora", "pairs")
    assert not [folder for folder in left if folder.exists()] and others.exists()
    assert service.registry.versions("medical") == []


def test_a_stage_is_known_by_what_it_was_trained_on_and_from(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, settings = service.workspace, replace(QUICK, method="lora")
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), "utf-8")
    info = Datasets(workspace).add(file, domain="medical").info
    base_ref = workspace.config.engine_of("medical")[1].base
    base_hash = service.models.model_hash(workspace.model(base_ref))
    trained: list[str | None] = []

    def made(
        service: Service,
        domain: str,
        dataset: str | None,
        settings: TrainSettings,
        progress: object,
        *,
        start: AdapterVersion | None = None,
        stage: str | None = None,
        fresh: bool = False,
    ) -> tuple[AdapterVersion, dict[str, Any]]:
        trained.append(stage)
        folder = workspace.folder("adapters") / f"medical@{len(trained):08d}"
        folder.mkdir()
        version = AdapterVersion(
            name=folder.name,
            domain=domain,
            base=base_ref,
            base_hash=base_hash,
            method="lora",
            path=folder,
            sha256="",
            dataset=info.name,
            dataset_version=info.version,
            # One of a first or only stage has what was live as its parent.
            parent=start.name if start else "medical@00000001" if trained[1:] else None,
            labels=frozenset(),
            config={**settings.to_json(), "stage": stage},
            metrics={},
            created_at=utcnow(),
        )
        service.registry.register(version, [])
        return version, {}

    monkeypatch.setattr(stages, "tune", made)
    # Trained alone, twice: the first stage of the plan is there, the second is neither of them.
    made(service, "medical", "pairs", settings, None)
    made(service, "medical", "pairs", settings, None)
    plan = Plan((Stage("a", "pairs", settings), Stage("b", "pairs", settings)))
    (first, _), (second, _) = tune_plan(service, "medical", plan, lambda stage, event: None)
    assert (first.name, second.name) == ("medical@00000002", "medical@00000003")
    assert trained == [None, None, "2/2 b"]
    assert [version for version, _ in tune_plan(service, "medical", plan, lambda stage, event: None)] == [first, second]
    assert len(trained) == 3


@pytest.mark.slow
def test_what_changes_while_it_trains_is_stale_when_it_is_done(service: Service, tmp_path: Path) -> None:
    registry, knowledge = service.registry, service.knowledge
    rows = [{**row, "doc_ids": ["parking.md" if number % 2 else "visiting.md"]} for number, row in enumerate(PAIRS)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    Datasets(service.workspace).add(file, domain="medical")
    text = service.workspace.root.parent / "documents" / "visiting.md"

    def meanwhile(event: dict[str, Any]) -> None:
        if "parking.md" in {info.id for info in knowledge.documents.documents("medical")}:
            text.write_text(text.read_text("utf-8").replace("20:00", "18:00"), "utf-8")
            knowledge.ingest([text.parent], domain="medical")
            knowledge.remove([DocumentKey("medical", "parking.md")])

    version, _ = tune(service, "medical", "pairs", QUICK, meanwhile)
    found = {document.key.id: document.change for document in registry.freshness.of(version.name).documents}
    assert found == {"visiting.md": "changed", "parking.md": "removed"}
    assert registry.deleted() == {version.name: [DocumentKey("medical", "parking.md")]}
