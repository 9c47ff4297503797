"""The trainer of prefix tuning. Imported only when training starts: it loads torch."""

from __future__ import annotations

from typing import Any

from finetune.trainer import AdapterTrainer


class PrefixTrainer(AdapterTrainer):
    """What is evaluated before the first step is the base: the untrained prefix is no state that anybody would serve.

    A prefix that goes on from a trained one (`untrained` False) is evaluated as it is.
    """

    def __init__(self, *args: Any, untrained: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.untrained = untrained

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        if self.state.global_step or not self.untrained:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
