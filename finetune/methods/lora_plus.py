"""LoRA+: the B matrices learn faster than the A matrices (Hayou et al. 2024, arXiv:2402.12354)."""

from __future__ import annotations

from typing import Any

from finetune.methods.lora import Lora


class LoraPlus(Lora):
    def optimizer(self, model: Any) -> tuple[Any, dict[str, Any]] | None:
        from peft.optimizers import create_loraplus_optimizer
        from torch.optim import AdamW

        settings = self.settings
        planned = create_loraplus_optimizer(
            model, AdamW, lr=settings.rate, loraplus_lr_ratio=settings.lora_plus_ratio, loraplus_weight_decay=settings.weight_decay
        )
        groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in planned.param_groups if group["params"]]
        return AdamW, {"params": groups, "lr": settings.rate}
