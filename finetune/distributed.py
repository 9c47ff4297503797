"""More than one process: `torchrun` or `accelerate launch` start the same command several times, and say in the environment who is who.

Each process holds the whole model and computes its share of every update's micro-batches (DDP); the updates are those of one
process. Only the first writes and reports.
"""

from __future__ import annotations

import os
from typing import Any

from finetune.types import TrainingError

_IGNORED = -100


class Helped(Exception):
    """This process has done its share; the first one has the result."""


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Until all processes are here. Raises TrainingError if the launcher asks for what is not offered."""
    if processes() == 1:
        return
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise TrainingError("the launcher is configured for sharded models; start with torchrun, or accelerate launch --multi_gpu")
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def filled(columns: dict[str, list[Any]], multiple: int) -> dict[str, list[Any]]:
    """`columns` with rows without loss at the end, until their number is a multiple: every process gets as many batches.

    Raises TrainingError for a method whose loss is not a sum over tokens.
    """
    missing = -len(columns["input_ids"]) % multiple
    if columns.keys() != {"input_ids", "labels"}:
        raise TrainingError("this method trains in one process; start it without torchrun")
    row = {"input_ids": columns["input_ids"][0][:2], "labels": [_IGNORED, _IGNORED]}
    return {name: [*values, *([row[name]] * missing)] for name, values in columns.items()}


def fillers(labels: list[list[int]]) -> int:
    """How many rows at the end have no loss."""
    count = 0
    for row in reversed(labels):
        if max(row) != _IGNORED:
            break
        count += 1
    return count
