"""Checkpoints from which a killed run goes on to the same bits. Imported only when training starts: it loads torch.

A checkpoint holds what is trained (`trainable.safetensors`, whatever the method), the optimizer, the scheduler, the random
states, the trainer's state with that of early stopping, and, written last, the file `complete`. What lacks it does not count.
The order of the examples depends on seed and epoch alone.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from finetune.disk import sync
from finetune.sharding import is_sharded, optimizer_state, put, put_optimizer_state, reshard, whole
from finetune.types import TrainingError

_WEIGHTS = "trainable.safetensors"
_SEAL = "complete"
# Writing checkpoints takes at most this share of the time between two.
_SHARE = 0.05


class Checkpointing(Trainer):  # type: ignore[misc]
    """Goes before one of trl's trainers among the base classes: complete checkpoints, of which the newest and the best are kept."""

    seconds_to_save = 0.0

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        # A sharded one is there.
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        root = Path(self.args.output_dir)
        target = root / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            # The other processes write their random states.
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _seal(target)
                _prune(root, target, _number(root, self.state.best_global_step))
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _is_writing(error):
                raise
            shutil.rmtree(target, ignore_errors=True)
            kept = newest(root)
            left = f"the one of step {step_of(kept)} stays" if kept else "there is none before it"
            raise TrainingError(
                f"{target}: the checkpoint could not be written ({error}); {left}: free some space, then start the same run "
                "again and it goes on from there"
            ) from error
        self.seconds_to_save = time.monotonic() - began

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = whole(trainable(self.model))
        if self.args.should_save:
            save_file(trained, folder / _WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True) if self.args.should_save else {}
        put_optimizer_state(self.model, self.optimizer.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.model, Path(resume_from_checkpoint))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint needs none."""


class Cadence(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler the epoch, and asks for checkpoints within one.

    `seconds` are between two, and more where writing one is slow; 0: after every update.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.trainer: Any = None
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # accelerate does not reach the sampler in an epoch that several processes go on with.
        self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step of an epoch is followed by its evaluation and a checkpoint that knows of it.
        if not float(state.epoch).is_integer() and self._due():
            control.should_save = True

    def _due(self) -> bool:
        due = not self.seconds or time.monotonic() - self._last >= max(self.seconds, self.trainer.seconds_to_save / _SHARE)
        if self.trainer.args.world_size == 1:
            return due
        agreed = torch.tensor(int(due), device=self.trainer.args.device)
        distributed.broadcast(agreed, 0)
        return bool(agreed)


def newest(root: Path) -> Path | None:
    """The complete checkpoint in `root` with the most steps."""
    complete = [path for path in root.glob("checkpoint-*") if (path / _SEAL).exists()]
    return max(complete, key=_step, default=None)


def discard_torn(root: Path) -> None:
    """Remove what a kill left half written."""
    found = newest(root)
    best = found and _number(root, _state(found)["best_global_step"])
    for path in root.glob("checkpoint-*"):
        if path != best and not (path / _SEAL).exists():
            shutil.rmtree(path)


def step_of(checkpoint: Path | None) -> int | None:
    """The number of updates behind `checkpoint`."""
    return None if checkpoint is None else _step(checkpoint)


def is_finished(checkpoint: Path) -> bool:
    """Whether the run had ended there: all epochs done, or stopped early."""
    return bool(_state(checkpoint)["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def run(trainer: Any, checkpoint: Path | None) -> Path:
    """Train to the end, from `checkpoint` if there is one, and put the best weights into the model; the checkpoint they are in.

    Raises TrainingError if the checkpoint does not fit, or no evaluation took place.
    """
    if checkpoint is not None and is_finished(checkpoint):
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.best_metric is None:
        raise TrainingError("no epoch was evaluated, so there is no best one; check the dev split")
    best = _number(Path(trainer.args.output_dir), trainer.state.best_global_step)
    restore(trainer.model, best)
    return best


def trainable(model: Any) -> dict[str, Any]:
    """The parameters that are trained, by name; of a sharded model this process's slices."""
    reshard(model)
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def restore(model: Any, checkpoint: Path) -> None:
    """Put the trained parameters of `checkpoint` into `model`. Raises TrainingError if they are not the same ones."""
    try:
        saved = load_file(checkpoint / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{checkpoint}: the checkpoint cannot be read ({error}); start over with --fresh") from error
    own = trainable(model)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in saved.items()}:
        raise TrainingError(f"{checkpoint}: the checkpoint holds other parameters than are trained; start over with --fresh")
    for name, value in own.items():
        put(value, saved[name])


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / TRAINER_STATE_NAME).read_text("utf-8"))
    return state


def _seal(target: Path) -> None:
    # The seal is no earlier on the disk than what it vouches for.
    for file in target.iterdir():
        sync(file)
    sync(target)
    (target / _SEAL).touch()
    sync(target / _SEAL)
    sync(target)


def _prune(root: Path, target: Path, best: Path) -> None:
    """Keep the newest checkpoint, and of the best only the weights; the rest goes."""
    for path in root.glob("checkpoint-*"):
        if path == best:
            if path != target:
                # Without its seal it is no place to go on from.
                for file in sorted(path.iterdir(), key=lambda file: file.name != _SEAL):
                    if file.name != _WEIGHTS:
                        file.unlink()
        elif path != target:
            shutil.rmtree(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _number(root: Path, step: int | None) -> Path:
    return root / f"checkpoint-{step}"


def _is_writing(error: RuntimeError) -> bool:
    # torch.save reports a full disk like this.
    return "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
