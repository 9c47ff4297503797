"""Rank-stabilised LoRA: the update is scaled by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""

from __future__ import annotations

from typing import Any

from finetune.methods.lora import Lora


class RsLora(Lora):
    def options(self) -> dict[str, Any]:
        return {"use_rslora": True}
