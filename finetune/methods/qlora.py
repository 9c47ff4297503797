"""QLoRA: LoRA beside weights kept in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.methods.base import load_model
from finetune.methods.lora import Lora


class QLora(Lora):
    """NF4 with double quantisation through bitsandbytes, on a GPU or on the CPU. The adapter fits the base in any precision."""

    def load(self, base: Path, dtype: Any) -> Any:
        from bitsandbytes.nn import Linear4bit, Params4bit
        from peft import prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        model = load_model(base, dtype, quantization_config=four_bits)
        for value in model.parameters():
            if value.device.type == "cpu" and not isinstance(value, Params4bit):
                # As a view of the base's file it would keep all of that in memory.
                value.data = value.data.clone()
        for module in model.modules():
            if isinstance(module, Linear4bit):
                # An evaluation would repack the weights for a CPU kernel that rounds to bfloat16 and lets no gradient through.
                module.support_avx512bf16_for_cpu = False
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=self.settings.gradient_checkpointing)
