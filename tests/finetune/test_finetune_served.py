"""What was trained, served by the local engine: the same greedy answers as the trainer's own model gives."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import QUICK, SMALL, job_for, make_examples, smollm2

from appliance.engines.base import AdapterRef, Message, Sampling
from appliance.engines.local import LocalEngine
from appliance.models.files import content_hash, record_files
from finetune import train as module
from finetune.settings import METHODS, TrainSettings, yields
from finetune.tokens import load_tokenizer
from finetune.train import TrainJob, TrainResult, train
from finetune.types import TrainingError
from finetune.version import AdapterVersion, finish_version, lint_adapter, read_version

TOKENS = 12
# The base of QLoRA is quantised while it is trained and whole while it is served: its answers are compared with peft's on the whole base.
EXACT = tuple(method for method in METHODS if method != "qlora")
BASE = smollm2()


@dataclass(frozen=True)
class FourBit:
    """A linear layer that is kept in four bits: the kind of its numbers, and whether their scales are quantised again."""

    name: str
    kind: str
    double: bool


def prompts() -> list[list[Message]]:
    """An English and a Chinese question that were trained."""
    return [[Message(role=turn.role, content=turn.content) for turn in example.prompt] for example in make_examples(2)]


def greedy(model: Any, tokenizer: Any) -> list[str]:
    """What `model` itself answers to every prompt."""
    answers: list[str] = []
    for messages in prompts():
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, use_cache=True, pad_token_id=tokenizer.eos_token_id)
        # With a prefix only the new tokens come back.
        new = made[0, given["input_ids"].shape[1] :] if made.shape[1] > TOKENS else made[0]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd"))
    return answers


def four_bit(model: Any) -> list[FourBit]:
    """The layers of `model` that are kept in four bits; their packed weights are bytes, two numbers in each."""
    import torch
    from bitsandbytes.nn import Linear4bit

    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            weight = layer.weight
            assert weight.dtype == torch.uint8 and 2 * weight.numel() == layer.in_features * layer.out_features
            assert weight.compress_statistics == weight.quant_state.nested
            assert weight.quant_type == weight.quant_state.quant_type
            found.append(FourBit(name, weight.quant_type, weight.compress_statistics))
    return found


def trained(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainResult, list[str], list[FourBit]]:
    """The result, what the trainer's own model answers when it is done, and which of its layers are quantised."""
    seen: list[Any] = []
    run = module.run_trainer

    def watched(trainer: Any, method: Any, tokenizer: Any, *rest: Any) -> dict[str, Any]:
        figures = run(trainer, method, tokenizer, *rest)
        model = trainer.model.eval()
        seen.extend([greedy(model, tokenizer), four_bit(model)])
        return figures

    monkeypatch.setattr(module, "run_trainer", watched)
    result = train(job, lambda event: None)
    monkeypatch.setattr(module, "run_trainer", run)
    return result, *seen


async def answer(engine: LocalEngine, messages: list[Message], adapter: str | None) -> str:
    return "".join([delta.text async for delta in engine.chat(messages, adapter, Sampling(max_tokens=TOKENS))])


async def asked(base: Path, adapters: list[AdapterRef]) -> list[list[str]]:
    """The answers to every prompt without adapter, then with each, all in one batch."""
    engine = LocalEngine("default", base, "basehash", ["en", "zh"], max_batch=8, threads=1)
    for adapter in adapters:
        await engine.load(adapter)
    names = [None, *(adapter.name for adapter in adapters)]
    made = await asyncio.gather(*(answer(engine, messages, name) for name in names for messages in prompts()))
    await engine.close()
    count = len(prompts())
    return [list(made[start : start + count]) for start in range(0, len(made), count)]


@dataclass(frozen=True)
class Made:
    """What one method made, what its trainer's own model answered, and which layers of that were quantised."""

    result: TrainResult
    version: AdapterVersion
    answers: list[str]
    four_bit: list[FourBit]


def make_all(base: Path, work: Path, settings: TrainSettings, examples: int = 12) -> dict[str, Made]:
    """Train with every method, for real, on at most `examples`."""
    made: dict[str, Made] = {}
    with pytest.MonkeyPatch.context() as patch:
        for method in METHODS:
            job = job_for(method, base, work / method, settings=replace(settings, method=method))
            job = replace(job, train=job.train[:examples], dev=job.dev[:2])
            result, *seen = trained(job, patch)
            version = finish_version(result, work / "made", "bank", dataset="d", dataset_version="1")
            made[method] = Made(result, version, *seen)
    return made


def served_by_method(base: Path, made: dict[str, Made]) -> dict[str, list[str]]:
    """The answers of every adapter on `base`, in one batch, and of every model; "" stands for the base itself."""
    adapters = {method: one.version.path for method, one in made.items() if one.version.kind == "adapter"}
    plain, *tuned = asyncio.run(asked(base, [AdapterRef(method, path) for method, path in adapters.items()]))
    models = {method: asyncio.run(asked(one.version.path, []))[0] for method, one in made.items() if one.version.kind == "model"}
    return {"": plain, **dict(zip(adapters, tuned, strict=True)), **models}


def check_qlora(base: Path, made: dict[str, Made], served: dict[str, list[str]]) -> None:
    """QLoRA was trained on NF4 weights with double quantisation, and is served as peft computes it on the whole weights."""
    import torch
    from peft import PeftModel

    from finetune.methods.base import load_model

    whole = load_model(base, torch.float32)
    linear = [name for name, layer in whole.named_modules() if isinstance(layer, torch.nn.Linear) and name != "lm_head"]
    quantised = {layer.name.removeprefix("base_model.model.").removesuffix(".base_layer"): layer for layer in made["qlora"].four_bit}
    assert set(quantised) == set(linear) and linear
    assert {(layer.kind, layer.double) for layer in quantised.values()} == {("nf4", True)}
    assert not any(one.four_bit for method, one in made.items() if method != "qlora")
    # The same data, settings and seed on whole weights make another adapter.
    assert made["qlora"].version.sha256 != made["lora"].version.sha256
    tuned: Any = PeftModel.from_pretrained(whole, str(made["qlora"].version.path))
    assert served["qlora"] == greedy(tuned.eval(), load_tokenizer(base))


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    settings = replace(SMALL, learning_rate=5e-2, epochs=2, prefix_tokens=8, micro_batch=4)
    return make_all(tiny, tmp_path_factory.mktemp("made"), settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_makes_a_version(tiny: Path, made: dict[str, Made], method: str) -> None:
    result, version = made[method].result, made[method].version
    assert result.eval_loss < result.eval_loss_before
    assert (version.kind, version.method, version.settings["learning_rate"]) == (yields(method), method, 5e-2)
    assert read_version(version.path) == version
    if version.kind == "adapter":
        assert lint_adapter(version.path, tiny, base_hash="basehash") == []
        for_vllm = lint_adapter(version.path, tiny, engine="vllm")
        assert bool(for_vllm) == (method in ("dora", "prefix")), for_vllm
    else:
        from transformers import AutoConfig, AutoTokenizer

        assert AutoConfig.from_pretrained(version.path).use_cache
        assert AutoTokenizer.from_pretrained(version.path).chat_template == load_tokenizer(tiny).chat_template
        assert content_hash(record_files(version.path), True) != content_hash(record_files(tiny), True)


def test_served_answers_are_those_of_the_trainer(tiny: Path, made: dict[str, Made]) -> None:
    served = served_by_method(tiny, made)
    for method in EXACT:
        assert served[method] == made[method].answers, method
    check_qlora(tiny, made, served)
    assert served["qlora"] != served[""]
    assert sum(served[method] != served[""] for method in METHODS) >= len(METHODS) - 2


def test_freeze_changes_the_last_layers_only(tiny: Path, made: dict[str, Made]) -> None:
    from safetensors.torch import load_file

    before, after = load_file(tiny / "model.safetensors"), load_file(made["freeze"].version.path / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(name.startswith("model.layers.1.") for name in changed)
    last = [before[name].numel() for name in before if name.startswith("model.layers.1.")]
    assert made["freeze"].result.trainable_parameters == sum(last)


def test_an_altered_model_is_noticed(made: dict[str, Made], tmp_path: Path) -> None:
    version = made["full"].version
    copy = Path(shutil.copytree(version.path, tmp_path / version.name))
    assert read_version(copy).sha256 == version.sha256
    (copy / "config.json").write_text("{}", "utf-8")
    with pytest.raises(TrainingError, match="the files are not what was trained"):
        read_version(copy)


@pytest.mark.slow
@pytest.mark.skipif(BASE is None, reason="the embedded model is not on this machine")
def test_every_method_trains_and_serves_the_embedded_model(tmp_path: Path) -> None:
    assert BASE is not None
    settings = replace(QUICK, epochs=1, batch_size=2, learning_rate=None, max_length=256, rank=8, alpha=16, prefix_tokens=4)
    made = make_all(BASE, tmp_path, settings, examples=4)
    served = served_by_method(BASE, made)
    for method in EXACT:
        assert served[method] == made[method].answers, method
    check_qlora(BASE, made, served)
