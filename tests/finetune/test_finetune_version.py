from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import QUICK, build_model, make_job

from finetune import version as module
from finetune.train import TrainResult, train
from finetune.types import TrainingError
from finetune.version import AdapterVersion, finish_version, lint_adapter, list_versions, read_version, version_hash

Change = Callable[[Path], None]


def _finish(result: TrainResult, root: Path, domain: str = "finance") -> AdapterVersion:
    evidence = [{"pair_id": "e1", "kind": "declared", "doc_id": "费用.md", "sha256": "ab"}]
    return finish_version(
        result, root, domain, dataset="pairs", dataset_version="v1", parent="finance@00000000", labels=["b", "a"], evidence=evidence
    )


@pytest.fixture
def finished(trained: TrainResult, tmp_path: Path) -> AdapterVersion:
    return _finish(trained, tmp_path / "adapters")


def test_a_finished_version_is_complete(finished: AdapterVersion, trained: TrainResult) -> None:
    assert re.fullmatch(r"finance@[0-9a-f]{8}", finished.name)
    assert finished.path.name == finished.name == f"finance@{finished.sha256[:8]}"
    assert finished.sha256 == version_hash(finished.path)
    names = {"adapter_model.safetensors", "adapter_config.json", "version.json", "log.jsonl", "loss.png", "tensorboard"}
    assert {file.name for file in finished.path.iterdir()} == names
    assert (finished.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (finished.path / "log.jsonl").read_text("utf-8").splitlines()]
    assert log == list(trained.log)
    assert finished.metrics["eval_loss"] == trained.eval_loss
    assert finished.metrics["train_examples"] == 12
    assert finished.settings["rank"] == 4
    assert finished.seed == QUICK.seed
    assert finished.labels == ("a", "b")
    assert finished.evidence[0]["doc_id"] == "费用.md"
    assert set(finished.libraries) >= {"torch", "peft", "trl"}
    config = json.loads((finished.path / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "test:tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert list_versions(finished.path.parent) == [finished]


def test_the_same_content_is_one_version(finished: AdapterVersion, trained: TrainResult) -> None:
    assert _finish(trained, finished.path.parent) == finished
    assert [path.name for path in finished.path.parent.iterdir()] == [finished.name]


def _truncate(path: Path) -> None:
    data = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(data[:-10])


def _set(key: str, value: Any, file: str = "adapter_config.json") -> Change:
    def change(path: Path) -> None:
        values = json.loads((path / file).read_text("utf-8"))
        (path / file).write_text(json.dumps(values | {key: value}), "utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_truncate, "the files are not what was trained"),
        (_set("lora_alpha", 1), "the files are not what was trained"),
        (lambda path: (path / "adapter_model.safetensors").unlink(), "not a complete version"),
        (lambda path: (path / "version.json").unlink(), "not a complete version"),
        (lambda path: (path / "version.json").write_text('{"name": "fin', "utf-8"), "not the facts of a version"),
        (lambda path: (path / "version.json").write_text("[]", "utf-8"), "not the facts of a version"),
        (_set("domain", "legal", "version.json"), "the files are not what was trained"),
    ],
)
def test_an_altered_version_is_not_listed(finished: AdapterVersion, change: Change, says: str) -> None:
    change(finished.path)
    with pytest.raises(TrainingError, match=says):
        read_version(finished.path)
    assert list_versions(finished.path.parent) == []


def test_leftovers_of_a_kill_are_not_listed(finished: AdapterVersion) -> None:
    root = finished.path.parent
    shutil.copytree(finished.path, root / "finance@12345678.tmp")
    shutil.copytree(finished.path, root / "finance@12345678")
    (root / "notes@work").write_text("not a folder", "utf-8")
    assert list_versions(root) == [finished]
    assert list_versions(root / "nowhere") == []


@pytest.mark.parametrize(
    ("fault", "raised"), [(OSError(28, "No space left on device"), TrainingError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_nothing_is_left_behind_by_a_failure(
    trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, raised: type[BaseException]
) -> None:
    def fail(*args: object) -> None:
        raise fault

    monkeypatch.setattr(module, "draw", fail)
    with pytest.raises(raised):
        _finish(trained, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("domain", ["../x", "", "a/b", "a@b", "x" * 65])
def test_a_domain_must_name_a_folder(trained: TrainResult, tmp_path: Path, domain: str) -> None:
    with pytest.raises(TrainingError, match="domain"):
        _finish(trained, tmp_path, domain)


def test_what_was_trained_passes_the_lint(finished: AdapterVersion, tiny: Path, trained: TrainResult) -> None:
    assert lint_adapter(finished.path, tiny, base_hash="basehash") == []
    assert lint_adapter(trained.adapter, tiny) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("peft_type", "PREFIX_TUNING"), "engine vllm serves plain LoRA adapters only; an engine of kind local serves it"),
        (_set("peft_type", "IA3"), "peft_type is 'IA3'"),
        (_set("use_dora", True), "DoRA"),
        (_set("bias", "all"), "bias is 'all'"),
        (_set("modules_to_save", ["lm_head"]), "modules_to_save (lm_head)"),
        (_set("init_lora_weights", "pissa_niter_4"), "convert the adapter to plain LoRA"),
        (_set("r", 128), "rank 128 is above the limit of 64"),
        (_set("r", 0), "the rank is 0"),
        (_set("rank_pattern", {"q_proj": 65}), "rank 65 is above the limit"),
        (_set("rank_pattern", [1]), "rank_pattern is [1]; expected ranks by the names of modules"),
        (_set("rank_pattern", "x"), "rank_pattern is 'x'"),
        (_set("rank_pattern", {"q_proj": "8"}), "the rank is 4, '8'; expected a whole number"),
        (_set("modules_to_save", [1]), "modules_to_save (1)"),
        (_set("modules_to_save", "lm_head"), "modules_to_save (lm_head)"),
        (_set("use_qalora", True), "use_qalora is set, which vllm does not serve"),
        (_set("alora_invocation_tokens", [1, 2]), "alora_invocation_tokens is set, which vllm does not serve"),
        (lambda path: (path / "extra.bin").write_bytes(b""), "extra.bin: pickled weights"),
        (lambda path: (path / "adapter_config.json").write_text("{", "utf-8"), "adapter_config.json: cannot be read"),
        (lambda path: (path / "adapter_config.json").write_text("[]", "utf-8"), "adapter_config.json: cannot be read"),
        (lambda path: (path / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: cannot be read"),
        (_truncate, "not a complete safetensors file"),
        (_set("base_hash", "otherhash", "version.json"), "trained for another base"),
        (_set("template_hash", "other", "version.json"), "trained with another chat template"),
    ],
)
def test_the_lint_names_what_cannot_be_served(finished: AdapterVersion, tiny: Path, change: Change, says: str) -> None:
    change(finished.path)
    problems = lint_adapter(finished.path, tiny, base_hash="basehash", engine="vllm")
    assert any(says in problem for problem in problems), problems


def _rewrite(edit: Callable[[dict[str, Any]], None]) -> Change:
    def change(path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(path / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, path / "adapter_model.safetensors")

    return change


def _first(tensors: dict[str, Any], part: str) -> str:
    return next(name for name in tensors if part in name)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop(_first(t, "lora_A")), "has only lora_B"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[_first(t, "lora_A")]}), "not a LoRA matrix"),
        (lambda t: t.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": t[_first(t, "lora_A")]}), "no linear module"),
        (lambda t: t.update({_first(t, "lora_A"): t[_first(t, "lora_A")][:, :-1].copy()}), "the base needs (4, "),
        (lambda t: t.update({_first(t, "lora_B"): t[_first(t, "lora_B")][:, :-1].copy()}), "the base needs ("),
        (lambda t: t.clear(), "holds no tensor"),
    ],
)
def test_the_lint_compares_tensors_with_the_base(
    trained: TrainResult, tiny: Path, tmp_path: Path, edit: Callable[..., None], says: str
) -> None:
    shutil.copytree(trained.adapter, tmp_path / "a")
    _rewrite(edit)(tmp_path / "a")
    problems = lint_adapter(tmp_path / "a", tiny)
    assert any(says in problem for problem in problems), problems


def test_an_adapter_of_another_base_does_not_fit(finished: AdapterVersion, tmp_path: Path) -> None:
    base = build_model(tmp_path / "wide", hidden=32)
    assert any("has shape" in problem for problem in lint_adapter(finished.path, base))
    with pytest.raises(TrainingError, match="not a model folder"):
        lint_adapter(finished.path, tmp_path / "nowhere")


def test_another_seed_is_another_version(finished: AdapterVersion, tiny: Path, tmp_path: Path) -> None:
    result = train(make_job(tiny, tmp_path / "work", settings=replace(QUICK, seed=1, epochs=1)), lambda event: None)
    other = _finish(result, finished.path.parent)
    assert {version.name for version in list_versions(finished.path.parent)} == {finished.name, other.name}
