"""GaLore: every weight is trained, with optimizer states of low-rank projected gradients (Zhao et al. 2024, arXiv:2403.03507)."""

from __future__ import annotations

from typing import Any

from finetune.methods.full import Full


class Galore(Full):
    def optimizer(self, model: Any) -> tuple[Any, dict[str, Any]] | None:
        from torch.nn import Linear

        from finetune.methods.galore_adamw import GaloreAdamW

        settings = self.settings
        head = model.get_output_embeddings()
        # As in the paper, the projected matrices are those of attention and feed-forward; the rest gets plain AdamW.
        chosen = {id(module.weight) for module in model.modules() if isinstance(module, Linear) and module is not head}
        projected = [value for value in model.parameters() if value.requires_grad and id(value) in chosen]
        plain = [value for value in model.parameters() if value.requires_grad and id(value) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": projected, "rank": settings.galore_rank, "every": settings.galore_every, "scale": settings.galore_scale},
            {"params": plain},
        ]
        return GaloreAdamW, {"params": groups, "lr": settings.rate, "weight_decay": settings.weight_decay}
