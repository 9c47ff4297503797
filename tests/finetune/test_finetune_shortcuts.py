"""Shortcuts leave every loss as the plain loop has it, or are not taken."""

from __future__ import annotations

import inspect
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, build
from finetune_model import QUICK, make_examples, make_job
from torch.nn.functional import cross_entropy

from finetune.building import build_trainer
from finetune.fused import fused_layers, head_loss
from finetune.methods import method_of
from finetune.shortcuts import _thinned, shortcuts
from finetune.tokens import load_tokenizer, stop_tokens
from finetune.train import TrainJob, train
from finetune.trainer import AdapterTrainer
from finetune.watch import Watch

# Its attention takes no notice of where packed examples begin.
EXCEPT = {"falcon": {"packing"}}
# Of these the default suite takes one without anything special, one with a window, and one that falls back.
KINDS = [kind if kind in ("llama", "gemma3_text", "falcon") else pytest.param(kind, marks=pytest.mark.slow) for kind in ARCHITECTURES]


def _silent(event: dict[str, Any]) -> None:
    pass


def _curve(job: TrainJob) -> tuple[list[float], set[str]]:
    """(all losses, the shortcuts not taken)."""
    job.work.mkdir()
    made = train(job, _silent)
    losses = [event[key] for event in made.log for key in ("loss", "eval_loss") if key in event]
    return losses, {name for name, state in made.shortcuts.items() if state != "taken"}


def _same_curve(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    losses, refused = _curve(replace(job, work=job.work / "fast"))
    monkeypatch.setattr(AdapterTrainer, "possible", ())
    assert losses == pytest.approx(_curve(replace(job, work=job.work / "plain"))[0], rel=1e-4)
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_that_of_the_plain_loop(kind: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(build(tmp_path / kind, kind, tiny), tmp_path, settings=replace(QUICK, epochs=1))
    job = replace(job, train=make_examples(8), dev=make_examples(2, start=40))
    assert _same_curve(job, monkeypatch) == EXCEPT.get(kind, set())


@pytest.mark.parametrize(
    "changes",
    # Dropout falls on the same numbers, and what peft or the method does otherwise is left to it.
    [
        {"dropout": 0.3, "micro_batch": 2},
        {"method": "full", "learning_rate": 1e-3},
        pytest.param({"method": "dora"}, marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_so_it_is_with_other_settings(changes: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tiny, tmp_path, settings=replace(QUICK, epochs=1, **changes), train=make_examples(8), dev=make_examples(2, start=40))
    assert _same_curve(job, monkeypatch) == set()


def test_a_prefix_is_not_packed(tiny: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=1, method="prefix", prefix_tokens=4)
    result = train(make_job(tiny, tmp_path, settings=settings), _silent)
    assert result.shortcuts["head"] == "taken"
    assert result.shortcuts["packing"] != "taken"


def test_what_changes_the_loss_is_refused_with_the_reason(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model that does something to its logits cannot do without them.
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def capped(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = forward(self, *args, **kwargs)
        made.logits = 2.0 * torch.tanh(made.logits / 2.0) * 3.0
        return made

    capped.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    job = make_job(tiny, tmp_path, settings=replace(QUICK, epochs=1))
    result = train(job, _silent)
    assert "would" in result.shortcuts["head"]
    assert result.shortcuts["layers"] == result.shortcuts["packing"] == "taken"


def test_proving_leaves_no_trace(tiny: Path, tmp_path: Path) -> None:
    job = make_job(tiny, tmp_path)
    method, tokenizer = method_of(job.settings, tmp_path), load_tokenizer(tiny)
    rows, dev = (method.encode(tokenizer, part, stop_tokens(tokenizer, tiny), 256)[0] for part in (job.train, job.dev))
    with closing(Watch(_silent, tmp_path)) as watch:
        trainer: Any = build_trainer(job, method, tokenizer, rows, dev, tmp_path / "checkpoints", watch)
    modules = list(trainer.model.modules())
    own = [module for module in modules if "forward" in vars(module)]
    before = (torch.get_rng_state(), trainer.data_collator, trainer.model.training, trainer.plain_model().config._attn_implementation)
    with shortcuts(trainer) as taken:
        assert set(taken.values()) == {"taken"}
        assert trainer.shortcuts == {"layers", "head", "packing"}
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(3)])
        assert batch["input_ids"].shape == (1, sum(len(row.input_ids) for row in rows[:3]))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert before[1:] == (trainer.data_collator, trainer.model.training, trainer.plain_model().config._attn_implementation)
    assert not trainer.shortcuts and all(value.grad is None for value in trainer.model.parameters())
    assert [module for module in modules if "forward" in vars(module)] == own


def test_the_proof_keeps_a_part_of_large_gradients() -> None:
    small, large = torch.randn(30, 40), torch.randn(1024, 512)
    assert _thinned(small).equal(small.flatten())
    thinned = _thinned(large)
    assert len(thinned) <= 2 * 2**16
    assert float(thinned.norm()) == pytest.approx(float(large.norm()), rel=0.02)
    # Each column is looked at, and an error in one of them is seen.
    wrong = large.clone()
    wrong[:, 7] += 1.0
    assert float((_thinned(wrong) - thinned).norm()) == pytest.approx(float((wrong - large).norm()), rel=0.1)


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_a_head_in_pieces_is_the_loss(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("finetune.fused.LOGITS", 50 * 20)
    head, hidden, targets = torch.nn.Linear(8, 50, bias=bias), torch.randn(47, 8, requires_grad=True), torch.randint(50, (47,))
    wanted = [hidden, *head.parameters()]
    whole = cross_entropy(head(hidden), targets, reduction="sum")
    pieces = head_loss(hidden, head, targets)
    assert float(pieces.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    for ours, right in zip(torch.autograd.grad(pieces * 3, wanted), torch.autograd.grad(whole * 3, wanted), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert float(head_loss(hidden, head, targets)) == pytest.approx(float(whole.detach()), rel=1e-6)
    assert float(head_loss(hidden[:0], head, targets[:0]).detach()) == 0.0


def test_mixed_precision_trains_as_float32(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = train(make_job(tiny, tmp_path / "a"), lambda event: None)
    for module in ("finetune.building", "finetune.train"):
        # As on a GPU; bfloat16 works on a CPU too, only slower.
        monkeypatch.setattr(f"{module}.half_precision", lambda settings: True)
    half = train(make_job(tiny, tmp_path / "b"), lambda event: None)
    assert half.shortcuts["head"] == "taken"
    assert half.eval_loss == pytest.approx(right.eval_loss, rel=1e-3) and half.eval_loss != right.eval_loss


def test_linear_layers_give_what_they_gave() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4, bias=False))
    model[2].weight.requires_grad_(False)
    x = torch.randn(2, 3, 6, requires_grad=True)
    wanted = [x, model[0].weight, model[0].bias]
    right = torch.autograd.grad(model(x).square().sum(), wanted)
    with fused_layers(model):
        made = torch.autograd.grad(model(x).square().sum(), wanted)
        assert model(x[:, :0]).shape == (2, 0, 4)
    for one, other in zip(made, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
