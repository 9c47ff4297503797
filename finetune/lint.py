"""Whether an adapter's files can be served, found out before a server loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from finetune.types import TrainingError

EngineKind = Literal["local", "vllm"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# vLLM's default for --max-lora-rank is 16; servers are started with this one.
MAX_RANK = 64
_PREFIX = "base_model.model."
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_UNCONVERTED = ("pissa", "olora", "loftq", "corda")
# What peft can and vLLM refuses (`vllm.lora.peft_helper`); DoRA has a line of its own.
_NOT_IN_VLLM = ("alora_invocation_tokens", "layer_replication", "lora_bias", "use_bdlora", "use_qalora")


def lint_files(path: Path, base: Path, engine: EngineKind = "local", max_rank: int = MAX_RANK) -> list[str]:
    """What keeps peft's files in `path` from being served on the model in `base` by `engine`, in plain words; empty if nothing does.

    "local" serves LoRA, DoRA and prefixes of any size; "vllm" only LoRA of a rank within `max_rank`. Tensor names and shapes
    are compared with the base model's, built without weights from its config. Raises TrainingError if `base` holds no model.
    """
    problems = [f"{file.name}: pickled weights may run code when loaded; only safetensors are accepted" for file in _pickles(path)]
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        return [*problems, f"{CONFIG}: cannot be read ({error})"]
    kind = config.get("peft_type")
    if kind not in (("LORA", "PREFIX_TUNING") if engine == "local" else ("LORA",)):
        known = "LoRA, DoRA and prefix adapters" if engine == "local" else "plain LoRA adapters"
        more = "; an engine of kind local serves it" if kind == "PREFIX_TUNING" else ""
        return [*problems, f"peft_type is {kind!r}; engine {engine} serves {known} only{more}"]
    try:
        tensors = _shapes(path / WEIGHTS)
    except OSError as error:
        return [*problems, f"{WEIGHTS}: cannot be read ({error})"]
    if kind == "PREFIX_TUNING":
        return problems + _prefix(tensors, config, base)
    return problems + _lora(config, engine, max_rank) + _tensors(tensors, _linears(base), config)


def _pickles(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*") if file.suffix in _PICKLES)


def _lora(config: dict[str, Any], engine: EngineKind, max_rank: int) -> list[str]:
    problems: list[str] = []
    if config.get("use_dora") and engine == "vllm":
        problems.append("DoRA adapters are not served by vllm; use an engine of kind local, or train with method lora")
    if engine == "vllm":
        problems += [f"{key} is set, which vllm does not serve; train without it" for key in _NOT_IN_VLLM if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}; it must be none")
    if saved := config.get("modules_to_save"):
        names = ", ".join(map(str, saved)) if isinstance(saved, list) else saved
        problems.append(f"modules_to_save ({names}) replaces whole modules, which cannot be served per request")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_UNCONVERTED):
        problems.append(f"init_lora_weights is {start!r}: convert the adapter to plain LoRA when saving it")
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        return [*problems, f"rank_pattern is {pattern!r}; expected ranks by the names of modules"]
    ranks = [config.get("r"), *pattern.values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        problems.append(f"the rank is {', '.join(map(repr, ranks))}; expected a whole number above 0")
    elif max(ranks) > max_rank and engine == "vllm":
        problems.append(f"rank {max(ranks)} is above the limit of {max_rank}; train with a lower rank or raise the server's limit")
    return problems


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the header. Raises OSError if the file is not safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise OSError(f"not a complete safetensors file: {error}") from error


def _config_of(base: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error


def _linears(base: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (inputs, outputs) of every linear module of the base model."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config_of(base), trust_remote_code=False)
    return {
        name: (module.in_features, module.out_features) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }


def _tensors(tensors: dict[str, tuple[int, ...]], linears: dict[str, tuple[int, int]], config: dict[str, Any]) -> list[str]:
    """One line for each tensor that does not belong to a linear module of the base, or has the wrong shape, or lacks its partner."""
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
    problems: list[str] = []
    seen: dict[str, set[str]] = {}
    for name, shape in tensors.items():
        module, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if part not in wanted:
            problems.append(f"{name}: not a {'DoRA' if config.get('use_dora') else 'LoRA'} matrix")
        elif module not in linears:
            problems.append(f"{name}: the base has no linear module {module}")
        else:
            seen.setdefault(module, set()).add(part)
            inputs, outputs = linears[module]
            rank = config.get("r") if not (config.get("rank_pattern") and shape) else shape[0 if part == "lora_A" else -1]
            expected = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}.get(part, (outputs,))
            if shape != expected:
                problems.append(f"{name}: has shape {shape}, the base needs {expected}")
    problems += [
        f"{module}: has only {'/'.join(sorted(parts))} of {', '.join(sorted(wanted))}" for module, parts in seen.items() if parts != wanted
    ]
    return problems if tensors else [f"{WEIGHTS}: holds no tensor"]


def _prefix(tensors: dict[str, tuple[int, ...]], config: dict[str, Any], base: Path) -> list[str]:
    """What is wrong with the keys and values of a prefix: [positions, layers x 2 x heads x head size]."""
    model = _config_of(base).get_text_config()
    heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    expected = {"prompt_embeddings": (config.get("num_virtual_tokens"), model.num_hidden_layers * 2 * heads * size)}
    return [] if tensors == expected else [f"{WEIGHTS}: holds {tensors}, the base needs {expected}"]
