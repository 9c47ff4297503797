"""How surely an adapter gives the answers it learnt."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_model import QUICK, job_for, make_examples, make_job

from finetune import recall as module
from finetune.recall import recall
from finetune.tokens import encode, load_tokenizer, stop_tokens
from finetune.train import TrainResult, train


def test_it_is_the_probability_of_the_answers_tokens(tiny: Path, tmp_path: Path, trained: TrainResult) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job, told = make_job(tiny, tmp_path), []
    found = recall(job, trained.adapter, job.train, lambda: told.append(1))
    assert len(found) == len(told) == len(job.train)
    tokenizer = load_tokenizer(tiny)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), trained.adapter).eval()
    for example, value in zip(job.train[:4], found, strict=False):
        encoded = encode(tokenizer, example, stop_tokens(tokenizer, tiny))
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels])).loss
        assert value == pytest.approx(math.exp(-float(loss)), rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "qlora"])
def test_it_agrees_with_what_training_measured(tiny: Path, tmp_path: Path, method: str) -> None:
    job = job_for(method, tiny, tmp_path)
    result = train(job, lambda event: None)
    tokenizer = load_tokenizer(tiny)
    sizes = [sum(label != -100 for label in encode(tokenizer, one, stop_tokens(tokenizer, tiny)).labels) for one in job.dev]
    found = recall(job, result.adapter, job.dev, lambda: None)
    loss = -sum(size * math.log(value) for size, value in zip(sizes, found, strict=True)) / sum(sizes)
    assert loss == pytest.approx(result.eval_loss, rel=1e-3) and loss < result.eval_loss_before


def test_what_is_longer_than_what_was_trained_on_is_not_measured(tiny: Path, tmp_path: Path, trained: TrainResult) -> None:
    job = make_job(tiny, tmp_path, settings=replace(QUICK, max_length=128))
    long = replace(make_examples(1)[0], completion="长" * 200)
    found = recall(job, trained.adapter, [long, *make_examples(1)], lambda: None)
    assert math.isnan(found[0]) and found[1] > 0


def test_a_model_that_does_not_fit_costs_no_training(
    tiny: Path, tmp_path: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(module, "loss", full)
    job = make_job(tiny, tmp_path)
    with caplog.at_level(logging.WARNING):
        found = recall(job, trained.adapter, job.train, lambda: None)
    assert len(found) == len(job.train) and all(map(math.isnan, found)) and "CUDA out of memory" in caplog.text
