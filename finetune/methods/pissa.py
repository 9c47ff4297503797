"""PiSSA: LoRA that starts from the principal singular vectors of the weights (Meng et al. 2024, arXiv:2404.02948)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.distributed import is_main
from finetune.methods.lora import Lora
from finetune.runs import CHECKPOINTS


class Pissa(Lora):
    """It trains beside what is left of the weights; saved is the difference to the start, a plain LoRA of twice the rank.

    Going on from an adapter is plain LoRA.
    """

    def options(self) -> dict[str, Any]:
        # Fast SVD with 16 subspace iterations, as the paper's code and LLaMA-Factory use.
        return {"init_lora_weights": "pissa_niter_16"}

    @property
    def _initial(self) -> Path:
        # Among what only an unfinished run needs.
        return self.work / CHECKPOINTS / "pissa-initial"

    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        prepared = super().prepare(model, start, sample)
        if start is None and is_main():
            prepared.save_pretrained(self._initial, safe_serialization=True, save_embedding_layers=False)
        return prepared

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        if model.peft_config["default"].init_lora_weights is True:
            super().save(model, tokenizer, folder)
            return
        model.save_pretrained(
            folder, safe_serialization=True, save_embedding_layers=False, path_initial_model_for_weight_conversion=str(self._initial)
        )
