"""What a run tells while it goes: progress, metrics.jsonl, TensorBoard's events and the loss curve. Imported only when training starts."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from transformers import TrainerCallback

from finetune.curve import draw
from finetune.runs import CURVE, EVENTS, METRICS, read_metrics
from finetune.types import TrainingError

# Seconds between two drawings of the curve while training goes on.
_REDRAW = 30.0


class Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, measures speed, and turns a loss that is missing or not a number into an error.

    Every event goes to `progress` and, as a line, into metrics.jsonl in `work`; its numbers go to TensorBoard's files there.
    `step` is the update that a resumed run goes on from: what was told of later ones is taken back, and the first event says
    "resumed". Close it at the end.
    Only the process that `writes` does so.
    """

    def __init__(self, progress: Callable[[dict[str, Any]], None], work: Path, step: int | None = None, writes: bool = True) -> None:
        self.progress = progress
        self.work = work
        self.step = step
        self.events: list[dict[str, Any]] = [] if step is None or not writes else read_metrics(work, step)
        self.seconds = next((event["seconds"] for event in reversed(self.events)), 0.0)
        self._writes = writes
        self._began = self._drawn = time.perf_counter()
        if writes:
            with _writing(work):
                (work / METRICS).write_text("".join(json.dumps(event) + "\n" for event in self.events), "utf-8")
                if step is None and (work / EVENTS).exists():
                    # What a run told that ended before its first checkpoint.
                    shutil.rmtree(work / EVENTS)
                (work / EVENTS).mkdir(exist_ok=True)
                # Not SummaryWriter: its thread ends at a full disk, and the training then waits for it for ever. The name has the
                # second, and must differ from that of the run before, and come after it, within one.
                self._board = EventsWriter(str(work / EVENTS / "events"), f".{os.getpid()}.{step or 0:09}")
                if step is not None:
                    self._board.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def finish(self) -> None:
        """Draw the curve of the whole run."""
        if self._writes:
            with _writing(self.work):
                draw(self.events, self.work.name, self.work / CURVE)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writes:
            self._board.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step is not None and self._writes:
            self.progress({"step": self.step, "steps": state.max_steps, "resumed": True})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._began

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_loss" not in metrics:
            raise TrainingError("the evaluation gave no loss, so the best epoch cannot be told; check the dev split")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        for key in ("loss", "eval_loss"):
            if key in logs and not math.isfinite(logs[key]):
                raise TrainingError(f"{key} became {logs[key]} at step {state.global_step}; lower learning_rate or max_grad_norm")
        if "loss" not in logs and "eval_loss" not in logs:
            return
        done, steps = state.global_step, state.max_steps
        event: dict[str, Any] = {"step": done, "steps": steps, "epoch": round(state.epoch or 0.0, 3)}
        measured: dict[str, float] = {key: logs[key] for key in ("loss", "eval_loss", "learning_rate", "grad_norm") if key in logs}
        event |= measured
        event["seconds"] = round(self.seconds, 3)
        if done:
            event["tokens_per_second"] = round(self.rate(state), 1)
            event["eta"] = round(self.seconds / done * (steps - done), 1)
        self.events.append(event)
        if self._writes:
            self._write(event, measured)
            self.progress(event)

    def rate(self, state: Any) -> float:
        """Tokens without padding per second of training steps."""
        return float(state.num_input_tokens_seen) / self.seconds if self.seconds else 0.0

    def _write(self, event: dict[str, Any], measured: dict[str, float]) -> None:
        with _writing(self.work):
            with (self.work / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
            for key, value in measured.items():
                self._board.write_event(Event(wall_time=time.time(), step=event["step"], summary=scalar(key, value)))
            self._board.flush()
            if time.perf_counter() - self._drawn > _REDRAW:
                draw(self.events, self.work.name, self.work / CURVE)
                self._drawn = time.perf_counter()


@contextmanager
def _writing(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{work}: the progress could not be written ({error}); check the space and the rights there") from error
