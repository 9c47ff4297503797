"""A LLaMA-Factory training file (YAML) as settings of ours: what is taken, what has no meaning here, what is not supported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from finetune.llama_factory_keys import NO_MEANING, UNSUPPORTED
from finetune.settings import METHODS, SCHEDULERS, TrainSettings, learns_from, nearest
from finetune.types import TrainingError

# A file with one of these is LLaMA-Factory's.
_MARKS = frozenset(
    {"model_name_or_path", "finetuning_type", "stage", "per_device_train_batch_size", "cutoff_len", "dataset_dir", "template"}
)
# Theirs -> ours, where only the name differs.
_RENAMED = {
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "learning_rate": "learning_rate",
    "max_grad_norm": "max_grad_norm",
    "weight_decay": "weight_decay",
    "cutoff_len": "max_length",
    "seed": "seed",
    "pref_beta": "dpo_beta",
    "freeze_trainable_layers": "freeze_layers",
    "galore_rank": "galore_rank",
    "galore_update_interval": "galore_every",
    "galore_scale": "galore_scale",
    "early_stopping_steps": "patience",
    "gradient_checkpointing": "gradient_checkpointing",
    "full_determinism": "deterministic",
    "max_samples": "max_samples",
}
# What their program does when a key is not given, in our words.
_DEFAULTS: Mapping[str, Any] = {
    "rank": 8,
    "dropout": 0.0,
    "learning_rate": 5e-5,
    "scheduler": "linear",
    "warmup_steps": 0,
    "max_length": 2048,
    "patience": 0,
    "galore_rank": 16,
    "galore_scale": 2.0,
}
# Flags of LoRA training -> our method.
_VARIANTS = {
    "quantization_bit": "qlora",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "pissa_init": "pissa",
    "loraplus_lr_ratio": "lora+",
}
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")
_TRANSLATED = frozenset(
    {
        "model_name_or_path",
        "dataset",
        "stage",
        "finetuning_type",
        "lora_target",
        "lr_scheduler_type",
        "warmup_steps",
        "warmup_ratio",
        "optim",
    }
    | {"per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "template", "val_size", "bf16", "packing"}
    | {"neat_packing", "disable_gradient_checkpointing", "use_galore", "eval_dataset", "trust_remote_code"}
    | _RENAMED.keys()
    | _VARIANTS.keys()
)
# Ours -> theirs, where the names differ.
_THEIRS = {ours: theirs for theirs, ours in _RENAMED.items() if ours != theirs} | {
    "batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "lora_plus_ratio": "loraplus_lr_ratio",
    "scheduler": "lr_scheduler_type",
    "target": "lora_target",
}
_THEIR_KEYS = _TRANSLATED | NO_MEANING | UNSUPPORTED.keys()
# Settings of ours that no key of theirs stands for: messages name them as remedies, so such a file may have them too.
_OURS = frozenset(item.name for item in fields(TrainSettings)) - _THEIRS.keys() - _THEIR_KEYS


@dataclass(slots=True)
class Translation:
    """`values` are settings of ours, `dataset` and `base` what the file names; `taken`, `no_meaning` and `unsupported` explain its keys,
    `ours` are those that are settings of ours, `different` tells what is done otherwise here than the file says or leaves unsaid."""

    values: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    base: str | None = None
    taken: dict[str, str] = field(default_factory=dict)
    no_meaning: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    different: dict[str, str] = field(default_factory=dict)
    ours: list[str] = field(default_factory=list)


def is_llama_factory(values: Mapping[str, Any]) -> bool:
    """Whether the keys of a file are LLaMA-Factory's. None of theirs stands before tables, so that `[[stage]]` is `[[stages]]` misspelt."""
    return any(key in _MARKS and not isinstance(value, list) for key, value in values.items())


def in_their_words(message: str, where: str) -> str:
    """A message about a setting, "WHERE: KEY: …", with the key that stands in the file."""
    key, colon, rest = message.removeprefix(f"{where}: ").partition(":")
    return f"{where}: {_THEIRS.get(key, key)}{colon}{rest}"


def translate(given: Mapping[str, Any], where: str, ignore_unsupported: bool = False) -> Translation:
    """The file's keys as ours. What it leaves out takes LLaMA-Factory's default, so that the same file trains the same way but for what
    `different` tells.

    Raises TrainingError naming `where` and every key that is misspelt or would change the result and is not supported;
    with `ignore_unsupported` they are only listed in the result.
    """
    found = _Reading(where, {key: value for key, value in given.items() if value is not None})
    result = found.result
    result.values.update(_DEFAULTS)
    found.method()
    found.renamed()
    found.batches()
    found.schedule()
    found.data()
    found.rest()
    if result.unsupported and not ignore_unsupported:
        listed = "".join(f"\n  {key}: {reason}" for key, reason in result.unsupported.items())
        raise TrainingError(f"{where}: these keys would change the result and are not supported (--ignore-unsupported goes on):{listed}")
    return result


class _Reading:
    """One pass over the keys of a file."""

    def __init__(self, where: str, given: Mapping[str, Any]) -> None:
        self.where, self.given, self.result = where, given, Translation()

    def method(self) -> None:
        given, result = self.given, self.result
        stage, kind = str(given.get("stage", "sft")), str(given.get("finetuning_type", "lora"))
        galore = self._flag("use_galore")
        for key in ("use_dora", "use_rslora", "pissa_init"):
            self._flag(key)
        variants = {key: name for key, name in _VARIANTS.items() if given.get(key) not in (None, False)}
        if "quantization_bit" in variants and (bits := self._number("quantization_bit", 4)) != 4:
            result.unsupported["quantization_bit"] = f"{bits:g} bits; only 4 (method qlora)"
            del variants["quantization_bit"]
        method = {
            ("sft", "lora"): next(iter(variants.values()), "lora"),
            ("sft", "freeze"): "freeze",
            ("sft", "full"): "galore" if galore else "full",
            ("dpo", "lora"): "dpo",
            ("pt", "full"): "pretrain",
        }.get((stage, kind))
        if method is None:
            valid = "stage sft with lora, freeze or full; dpo with lora; pt with full"
            result.unsupported["stage"] = f"{stage} with finetuning_type {kind}; {valid}"
            method = "lora"
        used = next((key for key, name in variants.items() if name == method), None)
        result.unsupported.update({key: f"not together with method {method}" for key in variants if key != used})
        if galore and method != "galore":
            result.unsupported["use_galore"] = f"not together with method {method}; GaLore needs finetuning_type: full"
        elif galore:
            result.taken["use_galore"] = "method"
        keys = [key for key in ("stage", "finetuning_type", used) if key is not None and key in given]
        result.taken.update({key: "method" for key in keys if key not in result.unsupported})
        result.values["method"] = self._own_method(method)
        if "loraplus_lr_ratio" in variants:
            result.values["lora_plus_ratio"] = given["loraplus_lr_ratio"]

    def _own_method(self, theirs: str) -> Any:
        """The setting `method` of ours if the file has it, else that of its other keys."""
        own = self.given.get("method", theirs)
        if own in METHODS and learns_from(own) != learns_from(theirs):
            self.result.unsupported["method"] = f"{own} learns from {learns_from(own)}, the file's stage from {learns_from(theirs)}"
            return theirs
        if own != theirs:
            self.result.different["method"] = f"{own}, as `method` says, instead of {theirs}"
        return own

    def renamed(self) -> None:
        result = self.result
        for theirs, ours in _RENAMED.items():
            if theirs in self.given:
                result.values[ours] = self.given[theirs]
                result.taken[theirs] = ours
        # Their alpha is twice the rank unless it is given.
        result.values.setdefault("alpha", 2 * self._whole("lora_rank", 8))
        target = self._names("lora_target", "names of modules") if "lora_target" in self.given else "all"
        result.values["target"] = "all-linear" if target == "all" else [name for name in target.split(",") if name]
        if "lora_target" in self.given:
            result.taken["lora_target"] = "target"
        if "disable_gradient_checkpointing" in self.given:
            result.values["gradient_checkpointing"] = not self._flag("disable_gradient_checkpointing")
            result.taken["disable_gradient_checkpointing"] = "gradient_checkpointing"

    def batches(self) -> None:
        micro, times = self._whole("per_device_train_batch_size", 8), self._whole("gradient_accumulation_steps", 1)
        # How many are computed at once changes memory and speed alone: a `micro_batch` of ours leaves the batch what it is.
        self.result.values.update(micro_batch=self.given.get("micro_batch", micro), batch_size=micro * times)
        for key, ours in (("per_device_train_batch_size", "micro_batch"), ("gradient_accumulation_steps", "batch_size")):
            if key in self.given:
                self.result.taken[key] = ours

    def schedule(self) -> None:
        given, result = self.given, self.result
        epochs = self._number("num_train_epochs", 3.0)
        if epochs != int(epochs):
            result.unsupported["num_train_epochs"] = f"{epochs}; only whole epochs"
        else:
            result.values["epochs"] = int(epochs)
            if "num_train_epochs" in given:
                result.taken["num_train_epochs"] = "epochs"
        scheduler = str(given.get("lr_scheduler_type", "linear")).replace("constant_with_warmup", "constant")
        if scheduler not in SCHEDULERS:
            result.unsupported["lr_scheduler_type"] = f"{scheduler}; {nearest(scheduler, SCHEDULERS)}"
        else:
            result.values["scheduler"] = scheduler
            if "lr_scheduler_type" in given:
                result.taken["lr_scheduler_type"] = "scheduler"
        steps, ratio = self._number("warmup_steps", 0.0), self._number("warmup_ratio", 0.0)
        # Steps win over a ratio; steps below 1 are a ratio.
        if steps >= 1:
            result.values.update(warmup_steps=int(steps), warmup_ratio=1.0)
        elif steps or ratio:
            result.values.update(warmup_steps=10**6, warmup_ratio=steps or ratio)
        result.taken.update({key: key for key in ("warmup_steps", "warmup_ratio") if key in given})
        optimizer = str(given.get("optim", "adamw_torch"))
        if optimizer not in _ADAMW:
            result.unsupported["optim"] = f"{optimizer}; AdamW is used (adamw_torch)"
        elif "optim" in given:
            result.taken["optim"] = "AdamW"

    def data(self) -> None:
        given, result = self.given, self.result
        if given.get("model_name_or_path"):
            base = str(given["model_name_or_path"])
            local = base.startswith(("/", ".", "~")) or base.count("/") != 1
            result.base = f"path:{base}" if local else f"hub:{base}"
            result.taken["model_name_or_path"] = "base"
        listed, measured = self._names("dataset"), self._names("eval_dataset")
        if listed and result.values["method"] == "pretrain":
            result.unsupported["dataset"] = (
                f"{listed}; stage pt reads the documents of the domain: bring the texts in with appliance ingest"
            )
        elif listed:
            result.dataset = listed
            result.taken["dataset"] = "dataset"
        if measured and result.values["method"] == "pretrain":
            result.unsupported["eval_dataset"] = f"{measured}; stage pt holds out documents of the domain (val_size)"
        elif measured:
            result.values["eval_dataset"] = measured
            result.taken["eval_dataset"] = "eval_dataset"
        size = self._number("val_size", 0.0)
        if size < 0:
            raise TrainingError(f"{self.where}: val_size: expected a share below 1 or a number of rows, found {given['val_size']!r}")
        if size and measured:
            result.unsupported["val_size"] = f"{size:g}; not together with eval_dataset"
        elif size:
            result.values["val_size"] = size
            result.taken["val_size"] = "val_size"
        elif not measured:
            result.different["val_size"] = "nothing is held out there, a tenth here: it picks the epoch, and the gate asks its questions"
        if self.given.get("load_best_model_at_end") is not True:
            result.different["num_train_epochs"] = "the epoch with the lowest loss on what is held out is kept, there the last one"
        if result.values["method"] != "pretrain" and "over_long" not in given:
            result.different["cutoff_len"] = (
                "a longer example is an error, there it is cut; over_long: drop or over_long: window in this file chooses otherwise"
            )
        notes = {
            "trust_remote_code": "always off: no code of a model is run",
            "template": "the tokenizer's own chat template, or the engine's chat_template, is used in training and serving alike",
            "bf16": "bfloat16 is used where the device has it",
            "packing": "batches are packed only where that is proven to change nothing",
            "neat_packing": "batches are packed only where that is proven to change nothing",
        }
        result.no_meaning.update({key: note for key, note in notes.items() if key in given})

    def rest(self) -> None:
        for key, value in self.given.items():
            if key in _TRANSLATED:
                continue
            if key in _OURS:
                self.result.ours.append(key)
                self.result.values.setdefault(key, value)
            elif key in NO_MEANING:
                self.result.no_meaning[key] = ""
            elif key in _THEIRS:
                self.result.unsupported[key] = f"called {_THEIRS[key]} in a LLaMA-Factory file"
            elif key not in UNSUPPORTED:
                hint = nearest(str(key), sorted(_THEIR_KEYS | _OURS))
                self.result.unsupported[key] = hint if hint.startswith("did") else "no key of LLaMA-Factory"
            elif value == UNSUPPORTED[key] or (key, value) == ("quantization_method", "bitsandbytes"):
                # Before 0.9 "bnb" was spelt out.
                self.result.no_meaning[key] = "the default"
            else:
                self.result.unsupported[key] = f"{value!r}; only {UNSUPPORTED[key]!r}" if UNSUPPORTED[key] is not None else "leave it out"

    def _names(self, key: str, what: str = "names of data sets") -> str:
        """The names under `key`, as "a,b"."""
        value = self.given.get(key, [])
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TrainingError(f"{self.where}: {key}: expected {what}, found {value!r}")
        return ",".join(name.strip() for name in names if name.strip())

    def _flag(self, key: str) -> bool:
        value = self.given.get(key, False)
        if not isinstance(value, bool):
            raise TrainingError(f"{self.where}: {key}: expected true or false, without quotes, found {value!r}")
        return value

    def _number(self, key: str, default: float) -> float:
        value = self.given.get(key, default)
        try:
            number = float(value)
            if isinstance(value, bool) or not math.isfinite(number):
                raise ValueError
            return number
        except (TypeError, ValueError, OverflowError) as error:
            raise TrainingError(f"{self.where}: {key}: expected a number, found {value!r}") from error

    def _whole(self, key: str, default: int) -> int:
        value = self._number(key, default)
        if value != int(value) or value < 1:
            raise TrainingError(f"{self.where}: {key}: expected a whole number above 0, found {self.given[key]!r}")
        return int(value)
