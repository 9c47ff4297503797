"""The real embedded model: it learns, and its template passes the parity check in both languages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from finetune_model import QUICK, make_examples, make_job, smollm2

from finetune.tokens import encode, load_tokenizer, stop_tokens
from finetune.train import train
from finetune.version import finish_version, lint_adapter

BASE = smollm2()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BASE is None, reason="the embedded model is not on this machine"),
]


def test_smollm2_learns_in_two_steps(tmp_path: Path) -> None:
    assert BASE is not None
    tokenizer = load_tokenizer(BASE)
    for example in make_examples(4):
        encoded = encode(tokenizer, example, stop_tokens(tokenizer, BASE))
        assert tokenizer.decode(encoded.input_ids[encoded.prompt :]) == example.completion + "<|im_end|>"
    settings = replace(QUICK, epochs=1, learning_rate=1e-3)
    result = train(make_job(BASE, tmp_path / "work", train=make_examples(8), settings=settings), lambda event: None)
    assert result.eval_loss < result.eval_loss_before
    version = finish_version(result, tmp_path / "adapters", "bank", dataset="d", dataset_version="1")
    assert lint_adapter(version.path, BASE) == []
