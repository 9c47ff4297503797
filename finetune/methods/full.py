"""Full fine-tuning: every weight is trained, the result is a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.methods.base import Method


class Full(Method):
    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        if start is not None:
            raise ValueError(f"method {self.settings.method} trains a model and cannot go on from an adapter; merge it into its base first")
        return model

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """A complete folder: weights, configurations, tokenizer and chat template."""
        # Training switched the cache off; whoever loads the model wants it.
        model.config.get_text_config().use_cache = True
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
