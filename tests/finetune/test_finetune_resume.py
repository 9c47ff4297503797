"""A run that was stopped goes on to the same bits: stopped at every step, killed at random ones, out of disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_model import CHATML, QUICK, build_model, make_examples, make_job

from finetune import resume
from finetune.runs import clear
from finetune.train import TrainJob, TrainResult, key_of, train
from finetune.trainer import AdapterTrainer
from finetune.types import TrainingError
from finetune.version import finish_version, list_versions, version_hash

Event = dict[str, Any]
# Dropout draws from the random state in every step; accumulation leaves an incomplete update at the end of an epoch.
SETTINGS = replace(QUICK, dropout=0.2, micro_batch=2, epochs=2, patience=1)


def _job(tiny: Path, work: Path, **changes: object) -> TrainJob:
    settings = {"train": make_examples(14), "settings": SETTINGS, "checkpoint_seconds": 0.0}
    return make_job(tiny, work, **settings | changes)


def _silent(event: Event) -> None:
    pass


def _same(one: TrainResult, other: TrainResult) -> bool:
    losses = [[(event["step"], event.get("loss"), event.get("eval_loss")) for event in result.log] for result in (one, other)]
    figures = [(r.train_loss, r.eval_loss, r.eval_loss_before, r.best_step, r.steps, version_hash(r.adapter)) for r in (one, other)]
    return losses[0] == losses[1] and figures[0] == figures[1]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The run that nothing stopped. Its checkpoints come at epochs only: they change nothing."""
    return train(_job(tiny, tmp_path_factory.mktemp("whole"), checkpoint_seconds=1e6), _silent)


def _stop_at(step: int, key: str = "loss", seen: list[int] | None = None) -> Callable[[Event], None]:
    def stop(event: Event) -> None:
        if seen is not None and "resumed" not in event:
            seen.append(event["step"])
        if event["step"] == step and key in event:
            raise KeyboardInterrupt

    return stop


def test_stopped_several_times_it_ends_the_same(tiny: Path, tmp_path: Path, whole: TrainResult) -> None:
    assert whole.steps == 8
    for step in (1, 5, 8):
        seen: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            train(_job(tiny, tmp_path), _stop_at(step, seen=seen))
        # A step is told before its checkpoint is written, and the last of an epoch has none before the evaluation.
        assert seen == {1: [0, 1], 5: [0, 1, 2, 3, 4, 4, 5], 8: [5, 6, 7, 8]}[step]
    events: list[Event] = []
    assert _same(train(_job(tiny, tmp_path), events.append), whole)
    assert events[0] == {"step": 7, "steps": 8, "resumed": True}
    assert [event["step"] for event in events[1:]] == [8, 8]


def test_early_stopping_remembers_across_a_kill(tiny: Path, tmp_path: Path) -> None:
    # No improvement ever reaches the threshold: it stops after two evaluations that count.
    settings = replace(SETTINGS, epochs=6, patience=2, threshold=50.0)
    with pytest.raises(KeyboardInterrupt):
        train(_job(tiny, tmp_path, settings=settings), _stop_at(6))
    stopped = train(_job(tiny, tmp_path, settings=settings), _silent)
    assert stopped.steps == 12
    # Killed when all was done but the result not taken: it has stopped already.
    seen: list[Event] = []
    assert _same(train(_job(tiny, tmp_path, settings=settings), seen.append), stopped)
    assert seen == []


def test_determinism_on_request_ends_with_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    enabled: list[bool] = []
    settings = replace(SETTINGS, deterministic=True, epochs=1)
    train(_job(tiny, tmp_path, settings=settings), lambda event: enabled.append(torch.are_deterministic_algorithms_enabled()))
    assert all(enabled) and not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(AdapterTrainer, "evaluate", fail)
    with pytest.raises(TrainingError, match=r"deterministic: this model and device cannot be trained so .*set it to false"):
        train(_job(tiny, tmp_path, settings=settings, fresh=True), _silent)
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_inputs_are_another_run(tiny: Path, tmp_path: Path) -> None:
    key = key_of(_job(tiny, tmp_path))
    assert key_of(_job(tiny, tmp_path / "elsewhere", fresh=True, checkpoint_seconds=9.0)) == key
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "adapter_model.safetensors").write_bytes(b"weights")
    for changes in (
        {"settings": replace(SETTINGS, seed=7)},
        {"train": make_examples(13)},
        {"dev": make_examples(3)},
        {"base_hash": "other"},
        {"chat_template": CHATML},
        {"start": tmp_path / "start"},
    ):
        assert key_of(_job(tiny, tmp_path, **changes)) != key


def test_fresh_starts_over(tiny: Path, tmp_path: Path) -> None:
    for fresh, expected in ((False, [0, 1, 2, 3]), (True, [0, 1])):
        seen: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            train(_job(tiny, tmp_path, fresh=fresh), _stop_at(expected[-1], seen=seen))
        assert seen == expected


def test_the_seal_comes_after_all_else_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(resume, "sync", lambda path: synced.append((path.name, (tmp_path / "complete").exists())))
    for name in ("trainable.safetensors", "optimizer.pt"):
        (tmp_path / name).touch()
    resume._seal(tmp_path)
    before, after = ([name for name, sealed in synced if sealed is there] for there in (False, True))
    assert set(before) == {"trainable.safetensors", "optimizer.pt", tmp_path.name}
    assert after == ["complete", tmp_path.name]


def test_a_half_written_checkpoint_is_passed_over(tiny: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, calls = resume._seal, [0]

    def torn(target: Path) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        sealed(target)

    monkeypatch.setattr(resume, "_seal", torn)
    with pytest.raises(KeyboardInterrupt):
        train(_job(tiny, tmp_path), _silent)
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-3"}
    assert resume.newest(folder) == folder / "checkpoint-2"
    assert _same(train(_job(tiny, tmp_path), _silent), whole)


@pytest.mark.slow
def test_only_the_newest_and_the_best_are_kept(tiny: Path, tmp_path: Path) -> None:
    # At this rate the first epoch is the best.
    settings = replace(SETTINGS, learning_rate=0.1, alpha=1024, patience=0)
    with pytest.raises(KeyboardInterrupt):
        train(_job(tiny, tmp_path, settings=settings), _stop_at(8, "eval_loss"))
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-4", "checkpoint-7"}
    assert [path.name for path in (folder / "checkpoint-4").iterdir()] == ["trainable.safetensors"]
    result = train(_job(tiny, tmp_path, settings=settings), _silent)
    assert result.best_step == 4


def test_what_was_told_of_lost_steps_is_told_again(tiny: Path, tmp_path: Path, whole: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even within the same second does a run write over what the one before told.
    monkeypatch.setattr("tensorboardX.event_file_writer.time", SimpleNamespace(time=lambda: 1.8e9))
    # The first ends without any checkpoint.
    for step in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            train(_job(tiny, tmp_path), _stop_at(step, "eval_loss" if step == 0 else "loss"))
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text("utf-8") + '{"step": 4, "lo', "utf-8")
    assert _same(train(_job(tiny, tmp_path), _silent), whole)
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    steps = _board(tmp_path / "tensorboard")
    assert (steps["loss"], steps["eval_loss"]) == (list(range(1, 9)), [0, 4, 8])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    # What stays when the run is done.
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "loss.png", "run.json", "tensorboard"}


def _board(folder: Path) -> dict[str, list[int]]:
    """The steps of every value in TensorBoard's files, read as TensorBoard does: a restart takes back what came after it."""
    from tensorboardX.proto.event_pb2 import Event as Record

    steps: dict[str, list[int]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data, at = file.read_bytes(), 0
        while at < len(data):
            # A record: its length (8 bytes), a checksum (4), the event, a checksum (4).
            size = int.from_bytes(data[at : at + 8], "little")
            record = Record.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            if record.HasField("session_log"):
                steps = {key: [step for step in told if step < record.step] for key, told in steps.items()}
            for value in record.summary.value:
                steps.setdefault(value.tag, []).append(record.step)
    return steps


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1000, pytest.param(20000, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_checkpoint_before(
    tiny: Path, tmp_path: Path, whole: TrainResult, limited: Callable[[int], None], size: int
) -> None:
    def fill(event: Event) -> None:
        if event["step"] == 3:
            limited(size)

    with pytest.raises(
        TrainingError, match=r"checkpoint-3: the checkpoint could not be written .*the one of step 2 stays: free some space"
    ):
        train(_job(tiny, tmp_path), fill)
    limited(resource.RLIM_INFINITY)
    assert _same(train(_job(tiny, tmp_path), _silent), whole)


# What training imports as it goes.
_AHEAD = ["datasets", "finetune.trainer", "finetune.version", "finetune.watch", "matplotlib.figure"]


def killed_job(base: Path, work: Path) -> TrainJob:
    """Eighteen updates, with a checkpoint after each."""
    return make_job(base, work, train=make_examples(24), settings=replace(SETTINGS, epochs=3, patience=0), checkpoint_seconds=0.0)


def _work(base: Path, root: Path, tell: Connection) -> None:
    """Train and make a version; tell every step, and at last what came out."""
    result = train(killed_job(base, root / "run"), lambda event: tell.send(event["step"]))
    version = finish_version(result, root / "adapters", "bank", dataset="d", dataset_version="1")
    tell.send([version.name, result.train_loss, result.eval_loss, result.steps])


def _begun(base: Path, root: Path, way: str = "forkserver") -> tuple[BaseProcess, Iterator[Any]]:
    """A process that is at `_work`, and what it tells. The libraries are imported once, in the process it is forked from."""
    context: Any = multiprocessing.get_context(way)
    context.set_forkserver_preload(_AHEAD)
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(base, root, there))
    child.start()
    there.close()

    def told() -> Iterator[Any]:
        with here, suppress(EOFError):
            while True:
                yield here.recv()

    return child, told()


def _kill_and_finish(root: Path, kills: int) -> None:
    """Kill at random moments, also while a checkpoint or the version is written; the end is that of a run left alone."""
    base, dice = build_model(root / "base", hidden=64), random.Random(kills)
    # Begun from nothing, so that the order of its sets is another one.
    *_, expected = _begun(base, root / "alone", "spawn")[1]
    for _kill in range(kills):
        child, told = _begun(base, root / "killed")
        if isinstance(next(told), list):
            break
        list(islice(told, dice.randint(0, 5)))
        child.join(dice.random() * 0.1)
        child.kill()
        child.join()
        assert list_versions(root / "killed" / "adapters") in ([], list_versions(root / "alone" / "adapters"))
    *_, ended = _begun(base, root / "killed")[1]
    assert ended == expected
    names = [[version.name for version in list_versions(root / name / "adapters")] for name in ("alone", "killed")]
    assert names[0] == names[1] == [expected[0]]


@pytest.mark.slow
def test_killed_three_times_it_ends_the_same(tmp_path: Path) -> None:
    _kill_and_finish(tmp_path, 3)


@pytest.mark.full
def test_killed_twenty_times_it_ends_the_same(tmp_path: Path) -> None:
    for root in ("a", "b", "c", "d", "e"):
        _kill_and_finish(tmp_path / root, 4)
