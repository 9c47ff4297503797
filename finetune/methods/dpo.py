"""DPO: of two answers to a prompt the better one becomes likelier than the worse one (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetune.methods.lora import Lora
from finetune.tokens import Encoded, encode, over_long, spellings
from finetune.types import Example, TrainingError


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with its two answers."""

    chosen: Encoded
    rejected: Encoded


class Dpo(Lora):
    """DPO trains a LoRA adapter: a new one, or the one to go on from. What it must not stray from is the model at the start."""

    def encode(self, tokenizer: Any, examples: Sequence[Example], stops: frozenset[int], context: int) -> tuple[list[Any], int]:
        settings = self.settings
        if settings.over_long == "window":
            raise TrainingError('over_long: "window" cuts answers in pieces, which preferences cannot be; use "error" or "drop"')
        spelt, kept = spellings(tokenizer), list[Preference]()
        for example in examples:
            if example.rejected is None:
                raise TrainingError(f"example {example.id}: method dpo needs two answers, it has no rejected one; leave it out or add one")
            if example.rejected.strip() == example.completion.strip():
                raise TrainingError(f"example {example.id}: the rejected answer is the chosen one; leave the example out or correct it")
            both = [encode(tokenizer, replace(example, completion=text), stops, spelt) for text in (example.completion, example.rejected)]
            longest = max(both, key=lambda encoded: len(encoded.input_ids))
            if not over_long(longest, settings, context):
                kept.append(Preference(*both))
        return kept, len(examples) - len(kept)

    def columns(self, rows: Sequence[Preference]) -> dict[str, list[Any]]:
        chosen, rejected = [row.chosen for row in rows], [row.rejected for row in rows]
        more = {"rejected_ids": [row.input_ids for row in rejected], "rejected_labels": [row.labels for row in rejected]}
        return super().columns(chosen) | more

    def trainer_class(self, start: Path | None) -> Any:
        from finetune.methods.dpo_trainer import PreferenceTrainer

        return partial(PreferenceTrainer, beta=self.settings.dpo_beta)
