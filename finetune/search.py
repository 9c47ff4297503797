"""A search for hyperparameters: many runs, those without promise ended early, the lowest loss on dev wins.

Optuna (Akiba et al. 2019, arXiv:1907.10902) proposes (tree-structured Parzen estimator) and prunes (below the median of the
others after the same epoch). Its SQLite file makes a search resumable: a run that a kill cut off goes on from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetune.runs import clear
from finetune.settings import METHODS, TrainSettings, learns_from, nearest, settings_from, yields
from finetune.train import TrainJob, train
from finetune.types import TrainingError

# What may be searched: all that leaves the examples, and so the loss on dev, comparable.
SEARCHABLE = (
    "method", "rank", "alpha", "dropout", "target", "learning_rate", "lora_plus_ratio", "epochs", "batch_size", "warmup_steps",
    "warmup_ratio", "scheduler", "weight_decay", "max_grad_norm", "freeze_layers", "prefix_tokens", "galore_rank",
)  # fmt: skip
# So many failures before the first success end a search.
_HOPELESS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`, or a number from `low` to `high` (`log`: evenly on a logarithmic scale)."""

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any, key: str) -> Any:
        if self.values:
            return self.values[trial.suggest_categorical(key, list(range(len(self.values))))]
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


@dataclass(frozen=True, slots=True)
class Tried:
    """One run of a search. `outcome` is "done", "pruned" or "failed"; `loss` is the lowest on dev, None if there was none."""

    number: int
    outcome: str
    values: Mapping[str, Any]
    loss: float | None
    steps: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: the best settings and every run, in order. `best` is the number of the best."""

    settings: TrainSettings
    best: int
    tried: tuple[Tried, ...]


class _Pruned(Exception):
    pass


def space_from(values: Mapping[str, Any], settings: TrainSettings, where: str = "search") -> dict[str, Choice]:
    """The space of a table [search]: a list of choices, or {low, high, log}, for each key; a sensible one if it is empty.

    The default is the learning rate from a tenth to five times that of `settings`, and for LoRA and its variants rank and
    dropout. Raises TrainingError naming `where` and the key.
    """
    if not values:
        space = {"learning_rate": Choice(low=settings.rate / 10, high=min(settings.rate * 5, 0.1), log=True)}
        if yields(settings.method) == "adapter" and settings.method != "prefix":
            space |= {"rank": Choice(values=(8, 16, 32, 64)), "dropout": Choice(values=(0.0, 0.05, 0.1))}
        return space
    return {key: _choice(key, value, settings, where) for key, value in values.items()}


def _choice(key: str, value: Any, settings: TrainSettings, where: str) -> Choice:
    here = f"{where}: {key}"
    if key not in SEARCHABLE:
        raise TrainingError(f"{here}: cannot be searched; {nearest(key, SEARCHABLE)}")
    if key == "method" and isinstance(value, list):
        kind = learns_from(settings.method), yields(settings.method)
        other = [one for one in value if one in METHODS and (learns_from(one), yields(one)) != kind]
        if other:
            raise TrainingError(f"{here}: {other[0]} learns from other data, or makes another kind of result, than {settings.method}")
    if isinstance(value, list) and value:
        # Each must be a value that the setting can have.
        return Choice(values=tuple(getattr(settings_from({key: one}, settings, where), key) for one in value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise TrainingError(f"{here}: expected a list of values or {{ low = …, high = …, log = true }}, found {value!r}")
    type_name = next(str(item.type) for item in fields(TrainSettings) if item.name == key)
    low, high = (getattr(settings_from({key: value[end]}, settings, where), key) for end in ("low", "high"))
    log = value.get("log", False)
    if not type_name.startswith(("int", "float")) or not isinstance(log, bool):
        raise TrainingError(f"{here}: a range needs a key with numbers, and log is true or false; give a list of values")
    if not low < high or (log and low <= 0):
        raise TrainingError(
            f"{here}: expected low below high{', and above 0 on a logarithmic scale' if log else ''}, found {low} and {high}"
        )
    return Choice(low=low, high=high, log=log, whole=type_name.startswith("int"))


def search(
    job: TrainJob,
    space: Mapping[str, Choice],
    trials: int,
    folder: Path,
    place: Callable[[TrainJob], TrainJob],
    progress: Callable[[dict[str, Any]], None],
) -> Found:
    """Run until there are `trials` of them, with those that `folder` remembers; blocks.

    `place` gives a job the folder of its run in ``job.work``. The best run's is left as it ended, so that training with the best
    settings finds it done; of the others only the metrics stay. `progress` gets the events of `finetune.train.train` with trial and trials.
    Proposals depend on the seed and the runs before alone. Raises TrainingError if no run succeeds; a run that cannot be
    trained counts as failed, with its reason.
    """
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name="search",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        )
        for frozen in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            # A kill cut it off: the same proposal goes on.
            study.sampler = _sampler(job, frozen.number)
            _try(job, space, trials, study, optuna.trial.Trial(study, frozen._trial_id), place, progress)
        while len(study.trials) < trials:
            study.sampler = _sampler(job, len(study.trials))
            _try(job, space, trials, study, study.ask(), place, progress)
        found = [_tried(frozen, space) for frozen in study.trials]
        best = _best(study)
    if best is None:
        raise TrainingError(f"no run of the search succeeded; the last one: {found[-1].reason or found[-1].outcome}")
    return Found(_settings(job, space, best), best.number, tuple(found))


def _sampler(job: TrainJob, number: int) -> Any:
    """One for each run, so that a search that was interrupted proposes what it would have."""
    import optuna

    return optuna.samplers.TPESampler(seed=job.settings.seed + number, n_startup_trials=8)


def _try(
    job: TrainJob,
    space: Mapping[str, Choice],
    trials: int,
    study: Any,
    trial: Any,
    place: Callable[[TrainJob], TrainJob],
    progress: Callable[[dict[str, Any]], None],
) -> None:
    """One run, from its proposal to its entry in the study."""
    from optuna.trial import TrialState

    began = time.perf_counter()

    def report(event: dict[str, Any]) -> None:
        progress({**event, "trial": trial.number + 1, "trials": trials})
        if "eval_loss" in event and event["step"]:
            trial.set_user_attr("steps", event["step"])
            trial.report(event["eval_loss"], round(event["epoch"]))
            # After the last epoch there is nothing to save.
            if event["step"] < event["steps"] and trial.should_prune():
                raise _Pruned

    state, value = TrialState.COMPLETE, None
    try:
        run = place(replace(job, settings=_settings(job, space, trial)))
        trial.set_user_attr("work", run.work.name)
        result = train(run, report)
        value = result.eval_loss
        trial.set_user_attr("steps", result.steps)
    except _Pruned:
        state = TrialState.PRUNED
    except TrainingError as error:
        state = TrialState.FAIL
        trial.set_user_attr("reason", str(error))
    trial.set_user_attr("seconds", round(time.perf_counter() - began, 3))
    study.tell(trial.number, value, state=state)
    best = _best(study)
    if best is None and len(study.trials) >= _HOPELESS:
        raise TrainingError(f"{len(study.trials)} runs and none succeeded; the last one: {_tried(study.trials[-1], space).reason}")
    for frozen in study.trials:
        name = frozen.user_attrs.get("work")
        # Two proposals may be the same.
        if name is not None and (best is None or name != best.user_attrs["work"]):
            clear(job.work / name)


def _best(study: Any) -> Any:
    """The finished trial with the lowest loss, the earlier one of two alike; None if there is none."""
    from optuna.trial import TrialState

    return min(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda frozen: (frozen.value, frozen.number), default=None)


def _settings(job: TrainJob, space: Mapping[str, Choice], trial: Any) -> TrainSettings:
    """The settings of a trial, running or finished: a finished one has its choices as parameters."""
    import optuna

    asked = optuna.trial.FixedTrial(trial.params) if isinstance(trial, optuna.trial.FrozenTrial) else trial
    values = {key: choice.suggest(asked, key) for key, choice in space.items()}
    return replace(job.settings, **values)


def _tried(frozen: Any, space: Mapping[str, Choice]) -> Tried:
    from optuna.trial import TrialState

    outcome = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned"}.get(frozen.state, "failed")
    values = {key: choice.values[frozen.params[key]] if choice.values else frozen.params[key] for key, choice in space.items()}
    loss = min(frozen.intermediate_values.values(), default=None) if frozen.value is None else frozen.value
    attrs = frozen.user_attrs
    return Tried(frozen.number, outcome, values, loss, attrs.get("steps", 0), attrs.get("seconds", 0.0), attrs.get("reason", ""))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's talk goes; its level is put back afterwards."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
