"""Freeze tuning: only the last decoder layers are trained, the result is a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.methods.full import Full


class Freeze(Full):
    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        from torch.nn import ModuleList

        model = super().prepare(model, start, sample)
        count = model.config.get_text_config().num_hidden_layers
        layers = next((module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count), None)
        if layers is None:
            raise ValueError(f"no list of {count} decoder layers was found in {type(model).__name__}; use method lora or full")
        if self.settings.freeze_layers > count:
            raise ValueError(f"freeze_layers is {self.settings.freeze_layers}, the model has {count} layers")
        model.requires_grad_(False)
        layers[-self.settings.freeze_layers :].requires_grad_(True)
        return model
