"""AdamW that keeps its states in the space of low-rank projected gradients. Imported only when training starts: it loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class GaloreAdamW(Optimizer):
    """AdamW (arXiv:1711.05101) on projected gradients, algorithm 2 of GaLore (arXiv:2403.03507).

    In a group with `rank` r, the gradient G [m, n] of each matrix is projected to the span of its r first singular vectors on
    the shorter side (m <= n: P.T @ G with P [m, r], else G @ P with P [n, r]), Adam's moments live in that space, and the
    update is projected back and multiplied by `scale`. P is computed anew every `every` steps. Groups without `rank`, and
    matrices whose shorter side is not longer than r, get plain AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": None, "every": 200, "scale": 1.0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        state["step"] = step = state.get("step", 0) + 1
        rank = group["rank"]
        low = rank is not None and weight.dim() == 2 and min(weight.shape) > rank
        if low:
            if (step - 1) % group["every"] == 0:
                state["basis"] = _basis(gradient, rank)
            gradient = _project(gradient, state["basis"])
        if step == 1:
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        first, second = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = group["lr"] / (1 - first**step)
        update = mean / (square / (1 - second**step)).sqrt().add_(group["eps"])
        if low:
            update = _back(update, state["basis"], weight) * group["scale"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-size)


def _basis(gradient: Tensor, rank: int) -> Tensor:
    """The first `rank` singular vectors on the shorter side: [m, rank] if m <= n, else [n, rank]."""
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    chosen: Tensor = left[:, :rank] if gradient.shape[0] <= gradient.shape[1] else right[:rank].T
    return chosen.to(gradient.dtype).contiguous()


def _project(gradient: Tensor, basis: Tensor) -> Tensor:
    return basis.T @ gradient if gradient.shape[0] <= gradient.shape[1] else gradient @ basis


def _back(update: Tensor, basis: Tensor, weight: Tensor) -> Tensor:
    return basis @ update if weight.shape[0] <= weight.shape[1] else update @ basis.T
