"""Tiny models of several architectures with random weights, and one byte-level tokenizer for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# transformers' model type -> what its config needs besides sizes. "gpt_neox" has a fused query_key_value, "phi3" a fused qkv_proj and
# gate_up_proj, "gemma3_text" sliding layers and tied embeddings. W_pack (Baichuan) exists in remote code only, which is never run.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "gpt_neox": {},
    "falcon": {"alibi": False, "new_decoder_architecture": False, "multi_query": True, "max_position_embeddings": 256},
    "gemma3_text": {"head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8},
    "phi3": {"original_max_position_embeddings": 256},
}


def build(folder: Path, kind: str, source: Path) -> Path:
    """A two-layer model of `kind` in `folder`, with the tokenizer of the model in `source`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2 if kind == "gpt_neox" else 1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **{key: value for key, value in ARCHITECTURES[kind].items() if key != "max_position_embeddings"},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
