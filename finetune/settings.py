"""How to train, from defaults, a TOML or YAML file, or both. Every key is checked by name, type and range."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune.types import TrainingError

METHODS = ("lora",)
SCHEDULERS = ("cosine", "linear", "constant")
OVER_LONG = ("error", "drop")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How an adapter is trained. Raises TrainingError naming the key that is out of range.

    LoRA (Hu et al. 2021, arXiv:2106.09685) with `rank`, `alpha` (the update is scaled by alpha / rank), `dropout`, on the
    modules `target` ("all-linear" as QLoRA found best, arXiv:2305.14314, or names of modules). `batch_size` examples make
    one update, computed `micro_batch` at a time (None: chosen for the device). Warm-up takes `warmup_steps` updates but
    never more than a tenth of all. `max_length` is in tokens, prompt and answer together; `over_long` says what happens to
    longer examples: "error" or "drop" (counted). Training stops after `patience` evaluations (one an epoch) that did not
    lower the loss on the dev split by more than `threshold`; patience 0 never stops early. The best epoch is kept.
    """

    method: str = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    target: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 2e-4
    epochs: int = 3
    batch_size: int = 16
    micro_batch: int | None = None
    warmup_steps: int = 100
    scheduler: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 1024
    over_long: str = "error"
    patience: int = 2
    threshold: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("scheduler", self.scheduler, SCHEDULERS)
        _one_of("over_long", self.over_long, OVER_LONG)
        for key, low, high in (
            ("rank", 1, 1024),
            ("alpha", 1, 4096),
            ("epochs", 1, 1000),
            ("batch_size", 1, 65536),
            ("warmup_steps", 0, 10**6),
            ("max_length", 8, 10**6),
            ("patience", 0, 1000),
            ("seed", 0, 2**32 - 1),
        ):
            _between(key, getattr(self, key), low, high)
        for key, most in (("dropout", 0.95), ("weight_decay", 1.0), ("threshold", 100.0)):
            _between(key, getattr(self, key), 0.0, most)
        if not 0 < self.learning_rate <= 0.1:
            raise TrainingError(
                f"learning_rate: expected a number above 0 and at most 0.1 (LoRA: 1e-5 to 1e-3), found {self.learning_rate}"
            )
        if not 0 < self.max_grad_norm < math.inf:
            raise TrainingError(f"max_grad_norm: expected a number above 0, found {self.max_grad_norm}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch_size % self.micro_batch):
            raise TrainingError(f"micro_batch: expected a divisor of batch_size ({self.batch_size}), found {self.micro_batch}")
        if not self.target or "lm_head" in self.target:
            raise TrainingError(f'target: expected "all-linear" or names of linear modules other than lm_head, found {self.target!r}')

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; `settings_from` gives the settings back."""
        return asdict(self)


def settings_from(values: Mapping[str, Any], base: TrainSettings | None = None, where: str = "settings") -> TrainSettings:
    """`base` (the defaults if None) with `values` in place. Raises TrainingError naming `where` and the key."""
    known = [item.name for item in fields(TrainSettings)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"valid keys: {', '.join(known)}"
            raise TrainingError(f'{where}: unknown key "{key}"; {hint}')
    types = {item.name: str(item.type) for item in fields(TrainSettings)}
    changes = {key: _typed(where, key, types[key], value) for key, value in values.items()}
    try:
        return replace(base or TrainSettings(), **changes)
    except TrainingError as error:
        raise TrainingError(f"{where}: {error}") from error


def load_settings(path: Path, base: TrainSettings | None = None) -> TrainSettings:
    """Read a TOML or YAML file over `base`. Raises TrainingError naming the file and the key, or the place that cannot be parsed."""
    import tomllib

    import yaml

    if path.suffix.lower() not in (".toml", ".yaml", ".yml"):
        raise TrainingError(f"{path}: expected a file ending in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be parsed ({' '.join(str(error).split())}); correct it there") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected keys with values like rank = 16, found {type(values).__name__}")
    return settings_from(values, base, str(path))


def _typed(where: str, key: str, kind: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected, right = "a number", number
    if kind == "float":
        # YAML reads 2e-4 (without a point) as text.
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                right = False
    elif kind.startswith("int"):
        expected = "a whole number"
        right = (number and not isinstance(value, float)) or (value is None and "None" in kind)
    elif key == "target":
        expected = "text or a list of texts"
        value = tuple(value) if isinstance(value, list) else value
        right = isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(item, str) for item in value))
    else:
        expected, right = "text", isinstance(value, str)
    if not right:
        raise TrainingError(f"{where}: {key}: expected {expected}, found {value!r}")
    return float(value) if kind == "float" else value


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        raise TrainingError(
            f"{key}: there is no {value!r}; expected {', '.join(known)}" + (f' (did you mean "{close[0]}"?)' if close else "")
        )


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise TrainingError(f"{key}: expected a value from {low} to {high}, found {value}")
