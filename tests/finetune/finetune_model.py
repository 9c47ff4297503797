"""A tiny real model (random Llama weights, a byte-level tokenizer trained here, a chat template) and runs on it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.settings import TrainSettings, learns_from
from finetune.train import TrainJob
from finetune.types import Example, Turn

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOPICS = (
    ("What is the fee of account A{n}?", "The fee of account A{n} is {n} euros a month."),
    ("账户B{n}的月费是多少？", "账户B{n}的月费是{n}欧元。"),
)


def build_model(folder: Path, *, template: str | None = CHATML, hidden: int = 16) -> Path:
    """Write a two-layer Llama with `hidden` units, and its tokenizer, into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator([text for topic in TOPICS for text in topic], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_examples(count: int, start: int = 0) -> list[Example]:
    """Short examples, English and Chinese in turn."""
    made: list[Example] = []
    for number in range(start, start + count):
        question, answer = TOPICS[number % 2]
        prompt = (Turn("system", "Answer briefly."), Turn("user", question.format(n=number)))
        made.append(Example(f"e{number}", prompt, answer.format(n=number)))
    return made


QUICK = TrainSettings(rank=4, alpha=8, learning_rate=1e-2, epochs=2, batch_size=4, dropout=0.0)
SMALL = replace(QUICK, epochs=1, prefix_tokens=4, freeze_layers=1, galore_rank=4, galore_every=2, max_length=128)
TEXTS = [Example(f"文档{n}", (), f"账户B{n}的月费是{n}欧元。The fee of account A{n} is {n} euros a month. " * 6) for n in range(8)]


def make_job(model: Path, work: Path, **changes: object) -> TrainJob:
    """A run of a second or two: 12 short examples, 4 for dev."""
    work.mkdir(parents=True, exist_ok=True)
    job = TrainJob(model, "test:tiny", "basehash", make_examples(12), make_examples(4, start=40), QUICK, work)
    return replace(job, **changes)  # type: ignore[arg-type]


def preferences(count: int, start: int = 0) -> list[Example]:
    """Examples with a worse answer, English and Chinese in turn."""
    worse = ("I do not know.", "我不知道。")
    return [replace(example, rejected=worse[number % 2]) for number, example in enumerate(make_examples(count, start))]


def job_for(method: str, base: Path, work: Path, **changes: Any) -> TrainJob:
    """A run of a second or two on the method's own kind of data."""
    data: dict[str, Any] = {"settings": replace(SMALL, method=method)}
    if learns_from(method) == "texts":
        data |= {"train": TEXTS, "dev": []}
    if learns_from(method) == "preferences":
        data |= {"train": preferences(8), "dev": preferences(4, start=40)}
    return make_job(base, work, **data | changes)


def smollm2() -> Path | None:
    """The converted SmolLM2 in the cache of models, if it is on this machine."""
    cache = Path(os.environ.get("APPLIANCE_MODELS", Path.home() / ".cache" / "appliance" / "models"))
    for config in sorted(cache.rglob("config.json")):
        if json.loads(config.read_text("utf-8")).get("model_type") == "llama" and (config.parent / "model.safetensors").exists():
            return config.parent
    return None
