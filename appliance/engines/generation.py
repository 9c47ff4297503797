"""The model itself: prompts in, logits out, adapters chosen per row. Runs on one thread, knows nothing of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from appliance.engines.base import EngineError
from appliance.engines.cache import SlotCache
from appliance.engines.variants import Layer, as_plain_lora, read_config, read_prefix, read_shapes, scale_rows
from retrieval.loading import ONE_AT_A_TIME

# peft's name for "no adapter" in a mixed batch.
_BASE = "__base__"


class Generation:
    """A causal language model with a slot cache and adapters that are chosen per row.

    LoRA runs through peft. DoRA is LoRA with a factor on the layer's own output, put on by a hook. A prefix is keys and
    values that stand in the cache before the prompt.
    """

    def __init__(self, path: Path, rows: int, threads: int | None) -> None:
        from transformers import AutoModelForCausalLM

        if threads is not None:
            torch.set_num_threads(threads)
        with ONE_AT_A_TIME:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa")
        self._model: Any = model.eval()
        self._config = model.config.get_text_config()
        self._peft: Any = None
        self._prefixes: dict[str, list[Layer]] = {}
        self._hooks: dict[str, list[Any]] = {}
        # The adapter of each row of the running forward pass.
        self._active: list[str | None] = []
        self._cache = SlotCache(rows)
        ends = model.generation_config.eos_token_id
        self.end_tokens = frozenset(ends if isinstance(ends, list) else [ends]) - {None}

    def prefill(self, row: int, tokens: Sequence[int], adapter: str | None) -> Tensor:
        """Read the next `tokens` of row `row`'s prompt; returns the logits after the last one, [vocabulary]."""
        if adapter in self._prefixes and not self._cache.lengths[row]:
            with torch.inference_mode():
                self._cache.fill(row, self._prefixes[adapter])
        return self._forward(row, row + 1, torch.tensor([list(tokens)]), [adapter])[0]

    def decode(self, tokens: Sequence[int], adapters: Sequence[str | None]) -> Tensor:
        """One token for each of the rows 0, 1, …; returns the next logits, [rows, vocabulary]."""
        return self._forward(0, len(tokens), torch.tensor(list(tokens))[:, None], adapters)

    def _forward(self, first: int, last: int, tokens: Tensor, adapters: Sequence[str | None]) -> Tensor:
        with torch.inference_mode():
            positions, columns = self._cache.prepare(first, last, tokens.shape[1])
            arguments = {
                "input_ids": tokens,
                "attention_mask": self._masks(positions, columns),
                "position_ids": positions,
                "past_key_values": self._cache,
                "use_cache": True,
                "logits_to_keep": 1,
            }
            self._active = [None if adapter in self._prefixes else adapter for adapter in adapters]
            if self._peft is None:
                output = self._model(**arguments)
            else:
                output = self._peft(**arguments, adapter_names=[adapter or _BASE for adapter in self._active])
            self._cache.commit()
            logits: Tensor = output.logits[:, -1].float()
            return logits

    def _masks(self, positions: Tensor, columns: Tensor) -> Tensor | dict[str, Tensor]:
        """What each position may see, [rows, 1, new, width]; models with sliding layers get one mask per kind of layer."""
        seen = columns <= positions[:, None, :, None]
        if "sliding_attention" not in (getattr(self._config, "layer_types", None) or ()):
            return seen
        near = seen & (columns > positions[:, None, :, None] - self._config.sliding_window)
        return {"full_attention": seen, "sliding_attention": near}

    def move(self, source: int, target: int) -> None:
        with torch.inference_mode():
            self._cache.move(source, target)

    def clear(self, row: int) -> None:
        self._cache.lengths[row] = 0

    def release(self) -> None:
        self._cache.release()

    def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter under a name that peft accepts (no dots). Raises EngineError, leaving the model as it was."""
        config = read_config(path)
        kind = config.get("peft_type")
        if kind == "PREFIX_TUNING":
            self._prefixes[name] = read_prefix(path, config, self._config)
            return
        if kind != "LORA":
            raise EngineError(f"the adapter in {path} is of type {kind}; this engine serves LoRA, DoRA and prefix adapters")
        modules = {name.replace(".base_layer", ""): module for name, module in self._model.named_modules()}
        _check_fit(path, modules)
        if not config.get("use_dora"):
            self._load_lora(name, path)
            return
        with torch.no_grad(), as_plain_lora(path, config, modules) as (plain, factors):
            self._load_lora(name, plain)
        rows = partial(self._rows_with, name)
        self._hooks[name] = [scale_rows(modules[target], factor, rows) for target, factor in factors.items()]

    def _rows_with(self, name: str) -> list[int]:
        return [row for row, adapter in enumerate(self._active) if adapter == name]

    def _load_lora(self, name: str, path: Path) -> None:
        from peft import PeftModel

        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(path), adapter_name=name, is_trainable=False)
            else:
                self._peft.load_adapter(str(path), adapter_name=name, is_trainable=False)
        except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
            if self._peft is not None and name in self._peft.peft_config:
                self._peft.delete_adapter(name)
            raise EngineError(f"the adapter in {path} cannot be loaded: {error}") from error
        self._peft.eval()

    def delete_adapter(self, name: str) -> None:
        if self._prefixes.pop(name, None) is not None:
            return
        for hook in self._hooks.pop(name, ()):
            hook.remove()
        self._peft.delete_adapter(name)
        if not self._peft.peft_config:
            # Without adapters the plain model is faster: take the empty wrappers off again.
            self._model, self._peft = self._peft.base_model.unload(), None


def _check_fit(path: Path, modules: Mapping[str, Any]) -> None:
    """Everything that would make peft fail half-way, found out before it starts."""
    for name, shape in read_shapes(path).items():
        target, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        weight = getattr(modules.get(target), "weight", None)
        if weight is None:
            raise EngineError(f"the adapter in {path} does not fit this model: it has {name}, the model has no such layer")
        expected = weight.shape[1] if part.startswith("A") else weight.shape[0]
        actual = shape[1] if part.startswith("A") else shape[0]
        if actual != expected and not part.startswith("embedding"):
            raise EngineError(
                f"the adapter in {path} does not fit this model: {name} is for {actual} values, the model's layer has {expected}"
            )
