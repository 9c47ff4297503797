"""How to train: the hyperparameters. Every key is checked by name, type and range; reading them from files is `finetune.config_file`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from finetune.types import TrainingError

ADAPTER_METHODS = ("lora", "qlora", "dora", "rslora", "pissa", "lora+", "prefix", "dpo")
MODEL_METHODS = ("freeze", "full", "galore", "pretrain")
METHODS = (*ADAPTER_METHODS, *MODEL_METHODS)
PRECISIONS = ("auto", "float32", "bfloat16")
# Learning rates other than LoRA's; those of full, GaLore and DPO are LLaMA-Factory's (examples/, 0.9).
_RATES = {"prefix": 1e-2, "dpo": 5e-6, "freeze": 1e-5, "full": 1e-5, "galore": 1e-4, "pretrain": 1e-5}
SCHEDULERS = ("cosine", "linear", "constant")
OVER_LONG = ("error", "drop", "window")


def _from_to(default: Any, low: float, high: float) -> Any:
    """A field whose value, if it is not None, lies from `low` to `high`."""
    return field(default=default, metadata={"range": (low, high)})


def _one_of(default: str, known: tuple[str, ...]) -> Any:
    """A field that is one of `known`."""
    return field(default=default, metadata={"known": known})


def yields(method: str) -> Literal["adapter", "model"]:
    """What `method` makes: an adapter on the base, or a model version that takes the base's place."""
    return "model" if method in MODEL_METHODS else "adapter"


def learns_from(method: str) -> Literal["pairs", "preferences", "texts"]:
    """What `method` learns from: pairs of question and answer, preferences between two answers, or plain texts."""
    return "preferences" if method == "dpo" else "texts" if method == "pretrain" else "pairs"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a model is trained. Raises TrainingError naming the key that is out of range.

    LoRA (Hu et al. 2021, arXiv:2106.09685) with `rank`, `alpha` (the update is scaled by alpha / rank), `dropout`, on the
    modules `target` ("all-linear" as QLoRA found best, arXiv:2305.14314, or names of modules). `batch_size` examples make
    one update, computed `micro_batch` at a time (None: chosen for the device). Warm-up takes `warmup_steps` updates but
    never more than `warmup_ratio` of all. `max_length` is in tokens, prompt and answer together; `over_long` says what happens to
    longer examples: "error", "drop" (counted) or "window" (oldest history left out, then the answer learnt in overlapping
    pieces: `finetune.tokens.windows_of`). Training stops after `patience` evaluations (one an epoch) that did not
    lower the loss on the dev split by more than `threshold`; patience 0 never stops early. The best epoch is kept.
    `deterministic` refuses operations of a GPU that may differ from run to run (slower); on the CPU runs are equal anyway.

    `learning_rate` None is the method's own: 2e-4 for LoRA and its variants, see `rate`. LoRA+ gives the B matrices
    `lora_plus_ratio` times that rate (arXiv:2402.12354). Prefix tuning learns keys and values of `prefix_tokens` positions;
    "freeze" trains the last `freeze_layers` decoder layers; GaLore projects gradients to `galore_rank` dimensions, chosen anew
    after every `galore_every` updates, and scales the updates by `galore_scale` (arXiv:2403.03507); `dpo_beta` is how strongly
    DPO holds on to where it started (arXiv:2305.18290). `precision` "auto" is bfloat16 where a GPU has it, else float32.

    What is learnt from: of each data set the first `max_samples` rows (None: all). `val_size` is the share of the pairs (from 1 on: their
    number) that is held out where the rows do not say their split; with `eval_dataset`, the name of a data set or of several ("a, b"),
    nothing else is.

    `gradient_checkpointing` computes activations again instead of keeping them: less memory, about a third more work
    (Chen et al. 2016, arXiv:1604.06174).
    """

    method: str = _one_of("lora", METHODS)
    rank: int = _from_to(16, 1, 1024)
    alpha: int = _from_to(32, 1, 4096)
    dropout: float = _from_to(0.05, 0, 0.95)
    target: str | tuple[str, ...] = "all-linear"
    learning_rate: float | None = None
    epochs: int = _from_to(3, 1, 1000)
    batch_size: int = _from_to(16, 1, 65536)
    micro_batch: int | None = None
    gradient_checkpointing: bool = False
    precision: str = _one_of("auto", PRECISIONS)
    lora_plus_ratio: float = _from_to(16.0, 1, 1000)
    prefix_tokens: int = _from_to(16, 1, 1024)
    freeze_layers: int = _from_to(2, 1, 1000)
    galore_rank: int = _from_to(16, 1, 8192)
    galore_every: int = _from_to(200, 1, 10**6)
    galore_scale: float = _from_to(2.0, 1e-3, 100)
    dpo_beta: float = _from_to(0.1, 1e-3, 10)
    warmup_steps: int = _from_to(100, 0, 10**6)
    warmup_ratio: float = _from_to(0.1, 0, 1)
    scheduler: str = _one_of("cosine", SCHEDULERS)
    weight_decay: float = _from_to(0.0, 0, 1)
    max_grad_norm: float = 1.0
    max_length: int = _from_to(1024, 8, 10**6)
    over_long: str = _one_of("error", OVER_LONG)
    patience: int = _from_to(2, 0, 1000)
    threshold: float = _from_to(0.0, 0, 100)
    max_samples: int | None = _from_to(None, 1, 10**9)
    val_size: float = _from_to(0.1, 1e-6, 10**9)
    eval_dataset: str | None = None
    seed: int = _from_to(42, 0, 2**32 - 1)
    deterministic: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if "known" in item.metadata:
                _check_known(item.name, value, item.metadata["known"])
            low, high = item.metadata.get("range", (-math.inf, math.inf))
            if "range" in item.metadata and value is not None and not low <= value <= high:
                raise TrainingError(f"{item.name}: expected a value from {low} to {high}, found {value}")
        if not 0 < self.rate <= 0.1:
            raise TrainingError(
                f"learning_rate: expected a number above 0 and at most 0.1 (LoRA: 1e-5 to 1e-3), found {self.learning_rate}"
            )
        if not 0 < self.max_grad_norm < math.inf:
            raise TrainingError(f"max_grad_norm: expected a number above 0, found {self.max_grad_norm}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise TrainingError(f"micro_batch: expected a divisor of batch_size ({self.batch_size}), found {self.micro_batch}")
        if not self.target or "lm_head" in self.target:
            raise TrainingError(f'target: expected "all-linear" or names of linear modules other than lm_head, found {self.target!r}')

    @property
    def rate(self) -> float:
        """The learning rate: `learning_rate`, else the method's own."""
        return _RATES.get(self.method, 2e-4) if self.learning_rate is None else self.learning_rate

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`, with the learning rate in force; `settings_from` gives settings that train the same."""
        return asdict(self) | {"learning_rate": self.rate}


def held_out(val_size: float, count: int) -> int:
    """How many of `count` are held out: at least one, and one stays."""
    return max(1, min(round(val_size if val_size >= 1 else val_size * count), count - 1))


def settings_from(
    values: Mapping[str, Any], base: TrainSettings | None = None, where: str = "settings", beside: Iterable[str] = ()
) -> TrainSettings:
    """`base` (the defaults if None) with `values` in place. Raises TrainingError naming `where` and the key.

    `beside` are the keys that may stand there besides: what is misspelt may be one of them.
    """
    types = {item.name: str(item.type) for item in fields(TrainSettings)}
    for key in values:
        if key not in types:
            raise TrainingError(f'{where}: unknown key "{key}"; {nearest(str(key), [*types, *beside])}')
    changes = {key: _typed(where, key, types[key], value) for key, value in values.items()}
    try:
        return replace(base or TrainSettings(), **changes)
    except TrainingError as error:
        raise TrainingError(f"{where}: {error}") from error


def nearest(key: str, known: Iterable[str]) -> str:
    """'did you mean "x"?' with the most similar of `known`, or the list of them."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f'did you mean "{close[0]}"?' if close else f"valid keys: {', '.join(names)}"


def _typed(where: str, key: str, kind: str, value: Any) -> Any:
    """`value` as the type whose name is `kind`; a text that spells a number or a list becomes it where one is expected."""
    if value is None and "None" in kind:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected, right = "text", isinstance(value, str)
    if kind.startswith("float"):
        # YAML reads 2e-4 (without a point) as text.
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                right = False
        expected, right, value = "a number", number, float(value) if number else value
    elif kind.startswith("int"):
        expected, right = "a whole number", number and not isinstance(value, float)
    elif kind.startswith("bool"):
        expected, right = "true or false", isinstance(value, bool)
    elif "tuple" in kind:
        expected = "text or a list of texts"
        value = tuple(value) if isinstance(value, list) else value
        right = isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(item, str) for item in value))
    if not right:
        raise TrainingError(f"{where}: {key}: expected {expected}, found {value!r}")
    return value


def _check_known(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        raise TrainingError(
            f"{key}: there is no {value!r}; expected {', '.join(known)}" + (f' (did you mean "{close[0]}"?)' if close else "")
        )
