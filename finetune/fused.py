"""The same numbers with less work: linear layers, LoRA, the loss of the head, and attention of packed examples. Loads torch.

On a CPU, products of float32 matrices go to oneDNN; MKL, which torch takes, has its fast kernels for one maker's processors
only. A LoRA layer adds its update in place instead of in four more passes over the activations. Logits exist for a few
positions at a time. Packed examples attend to themselves alone, without a mask over the whole row.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

# Logits held at once: 16 MiB as float32, which stays in a processor's cache.
LOGITS = 2**22


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias` for x (n, i), weight (o, i), bias (o); x and weight may be transposed views."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not torch._C._has_mkldnn:
        return linear(x, weight, bias)
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


class _Linear(torch.autograd.Function):
    """x (n, i), weight (o, i), bias (o) or None -> (n, o). A frozen weight keeps nothing of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return matmul(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            matmul(grad, weight.t()) if for_x else None,
            matmul(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


class _Lora(torch.autograd.Function):
    """x (n, i), frozen weight (o, i) and bias (o) or None, a (r, i), b (o, r) -> x weight' + bias + scale · dropped a' b', (n, o).

    `dropped` is x after dropout, None without.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        source = x if dropped is None else dropped
        low = matmul(source, a)
        ctx.save_for_backward(source, weight, a, b, low)
        ctx.scale, ctx.drops = scale, dropped is not None
        return matmul(x, weight, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        source, weight, a, b, low = ctx.saved_tensors
        grad_low = matmul(grad, b.t()).mul_(ctx.scale)
        grad_x = matmul(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_dropped = grad_low @ a if ctx.drops and ctx.needs_input_grad[1] else None
        if grad_x is not None and not ctx.drops:
            grad_x.addmm_(grad_low, a)
        # With the small side first oneDNN takes a third of the time.
        grad_b = matmul(low.t(), grad.t()).mul_(ctx.scale).t()
        return grad_x, grad_dropped, None, None, matmul(grad_low.t(), source.t()), grad_b, None


class _HeadLoss(torch.autograd.Function):
    """hidden (n, h), weight (v, h), bias (v) or None, targets (n) -> the summed cross-entropy.

    The gradient is computed on the way forward, rows at a time (as Liger Kernel does, arXiv:2410.10989), so that nothing of the
    size of the vocabulary is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, learns: bool
    ) -> torch.Tensor:
        kept = (hidden, weight, bias)
        wanted = [learns and value is not None and need for value, need in zip(kept, ctx.needs_input_grad, strict=False)]
        grads = [torch.zeros_like(value) if want and value is not None else None for value, want in zip(kept, wanted, strict=True)]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(16, LOGITS // weight.shape[0])
        for start in range(0, len(targets), rows):
            part, right = hidden[start : start + rows], targets[start : start + rows, None]
            logits = matmul(part, weight, bias).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, right)).sum()
            if not any(wanted):
                continue
            share = logits.sub_(norm).exp_()
            share = share.scatter_add_(1, right, share.new_full(right.shape, -1.0)).to(weight.dtype)
            if grads[0] is not None:
                grads[0][start : start + rows] = matmul(share, weight.t())
            if grads[1] is not None:
                grads[1] += matmul(share.t(), part.t())
            if grads[2] is not None:
                grads[2] += share.sum(0)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return *(None if kept is None else kept * grad for kept in ctx.saved_tensors), None, None


def head_loss(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The summed cross-entropy of `targets` (n) given `hidden` (n, h), the input of the linear layer `head`."""
    # Mixed precision hands the hidden states out as float32.
    hidden = hidden.to(head.weight.dtype)
    loss: torch.Tensor = _HeadLoss.apply(hidden, head.weight, head.bias, targets, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


@contextmanager
def fused_layers(model: torch.nn.Module) -> Iterator[None]:
    """Inside, plain linear layers and plain LoRA layers of peft compute as said above; weights, names and gradients stay."""
    from peft.tuners.lora.layer import Linear as LoraLinear

    own: dict[Any, Any] = {torch.nn.Linear: _linear, LoraLinear: _lora}
    # No subclasses: those compute something else.
    changed: list[Any] = [module for module in model.modules() if type(module) in own]
    changed = [module for module in changed if type(module) is torch.nn.Linear or type(module.base_layer) is torch.nn.Linear]
    for module in changed:
        module.forward = types.MethodType(own[type(module)], module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@contextmanager
def without_head(head: Any) -> Iterator[None]:
    """Inside, the model gives the input of its linear layer `head` where it gave logits."""
    before = vars(head).get("forward")
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


@contextmanager
def attention_by_example(model: Any) -> Iterator[None]:
    """Inside, `model` attends within the packed examples that `cu_seq_lens_q` bounds, see `_attend`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    name, before = "by_example", model.config._attn_implementation
    AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _linear(self: Any, x: torch.Tensor) -> torch.Tensor:
    made = _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)  # type: ignore[no-untyped-call]
    return made.view(*x.shape[:-1], made.shape[-1])  # type: ignore[no-any-return]


def _lora(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of a LoRA layer; whatever is not the plain case is left to peft."""
    name, base = self.active_adapters[0], self.base_layer
    special = len(self.active_adapters) > 1 or name in self.lora_variant or self.lora_bias[name] or base.weight.requires_grad
    if args or kwargs or special or self.disable_adapters or self.merged:
        return type(self).forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]
    flat = x.reshape(-1, x.shape[-1])
    drops = self.training and isinstance(self.lora_dropout[name], torch.nn.Dropout)
    dropped = self.lora_dropout[name](flat) if drops else None
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    made = _Lora.apply(flat, dropped, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
    return made.view(*x.shape[:-1], made.shape[-1])  # type: ignore[no-any-return]


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """query (1, heads, n, d), key and value (1, heads or fewer, n, d) -> (1, n, heads, d).

    Raises ValueError for what a model asks for beyond causal attention with a sliding window.
    """
    bounds, window = kwargs.get("cu_seq_lens_q"), kwargs.get("sliding_window")
    known = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "position_ids", "use_cache", "output_attentions"}
    known |= {"scaling", "dropout", "sliding_window", "is_causal", "output_hidden_states", "return_dict"}
    unknown = sorted(name for name, given in kwargs.items() if name not in known and given is not None)
    if bounds is None or unknown or attention_mask is not None or key.shape[2] != query.shape[2] or not getattr(module, "is_causal", True):
        raise ValueError(f"the model asks for more than causal attention ({', '.join(unknown) or 'to what lies before the examples'})")
    ends: list[int] = bounds.tolist()
    parts = []
    for start, end in itertools.pairwise(ends):
        mask = None
        if window is not None and end - start > window:
            place = torch.arange(end - start, device=query.device)
            mask = (place[:, None] >= place) & (place[:, None] - place < window)
        part = scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            attn_mask=mask,
            dropout_p=kwargs.get("dropout", 0.0),
            is_causal=mask is None,
            scale=kwargs.get("scaling"),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1), None
