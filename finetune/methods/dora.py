"""DoRA: LoRA moves the direction of each weight column, a trained vector its length (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from typing import Any

from finetune.methods.lora import Lora


class Dora(Lora):
    def options(self) -> dict[str, Any]:
        return {"use_dora": True}
