"""Every method trained for real on the tiny model, and what is particular to each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import SMALL, TEXTS, job_for, make_examples, make_job, preferences

from finetune.methods import method_of
from finetune.methods.base import load_model
from finetune.settings import METHODS, MODEL_METHODS, TrainSettings, yields
from finetune.tokens import load_tokenizer, stop_tokens
from finetune.train import TrainJob, TrainResult, train
from finetune.types import Example, TrainingError
from finetune.version import rank_of, version_hash


def run(job: TrainJob) -> TrainResult:
    return train(job, lambda event: None)


def logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits


def test_the_names_are_those_of_the_settings(tmp_path: Path) -> None:
    assert {name for name in METHODS if yields(name) == "model"} == set(MODEL_METHODS)
    for name in METHODS:
        assert method_of(TrainSettings(method=name), tmp_path).settings.method == name
    assert TrainSettings(method="full").rate < TrainSettings().rate
    assert TrainSettings(method="full", learning_rate=1e-3).rate == 1e-3


@pytest.mark.parametrize("method", ["dora", "prefix"])
def test_training_goes_on_from_an_adapter(tiny: Path, tmp_path: Path, method: str) -> None:
    first = run(job_for(method, tiny, tmp_path / "a"))
    second = run(job_for(method, tiny, tmp_path / "b", start=first.adapter))
    assert second.eval_loss < second.eval_loss_before == pytest.approx(first.eval_loss, abs=2e-6)


def test_pissa_becomes_plain_lora_that_computes_the_same(tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    method = method_of(replace(SMALL, method="pissa"), tmp_path)
    tokenizer, ids = load_tokenizer(tiny), list(range(20, 60))
    plain = logits(load_model(tiny, torch.float32), ids)
    model = method.prepare(method.load(tiny, torch.float32), None, ids)
    torch.testing.assert_close(logits(model, ids), plain, atol=1e-5, rtol=1e-4)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.add_(torch.randn_like(value), alpha=0.1)
    trained = logits(model, ids)
    assert (trained - plain).abs().max() > 1e-3
    method.save(model, tokenizer, tmp_path / "saved")
    served = PeftModel.from_pretrained(load_model(tiny, torch.float32), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(served, ids), trained, atol=1e-5, rtol=1e-4)
    assert served.peft_config["default"].r == rank_of(tmp_path / "saved") == 2 * SMALL.rank
    assert rank_of(tiny) is None


def test_lora_plus_learns_b_faster(tiny: Path, tmp_path: Path) -> None:
    import torch

    method = method_of(replace(SMALL, method="lora+", lora_plus_ratio=8.0), tmp_path)
    model = method.prepare(method.load(tiny, torch.float32), None, [])
    made = method.optimizer(model)
    assert made is not None
    rates = {id(value): group["lr"] for group in made[1]["params"] for value in group["params"]}
    names = {name: rates[id(value)] for name, value in model.named_parameters() if value.requires_grad}
    assert {rate for name, rate in names.items() if "lora_A" in name} == {SMALL.rate}
    assert {rate for name, rate in names.items() if "lora_B" in name} == {8 * SMALL.rate}


def test_galore_is_adamw_where_it_does_not_project_and_smaller_where_it_does() -> None:
    import torch

    from finetune.methods.galore_adamw import GaloreAdamW

    def steps(make: Callable[[Any], Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(6, 10)), torch.nn.Parameter(torch.randn(10, 6)), torch.nn.Parameter(torch.randn(6))]
        optimizer = make(weights)
        for _ in range(5):
            optimizer.zero_grad()
            torch.stack([(value**2).sum() for value in weights]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return weights, optimizer

    whole, _ = steps(lambda weights: GaloreAdamW([{"params": weights, "rank": 6}], lr=0.1, weight_decay=0.01))
    theirs, _ = steps(lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.01))
    for one, other in zip(whole, theirs, strict=True):
        torch.testing.assert_close(one, other)
    low, optimizer = steps(lambda weights: GaloreAdamW([{"params": weights, "rank": 2, "every": 3, "scale": 0.5}], lr=0.1))
    assert [tuple(optimizer.state[weight]["mean"].shape) for weight in low] == [(2, 10), (10, 2), (6,)]
    # Each update lies in the span of two vectors per basis; two bases were used.
    assert torch.linalg.matrix_rank(optimizer.state[low[0]]["basis"]) == 2
    again = GaloreAdamW([{"params": low, "rank": 2}], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[low[0]]["step"] == 5


def test_an_evaluation_leaves_quantised_training_as_it_was(tiny: Path, tmp_path: Path) -> None:
    """bitsandbytes repacks weights for a kernel without gradient when a model is evaluated on some CPUs."""
    import torch

    method = method_of(replace(SMALL, method="qlora"), tmp_path)
    ids = list(range(20, 60))

    def gradients(evaluate: bool) -> list[Any]:
        torch.manual_seed(0)
        model = method.prepare(method.load(tiny, torch.float32), None, ids)
        if evaluate:
            logits(model, ids)
        model.train()
        model(input_ids=torch.tensor([ids])).logits.square().sum().backward()
        return [value.grad for name, value in model.named_parameters() if "lora_B" in name]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_how_many_preferences_are_computed_at_once_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, method="dpo", learning_rate=1e-2, epochs=2)
    losses = []
    for size in (2, 4):
        # Three make one update: two and one, or all at once.
        job = job_for("dpo", tiny, tmp_path / str(size), train=preferences(3), settings=replace(settings, micro_batch=size))
        losses.append([event.get("loss", event.get("eval_loss")) for event in run(job).log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_weights_in_four_bits_let_go_of_the_file(tiny: Path, tmp_path: Path) -> None:
    import torch

    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    settings = TrainSettings(method="qlora")
    model = method_of(settings, tmp_path).load(base, torch.float32)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert str(base) not in Path("/proc/self/maps").read_text()


def test_the_loss_of_dpo_is_that_of_trl(tiny: Path, tmp_path: Path) -> None:
    """With an adapter that has moved away from its start: the reference is the start, in trl a copy of the adapter."""
    from datasets import Dataset
    from peft import PeftModel
    from trl import DPOConfig, DPOTrainer

    start = run(job_for("lora", tiny, tmp_path / "first")).adapter
    settings = replace(SMALL, method="dpo", batch_size=8, micro_batch=8, learning_rate=1e-2, scheduler="constant", epochs=2)
    ours = run(make_job(tiny, tmp_path / "ours", train=preferences(8), dev=preferences(4, 40), settings=settings, start=start))
    import torch

    def rows(examples: list[Example]) -> Any:
        def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
            return [{"role": role, "content": content} for role, content in pairs]

        return Dataset.from_list(
            [
                {
                    "prompt": turns(*((turn.role, turn.content) for turn in example.prompt)),
                    "chosen": turns(("assistant", example.completion)),
                    "rejected": turns(("assistant", example.rejected or "")),
                }
                for example in examples
            ]
        )

    # trl trains the line break after the end token as well; without it the texts are the same.
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>\n'", "('<|im_end|>' if loop.last else '<|im_end|>\n')")
    common = {"learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "beta": 0.1}
    quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    model = PeftModel.from_pretrained(load_model(tiny, torch.float32), str(start), is_trainable=True)
    theirs = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path / "theirs"), max_grad_norm=1.0, save_strategy="no", **common, **quiet),
        train_dataset=rows(preferences(8)),
        eval_dataset=rows(preferences(4, 40)),
        processing_class=tokenizer,
    )
    theirs.train()
    losses = [event["loss"] for event in theirs.state.log_history if "loss" in event]
    assert [event["loss"] for event in ours.log if "loss" in event] == pytest.approx(losses, rel=1e-3)
    assert ours.eval_loss == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-3)


def test_pre_training_reads_every_token_once(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    method = method_of(replace(SMALL, method="pretrain", max_length=50), tmp_path)
    windows, dropped = method.encode(tokenizer, TEXTS, stop_tokens(tokenizer, tiny), 256)
    read = [token for window in windows for token in window.input_ids]
    assert tokenizer.decode(read) == "".join(example.completion + "<|im_end|>" for example in TEXTS)
    assert dropped == 0
    assert {len(window.input_ids) for window in windows[:-1]} == {50}
    assert all(window.labels == window.input_ids for window in windows)


@pytest.mark.slow
def test_a_gradient_that_is_computed_again_is_the_same(tiny: Path, tmp_path: Path) -> None:
    plain = run(job_for("lora", tiny, tmp_path / "a"))
    again = run(job_for("lora", tiny, tmp_path / "b", settings=replace(SMALL, gradient_checkpointing=True)))
    assert again.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
    assert again.eval_loss == pytest.approx(plain.eval_loss, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("dpo", {"train": make_examples(4)}, "example e0: method dpo needs two answers"),
        ("dpo", {"train": [replace(e, rejected=e.completion + " ") for e in make_examples(4)]}, "the rejected answer is the chosen one"),
        ("dpo", {"settings": replace(SMALL, method="dpo", max_length=20)}, "example e0: .* at most 20 fit"),
        ("pretrain", {"train": make_examples(4), "dev": make_examples(2)}, "example e0: method pretrain reads plain texts"),
        ("lora", {"train": TEXTS}, "example 文档0: method lora needs questions"),
        ("freeze", {"settings": replace(SMALL, method="freeze", freeze_layers=3)}, "freeze_layers is 3, the model has 2 layers"),
        ("prefix", {"settings": replace(SMALL, method="prefix", gradient_checkpointing=True)}, "a prefix stands in the cache"),
        ("prefix", {"settings": replace(SMALL, method="prefix", max_length=500, prefix_tokens=200)}, "example e0: .* at most 56 fit"),
        ("lora", {"settings": replace(SMALL, precision="bfloat16")}, 'precision: "bfloat16" needs a GPU'),
    ],
)
def test_what_does_not_go_together_is_said(tiny: Path, tmp_path: Path, method: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        run(job_for(method, tiny, tmp_path, **changes))


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "dpo"])
def test_a_base_whose_adapters_nobody_serves_is_refused(tmp_path: Path, method: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=8))
    with pytest.raises(ValueError, match="of GPT-2's kind"):
        method_of(TrainSettings(method=method), tmp_path).prepare(model, None, [1, 2])


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ("prefix", "lora", "method lora goes on from LoRA ones"),
        ("lora", "prefix", "method prefix goes on from prefixes"),
        ("lora", "full", "trains a model and cannot go on from an adapter"),
    ],
)
def test_a_start_of_another_kind_is_refused(tiny: Path, tmp_path: Path, first: str, then: str, says: str) -> None:
    import torch

    made = method_of(replace(SMALL, method=first), tmp_path / "work")
    made.save(made.prepare(load_model(tiny, torch.float32), None, [30, 31, 32]), load_tokenizer(tiny), tmp_path / "start")
    with pytest.raises(TrainingError, match=says):
        run(job_for(then, tiny, tmp_path / "next", start=tmp_path / "start"))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_an_interrupted_run_of_every_method_goes_on_to_the_same_bits(tiny: Path, tmp_path: Path, method: str) -> None:
    job = job_for(method, tiny, tmp_path / "whole", settings=replace(SMALL, method=method, epochs=2, dropout=0.1))
    whole = run(job)
    again = replace(job, work=tmp_path / "parts", checkpoint_seconds=0.0)

    def interrupt(event: dict[str, Any]) -> None:
        if event["step"] == 3 and "loss" in event:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, interrupt)
    parts = run(again)
    assert version_hash(parts.adapter) == version_hash(whole.adapter)
    assert (parts.eval_loss, parts.eval_loss_before) == (whole.eval_loss, whole.eval_loss_before)
