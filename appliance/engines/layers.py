"""Linear layers as they are served: weights in a layout that the processor likes, and each row with its own adapter. Loads torch.

Products go to oneDNN, with the weights reordered once: MKL, which torch takes for float32, has its fast kernels for one maker's
processors only. Weights can be bfloat16, where the processor multiplies that, summing in float32. Or they can be 8-bit integers, with a
scale for each output; what is multiplied is then made 8-bit with a scale for each row, so that a row's result does not depend on the rows
beside it. Adapters stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from appliance.engines.base import EngineError
from appliance.engines.low_rank import Plan, Stack, planned
from appliance.settings import Weights

# For how many rows the layout of the weights is chosen; measured, it serves 1 to 256 rows as well as their own.
_ROWS = 8


class Product(Protocol):
    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [n, inputs] -> [n, outputs], float32."""
        ...


class _Float32:
    def __init__(self, weight: Tensor) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return made


class _BFloat16:
    def __init__(self, weight: Tensor) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), _ROWS)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self._weight, None, "none", [], "").float()
        return made if bias is None else made.add_(bias)


class _Plain:
    """Where torch was built without oneDNN."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.detach()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self._weight, bias)


class _Codes:
    """The 8-bit codes and the peaks of the rows multiplied last: layers side by side (queries, keys, values) are given the same ones."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._codes, self._peak = torch.empty(0), torch.empty(0)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, inputs] -> codes [n, inputs], unsigned around 128 as the kernel's first operand must be, and peaks [n, 1]."""
        if x is not self._of:
            self._peak = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12)
            self._codes = (x * (127 / self._peak)).round_().add_(128).to(torch.uint8)
            self._of = x
        return self._codes, self._peak


class _Int8:
    """Symmetric, weights by output and inputs by row: the scheme of LLM.int8() (arXiv:2208.07339, section 3) without its outliers."""

    def __init__(self, weight: Tensor, codes: _Codes) -> None:
        weight = weight.detach()
        self._inputs = codes
        self._scales = weight.abs().amax(dim=1).clamp_(min=1e-12) / 127
        whole = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        self._weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        codes, peak = self._inputs.of(x)
        made: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1 / 127, 128, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        made.mul_(peak)
        return made if bias is None else made.add_(bias)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch._C._has_mkldnn and native)


def _product(weight: Tensor, weights: Weights, codes: _Codes) -> Product:
    if weights == "int8":
        if not torch._C._has_mkldnn:
            raise EngineError('weights = "int8" needs a torch that was built with oneDNN; set weights = "float32"')
        return _Int8(weight, codes)
    if weights == "bfloat16":
        if not multiplies_bfloat16():
            raise EngineError(
                'weights = "bfloat16" needs a processor that multiplies it (AVX512_BF16 or AMX): here it would be slower than float32; '
                'set weights = "float32" or "int8"'
            )
        return _BFloat16(weight)
    return _Float32(weight) if torch._C._has_mkldnn else _Plain(weight)


class Rows:
    """Which adapter each row of the running forward pass has, which one the weights contain already, and what the rows hold just now."""

    def __init__(self) -> None:
        self.adapters: list[str | None] = []
        self.merged: str | None = None
        self.codes = _Codes()
        self._given: Tensor | None = None
        self._flat = torch.empty(0)
        self._plans: dict[tuple[str, ...], list[Plan]] = {}

    def set(self, adapters: Sequence[str | None]) -> None:
        if list(adapters) != self.adapters:
            self.adapters = list(adapters)
            self._plans.clear()

    def flat(self, x: Tensor) -> Tensor:
        """[rows, positions, inputs] -> [rows x positions, inputs], the same object for the same one."""
        if x is not self._given:
            self._given, self._flat = x, x.reshape(-1, x.shape[-1])
        return self._flat

    def merge(self, name: str | None) -> None:
        self.merged = name
        self._plans.clear()

    def having(self, name: str) -> list[int]:
        return [row for row, adapter in enumerate(self.adapters) if adapter == name]

    def plans(self, names: tuple[str, ...]) -> list[Plan]:
        """What the rows take of the adapters `names`: their own, and, where the weights contain one that they must not have, less of it."""
        if names not in self._plans:
            numbers = {name: number for number, name in enumerate(names)}
            own = [numbers.get(name) if name and name != self.merged else None for name in self.adapters]
            foreign = [numbers.get(self.merged) if self.merged and name != self.merged else None for name in self.adapters]
            self._plans[names] = [plan for plan in (planned(own), planned(foreign, -1.0)) if plan is not None]
        return self._plans[names]


class ServedLinear(Module):
    """x [rows, positions, inputs] -> W x + bias and what the row's adapter adds to it. `rows` is shared by all layers of a model."""

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Weights, rows: Rows) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weights, self._rows = weights, rows
        self._bias = None if bias is None else bias.detach()
        self._adapters = Stack(self.in_features, self.out_features)
        # For DoRA: by what the layer's own output is multiplied, [outputs].
        self._factors: dict[str, Tensor] = {}
        self.set_weight(weight)

    def set_weight(self, weight: Tensor) -> None:
        """Serve these weights, [outputs, inputs], float32, from now on."""
        self._product = _product(weight, self._weights, self._rows.codes)

    def forward(self, x: Tensor) -> Tensor:
        flat = self._rows.flat(x)
        made = self._product(flat, self._bias)
        if self._adapters.names:
            self._adapt(flat, made)
        return made.view(*x.shape[:-1], self.out_features)

    def _adapt(self, flat: Tensor, made: Tensor) -> None:
        rows = len(self._rows.adapters)
        own = made.view(rows, -1, self.out_features)
        for name, factor in self._factors.items():
            chosen = self._rows.having(name)
            if chosen:
                own[chosen] = own[chosen] * factor if self._bias is None else (own[chosen] - self._bias) * factor + self._bias
        for plan in self._rows.plans(self._adapters.names):
            self._adapters.add_to(own, flat.view(rows, -1, self.in_features), plan)

    def add(self, name: str, down: Tensor, up: Tensor, factor: Tensor | None) -> None:
        """An adapter: A [rank, inputs], B [outputs, rank] with its scale in it, and DoRA's factor."""
        self._adapters.add(name, down, up)
        if factor is not None:
            self._factors[name] = factor

    def remove(self, name: str) -> None:
        self._adapters.remove(name)
        self._factors.pop(name, None)

    def difference(self, name: str) -> Tensor | None:
        """What the adapter adds to the weights, [outputs, inputs]; None if it leaves this layer alone."""
        return self._adapters.difference(name)


def serve_linears(model: Module, weights: Weights, rows: Rows) -> dict[str, ServedLinear]:
    """Put a `ServedLinear` in place of every linear layer of `model`; name -> layer."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    served: dict[str, ServedLinear] = {}
    for name in found:
        parent, _, last = name.rpartition(".")
        # One at a time, so that the old weights go before the next ones are reordered.
        module: Linear = getattr(model.get_submodule(parent), last)
        served[name] = ServedLinear(module.weight, module.bias, weights, rows)
        setattr(model.get_submodule(parent), last, served[name])
    return served


def weights_of(model: Module) -> Callable[[str], Tensor]:
    """The weights of the linear layer called so in a model as it was loaded, [outputs, inputs]."""
    modules: Mapping[str, Module] = dict(model.named_modules())

    def weight(name: str) -> Tensor:
        module = modules[name]
        assert isinstance(module, Linear)
        return module.weight.detach()

    return weight
