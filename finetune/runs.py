"""The folder of a run: what it trains (by hash), its checkpoints, and what is worth keeping when it is done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.types import TrainingError

# What says how the run went; it stays when checkpoints and weights go.
METRICS, CURVE, EVENTS = "metrics.jsonl", "loss.png", "tensorboard"
CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
_FACTS = "run.json"


def run_key(inputs: Mapping[str, Any]) -> str:
    """The sha256 (hex) of everything that decides the result of a run, as plain data."""
    return hashlib.sha256(json.dumps(inputs, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def open_run(work: Path, key: str, fresh: bool = False) -> bool:
    """Make the folder `work` ready for the run `key`; whether it holds the beginning of that run. `fresh` starts over.

    Raises TrainingError if the folder cannot be written.
    """
    try:
        known = not fresh and _key(work) == key
        if not known:
            clear(work)
            for name in (METRICS, CURVE, _FACTS):
                (work / name).unlink(missing_ok=True)
            shutil.rmtree(work / EVENTS, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        (work / CHECKPOINTS).mkdir(exist_ok=True)
        # Written anew in every run: a kill may have come while it was.
        shutil.rmtree(work / ADAPTER, ignore_errors=True)
        (work / ADAPTER).mkdir()
        if not known:
            beside = work / f"{_FACTS}.tmp"
            beside.write_text(json.dumps({"key": key}) + "\n", "utf-8")
            beside.replace(work / _FACTS)
    except OSError as error:
        raise TrainingError(f"{work}: the folder of the run cannot be written ({error}); check the space and the rights there") from error
    return known


def clear(work: Path) -> None:
    """Remove what only an unfinished run needs. The metrics, the curve and TensorBoard's events stay."""
    for name in (CHECKPOINTS, ADAPTER):
        shutil.rmtree(work / name, ignore_errors=True)


def read_metrics(work: Path, step: int) -> list[dict[str, Any]]:
    """The events up to `step`; a line that a kill cut off is left out."""
    events: list[dict[str, Any]] = []
    file = work / METRICS
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            break
        if event["step"] > step:
            break
        events.append(event)
    return events


def _key(work: Path) -> str | None:
    try:
        return str(json.loads((work / _FACTS).read_text("utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
