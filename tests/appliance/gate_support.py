"""A domain with a data set, a base model that adapters are linted against, and an engine whose answers depend on the adapter."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.adapters.evidence import Link
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.answers.verified import VerifiedAnswers
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import Delta, Message, Sampling
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.service import Service
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from finetune.chat_templates import NAMED
from finetune.version import version_hash

HIDDEN, RANK = 8, 2
Rows = Sequence[dict[str, Any]]


def rows(start: int, count: int, split: str, lang: str = "en") -> list[dict[str, Any]]:
    """Questions about rooms, no two alike enough to be near duplicates."""
    en = ("Which nurse keeps the key of the {w} cabinet?", "Nurse {w} Number{n} keeps it.")
    zh = ("{w}{n}号药柜的钥匙由谁保管？", "由护士长{w}{n}保管。")
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch", "maple", "north")
    chinese = ("甲乙", "丙丁", "戊己", "庚辛", "壬癸", "子丑", "寅卯", "辰巳", "午未", "申酉", "戌亥", "春夏", "秋冬", "东西")
    question, answer = zh if lang == "zh" else en
    made = []
    for n in range(start, start + count):
        word = f"{chinese[n % 14]}" if lang == "zh" else f"{words[n % 14]}{'ABCDEFGH'[n // 14 % 8]}"
        made.append(
            {
                "id": f"{lang}-{n}",
                "question": question.format(w=word, n=n),
                "answer": answer.format(w=word, n=n),
                "lang": lang,
                "split": split,
            }
        )
    return made


class Speaker(ScriptedEngine):
    """Answers a question as the `script` of its adapter (None: the base) makes of the gold answer."""

    def __init__(self, gold: dict[str, str], script: dict[str | None, Callable[[str], str]], base_hash: str) -> None:
        super().__init__(base_hash=base_hash)
        self.gold, self.script = gold, script

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        asked = messages[-1]["content"]
        gold = next((answer for question, answer in self.gold.items() if question in asked), "")
        self.reply = self.script[adapter](gold)
        async for delta in super().chat(messages, adapter, sampling):
            yield delta


def right(gold: str) -> str:
    return gold


def wrong(gold: str) -> str:
    return "Something else entirely 完全不同"


class Bench:
    """A service over `knowledge` whose domain `medical` has a base model, data sets and adapters made here."""

    def __init__(self, knowledge: Knowledge, folder: Path) -> None:
        base = make_base(folder / "base")
        knowledge.workspace.save_setting("engines.default.base", f"path:{base}")
        knowledge.workspace.save_setting("engines.default.languages", ["en", "zh"])
        self.knowledge, self.folder, self.models = knowledge, folder, ModelStore(folder / "models")
        self.base_hash = self.models.model_hash(knowledge.workspace.model(f"path:{base}"))
        self.gold: dict[str, str] = {}
        self.script: dict[str | None, Callable[[str], str]] = {None: wrong}

    @property
    def workspace(self) -> Workspace:
        return self.knowledge.workspace

    @property
    def registry(self) -> Registry:
        return Registry(self.workspace)

    def service(self) -> Service:
        engine = Speaker(self.gold, self.script, self.base_hash)
        answering = answering_with(self.knowledge, engine)
        verified = VerifiedAnswers(self.knowledge)
        return Service(self.workspace, self.models, self.knowledge, answering.registry, verified, answering.engines, answering)

    def dataset(self, name: str, content: Rows, domain: str = "medical") -> DatasetInfo:
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")
        self.gold |= {row["question"]: row["answer"] for row in content}
        return Datasets(self.workspace).add(file, name=name, domain=domain).info

    def adapter(self, info: DatasetInfo, speak: Callable[[str], str], number: int = 1, **changes: Any) -> AdapterVersion:
        """A registered version trained on the train split of `info`, which speaks as told."""
        staged = make_adapter(self.workspace.folder("adapters") / f"staged-{number}", number)
        sha256 = version_hash(staged)
        folder = staged.rename(staged.with_name(f"medical@{sha256[:8]}"))
        version = AdapterVersion(
            name=folder.name,
            domain="medical",
            base="path:base",
            base_hash=self.base_hash,
            method="lora",
            path=folder,
            sha256=sha256,
            dataset=info.name,
            dataset_version=info.version,
            parent=None,
            labels=frozenset(),
            config={"rank": RANK, "seed": number},
            metrics={"eval_loss": 1.0, "eval_loss_before": 2.0},
            created_at=utcnow(),
        )
        version = replace(version, **changes)
        pairs = Datasets(self.workspace).pairs(info)
        self.registry.register(version, [Link(pair.id, "unlinked") for pair in pairs if pair.split == "train"])
        self.script[version.name] = speak
        return version


def make_base(folder: Path) -> Path:
    """As much of a base model as is looked at before it is loaded."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.chat_template = NAMED["chatml"]
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, number: int) -> Path:
    """A LoRA adapter of one module of that base."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"lora_A": (RANK, HIDDEN), "lora_B": (HIDDEN, RANK)}
    save_file(
        {f"{module}.{part}.weight": np.full(shape, number, np.float32) for part, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder
