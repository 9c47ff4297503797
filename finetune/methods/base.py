"""What a training method decides: how the model is prepared, what is trained, and what is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.settings import TrainSettings
from finetune.types import Example, TrainingError


@dataclass(frozen=True, slots=True)
class Method(ABC):
    """One way to train. `work` is a scratch folder of the run.

    What it learns from and what it makes is said by `learns_from` and `yields` in `finetune.settings`.
    """

    settings: TrainSettings
    work: Path

    def encode(self, tokenizer: Any, examples: Sequence[Example], stops: frozenset[int], context: int) -> tuple[list[Any], int]:
        """(what one example of the data set becomes, how many were left out); see `finetune.tokens.encode_all`."""
        from finetune.tokens import encode_all

        for example in examples:
            if not example.prompt:
                raise TrainingError(f"example {example.id}: method {self.settings.method} needs questions, this is a plain text")
        return encode_all(tokenizer, examples, stops, self.settings, context)

    def columns(self, rows: Sequence[Any]) -> dict[str, list[Any]]:
        """The trainer's data set: `input_ids` and `labels`, lists of numbers per row."""
        return {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}

    def trainer_class(self, start: Path | None) -> Any:
        """What makes the trainer of a run that goes on from `start`; called like trl's SFTTrainer."""
        from finetune.trainer import AdapterTrainer

        return AdapterTrainer

    def load(self, base: Path, dtype: Any) -> Any:
        """The base model, in `dtype`. Raises TrainingError if the folder holds none."""
        return load_model(base, dtype)

    @abstractmethod
    def prepare(self, model: Any, start: Path | None, sample: list[int]) -> Any:
        """The model to train, going on from the adapter in `start` if there is one; `sample` are the ids of a training example.

        Raises ValueError if the model or the adapter does not fit.
        """

    def optimizer(self, model: Any) -> tuple[Any, dict[str, Any]] | None:
        """The optimizer's class and arguments (with groups in `params`), or None for AdamW over all that requires a gradient."""
        return None

    @abstractmethod
    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write what was trained into `folder`."""


def load_model(base: Path, dtype: Any, **more: Any) -> Any:
    """The causal language model in `base`. Raises TrainingError if it cannot be loaded."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True, trust_remote_code=False, **more)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: the model cannot be loaded ({error}); check it with `appliance model verify`") from error


def decoder_layers(model: Any) -> Any:
    """The list of the decoder layers of `model` (torch's ModuleList). Raises ValueError if there is none."""
    from torch.nn import ModuleList

    count = model.config.get_text_config().num_hidden_layers
    layers = next((module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count), None)
    if layers is None:
        raise ValueError(f"no list of {count} decoder layers was found in {type(model).__name__}")
    return layers
