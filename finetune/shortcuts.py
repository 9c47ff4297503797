"""Which shortcuts a run takes: those that leave loss and gradients of the model in hand as they are. Loads torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from finetune.fused import attention_by_example, fused_layers, without_head
from finetune.sharding import is_sharded

Shortcut = Literal["layers", "head", "packing"]
# The largest relative difference of the loss that is allowed, and a tenth of that of the gradient; half precision has 8 bits.
TOLERANCE = {torch.float32: 1e-4}
TOLERANCE_HALF = 2e-2
# So many examples, and of each so many tokens, are proof enough: more would need more memory than the training of a large model.
EXAMPLES, ENOUGH = 3, 64
# Values of one gradient that are compared.
_KEPT = 2**16


@contextmanager
def shortcuts(trainer: Any) -> Iterator[dict[str, str]]:
    """Inside, `trainer` takes every shortcut of its `possible` ones that is proven; yields for each "taken", or why not.

    "layers" and "head" are described in `finetune.fused`; "packing" puts the examples of a micro-batch one after another into a row
    without padding. Proven is what gives the loss and the gradients of the plain computation on the shortest examples of the
    training set (the ends of long ones), and on the longest if the model's attention has a window that it exceeds. Nothing
    random is drawn.
    """
    chosen, refused = _choose(trainer)
    with taking(trainer, chosen):
        yield dict.fromkeys(chosen, "taken") | refused


@contextmanager
def taking(trainer: Any, chosen: Sequence[Shortcut]) -> Iterator[None]:
    """Inside, `trainer` takes the `chosen` shortcuts, proven or not."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model, before = trainer.plain_model(), (trainer.data_collator, trainer.args.include_num_input_tokens_seen)
    with ExitStack() as stack:
        if "layers" in chosen:
            stack.enter_context(fused_layers(model))
        if "head" in chosen:
            stack.enter_context(without_head(model.get_output_embeddings()))
        if "packing" in chosen:
            stack.enter_context(attention_by_example(model))
            trainer.data_collator = DataCollatorForLanguageModeling(before[0].pad_token_id, padding_free=True)
            # There is no padding, and the end token, which some tokenizers pad with, counts.
            trainer.args.include_num_input_tokens_seen = "all"
        trainer.shortcuts = frozenset(chosen)
        try:
            yield
        finally:
            trainer.shortcuts = frozenset()
            trainer.data_collator, trainer.args.include_num_input_tokens_seen = before


def _choose(trainer: Any) -> tuple[list[Shortcut], dict[str, str]]:
    possible, refused = list(trainer.possible), dict[str, str]()
    if is_sharded(trainer.model):
        return [], dict.fromkeys(trainer.possible, "the weights are spread over processes")
    if trainer.aux_loss_enabled:
        refused = {name: "the loss has a part for the balance of experts" for name in possible if name != "layers"}
        possible = [name for name in possible if name == "layers"]
    if "head" in possible and type(trainer.plain_model().get_output_embeddings()) is not torch.nn.Linear:
        possible.remove("head")
        refused["head"] = "its last layer is not a plain linear one"
    examples = _sample(trainer)
    right = _measure(trainer, (), examples)
    if _difference(trainer, possible, examples, right) is None:
        return possible, refused
    chosen: list[Shortcut] = []
    for shortcut in possible:
        reason = _difference(trainer, [*chosen, shortcut], examples, right)
        if reason is None:
            chosen.append(shortcut)
        else:
            refused[shortcut] = reason
    return chosen, refused


def _sample(trainer: Any) -> list[Any]:
    """The ends of a few examples."""
    data = trainer.train_dataset
    lengths = [len(ids) for ids in data["input_ids"]]
    # Those without loss only fill the last batch of several processes.
    numbers = [number for number, labels in enumerate(data["labels"]) if any(label != -100 for label in labels)]
    order = sorted(numbers, key=lambda number: (lengths[number], number))
    # One example three times over shows as well what packing does.
    chosen = [(number, ENOUGH) for number in (order * EXAMPLES)[:EXAMPLES]]
    window = getattr(trainer.plain_model().config.get_text_config(), "sliding_window", None)
    if window is not None and lengths[order[-1]] > window:
        chosen.append((order[-1], window + ENOUGH))
    return [{name: value[-kept:] if isinstance(value, list) else value for name, value in data[number].items()} for number, kept in chosen]


def _difference(trainer: Any, chosen: Sequence[Shortcut], examples: Sequence[Any], right: tuple[float, torch.Tensor]) -> str | None:
    """What differs from the plain computation, or None."""
    try:
        loss, gradient = _measure(trainer, chosen, examples)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    allowed = TOLERANCE.get(next(trainer.model.parameters()).dtype, TOLERANCE_HALF)
    off = abs(loss - right[0]) / max(abs(right[0]), 1e-12)
    if not off <= allowed:
        return f"the loss would be {loss:.6g} instead of {right[0]:.6g}"
    off = float((gradient - right[1]).norm() / right[1].norm().clamp(min=1e-30))
    return None if off <= allowed * 10 else f"the gradient would differ by {off:.2g} of its length"


def _measure(trainer: Any, chosen: Sequence[Shortcut], examples: Sequence[Any]) -> tuple[float, torch.Tensor]:
    """(loss, gradient of what is trained), without dropout. Of large matrices every n-th value stands for all."""
    model = trainer.model
    trained = [value for value in model.parameters() if value.requires_grad]
    training = model.training
    model.eval()
    try:
        with taking(trainer, chosen), trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs(trainer.data_collator(list(examples)))
            loss = trainer.compute_loss(model, inputs)
            loss.backward()
        return float(loss.detach()), torch.cat([_thinned(value.grad) for value in trained if value.grad is not None])
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def _thinned(gradient: torch.Tensor) -> torch.Tensor:
    """At most twice `_KEPT` values, evenly over the matrix, scaled to about its length: a copy of all gradients of a model is too much."""
    # Odd, so that it does not fall on the same columns in every row.
    step = (gradient.numel() - 1) // _KEPT | 1
    thinned: torch.Tensor = gradient.flatten()[::step].float() * step**0.5
    return thinned
