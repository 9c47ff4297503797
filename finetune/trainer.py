"""trl's trainer, made exact about padding, loss and stopping. Imported only when training starts: it loads torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import TrainerControl
from trl import SFTTrainer

from finetune.batches import ByLength
from finetune.distributed import fillers
from finetune.fused import head_loss
from finetune.resume import Checkpointing
from finetune.shortcuts import Shortcut
from finetune.types import TrainingError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A failure to write becomes a TrainingError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder}: the adapter could not be written ({error}); check the space and the rights there") from error


class AdapterTrainer(Checkpointing, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with length-grouped micro-batches, logits only where there is loss, and an evaluation loss per token.

    `possible` shortcuts are taken, as `shortcuts`, where `finetune.shortcuts` proves them.
    """

    possible: tuple[Shortcut, ...] = ("layers", "head", "packing")
    shortcuts: frozenset[Shortcut] = frozenset()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data = train_dataset or self.train_dataset
        extra = fillers(data["labels"]) if self.args.world_size > 1 else 0
        lengths = [len(ids) for ids in data["input_ids"]]
        self.order = ByLength(lengths[: len(lengths) - extra], self.args.train_batch_size, self.args.seed, extra)
        return self.order

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if return_outputs or self.aux_loss_enabled or not (self._narrow or self.shortcuts & {"head", "packing"}):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._share(self._loss_sum(model, inputs), inputs, num_items_in_batch)

    def _share(self, loss: torch.Tensor, inputs: Any, items: Any) -> torch.Tensor:
        """What a summed loss adds to the mean over the `items` of an update, of all processes; None: over those of this batch."""
        # The gradients of the processes are averaged.
        return loss / self._items(inputs) if items is None else loss * self.accelerator.num_processes / items

    def _items(self, inputs: Any) -> torch.Tensor:
        """What the loss is a mean over: the number of tokens that have one."""
        count: torch.Tensor = (inputs["labels"][:, 1:] != -100).sum()
        return count

    def plain_model(self) -> Any:
        """The language model itself, without what peft and the processes put around it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    @property
    def _narrow(self) -> bool:
        """Whether the model can leave out logits."""
        return "logits_to_keep" in inspect.signature(self.plain_model().forward).parameters

    def _loss_sum(self, model: Any, inputs: Any) -> torch.Tensor:
        """The summed loss. Positions where no example of the batch has loss get no logits."""
        labels = inputs["labels"][:, 1:]
        kept = (labels != -100).any(dim=0).nonzero().squeeze(1)
        given = {name: value for name, value in inputs.items() if name != "labels"}
        if self._narrow:
            given["logits_to_keep"] = kept
        made = model(**given, use_cache=False).logits
        made, labels = made if self._narrow else made[:, kept], labels[:, kept]
        mask = labels != -100
        if "head" in self.shortcuts:
            return head_loss(made[mask], self.plain_model().get_output_embeddings(), labels[mask])
        return cross_entropy(made[mask].float(), labels[mask], reduction="sum")

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean loss per token, or what else `_items` counts. (The base class averages the means of batches, which depends on how
        they are cut.)
        """
        model = self.model
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                items = self._items(inputs)
                # Without any it has no loss, but the other processes may need this one's share of the weights.
                loss = self.compute_loss(model, inputs)
                if items:
                    total += torch.tensor([float(loss) * float(items), float(items)], dtype=torch.float64)
        total = self.accelerator.reduce(total.to(self.args.device))
        metrics = {f"{metric_key_prefix}_loss": float(total[0] / total[1])}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
