"""More than one process: `torchrun` or `accelerate launch` start the same command several times, and say in the environment who is who.

Each process computes its share of every update's micro-batches; the updates are those of one process. Each holds the whole
model (DDP), or, where the launcher asks for FSDP, a share of it (`finetune.sharding`). Only the first writes and reports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.types import TrainingError

_IGNORED = -100
_FSDP = "ACCELERATE_USE_FSDP"
# What cannot be computed on slices of weights.
_WHOLE_ONLY = {
    "qlora": "weights in 4 bits cannot be cut in slices; use lora",
    "galore": "a gradient is projected as a whole; use full",
}


class Helped(Exception):
    """This process has done its share; the first one has the result."""


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def sharded() -> bool:
    """Whether the launcher asks for weights that are spread over the processes (FSDP)."""
    return processes() > 1 and _asked(_FSDP)


def reshards() -> bool:
    """Whether a layer is put away between the forward and the backward pass (less memory, more traffic), as FSDP does by itself."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


@contextmanager
def sharded_here() -> Iterator[None]:
    """Inside, the libraries are not told that the launcher asks for FSDP, because `finetune.sharding` does it, on CPUs too.

    (accelerate 1.15 shards on GPUs alone, and would have processes other than the first load no weights.)
    """
    before = os.environ.get(_FSDP)
    if before is None:
        yield
        return
    os.environ[_FSDP] = "false"
    try:
        yield
    finally:
        os.environ[_FSDP] = before


def wait(method: str) -> None:
    """Until all processes are here. Raises TrainingError if the launcher asks for what is not offered with `method`."""
    if processes() == 1:
        return
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise TrainingError(
            "the launcher is configured for DeepSpeed, which is not supported; configure it for FSDP 2, or start with torchrun"
        )
    if sharded():
        _check_sharding(method)
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def filled(columns: dict[str, list[Any]], multiple: int) -> dict[str, list[Any]]:
    """`columns` with rows without loss at the end, until their number is a multiple: every process gets as many batches."""
    missing = -len(columns["input_ids"]) % multiple
    ids = columns["input_ids"][0][:2]
    row = {name: [_IGNORED] * len(ids) if name.endswith("labels") else ids for name in columns}
    return {name: [*values, *([row[name]] * missing)] for name, values in columns.items()}


def fillers(labels: list[list[int]]) -> int:
    """How many rows at the end have no loss."""
    count = 0
    for row in reversed(labels):
        if max(row) != _IGNORED:
            break
        count += 1
    return count


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _check_sharding(method: str) -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError("the launcher is configured for FSDP 1, which torch has replaced; set fsdp_version to 2 (FSDP_VERSION=2)")
    if _asked("FSDP_OFFLOAD_PARAMS"):
        raise TrainingError(
            "the launcher is configured to keep weights in main memory (fsdp_offload_params), which is not supported; leave it out"
        )
    if _asked("FSDP_ACTIVATION_CHECKPOINTING"):
        raise TrainingError(
            "the launcher is configured for fsdp_activation_checkpointing; set gradient_checkpointing in the settings instead"
        )
    if method in _WHOLE_ONLY:
        raise TrainingError(f"method {method} does not work with FSDP: {_WHOLE_ONLY[method]}, or start without FSDP")
