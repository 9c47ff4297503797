"""LoRA: low-rank updates beside the frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.methods.base import Method


class Lora(Method):
    """Plain LoRA; its variants change the options of peft's configuration or what surrounds it.

    Going on from an adapter keeps its rank, alpha and target modules; only the dropout is that of the settings.
    """

    def options(self) -> dict[str, Any]:
        """What the variant changes in peft's LoraConfig."""
        return {}

    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
        from transformers.pytorch_utils import Conv1D

        # peft could train them, but vLLM serves no adapter on such a model, and the local engine not the model itself.
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise ValueError("its layers are of GPT-2's kind (Conv1D), and no engine serves adapters on them; take another base")
        settings = self.settings
        if start is not None:
            known = PeftConfig.from_pretrained(str(start))
            if not isinstance(known, LoraConfig):
                raise ValueError(f"{start} holds a {known.peft_type} adapter, method {settings.method} goes on from LoRA ones")
            known.lora_dropout = settings.dropout
            return PeftModel.from_pretrained(model, str(start), config=known, is_trainable=True)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target if isinstance(settings.target, str) else list(settings.target),
            bias="none",
            **self.options(),
        )
        return get_peft_model(model, config)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
