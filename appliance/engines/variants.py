"""Adapters on disk, made into what a mixed batch can serve. Runs on the engine's thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from appliance.engines.base import EngineError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Keys and values of one layer, each [1, heads, positions, head size].
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one layer: `down` [rank, inputs], `up` [outputs, rank] with the scale in it. `factor` [outputs] is by what
    DoRA multiplies the layer's own output."""

    down: Tensor
    up: Tensor
    factor: Tensor | None = None


def read_config(path: Path) -> dict[str, Any]:
    """peft's configuration in the folder `path`. Raises EngineError."""
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"the adapter in {path} cannot be read: {error}") from error
    return config


def read_prefix(path: Path, config: Mapping[str, Any], model: Any) -> list[Layer]:
    """The keys and values that prefix tuning learned, per layer of the model with the configuration `model`. Raises EngineError."""
    positions, layers = config["num_virtual_tokens"], model.num_hidden_layers
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    tensors = _read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {"prompt_embeddings": (positions, layers * 2 * heads * size)}
    if shapes != expected:
        raise EngineError(f"the adapter in {path} does not fit this model: it holds {shapes}, the model needs {expected}")
    learned = tensors["prompt_embeddings"].float()
    # peft's order is [positions, layers, keys or values, heads, head size].
    split = learned.view(positions, layers, 2, heads, size).permute(1, 2, 3, 0, 4)
    return [(layer[0][None], layer[1][None]) for layer in split]


def read_lora(
    path: Path, config: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], weights: Callable[[], Callable[[str], Tensor]]
) -> dict[str, LowRank]:
    """Layer name -> what the LoRA or DoRA adapter in `path` adds to it. Raises EngineError unless every part fits.

    `sizes` are the (outputs, inputs) of the model's linear layers; `weights` makes a function that gives their weights, for DoRA only.
    DoRA (arXiv:2402.09353, equation 5) computes c * (W x + s B A x) with c = m / |W + s B A|, the norm taken per output. The weights no
    longer change here, so c is a constant: B becomes c B, and the output of W is multiplied by c.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _read(path).items():
        target, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if part not in ("A", "B", "magnitude_vector"):
            raise EngineError(f"the adapter in {path} holds {name}; only LoRA and DoRA of linear layers are served")
        if target not in sizes:
            raise EngineError(f"the adapter in {path} does not fit this model: it has {name}, the model has no such linear layer")
        outputs, inputs = sizes[target]
        expected, actual = (inputs, tensor.shape[-1]) if part == "A" else (outputs, tensor.shape[0])
        if actual != expected:
            raise EngineError(
                f"the adapter in {path} does not fit this model: {name} is for {actual} values, the model's layer has {expected}"
            )
        parts.setdefault(target, {})[part] = tensor.float()
    if not parts:
        raise EngineError(f"the adapter in {path} holds nothing")
    wanted = {"A", "B", "magnitude_vector"} if config.get("use_dora") else {"A", "B"}
    weight = weights() if config.get("use_dora") else None
    found: dict[str, LowRank] = {}
    for target, tensors in parts.items():
        if set(tensors) != wanted:
            raise EngineError(f"the adapter in {path}: {target} has {', '.join(sorted(tensors))} of {', '.join(sorted(wanted))}")
        down, up = tensors["A"], tensors["B"] * _scale(config, target, len(tensors["A"]))
        factor = None
        if weight is not None:
            factor = tensors["magnitude_vector"] / (weight(target) + up @ down).norm(dim=1)
            up = up * factor[:, None]
        found[target] = LowRank(down, up, factor)
    return found


def _scale(config: Mapping[str, Any], target: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732); some layers may have an alpha of their own."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), target), config["lora_alpha"]))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the adapter in {path} cannot be read: {error}") from error
