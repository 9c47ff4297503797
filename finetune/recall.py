"""How surely an adapter gives the answers it learnt. Loads torch."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from finetune.building import half_precision, quiet
from finetune.memory import give_back
from finetune.methods import method_of
from finetune.tokens import encode, load_tokenizer, spellings, stop_tokens
from finetune.train import TrainJob
from finetune.types import Example


def recall(job: TrainJob, adapter: Path, examples: Sequence[Example], each: Callable[[], None]) -> list[float]:
    """For each example exp(-loss per token) of its answer after its prompt, in (0, 1], with the adapter that `job` left in a folder: the
    geometric mean of the probabilities of its tokens. NaN for an example that is longer than what was trained on.

    `each` is called after every one. All are NaN, with a warning, where the model does not fit the device in one piece.
    """
    tokenizer = load_tokenizer(job.base, job.chat_template)
    stops, spelt = stop_tokens(tokenizer, job.base), spellings(tokenizer)
    found: list[float] = []
    try:
        with quiet(), torch.no_grad():
            model = _loaded(job, adapter)
            for example in examples:
                row = encode(tokenizer, example, stops, spelt)
                known = len(row.input_ids) <= job.settings.max_length
                found.append(math.exp(-loss(model, row.input_ids, row.prompt)) if known else math.nan)
                each()
            del model
    except (RuntimeError, MemoryError, ValueError) as error:
        logging.getLogger(__name__).warning("how surely %s gives what it learnt was not measured: %s", adapter.name, error)
        found = [math.nan] * len(examples)
    give_back()
    return found


def _loaded(job: TrainJob, adapter: Path) -> Any:
    # As it was trained: weights that were quantised for that may not fit otherwise.
    method = method_of(job.settings, job.work)
    model = PeftModel.from_pretrained(method.load(job.base, torch.bfloat16 if half_precision(job.settings) else torch.float32), adapter)
    return (model.cuda() if torch.cuda.is_available() else model).eval()


def loss(model: Any, ids: list[int], prompt: int) -> float:
    """Per token of what stands behind the first `prompt` ids, of a peft model."""
    last = len(ids) - prompt
    # A vocabulary of 262,144 makes a gigabyte of the logits of a thousand positions.
    narrow = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters else {}
    logits = model(input_ids=torch.tensor([ids[:-1]], device=model.device), **narrow).logits[0, -last:]
    return float(cross_entropy(logits.float(), torch.tensor(ids[-last:], device=logits.device)))
