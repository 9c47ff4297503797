"""Training in one or more stages, each starting from what the last one made. A plan is plain data; `finetune.config_file` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from finetune.settings import MODEL_METHODS, TrainSettings, learns_from, settings_from
from finetune.types import TrainingError

# What stands beside the settings, in a stage and at the top of a file.
_KEYS = ("name", "dataset")
_TOP = ("dataset", "base", "search", "stages")
_PLAIN = frozenset({"lora", "qlora", "lora+", "dpo"})
# Method -> those that can train its adapter further: the adapter's kind stays what it is.
_FOLLOWED_BY = {
    "lora": _PLAIN,
    "qlora": _PLAIN,
    "lora+": _PLAIN,
    "pissa": _PLAIN,
    "dpo": _PLAIN,
    "dora": frozenset({"dora", "dpo"}),
    "rslora": frozenset({"rslora", "dpo"}),
    "prefix": frozenset({"prefix"}),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run. `dataset` is None where the command names it, or the method learns from the domain's documents."""

    name: str
    dataset: str | None
    settings: TrainSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file asks for: the stages, the base it was written for (None: any), the table [search], remarks for the user.

    `where` is the file's name for messages.
    """

    stages: tuple[Stage, ...]
    base: str | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    where: str = "settings"

    def overridden(self, dataset: str | None, method: str | None) -> Plan:
        """The plan with what the command line says in place. Raises TrainingError if there are several stages to choose from."""
        if dataset is None and method is None:
            return self
        if len(self.stages) > 1:
            raise TrainingError("--dataset and --method name one stage's; this file has several: write them into its [[stages]]")
        stage = self.stages[0]
        settings = replace(stage.settings, method=method) if method else stage.settings
        return replace(self, stages=(replace(stage, dataset=dataset or stage.dataset, settings=settings),))


def plan_from(values: Mapping[str, Any], base: TrainSettings | None = None, where: str = "settings") -> Plan:
    """The plan of a file's keys: settings, `dataset`, `base`, `[search]` and `[[stages]]`, whose keys win over the file's.

    Raises TrainingError naming `where` and the key.
    """
    rest = dict(values)
    stages, search, wanted = rest.pop("stages", None), rest.pop("search", {}), rest.pop("base", None)
    dataset = _text(where, "dataset", rest.pop("dataset", None))
    if not isinstance(search, dict):
        raise TrainingError(f"{where}: search: expected a table [search], found {search!r}")
    common = settings_from(rest, base, where, _TOP)
    if stages is None:
        return Plan((Stage("", dataset, common),), _text(where, "base", wanted), search, where=where)
    if search:
        raise TrainingError(f"{where}: [search] and [[stages]] do not go together; search each stage in a file of its own")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise TrainingError(f'{where}: stages: expected tables like [[stages]] with name = "general", found {stages!r}')
    made = tuple(_stage(stage, number, dataset, common, where) for number, stage in enumerate(stages, 1))
    names = [stage.name for stage in made]
    if len(set(names)) < len(names):
        raise TrainingError(f"{where}: stages: two have the same name ({', '.join(names)}); name each differently")
    _check_order(made, where)
    return Plan(made, _text(where, "base", wanted), where=where)


def _stage(values: Mapping[str, Any], number: int, dataset: str | None, common: TrainSettings, where: str) -> Stage:
    here = f"{where}: stage {number}"
    for key in values:
        if key in ("stages", "search", "base"):
            raise TrainingError(f"{here}: {key} stands at the top of the file, not in a stage")
    settings = settings_from({key: value for key, value in values.items() if key not in _KEYS}, common, here, _KEYS)
    name = _text(here, "name", values.get("name")) or f"stage{number}"
    # What stands above the stages is for those that learn from a data set.
    common_set = None if learns_from(settings.method) == "texts" else dataset
    return Stage(name, _text(here, "dataset", values.get("dataset")) or common_set, settings)


def _check_order(stages: Sequence[Stage], where: str) -> None:
    """A stage can go on from an adapter only with an adapter of the same shape; a model version takes any method."""
    for last, stage in pairwise(stages):
        if last.settings.method in MODEL_METHODS:
            continue
        here = f"{where}: stage {stage.name!r} ({stage.settings.method})"
        if stage.settings.method not in _FOLLOWED_BY[last.settings.method]:
            raise TrainingError(
                f"{here} cannot go on from the adapter of {last.name!r} ({last.settings.method}); put it first, or export that adapter "
                "into a model (appliance export) and name it as the engine's base"
            )
        for key in ("rank", "alpha", "target"):
            if getattr(last.settings, key) != getattr(stage.settings, key):
                raise TrainingError(
                    f"{here}: {key} is {getattr(stage.settings, key)!r} and was {getattr(last.settings, key)!r} in {last.name!r}; "
                    "a stage that trains an adapter further keeps its shape"
                )


def _text(where: str, key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise TrainingError(f"{where}: {key}: expected text, found {value!r}")
    return value.strip() if value is not None else None
