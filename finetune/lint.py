"""Whether an adapter's files can be served, found out before a server loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.types import TrainingError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# vLLM's default for --max-lora-rank is 16; servers are started with this one.
MAX_RANK = 64
_PREFIX = "base_model.model."
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def lint_files(path: Path, base: Path, max_rank: int) -> list[str]:
    """What keeps peft's files in `path` from being served on the model in `base`, in plain words; empty if nothing does.

    Tensor names and shapes are compared with the base model's, built without weights from its config. Raises
    TrainingError if `base` itself holds no model.
    """
    problems = [f"{file.name}: pickled weights may run code when loaded; only safetensors are accepted" for file in _pickles(path)]
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        return [*problems, f"{CONFIG}: cannot be read ({error})"]
    problems += _config(config, max_rank)
    if config.get("peft_type") != "LORA":
        return problems
    try:
        tensors = _shapes(path / WEIGHTS)
    except OSError as error:
        return [*problems, f"{WEIGHTS}: cannot be read ({error})"]
    return problems + _tensors(tensors, _linears(base), config)


def _pickles(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*") if file.suffix in _PICKLES)


def _config(config: dict[str, Any], max_rank: int) -> list[str]:
    problems: list[str] = []
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')!r}; only LORA adapters can be served"]
    if config.get("use_dora"):
        problems.append("DoRA adapters are not supported; train with method lora")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}; it must be none")
    if config.get("modules_to_save"):
        problems.append(
            f"modules_to_save ({', '.join(config['modules_to_save'])}) replaces whole modules, which cannot be served per request"
        )
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"].lower().startswith(
        ("pissa", "olora", "loftq", "corda")
    ):
        problems.append(f"init_lora_weights is {config['init_lora_weights']!r}: convert the adapter to plain LoRA when saving it")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        problems.append(f"the rank is {config.get('r')!r}; expected a whole number above 0")
    elif max(ranks) > max_rank:
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


def _linears(base: Path) -> dict[str, tuple[int, int]]:
    """Module name -> (inputs, outputs) of every linear module of the base model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error
    return {
        name: (module.in_features, module.out_features) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)
    }


def _tensors(tensors: dict[str, tuple[int, ...]], linears: dict[str, tuple[int, int]], config: dict[str, Any]) -> list[str]:
    """One line for each tensor that does not belong to a linear module of the base, or has the wrong shape, or lacks its partner."""
    problems: list[str] = []
    seen: dict[str, set[str]] = {}
    for name, shape in tensors.items():
        module, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if part not in ("lora_A", "lora_B"):
            problems.append(f"{name}: not a LoRA matrix")
        elif module not in linears:
            problems.append(f"{name}: the base has no linear module {module}")
        else:
            seen.setdefault(module, set()).add(part)
            inputs, outputs = linears[module]
            rank = shape[0] if part == "lora_A" else shape[-1]
            expected = (rank, inputs) if part == "lora_A" else (outputs, rank)
            if shape != expected or (rank != config.get("r") and not config.get("rank_pattern")):
                wanted = (config.get("r"), inputs) if part == "lora_A" else (outputs, config.get("r"))
                problems.append(f"{name}: has shape {shape}, the base needs {wanted}")
    problems += [f"{module}: has only {'/'.join(parts)} of lora_A and lora_B" for module, parts in seen.items() if len(parts) < 2]
    return problems if tensors else [f"{WEIGHTS}: holds no tensor"]
