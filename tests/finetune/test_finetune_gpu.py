"""Training where only a GPU shows that it works: bfloat16, weights in 4 bits, its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_model import QUICK, job_for, make_examples, make_job, smollm2

from finetune.building import half_precision
from finetune.settings import METHODS
from finetune.train import train

pytestmark = [pytest.mark.slow, pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method: str, tiny: Path, tmp_path: Path) -> None:
    job = job_for(method, tiny, tmp_path)
    rate = {"freeze": 1e-3, "full": 1e-3, "galore": 1e-3, "pretrain": 1e-3}.get(method, job.settings.rate)
    result = train(replace(job, settings=replace(job.settings, learning_rate=rate, epochs=3)), lambda event: None)
    assert result.eval_loss < result.eval_loss_before
    assert result.memory["peak"] > 0


@pytest.mark.skipif(smollm2() is None, reason="the embedded model is not on this machine")
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_estimate_is_within_a_third_of_the_peak(method: str, tmp_path: Path) -> None:
    base = smollm2()
    assert base is not None
    rows = [replace(example, completion=example.completion * 6) for example in make_examples(16)]
    settings = replace(QUICK, method=method, epochs=1, batch_size=8, micro_batch=8, rank=16, learning_rate=1e-5)
    assert half_precision(settings) == torch.cuda.is_bf16_supported(including_emulation=False)
    facts = train(make_job(base, tmp_path, train=rows, dev=rows[:2], settings=settings), lambda event: None).memory
    assert 0.67 < facts["estimated"] / facts["peak"] < 1.5
