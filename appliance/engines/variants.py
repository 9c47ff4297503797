"""Adapters that are more than plain LoRA, made into what a mixed batch can serve. Runs on the engine's thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module

from appliance.engines.base import EngineError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Keys and values of one layer, each [1, heads, positions, head size].
Layer = tuple[Tensor, Tensor]


def read_config(path: Path) -> dict[str, Any]:
    """peft's configuration in the folder `path`. Raises EngineError."""
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"the adapter in {path} cannot be read: {error}") from error
    return config


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the adapter in the folder `path`. Raises EngineError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"the adapter in {path} cannot be read: {error}") from error


def read_prefix(path: Path, config: Mapping[str, Any], model: Any) -> list[Layer]:
    """The keys and values that prefix tuning learned, per layer of the model with the configuration `model`. Raises EngineError."""
    from safetensors.torch import load_file

    positions, layers = config["num_virtual_tokens"], model.num_hidden_layers
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    shapes, expected = read_shapes(path), {"prompt_embeddings": (positions, layers * 2 * heads * size)}
    if shapes != expected:
        raise EngineError(f"the adapter in {path} does not fit this model: it holds {shapes}, the model needs {expected}")
    learned = load_file(path / WEIGHTS)["prompt_embeddings"].float()
    # peft's order is [positions, layers, keys or values, heads, head size].
    split = learned.view(positions, layers, 2, heads, size).permute(1, 2, 3, 0, 4)
    return [(layer[0][None], layer[1][None]) for layer in split]


@contextmanager
def as_plain_lora(path: Path, config: Mapping[str, Any], modules: Mapping[str, Module]) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """A folder with the DoRA adapter as plain LoRA, and for each module by what its own output must be multiplied, [outputs].

    DoRA (arXiv:2402.09353, equation 5) computes c * (W x + s B A x) with c = m / |W + s B A|, the norm taken per output.
    The weights no longer change here, so c is a constant: B becomes c B, and the output of W is multiplied by c.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / WEIGHTS)
    factors: dict[str, Tensor] = {}
    for name in [name for name in tensors if name.endswith(".lora_magnitude_vector")]:
        stem = name.removesuffix(".lora_magnitude_vector")
        target = stem.removeprefix(_PREFIX)
        module = modules[target]
        if not isinstance(module, Linear):
            raise EngineError(f"the adapter in {path}: DoRA on {target}, a {type(module).__name__}; only linear layers are served")
        down, up = tensors[f"{stem}.lora_A.weight"].float(), tensors[f"{stem}.lora_B.weight"].float()
        rank = down.shape[0]
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        length = (module.weight + scale * up @ down).norm(dim=1)
        factors[target] = tensors.pop(name).float() / length
        tensors[f"{stem}.lora_B.weight"] = up * factors[target][:, None]
    with TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})
        (Path(folder) / CONFIG).write_text(json.dumps({**config, "use_dora": False}), encoding="utf-8")
        yield Path(folder), factors


def scale_rows(module: Module, factor: Tensor, rows: Callable[[], list[int]]) -> Any:
    """Multiply the output of `module`, less its bias, by `factor` in those rows of the batch; remove the hook with `.remove()`."""

    def hook(module: Module, inputs: Any, output: Tensor) -> None:
        chosen = rows()
        if chosen:
            bias = getattr(module, "bias", None)
            output[chosen] = output[chosen] * factor if bias is None else (output[chosen] - bias) * factor + bias

    return module.register_forward_hook(hook)
