from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_model import QUICK, make_job, smollm2

from finetune import memory
from finetune.memory import Expected, Memory, estimate, shape_of
from finetune.settings import TrainSettings
from finetune.train import TrainResult, train
from finetune.types import TrainingError

# The shape of a model with 7 billion parameters: 32 layers of width 4096, 11008 between, 32000 words.
SEVEN = memory.Shape(
    parameters=6_738_415_616,
    linears=tuple(
        (f"model.layers.{layer}.{name}", inputs, outputs)
        for layer in range(32)
        for name, inputs, outputs in [
            *((f"self_attn.{part}_proj", 4096, 4096) for part in "qkvo"),
            *((f"mlp.{part}_proj", 4096, 11008) for part in ("gate", "up")),
            ("mlp.down_proj", 11008, 4096),
        ]
    ),
    hidden=4096,
    vocabulary=32000,
    layers=32,
    key_value=8192,
)


def _of(settings: TrainSettings, micro: int = 1, half: bool = True) -> Memory:
    return estimate(SEVEN, settings, micro, 1024, 256, half)


def test_weights_and_states_are_what_the_papers_count() -> None:
    full = _of(TrainSettings(method="full"))
    # Two bytes a weight and a gradient, two states of two bytes each.
    assert (full.weights, full.gradients, full.optimizer) == (2 * SEVEN.parameters, 2 * SEVEN.parameters, 4 * SEVEN.parameters)
    lora = _of(TrainSettings(rank=16))
    # 16 (4096 + 4096) for four modules and 16 (4096 + 11008) for three, in 32 layers.
    assert lora.gradients == 2 * 32 * 16 * (4 * 8192 + 3 * 15104)
    assert _of(TrainSettings(method="qlora")).weights < 0.3 * lora.weights
    assert _of(TrainSettings(method="galore", galore_rank=128)).optimizer < 0.2 * full.optimizer
    assert _of(TrainSettings(method="freeze", freeze_layers=2)).optimizer < 0.1 * full.optimizer
    assert _of(TrainSettings(method="prefix", prefix_tokens=16)).gradients == 2 * 16 * 8192 * 32
    assert _of(TrainSettings(target=("q_proj", "v_proj"))).gradients == 2 * 32 * 16 * 2 * 8192
    assert _of(TrainSettings(), half=False).weights == 2 * lora.weights


def test_activations_follow_the_batch_and_checkpointing() -> None:
    one, four = _of(TrainSettings()), _of(TrainSettings(), 4)
    assert four.activations == pytest.approx(4 * one.activations, rel=1e-6) and four.logits == 4 * one.logits
    assert _of(TrainSettings(gradient_checkpointing=True)).activations < 0.1 * one.activations
    assert _of(TrainSettings(method="dpo")).activations == pytest.approx(2 * one.activations, rel=1e-6)
    assert _of(TrainSettings(dropout=0.0)).activations < one.activations


def test_the_proposal_is_the_first_change_that_fits() -> None:
    settings = TrainSettings(batch_size=8)
    run = Expected(SEVEN, settings, 8, 1024, 256, True, 0, 24 * memory.GIB)
    warning = run.warning()
    assert warning is not None and "24.0 GiB are free: set micro_batch = " in warning
    assert "set gradient_checkpointing = true and micro_batch = " in run.proposal(int(13.5 * memory.GIB))
    assert 'set method = "qlora" with gradient_checkpointing = true' in run.proposal(6 * memory.GIB)
    assert run.proposal(memory.GIB).startswith("no setting makes it fit; take a smaller base, a lower max_length (now 1024)")
    assert replace(run, free=400 * memory.GIB).warning() is None


def test_the_shape_of_a_model(tiny: Path, tmp_path: Path) -> None:
    shape = shape_of(tiny)
    assert (shape.layers, shape.hidden, len(shape.linears), shape.key_value) == (2, 16, 14, 16)
    assert all(not name.endswith("lm_head") for name, _, _ in shape.linears)
    with pytest.raises(TrainingError, match="not a model folder"):
        shape_of(tmp_path)


def test_estimate_and_peak_are_kept_with_the_figures(trained: TrainResult) -> None:
    facts = trained.metrics()["memory"]
    assert facts["estimated"] > facts["total"] > 0 and facts["peak"] > 0


def test_too_much_is_said_before_the_start(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        train(make_job(tiny, tmp_path, settings=replace(QUICK, epochs=1)), lambda event: None)
    assert "0.0 GiB are free: no setting makes it fit" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="the embedded model is not on this machine")
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"method": "full"}])
def test_the_estimate_is_within_a_third_of_the_peak(tmp_path: Path, changes: dict[str, object]) -> None:
    import json
    import subprocess
    import sys

    code = (
        "import json, sys; from dataclasses import replace; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from finetune_model import QUICK, make_examples, make_job, smollm2; from finetune.train import train\n"
        "rows = [replace(e, completion=e.completion * 6) for e in make_examples(8)]\n"
        "settings = replace(QUICK, epochs=1, batch_size=8, rank=16, learning_rate=1e-5, **json.loads(sys.argv[3]))\n"
        "result = train(make_job(smollm2(), Path(sys.argv[4]), train=rows, dev=rows[:2], settings=settings), lambda event: None)\n"
        "print(json.dumps(dict(result.memory)))"
    )
    here = Path(__file__).parent
    words = [sys.executable, "-c", code, str(here), str(here.parents[1]), json.dumps(changes), str(tmp_path)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    facts = json.loads(out.strip().splitlines()[-1])
    assert 0.67 < facts["estimated"] / facts["peak"] < 1.5
