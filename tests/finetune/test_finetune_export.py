from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_model import CHATML, build_model

from finetune import export as exporting
from finetune.export import FACTS, export
from finetune.train import TrainResult
from finetune.types import TrainingError


def _adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter with random weights in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    options = {"target_modules": "all-linear"} | options
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, init_lora_weights=False, **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def _tied(folder: Path) -> Path:
    """A base whose output layer is its embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(build_model(folder))
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_each_kind_of_adapter_is_merged(tiny: Path, tmp_path: Path, options: dict[str, bool]) -> None:
    adapter = _adapter(tiny, tmp_path / "adapter", **options)
    found = export(adapter, tiny, tmp_path / "合并" / "out", shard_size="20KB", facts={"version": "银行@1"})
    assert found.differing == 0 and found.tokens > 10 and found.logits < 1e-4
    files = {file.name for file in (tmp_path / "合并" / "out").iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json", FACTS} <= files
    facts = json.loads((tmp_path / "合并" / "out" / FACTS).read_text("utf-8"))
    assert facts["version"] == "银行@1" and facts["check"]["dtype"] == "float32"
    assert [path.name for path in (tmp_path / "合并").iterdir()] == ["out"]


def test_a_base_whose_head_is_tied_stays_so_and_several_targets_are_merged(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = _tied(tmp_path / "base")
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 8}}
    adapter = _adapter(base, tmp_path / "adapter", **targets)
    found = export(adapter, base, tmp_path / "out", prompts=("应当先做什么？", "费用是多少，由谁支付？"))
    assert found.differing == 0 and found.tokens > 5 and found.logits < 1e-4
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in before and before.keys() == after.keys()
    changed = {name.split(".")[-2] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"q_proj", "v_proj", "down_proj"}


def test_an_adapter_of_a_tied_head_itself_is_refused_for_the_merge_would_turn_the_embeddings(tmp_path: Path) -> None:
    base = _tied(tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(TrainingError, match="does not answer like base and adapter"):
        export(adapter, base, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize(("room", "facts"), [(20_000, {}), (45_000, {"说明": "长" * 20_000})], ids=["weights", "facts"])
def test_a_disk_that_fills_leaves_nothing(tiny: Path, tmp_path: Path, trained: TrainResult, room: int, facts: dict[str, str]) -> None:
    """A limit on the size of each file in the disk's place: it fails in the middle of the weights, or with the last small file."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(TrainingError) as caught:
            export(trained.adapter, tiny, tmp_path / "out", facts=facts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in str(caught.value) and "check the space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_does_not_fit_is_no_fault_of_the_disk(tiny: Path, tmp_path: Path) -> None:
    adapter = _adapter(build_model(tmp_path / "wide", hidden=32), tmp_path / "adapter")
    with pytest.raises(TrainingError, match=r"cannot be merged into .*size mismatch.*appliance adapter lint"):
        export(adapter, tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_in_half_precision_keeps_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = build_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    found = export(_adapter(base, tmp_path / "adapter"), base, tmp_path / "out")
    assert 1e-4 < found.logits < 0.2
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_the_template_of_the_engine_goes_along(tmp_path: Path, trained: TrainResult) -> None:
    base = build_model(tmp_path / "base", template=None)
    export(trained.adapter, base, tmp_path / "out", chat_template=CHATML)
    assert (tmp_path / "out" / "chat_template.jinja").read_text("utf-8") == CHATML


def test_a_merge_that_answers_otherwise_leaves_nothing(
    tiny: Path, tmp_path: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if merging had left half of the update out.
    from peft.tuners.lora import Linear

    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: real(self, adapter) / 2)
    with pytest.raises(TrainingError, match=r"does not answer like base and adapter: logits differ by .* nothing was written"):
        export(trained.adapter, tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_base_is_refused(tmp_path: Path, trained: TrainResult) -> None:
    base = build_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(TrainingError, match=r"the base is quantised \(bitsandbytes\).*merge into the unquantised base"):
        export(trained.adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prefix_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}', "utf-8")
    with pytest.raises(TrainingError, match=r"PREFIX_TUNING adapters cannot be merged: .*learns keys and values"):
        export(tmp_path, tiny, tmp_path / "out")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(
    tiny: Path, tmp_path: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch, interrupt: BaseException
) -> None:
    from transformers import LlamaForCausalLM

    def stop(self: Any, folder: Path, **more: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise interrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", stop)
    with pytest.raises((KeyboardInterrupt, TrainingError)) as caught:
        export(trained.adapter, tiny, tmp_path / "out")
    assert isinstance(interrupt, KeyboardInterrupt) or "could not be written" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_named(tiny: Path, tmp_path: Path, trained: TrainResult) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(TrainingError, match="there is something already"):
        export(trained.adapter, tiny, tmp_path / "full")
    with pytest.raises(TrainingError, match="not an adapter"):
        export(tiny, tiny, tmp_path / "out")
    with pytest.raises(TrainingError, match="not a model folder"):
        export(trained.adapter, tmp_path / "full", tmp_path / "out")
    with pytest.raises(TrainingError, match="--shard-size"):
        export(trained.adapter, tiny, tmp_path / "out", shard_size="big")
    assert exporting.PROMPTS[-1] and {path.name for path in tmp_path.iterdir()} == {"full"}
