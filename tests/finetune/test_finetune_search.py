from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import QUICK, make_job

from finetune.search import Choice, Found, search, space_from
from finetune.settings import TrainSettings
from finetune.train import TrainJob, key_of, train
from finetune.types import TrainingError

Event = dict[str, Any]
SPACE = {"learning_rate": Choice(low=1e-3, high=5e-2, log=True), "rank": Choice(values=(2, 4)), "epochs": Choice(low=1, high=3, whole=True)}


def _silent(event: Event) -> None:
    pass


def _place(job: TrainJob) -> TrainJob:
    return replace(job, work=job.work / key_of(job)[:12])


def _search(tiny: Path, work: Path, trials: int = 3, progress: Callable[[Event], None] = _silent, **changes: object) -> Found:
    options = {"space": SPACE, "folder": work / "search"} | changes
    return search(make_job(tiny, work), trials=trials, place=_place, progress=progress, **options)  # type: ignore[arg-type]


def _rows(found: Found) -> list[tuple[object, ...]]:
    return [(tried.number, tried.outcome, tried.values, tried.loss, tried.steps) for tried in found.tried]


def test_training_with_the_best_settings_finds_its_run_done(tiny: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    found = _search(tiny, tmp_path, trials=2, progress=events.append)
    assert [tried.number for tried in found.tried] == [0, 1]
    assert {event["trial"] for event in events} == {1, 2} and events[0]["trials"] == 2
    best = min((tried for tried in found.tried if tried.outcome == "done"), key=lambda tried: tried.loss or 0.0)
    assert (found.best, found.settings) == (best.number, replace(QUICK, **best.values))
    assert len(list(tmp_path.glob("*/checkpoints"))) == 1
    seen: list[Event] = []
    assert train(_place(make_job(tiny, tmp_path, settings=found.settings)), seen.append).eval_loss == best.loss
    assert seen == []


@pytest.mark.slow
def test_an_interrupted_search_ends_as_one_left_alone(tiny: Path, tmp_path: Path) -> None:
    alone = _search(tiny, tmp_path / "alone", trials=6)

    def stop(event: Event) -> None:
        if event["trial"] == 2 and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _search(tiny, tmp_path / "cut", trials=5, progress=stop)
    trials: list[int] = []
    _search(tiny, tmp_path / "cut", trials=5, progress=lambda event: trials.append(event["trial"]))
    # The first run is not done again.
    assert min(trials) == 2
    assert _rows(_search(tiny, tmp_path / "cut", trials=6)) == _rows(alone)


def test_what_cannot_be_trained_counts_as_failed(tiny: Path, tmp_path: Path) -> None:
    space = {"target": Choice(values=(("no_such_proj",),))}
    with pytest.raises(TrainingError, match=r"3 runs and none succeeded; the last one: .*no_such_proj"):
        _search(tiny, tmp_path, space=space)


def test_the_space_is_read_and_checked() -> None:
    settings = TrainSettings()
    default = space_from({}, settings)
    assert default["learning_rate"] == Choice(low=2e-5, high=1e-3, log=True)
    assert set(default) == {"learning_rate", "rank", "dropout"}
    assert set(space_from({}, TrainSettings(method="full"))) == {"learning_rate"}
    read = space_from(
        {
            "rank": [8, 16],
            "learning_rate": {"low": "1e-5", "high": 1e-3, "log": True},
            "epochs": {"low": 1, "high": 4},
            "target": ["all-linear"],
        },
        settings,
    )
    assert read["learning_rate"] == Choice(low=1e-5, high=1e-3, log=True)
    assert read["epochs"] == Choice(low=1, high=4, whole=True)
    assert read["rank"].values == (8, 16) and read["target"].values == ("all-linear",)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_length": [128]}, "a.toml: max_length: cannot be searched; valid keys"),
        ({"learning_rat": [1e-4]}, 'did you mean "learning_rate"'),
        ({"rank": []}, "expected a list of values or"),
        ({"rank": 8}, "expected a list of values or"),
        ({"rank": {"low": 8}}, "expected a list of values or"),
        ({"rank": {"low": 8, "high": 4}}, "expected low below high, found 8 and 4"),
        ({"rank": {"low": 8, "high": 2**20}}, "rank: expected a value from 1 to 1024"),
        ({"dropout": {"low": 0.0, "high": 0.1, "log": True}}, "low below high, and above 0 on a logarithmic scale"),
        ({"rank": [8, "sixteen"]}, "^a.toml: rank: expected a whole number, found 'sixteen'"),
        ({"scheduler": {"low": 1, "high": 2}}, "^a.toml: scheduler: expected text"),
        ({"method": ["lora", "full"]}, "full learns from other data, or makes another kind of result, than lora"),
    ],
)
def test_a_wrong_space_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        space_from(values, TrainSettings(), "a.toml")
