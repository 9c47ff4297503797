"""The model itself: prompts in, logits out, adapters chosen per row. Runs on one thread, knows nothing of requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from appliance.engines.base import EngineError
from appliance.engines.cache import SlotCache
from appliance.engines.layers import Rows, serve_linears, weights_of
from appliance.engines.prompt_cache import PromptCache
from appliance.engines.team import Team
from appliance.engines.variants import Layer, read_config, read_lora, read_prefix
from appliance.settings import Weights
from retrieval.loading import ONE_AT_A_TIME
from retrieval.threads import cores, take


class Generation:
    """A causal language model with a slot cache and adapters that are chosen per row.

    A prefix is keys and values that stand in the cache before the prompt. With `merge` the adapter that is loaded alone is added to the
    weights, and stays so until it is deleted: its rows cost nothing more, and rows without it have it subtracted again. Only LoRA is
    merged. At most `prompt_cache` bytes hold how prompts begin.
    """

    def __init__(
        self, path: Path, rows: int, threads: int | None, weights: Weights = "float32", merge: bool = False, prompt_cache: int = 0
    ) -> None:
        self._threads = threads or max(1, cores() - 1)
        self._team = Team(self._threads, threads or cores())
        take(self._threads)
        self._path, self._merge = path, merge
        self._model: Any = _loaded(path)
        self._config = self._model.config.get_text_config()
        ends = self._model.generation_config.eos_token_id
        self.end_tokens = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
        self._rows = Rows()
        with torch.no_grad():
            self._linears = serve_linears(self._model, weights, self._rows)
        self._prefixes: dict[str, list[Layer]] = {}
        self._loras: dict[str, bool] = {}
        self._cache = SlotCache(rows)
        self._beginnings = PromptCache(prompt_cache)

    def begin(self, row: int, prompt: Sequence[int], adapter: str | None) -> int:
        """Start the empty row `row`; `prompt` is the part of its prompt that is fixed. Returns how many tokens of it are there already."""
        with torch.inference_mode():
            if adapter in self._prefixes:
                self._cache.fill(row, self._prefixes[adapter])
                return 0
            known = self._beginnings.find(adapter, prompt)
            if known:
                self._cache.fill(row, known)
            return self._cache.lengths[row]

    def keep(self, row: int, prompt: Sequence[int], adapter: str | None) -> None:
        """`prompt`, the fixed part of the prompt of `row`, has been read: keep it for others if it came before."""
        wanted = 0 if adapter in self._prefixes else self._beginnings.wanted(adapter, prompt)
        if wanted:
            with torch.inference_mode():
                self._beginnings.keep(adapter, prompt[:wanted], self._cache.copy(row, 0, wanted))

    def prefill(self, row: int, tokens: Sequence[int], adapter: str | None) -> Tensor:
        """Read the next `tokens` of row `row`'s prompt; returns the logits after the last one, [vocabulary]."""
        self._take(self._team.threads())
        return self._forward(row, row + 1, torch.tensor([list(tokens)]), [adapter])[0]

    def decode(self, tokens: Sequence[int], adapters: Sequence[str | None]) -> Tensor:
        """One token for each of the rows 0, 1, …; returns the next logits, [rows, vocabulary]."""
        rows = len(tokens)
        self._take(self._team.threads(rows))
        began = time.perf_counter()
        logits = self._forward(0, rows, torch.tensor(list(tokens))[:, None], adapters)
        self._team.took(rows, time.perf_counter() - began)
        return logits

    def _take(self, threads: int) -> None:
        if threads != self._threads:
            take(threads)
            self._threads = threads

    def _forward(self, first: int, last: int, tokens: Tensor, adapters: Sequence[str | None]) -> Tensor:
        with torch.inference_mode():
            positions, columns = self._cache.prepare(first, last, tokens.shape[1])
            self._rows.set([None if adapter in self._prefixes else adapter for adapter in adapters])
            output = self._model(
                input_ids=tokens,
                attention_mask=self._masks(positions, columns),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._cache.commit()
            logits: Tensor = output.logits[:, -1].float()
            return logits

    def _masks(self, positions: Tensor, columns: Tensor) -> Tensor | dict[str, Tensor]:
        """What is added to the scores of each position, [rows, 1, new, width]: 0 for what it may see; models with sliding layers get one
        mask per kind of layer."""
        seen = columns <= positions[:, None, :, None]
        if "sliding_attention" not in (getattr(self._config, "layer_types", None) or ()):
            return _added(seen)
        near = seen & (columns > positions[:, None, :, None] - self._config.sliding_window)
        return {"full_attention": _added(seen), "sliding_attention": _added(near)}

    def move(self, source: int, target: int) -> None:
        with torch.inference_mode():
            self._cache.move(source, target)

    def clear(self, row: int) -> None:
        self._cache.lengths[row] = 0

    def release(self) -> None:
        self._cache.release()

    def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter under a new name, beside the weights. Raises EngineError, leaving the model as it was."""
        config = read_config(path)
        kind = config.get("peft_type")
        if kind == "PREFIX_TUNING":
            self._prefixes[name] = read_prefix(path, config, self._config)
            return
        if kind != "LORA":
            raise EngineError(f"the adapter in {path} is of type {kind}; this engine serves LoRA, DoRA and prefix adapters")
        sizes = {target: (layer.out_features, layer.in_features) for target, layer in self._linears.items()}
        with torch.no_grad():
            parts = read_lora(path, config, sizes, self._plain_weights)
            if config.get("use_dora") and self._rows.merged is not None:
                # DoRA multiplies what the layer's own weights give, which must be the base's.
                self._merge_into_weights(None)
            for target, part in parts.items():
                self._linears[target].add(name, part.down, part.up, part.factor)
        self._loras[name] = not config.get("use_dora")

    def delete_adapter(self, name: str) -> None:
        """Raises OSError, and leaves the adapter where it is, if the weights it is in cannot be read again."""
        self._beginnings.forget(name)
        if self._prefixes.pop(name, None) is not None:
            return
        if self._rows.merged == name:
            self._merge_into_weights(None)
        del self._loras[name]
        for layer in self._linears.values():
            layer.remove(name)
        self._rows.set([])

    def merge_the_only_one(self) -> None:
        """With `merge`, put the adapter that is loaded alone into the weights. Raises OSError, changing nothing, if they cannot be read."""
        alone = [name for name, mergeable in self._loras.items() if mergeable] if len(self._loras) == 1 else []
        if self._merge and alone and self._rows.merged is None:
            self._merge_into_weights(alone[0])

    def _merge_into_weights(self, name: str | None) -> None:
        """From the weights as they are on disk, so that no error adds up."""
        before, weight = self._rows.merged, self._plain_weights()
        with torch.no_grad():
            for target, layer in self._linears.items():
                added = None if name is None else layer.difference(name)
                if added is not None:
                    layer.set_weight(weight(target) + added)
                elif before is not None and layer.difference(before) is not None:
                    layer.set_weight(weight(target))
        self._rows.merge(name)

    def _plain_weights(self) -> Callable[[str], Tensor]:
        return weights_of(_loaded(self._path))


def _loaded(path: Path) -> Any:
    with ONE_AT_A_TIME:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa")
    return model.eval()


def _added(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
