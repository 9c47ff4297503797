"""The file of `tune --config`: TOML or YAML with settings of ours, or a LLaMA-Factory training file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.llama_factory_config import Translation, in_their_words, is_llama_factory, translate
from finetune.settings import TrainSettings, settings_from
from finetune.stages import Plan, plan_from
from finetune.types import TrainingError


def load_plan(path: Path, ignore_unsupported: bool = False) -> Plan:
    """What the file asks for. Raises TrainingError naming the file and the key, or the place that cannot be parsed.

    Keys of a LLaMA-Factory file are translated; those it has that would change the result and are not supported are an
    error unless `ignore_unsupported`. What became of each key is told in `Plan.notes`.
    """
    values = read_values(path)
    if not is_llama_factory(values):
        return plan_from(values, where=str(path))
    translation = translate(values, str(path), ignore_unsupported)
    named = {"dataset": translation.dataset, "base": translation.base}
    try:
        plan = plan_from(translation.values | {key: value for key, value in named.items() if value is not None}, where=str(path))
    except TrainingError as error:
        raise TrainingError(in_their_words(str(error), str(path))) from error
    return replace(plan, notes=_notes(translation))


def load_settings(path: Path, base: TrainSettings | None = None) -> TrainSettings:
    """Read a TOML or YAML file that holds settings only, over `base`. Raises TrainingError like `load_plan`."""
    return settings_from(read_values(path), base, str(path))


def read_values(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML or YAML file. Raises TrainingError naming the file, or the place that cannot be parsed."""
    import tomllib

    import yaml

    from finetune.yaml_loader import Loader

    if path.suffix.lower() not in (".toml", ".yaml", ".yml"):
        raise TrainingError(f"{path}: expected a file ending in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise TrainingError(f"{path}: not text in UTF-8; save the file as UTF-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.load(text, Loader)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: not text in UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be parsed ({' '.join(str(error).split())}); correct it there") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected keys with values like rank = 16, found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def _notes(translation: Translation) -> tuple[str, ...]:
    taken = ", ".join(f"{theirs} → {ours}" if theirs != ours else theirs for theirs, ours in translation.taken.items())
    without = ", ".join(f"{key} ({why})" if why else key for key, why in translation.no_meaning.items())
    different = (f"different here: {key}: {why}" for key, why in translation.different.items())
    ignored = (f"IGNORED, would change the result: {key}: {reason}" for key, reason in translation.unsupported.items())
    ours = f"settings of ours in it: {', '.join(translation.ours)}" if translation.ours else ""
    lines = (f"taken from the LLaMA-Factory file: {taken}", ours, f"no meaning here: {without}" if without else "")
    return tuple(line for line in (*lines, *different, *ignored) if line)
