"""Weights spread over the processes that train together: torch's `fully_shard` (FSDP2). Loads torch.

Each process keeps a slice of every parameter, of its gradient and of its optimizer state; a decoder layer is whole only while it
computes (Zhao et al. 2023, arXiv:2304.11277). What is written to disk is whole, so that nothing depends on how it was spread.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune.distributed import is_main, processes, reshards
from finetune.methods.base import decoder_layers


def shard(model: Any) -> None:
    """Spread `model`, which is the same in all processes, over them; every process calls it. Raises ValueError without decoder layers."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (processes(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards())
    fully_shard(model, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Whether `model` was spread by `shard`."""
    return isinstance(model, FSDPModule)


def reshard(model: Any) -> None:
    """Put away what the last forward pass gathered, so that the parameters of a sharded `model` are the slices again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Slices to whole tensors in main memory, for the first process; the others, which call it too, get an empty dict."""
    found: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if is_main():
            found[name] = tensor.detach().cpu().contiguous()
    return found


def put(value: Any, tensor: torch.Tensor) -> None:
    """Set the parameter `value`, sliced or not, to the whole `tensor`."""
    if isinstance(value, DTensor):
        # Every process has read the same file, so each takes its slice without being sent it.
        tensor = distribute_tensor(tensor.to(value.device), value.device_mesh, value.placements, src_data_rank=None)
    with torch.no_grad():
        value.copy_(tensor)


def optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The whole state of `optimizer` by parameter name, for the first process; the others, which call it too, get an empty dict."""
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def put_optimizer_state(model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Give every process its slice of `state`, which only the first one needs to have; every process calls it."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)
