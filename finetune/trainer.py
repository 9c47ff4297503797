"""trl's trainer, made exact about padding, loss and stopping. Imported only when training starts: it loads torch."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl
from trl import SFTTrainer

from finetune.types import TrainingError


class ByLength(Sampler[int]):
    """Indices in micro-batches of similar length, a new order each epoch.

    Sorting is by length in classes of 8 tokens after a shuffle, so that micro-batches differ from epoch to epoch; the
    micro-batches are then shuffled. The incomplete one, if any, comes last, of random examples.
    """

    def __init__(self, lengths: Sequence[int], micro_batch: int, seed: int) -> None:
        self.lengths, self.micro_batch, self.seed, self.epoch = lengths, micro_batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        dice.shuffle(order)
        full = len(order) - len(order) % self.micro_batch
        grouped = sorted(order[:full], key=lambda number: self.lengths[number] // 8)
        batches = [grouped[start : start + self.micro_batch] for start in range(0, full, self.micro_batch)]
        dice.shuffle(batches)
        return iter([number for batch in batches for number in batch] + order[full:])


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A failure to write becomes a TrainingError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder}: the adapter could not be written ({error}); check the space and the rights there") from error


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with length-grouped micro-batches, logits only where there is loss, and an evaluation loss per token."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        return ByLength(lengths, self.args.train_batch_size, self.args.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if not self._narrow or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, tokens = self._loss_sum(model, inputs)
        return loss / (tokens if num_items_in_batch is None else num_items_in_batch)

    @property
    def _narrow(self) -> bool:
        """Whether the model can leave out logits, and its loss is the plain one."""
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        return "logits_to_keep" in inspect.signature(base.forward).parameters and not self.aux_loss_enabled

    def _loss_sum(self, model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed loss, number of tokens it covers). Positions where no example of the batch has loss get no logits."""
        labels = inputs["labels"][:, 1:]
        kept = (labels != -100).any(dim=0).nonzero().squeeze(1)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, logits_to_keep=kept).logits
        labels = labels[:, kept]
        mask = labels != -100
        return cross_entropy(logits[mask].float(), labels[mask], reduction="sum"), mask.sum()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean loss per token. (The base class averages the means of batches, which depends on how they are cut.)"""
        model = self.model
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                tokens = (inputs["labels"][:, 1:] != -100).sum()
                total += torch.tensor([float(self.compute_loss(model, inputs)) * float(tokens), float(tokens)], dtype=torch.float64)
        metrics = {f"{metric_key_prefix}_loss": float(total[0] / total[1])}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, measures speed, and turns a loss that is missing or not a number into an error."""

    def __init__(self, progress: Callable[[dict[str, Any]], None]) -> None:
        self.progress = progress
        self.seconds = 0.0
        self.events: list[dict[str, Any]] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_loss" not in metrics:
            raise TrainingError("the evaluation gave no loss, so the best epoch cannot be told; check the dev split")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        for key in ("loss", "eval_loss"):
            if key in logs and not math.isfinite(logs[key]):
                raise TrainingError(f"{key} became {logs[key]} at step {state.global_step}; lower learning_rate or max_grad_norm")
        if "loss" not in logs and "eval_loss" not in logs:
            return
        done, steps = state.global_step, state.max_steps
        event: dict[str, Any] = {"step": done, "steps": steps, "epoch": round(state.epoch or 0.0, 3)}
        event |= {key: logs[key] for key in ("loss", "eval_loss", "learning_rate", "grad_norm") if key in logs}
        if done:
            event["tokens_per_second"] = round(self.rate(state), 1)
            event["eta"] = round(self.seconds / done * (steps - done), 1)
        self.events.append(event)
        self.progress(event)

    def rate(self, state: Any) -> float:
        """Tokens without padding per second of training steps."""
        return float(state.num_input_tokens_seen) / self.seconds if self.seconds else 0.0
