"""The trainer of DPO. Imported only when training starts: it loads torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from finetune.trainer import AdapterTrainer


class PreferenceTrainer(AdapterTrainer):
    """The loss is -log sigmoid(beta x (m - m0)), with m = log p(chosen) - log p(rejected) (equation 7 of arXiv:2305.18290).

    m0 is m of the model as it starts; it is computed once, before the first step, so that no second model is kept.
    """

    possible = ("layers",)

    def __init__(self, *args: Any, beta: float, **kwargs: Any) -> None:
        # Preferences need a collator of their own.
        super().__init__(*args, **kwargs | {"data_collator": _collate(kwargs["processing_class"])})
        self.beta = beta
        # The loss of an update is a mean over its preferences, however they are shared out.
        self.model_accepts_loss_kwargs = True
        self.train_dataset: Any = self._with_reference(self.train_dataset)
        self.eval_dataset: Any = self._with_reference(self.eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "rejected_ids", "rejected_labels", "reference"]

    def _with_reference(self, data: Any) -> Any:
        self.model.eval()
        # All processes have as many rows.
        own = data.shard(self.args.world_size, self.args.process_index, contiguous=True)
        loader = DataLoader(own, self.args.eval_batch_size, collate_fn=self.data_collator)
        with torch.no_grad(), self.compute_loss_context_manager():
            margins = [self._margins(self.model, self._prepare_inputs(batch)) for batch in loader]
        return data.add_column("reference", self.accelerator.gather(torch.cat(margins)).tolist())

    def _margins(self, model: Any, inputs: Any) -> Tensor:
        """m of every preference in the batch, [preferences]."""
        labels = inputs["labels"][:, 1:]
        kept = (labels != -100).any(dim=0).nonzero().squeeze(1)
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
            **({"logits_to_keep": kept} if self._narrow else {}),
        ).logits
        labels, logits = labels[:, kept], (logits if self._narrow else logits[:, kept]).float()
        chosen_ones = logits.gather(2, labels.clamp(min=0)[:, :, None]).squeeze(2) - logits.logsumexp(2)
        sums: Tensor = (chosen_ones * (labels != -100)).sum(dim=1)
        chosen, rejected = sums.chunk(2)
        return chosen - rejected

    def _loss_sum(self, model: Any, inputs: Any) -> Tensor:
        losses = -logsigmoid(self.beta * (self._margins(model, inputs) - inputs["reference"]))
        return losses[self._real(inputs)].sum()

    def _real(self, inputs: Any) -> Tensor:
        """Which of the preferences in the batch are none that only fill the last one, [preferences]."""
        real: Tensor = (inputs["labels"] != -100).any(dim=1).chunk(2)[0]
        return real

    def _items(self, inputs: Any) -> Tensor:
        """The number of preferences."""
        return self._real(inputs).sum()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        count = torch.stack([self._items(batch) for batch in batch_samples]).sum()
        total: Tensor = self.accelerator.gather(count.to(device)).sum()
        return total

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return self._share(self._loss_sum(model, inputs), inputs, num_items_in_batch)


def _collate(tokenizer: Any) -> Any:
    """Examples to a batch: the chosen answers, then the rejected ones, padded on the right."""
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(example[name]) for name in ("input_ids", "rejected_ids") for example in examples]
        labels = [torch.tensor(example[name]) for name in ("labels", "rejected_labels") for example in examples]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=filler),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        if "reference" in examples[0]:
            batch["reference"] = torch.tensor([example["reference"] for example in examples])
        return batch

    return collate
