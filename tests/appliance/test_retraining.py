"""Retraining: when it is due, from which data, and what comes of it (the training itself is a tiny model's)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gate_support import make_adapter

from appliance.adapters import canary as canaries
from appliance.adapters import retraining
from appliance.adapters.gates import Promotion
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.adapters.retraining import Retraining, retrain
from appliance.admin.audit import find
from appliance.cli.main import run
from appliance.config import load
from appliance.datasets.registry import Datasets
from appliance.errors import ApplianceError, UsageError
from appliance.jobs.cron import next_after
from appliance.jobs.jobs import Jobs
from appliance.store import tables_admin
from appliance.store.database import utcnow
from appliance.training import stages
from appliance.workspace import Workspace
from finetune.version import version_hash

sys.path.append(str(Path(__file__).parents[1] / "finetune"))
from finetune_model import TOPICS, build_model


def write_rows(file: Path, count: int, start: int = 0) -> None:
    made = []
    for number in range(start, start + count):
        question, answer = (text.format(n=number) for text in TOPICS[number % 2])
        made.append({"id": f"q{number}", "question": question, "answer": answer, "split": "dev" if number % 5 == 4 else "train"})
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), "utf-8")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], Workspace]]:
    """A workspace with a data set in both languages, and what `[domains.bank]` is to say."""
    Workspace.create(tmp_path / "workspace").close()
    made: list[Workspace] = []

    def begin(text: str) -> Workspace:
        base = build_model(tmp_path / "base") if not (tmp_path / "base").exists() else tmp_path / "base"
        config = f'[engines.default]\nbase = "path:{base}"\nlanguages = ["en", "zh"]\n[domains.bank]\n{text}\n'
        (tmp_path / "workspace" / "appliance.toml").write_text(config, "utf-8")
        workspace = Workspace(tmp_path / "workspace")
        made.append(workspace)
        if not (tmp_path / "fees.jsonl").exists():
            write_rows(tmp_path / "fees.jsonl", 10)
            Datasets(workspace).add(tmp_path / "fees.jsonl", domain="bank")
        return workspace

    yield begin
    for workspace in made:
        workspace.close()


def test_a_job_when_it_is_due(opened: Callable[[str], Workspace]) -> None:
    workspace = opened('retrain = "0 3 * * *"\nretrain_dataset = "fees"')
    retraining, jobs = Retraining(workspace), Jobs(workspace.db)
    [task] = retraining.due(utcnow())
    outcome = task.run(lambda: None)
    [job] = jobs.all(domain="bank")
    assert (job.kind, job.state, outcome["job"]) == ("retrain", "queued", job.id)
    assert list(retraining.due(utcnow())) == []
    # Not twice at once: what waits is enough.
    [task] = retraining.due(utcnow() + timedelta(days=3))
    assert task.run(lambda: None)["job"] == job.id
    jobs.cancel(job.id)
    [task] = retraining.due(utcnow() + timedelta(days=3))
    assert task.run(lambda: None)["job"] != job.id


def test_cron_times() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert next_after("0 * * * *", moment) == datetime(2026, 3, 1, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('retrain = "0 3 * * *"', "nothing says what to train on"),
        ('retrain = "at night"\nretrain_dataset = "fees"', "write five fields"),
        ('retrain_then = "hope"', "Input should be"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "appliance.toml").write_text(f"[domains.bank]\n{text}\n", "utf-8")
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "appliance.toml", environ={})


def test_what_cannot_be_trained(opened: Callable[[str], Workspace], tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text('method = "full"\n', "utf-8")
    full = opened(f'retrain_dataset = "fees"\nretrain_config = "{tmp_path / "full.toml"}"')
    with pytest.raises(UsageError, match="makes a model, which cannot go live by itself"):
        retrain(full, "bank", lambda *_: None)
    with pytest.raises(UsageError, match="nothing names a data set"):
        retrain(opened(""), "bank", lambda *_: None)
    with pytest.raises(UsageError, match="no data set 'nothing'"):
        retrain(opened('retrain_dataset = "nothing"'), "bank", lambda *_: None)


def test_nothing_is_trained_while_a_version_is_on_trial(opened: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise ApplianceError("显存不足")

    monkeypatch.setattr(stages, "tune_plan", train)
    settings = 'retrain_dataset = "fees"\nretrain_report = "reports/bank.jsonl"\n'
    workspace = opened(settings)
    facts = {"domain": "bank", "live": None, "share": 0.1, "state": "running", "why": "", "looks": {}, "started_at": utcnow()}
    with workspace.db.write() as connection:
        connection.execute(tables_admin.canary.insert().values(id="can-1", candidate="bank@1", **facts))
    waiting = retrain(workspace, "bank", lambda *_: None)
    assert (waiting["outcome"], waiting["version"]) == ("waiting", "bank@1") and "still on trial" in waiting["why"]
    # A version that is only registered, or promoted, stands in no trial's way; nor does one that has ended.
    with pytest.raises(ApplianceError, match="显存不足"):
        retrain(opened(f'{settings}retrain_then = "register"'), "bank", lambda *_: None)
    canaries.stop(workspace.db, "bank")
    with pytest.raises(ApplianceError, match="显存不足"):
        retrain(workspace, "bank", lambda *_: None)
    # What failed is reported as well, and tried again.
    rows = [json.loads(line) for line in (workspace.root / "reports" / "bank.jsonl").read_text("utf-8").splitlines()]
    assert [row["outcome"] for row in rows] == ["waiting", "failed", "failed"] and rows[1]["why"] == "显存不足"
    assert [entry["details"]["outcome"] for entry in find(workspace.db, "adapter.retrain")] == ["failed", "failed", "waiting"]


def test_what_was_trained_goes_on_to_its_gate_after_another_one_and_after_an_interruption(
    opened: Callable[[str], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = opened('retrain_dataset = "fees"\nretrain_then = "promote"')
    registry, trainings, gates = Registry(workspace), list[str](), list[str]()
    meets: list[BaseException | None] = [KeyboardInterrupt(), None, None]

    def train(*_: object) -> list[tuple[AdapterVersion, dict[str, Any]]]:
        version = registered(registry, tmp_path, len(trainings) + 1)
        trainings.append(version.name)
        return [(version, {})]

    async def promote(service: object, name: str, **_: object) -> Promotion:
        if (error := meets.pop(0)) is not None:
            raise error
        with workspace.db.lock("gate:bank"):
            gates.append(name)
        return Promotion(registry.get(name), True, None, "passed")

    monkeypatch.setattr(stages, "tune_plan", train)
    monkeypatch.setattr("appliance.adapters.gates.promote", promote)
    monkeypatch.setattr(retraining, "_AGAIN", 0.01)
    with pytest.raises(KeyboardInterrupt):
        retrain(workspace, "bank", lambda *_: None)
    # Somebody else's gate is waited for; what was trained before is not trained again.
    waited = list[str]()
    with ExitStack() as other:
        other.enter_context(workspace.db.lock("gate:bank"))
        row = retrain(workspace, "bank", lambda what, *_: (waited.append(what), other.close()))
    assert row["outcome"] == "live" and trainings == gates == [row["version"]]
    assert waited == ["waiting for another gate of the domain"]
    assert retrain(workspace, "bank", lambda *_: None)["outcome"] == "skipped"
    # New data, and what was trained from it was damaged before it came to its gate.
    write_rows(tmp_path / "fees.jsonl", 15)
    meets[:] = [KeyboardInterrupt(), None]
    with pytest.raises(KeyboardInterrupt):
        retrain(workspace, "bank", lambda *_: None)
    (registry.get(trainings[-1]).path / "adapter_model.safetensors").unlink()
    assert retrain(workspace, "bank", lambda *_: None)["version"] == trainings[-1] and len(trainings) == 3


def registered(registry: Registry, folder: Path, number: int) -> AdapterVersion:
    """A version with files of its own."""
    staged = make_adapter(registry.workspace.folder("adapters") / f"staged-{number}", number)
    sha256 = version_hash(staged)
    path = staged.rename(staged.with_name(f"bank@{sha256[:8]}"))
    facts: dict[str, Any] = {"base": "", "base_hash": "", "method": "lora", "dataset": "fees", "dataset_version": "1", "parent": None}
    version = AdapterVersion(
        path.name, "bank", path=path, sha256=sha256, labels=frozenset(), config={}, metrics={}, created_at=utcnow(), **facts
    )
    registry.register(version, [])
    return version


@pytest.mark.slow
def test_from_the_newest_data_through_the_gate_into_a_trial(opened: Callable[[str], Workspace], tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("epochs = 1\nrank = 2\nbatch_size = 4\n", "utf-8")
    gate = "[domains.bank.gate]\nmax_drop = 1.0\nmax_declined = 1.0\nlatency_questions = 0\nmax_tokens = 4\n"
    common = f'retrain_dataset = "fees"\nretrain_config = "{tmp_path / "tiny.toml"}"\nretrain_report = "reports/bank.jsonl"\n'
    workspace = opened(f"{common}{gate}")
    first: dict[str, Any] = retrain(workspace, "bank", lambda *_: None)
    assert first["outcome"] in ("trial", "missed"), first
    assert retrain(workspace, "bank", lambda *_: None)["outcome"] == "skipped"
    # New rows in the file that the data set was registered from.
    write_rows(tmp_path / "fees.jsonl", 15)
    registered = opened(f'{common}retrain_then = "register"\n{gate}')
    second = retrain(registered, "bank", lambda *_: None)
    assert second["outcome"] == "registered" and second["version"] != first["version"]
    assert second["datasets"] != first["datasets"] and Datasets(registered).get("fees").counts["pairs"] == 15
    assert Registry(registered).live("bank") is None
    assert {one.candidate for one in canaries.history(workspace.db)} <= {first["version"]}
    lines = (workspace.root / "reports" / "bank.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == [first["outcome"], "skipped", "registered"]
    assert len(find(workspace.db, "adapter.retrain")) == 3
    assert run(["--workspace", str(workspace.root), "adapter", "retrain", "--domain", "bank"]) == 0


@pytest.mark.slow
def test_several_data_sets_of_a_llama_factory_file(opened: Callable[[str], Workspace], tmp_path: Path) -> None:
    from appliance.adapters.gate_checks import last_gate

    (tmp_path / "sft.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'base'}\nstage: sft\nfinetuning_type: lora\nlora_rank: 2\nlora_target: all\n"
        "trust_remote_code: true\ndataset: fees,更多\nmax_samples: 6\nval_size: 0.2\n"
        "cutoff_len: 256\nnum_train_epochs: 1.0\nper_device_train_batch_size: 4\n",
        "utf-8",
    )
    gate = "[domains.bank.gate]\nmax_drop = 1.0\nmax_declined = 1.0\nlatency_questions = 0\nmax_tokens = 4\n"
    workspace = opened(f'retrain_config = "{tmp_path / "sft.yaml"}"\n{gate}')
    write_rows(tmp_path / "更多.jsonl", 10, start=50)
    more = Datasets(workspace).add(tmp_path / "更多.jsonl", domain="bank").info
    first = retrain(workspace, "bank", lambda *_: None)
    assert set(first["datasets"]) == {"fees", "更多"}
    registry = Registry(workspace)
    version = registry.get(first["version"])
    assert version.dataset == "fees,更多" and version.dataset_version.endswith(more.version[:8])
    trained = {link.pair_id for link in registry.links(version.name)}
    # Of the first six rows of each, one says that it is for dev.
    assert trained == {f"{name}/q{start + n}" for name, start in (("fees", 0), ("更多", 50)) for n in (0, 1, 2, 3, 5)}
    # The gate asks what was not trained on, of both.
    result = last_gate(workspace, version.name)
    assert result is not None and result.left_out == {}
    assert max(check.n for check in result.checks) == 4
    assert retrain(workspace, "bank", lambda *_: None)["outcome"] == "skipped"
    if first["outcome"] == "trial":
        canaries.stop(workspace.db, "bank")
    write_rows(tmp_path / "更多.jsonl", 12, start=51)
    second = retrain(workspace, "bank", lambda *_: None)
    assert second["outcome"] != "skipped" and registry.get(second["version"]).dataset_version != version.dataset_version
