"""No adapter is loaded into an engine that cannot serve its files, and whoever asks is told why."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_engine import ScriptedEngine
from gate_support import Bench, right, rows
from test_engines_local import TEMPLATE, base, make_adapter

from appliance.adapters.life import AdapterLife
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.admin.acts import Administration
from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable, adapter_trouble
from appliance.cli.main import cli
from appliance.engines.base import AdapterRef, EngineError
from appliance.engines.breaker import Breaker
from appliance.engines.build import lint
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.pool import EnginePool
from appliance.errors import ApplianceError
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.routing.costs import CostBook
from appliance.service import Service, open_service
from appliance.settings import EngineConfig
from appliance.store.database import utcnow
from appliance.types import Answer, Caller, Request
from appliance.workspace import Workspace
from finetune.tokens import load_tokenizer, template_hash
from finetune.version import version_hash
from retrieval.types import Scope

__all__ = ["base"]
ADMIN = Caller(name="root", scope=Scope(frozenset({"medical"}), frozenset()), scopes=frozenset({"admin"}))


def started(knowledge: Knowledge, models: ModelStore) -> Service:
    """A service of the workspace as it is configured now, as a new process has it."""
    workspace = Workspace(knowledge.workspace.root)
    whole, engines = open_service(workspace), EnginePool(workspace, models)
    answering = Answering(knowledge, engines, whole.registry, whole.verified, whole.answering.router, CostBook())
    return replace(whole, models=models, knowledge=knowledge, engines=engines, answering=answering)


@pytest.fixture
def promoted(light: Knowledge, base: Path, models: ModelStore) -> AdapterVersion:
    """A version that is live, with the files that training leaves."""
    workspace, reference = light.workspace, f"path:{base}"
    workspace.save_setting("engines.default.base", reference)
    workspace.save_setting("engines.default.languages", ["en", "zh"])
    folder = make_adapter(base, workspace.folder("adapters") / "made", "made").path
    sha256 = version_hash(folder)
    folder = folder.rename(folder.with_name(f"medical@{sha256[:8]}"))
    same = {"name": folder.name, "domain": "medical", "sha256": sha256, "method": "lora", "dataset": "pairs", "dataset_version": "1"}
    same |= {"base_hash": models.model_hash(workspace.model(reference)), "parent": None, "metrics": {}}
    facts = {"base_ref": reference, "data_hash": "", "template_hash": template_hash(load_tokenizer(base)), "settings": {}, "libraries": {}}
    more = {"seed": 1, "labels": [], "evidence": [], "created_at": utcnow().isoformat()}
    (folder / "version.json").write_text(json.dumps(same | facts | more), "utf-8")
    version = AdapterVersion(**same, base=reference, path=folder, labels=frozenset(), config={}, created_at=utcnow())
    registry = Registry(workspace)
    registry.register(version, [])
    registry.promote(version.name)
    return version


def ask(service: Service, arm: str, question: str) -> Answer:
    return asyncio.run(service.answering.ask(Request(question, domain="medical", arm=arm)))  # type: ignore[arg-type]


def shown(workspace: Workspace, name: str) -> Any:
    done = CliRunner().invoke(cli, ["--workspace", str(workspace.root), "adapter", "show", name, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_another_template_after_promotion_is_noticed(
    light: Knowledge, promoted: AdapterVersion, models: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    name, workspace = promoted.name, light.workspace
    before = started(light, models)
    assert ask(before, "finetuned", "挂号费第1档是多少？").adapter == name
    assert shown(workspace, name)["problems"] == []

    workspace.save_setting("engines.default.chat_template", "alpaca")
    service = started(light, models)
    problem = "trained with another chat template"
    with pytest.raises(ArmUnavailable, match=rf"引擎 default 不能使用 {name}：{problem}"):
        ask(service, "finetuned", "挂号费第1档是多少？")
    # Whoever named no arm is answered without it.
    answer = ask(service, "auto", "When may visitors come?")
    assert answer.adapter is None and all(problem in answer.decision.unavailable[arm] for arm in ("finetuned", "hybrid"))

    async def run() -> list[str]:
        await AdapterLife(service.registry, service.engines).tick()
        return await (await service.engines.of("medical")).adapters()

    assert asyncio.run(run()) == []
    assert any(problem in record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    admin = Administration(service)
    assert problem in admin.adapter(ADMIN, name)["problem"] and problem in admin.adapters(ADMIN, None)[0]["problem"]
    assert problem in shown(workspace, name)["problems"][0]

    workspace.save_setting("engines.default.chat_template", TEMPLATE)
    assert ask(started(light, models), "finetuned", "挂号费第1档是多少？").adapter == name


def test_what_does_not_fit_is_never_loaded_and_looked_at_once(light: Knowledge, tmp_path: Path) -> None:
    bench = Bench(light, tmp_path)
    good, bad = (bench.adapter(bench.dataset(name, rows(4 * number, 4, "train", "zh")), right, number) for number, name in enumerate("ab"))
    config = json.loads((bad.path / "adapter_config.json").read_text("utf-8"))
    (bad.path / "adapter_config.json").write_text(json.dumps({**config, "r": 64, "modules_to_save": ["lm_head"]}), "utf-8")
    looked: list[Path] = []

    def look(folder: Path) -> list[str]:
        looked.append(folder)
        return lint(bench.workspace.config.engines["default"], bench.models, bench.workspace, folder)

    engine = ScriptedEngine("好", base_hash=bench.base_hash)
    guard = Guarded(engine, TimeLimits(), Breaker(1, 0.0), look)

    async def run() -> None:
        for _ in range(3):
            await guard.load(good.ref)
            with pytest.raises(EngineError, match=rf"engine \S+ cannot serve {bad.name}: modules_to_save .*has shape \(2, 8\)"):
                await guard.load(bad.ref)
            assert "modules_to_save" in await adapter_trouble(bad, guard, Caller(), "en")
            assert await adapter_trouble(good, guard, Caller(), "en") == ""

    asyncio.run(run())
    assert set(engine.loaded) == {good.name} and sorted(looked) == sorted([good.path, bad.path])
    assert guard.problems[good.name] == "" and str(tmp_path) not in guard.problems[bad.name]
    # Restored files are looked at again, after a while.
    (bad.path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    guard._linted[bad.name] = float("-inf")
    asyncio.run(guard.load(bad.ref))
    assert guard.problems[bad.name] == "" and len(looked) == 3


@pytest.mark.parametrize(
    ("settings", "config", "says"),
    [
        ({"kind": "vllm"}, {"use_dora": True}, "DoRA adapters are not served by vllm"),
        ({"kind": "vllm", "max_lora_rank": 1}, {}, "rank 2 is above the limit of 1"),
        ({"kind": "local"}, {"bias": "all"}, "bias is 'all'"),
        ({"kind": "local"}, {}, None),
    ],
)
def test_the_rules_are_those_of_the_engine(
    light: Knowledge, tmp_path: Path, settings: dict[str, Any], config: dict[str, Any], says: str | None
) -> None:
    bench = Bench(light, tmp_path)
    version = bench.adapter(bench.dataset("对", rows(0, 4, "train", "zh")), right)
    file = version.path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **config}), "utf-8")
    engine = EngineConfig(base=bench.workspace.config.engines["default"].base, **settings)
    found = lint(engine, bench.models, bench.workspace, version.path)
    assert (says is None) == (found == []) and (says is None or says in found[0])


def test_a_base_that_is_gone_is_no_fault_of_the_adapter(light: Knowledge, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def gone(folder: Path) -> list[str]:
        raise ApplianceError(f"{tmp_path}/底座: not a model folder")

    guard = Guarded(ScriptedEngine("好"), TimeLimits(), Breaker(1, 0.0), gone)
    assert asyncio.run(guard.unfit(AdapterRef("medical@1", tmp_path))) == "its base model cannot be read; the log says why"
    assert guard.problems == {} and "底座" in caplog.text
