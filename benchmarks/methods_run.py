"""One training method in a process of its own, for methods.py: ``methods_run.py CONFIG RESULT``.

CONFIG is the JSON of {"base", "method" (or "base" for the untrained model), "settings", "train", "dev", "held": files of rows {"question",
"answer"}, "texts": file of rows {"lang", "text"}, "work", "new_tokens"}. RESULT has what methods.py shows of it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.overlap import bleu, rouge_l
from finetune.settings import learns_from, settings_from, yields
from finetune.tokens import load_tokenizer
from finetune.train import TrainJob, train
from finetune.types import Example, Turn

# Tokens of a general text that its loss is measured on.
_TEXT_TOKENS = 128


def examples_of(path: Path, kind: str) -> list[Example]:
    """Rows as what a method learns from. The rejected answer of a preference is that of the row before."""
    rows = json.loads(path.read_text("utf-8"))
    pairs = [Example(f"{path.stem}-{number}", (Turn("user", row["question"]),), row["answer"]) for number, row in enumerate(rows)]
    if kind == "texts":
        return [replace(pair, prompt=(), completion=f"{pair.prompt[0].content}\n{pair.completion}") for pair in pairs]
    if kind == "preferences":
        return [replace(pair, rejected=pairs[number - 1].completion) for number, pair in enumerate(pairs)]
    return pairs


def trained(given: dict[str, Any]) -> dict[str, Any]:
    """Train; the figures of the run, and the folder of what came out."""
    settings = settings_from(given["settings"] | {"method": given["method"]})
    kind = learns_from(given["method"])
    pairs, held_out = (examples_of(Path(given[name]), kind) for name in ("train", "dev"))
    spent, worked = 0.0, time.process_time()

    def progress(event: dict[str, Any]) -> None:
        nonlocal spent, worked
        now = time.process_time()
        spent += now - worked if "loss" in event else 0.0
        worked = now

    made = train(TrainJob(Path(given["base"]), "benchmark", "", pairs, held_out, settings, Path(given["work"])), progress)
    return {
        "folder": str(made.adapter),
        "trainable": made.trainable_parameters,
        "peak_mib": round(made.memory["peak"] / 2**20),
        "estimated_mib": round(made.memory["estimated"] / 2**20),
        "tokens_a_s": made.tokens_per_second,
        "tokens_a_cpu_s": round(made.tokens_per_second * made.log[-1]["seconds"] / spent, 1),
        "loss_before": made.eval_loss_before,
        "loss": made.eval_loss,
    }


def model_of(base: Path, method: str, folder: str | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = folder is not None and yields(method) == "model"
    model: Any = AutoModelForCausalLM.from_pretrained(folder if whole else base, dtype=torch.float32, local_files_only=True)
    return (PeftModel.from_pretrained(model, str(folder)) if folder is not None and not whole else model).eval()


def answers(model: Any, tokenizer: Any, questions: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy answers, all in one batch padded on the left."""
    import torch

    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": question}] for question in questions]
    ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True)
    with torch.inference_mode():
        found = model.generate(**ids, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts: list[str] = tokenizer.batch_decode(found[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def text_loss(model: Any, tokenizer: Any, texts: Iterable[str]) -> float:
    """The loss per token of plain texts, each cut to its first tokens."""
    import torch

    total, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=_TEXT_TOKENS)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, -ids.shape[1] : -1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    return total / tokens


def main(config: str, result: str) -> None:
    given = json.loads(Path(config).read_text("utf-8"))
    base = Path(given["base"])
    found: dict[str, Any] = {"method": given["method"]}
    if given["method"] != "base":
        found |= trained(given)
    tokenizer = load_tokenizer(base)
    model = model_of(base, given["method"], found.pop("folder", None))
    held = json.loads(Path(given["held"]).read_text("utf-8"))
    gold = [row["answer"] for row in held]
    said = answers(model, tokenizer, [row["question"] for row in held], given["new_tokens"])
    found["rouge_l"] = statistics.fmean(rouge_l(one, two, "en") for one, two in zip(gold, said, strict=True))
    found["bleu"] = bleu(gold, said, "en")
    texts = json.loads(Path(given["texts"]).read_text("utf-8"))
    for lang in ("en", "zh"):
        found[f"general_{lang}"] = text_loss(model, tokenizer, [row["text"] for row in texts if row["lang"] == lang])
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
