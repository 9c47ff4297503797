"""Continued pre-training: the model reads documents, with the loss on every token; the result is a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.methods.full import Full
from finetune.tokens import Encoded
from finetune.types import Example, TrainingError


class Pretrain(Full):
    """Texts follow each other, each closed by the end token, and are cut into windows of `max_length` tokens.

    Nothing is left out; the first token of a window has no loss. A text may see the end of the one before it.
    """

    def encode(self, tokenizer: Any, examples: Sequence[Example], stops: frozenset[int], context: int) -> tuple[list[Any], int]:
        size = min(self.settings.max_length, context)
        end = min(stops) if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        ids: list[int] = []
        for example in examples:
            if example.prompt:
                raise TrainingError(f"example {example.id}: method pretrain reads plain texts, this is a question with an answer")
            found = tokenizer(example.completion)["input_ids"]
            ids += [*found, end] if found[-1:] != [end] else found
        windows = [ids[place : place + size] for place in range(0, len(ids), size)]
        return [Encoded(f"window {number}", window, 0) for number, window in enumerate(windows, 1) if len(window) > 1], 0
