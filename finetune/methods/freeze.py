"""Freeze tuning: only the last decoder layers are trained, the result is a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.methods.base import decoder_layers
from finetune.methods.full import Full


class Freeze(Full):
    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        model = super().prepare(model, start, sample)
        layers = decoder_layers(model)
        if self.settings.freeze_layers > len(layers):
            raise ValueError(f"freeze_layers is {self.settings.freeze_layers}, the model has {len(layers)} layers")
        model.requires_grad_(False)
        layers[-self.settings.freeze_layers :].requires_grad_(True)
        return model
