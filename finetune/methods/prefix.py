"""P-Tuning v2: keys and values of a few positions before the prompt are learned for every layer (Liu et al. 2022, arXiv:2110.07602)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune.methods.base import Method
from finetune.types import Example


class Prefix(Method):
    """Prefix tuning without reparametrisation, started from the keys and values of real text.

    Random starts disturb the model so much that most of the training goes into undoing it (Li and Liang 2021,
    arXiv:2101.00190, section 7.4).
    """

    def encode(self, tokenizer: Any, examples: Sequence[Example], stops: frozenset[int], context: int) -> tuple[list[Any], int]:
        return super().encode(tokenizer, examples, stops, context - self.settings.prefix_tokens)

    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        from peft import PrefixTuningConfig, get_peft_model

        if self.settings.gradient_checkpointing:
            raise ValueError("a prefix stands in the cache of keys and values, which gradient_checkpointing does without; switch it off")
        if start is not None:
            return _loaded(model, start)
        learned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.settings.prefix_tokens))
        _start_from(learned, sample, self.settings.prefix_tokens)
        return learned

    def trainer_class(self, start: Path | None) -> Any:
        from finetune.methods.prefix_trainer import PrefixTrainer

        return partial(PrefixTrainer, untrained=start is None)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)


def _start_from(learned: Any, sample: list[int], count: int) -> None:
    """Make the prefix what the model itself has for the first `count` ids of `sample`, repeated if they are fewer."""
    import torch
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    ids = (sample * (count // len(sample) + 1))[:count]
    with torch.no_grad(), learned.disable_adapter():
        text = learned(input_ids=torch.tensor([ids], device=learned.device), use_cache=True).past_key_values
    initialize_kv_prefix_from_past_key_values(learned, past_key_values=text)


def _loaded(model: Any, start: Path) -> Any:
    """The prefix in `start`, to be trained further (which peft's own loading does not offer)."""
    from peft import PeftConfig, PrefixTuningConfig, get_peft_model
    from safetensors.torch import load_file

    known = PeftConfig.from_pretrained(str(start))
    if not isinstance(known, PrefixTuningConfig):
        raise ValueError(f"{start} holds a {known.peft_type} adapter, method prefix goes on from prefixes")
    known.inference_mode = False
    learned = get_peft_model(model, known)
    learned.prompt_encoder["default"].load_prompt_embeddings(load_file(start / "adapter_model.safetensors")["prompt_embeddings"])
    return learned
