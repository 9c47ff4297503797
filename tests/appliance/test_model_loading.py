"""Models that are loaded at once, as by a server whose first question needs two."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from appliance.engines.generation import Generation


def test_models_loaded_at_once_are_whole(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    asked = torch.randn(1, 3, 16)
    tie = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: Generation(tmp_path, 1, None), range(24)))
    # Output and input layer are one, and transformers is as it was.
    assert PreTrainedModel.tie_weights is tie
    for each in made:
        each._rows.set([None])
        with torch.inference_mode():
            assert torch.allclose(each._model.lm_head(asked), asked @ each._model.model.embed_tokens.weight.T, atol=1e-5)
