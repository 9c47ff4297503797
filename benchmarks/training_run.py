"""One training run of ours in a process of its own, for training_speed.py: ``training_run.py CONFIG RESULT``.

CONFIG is the JSON of {"base", "train", "dev": files of rows {"system", "instruction", "output"}, "work", "settings", "profile"}.
RESULT is as that of peers/llamafactory_peer.py, with the shortcuts taken and, with "profile", where the time went.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from finetune.settings import settings_from
from finetune.train import TrainJob, train
from finetune.types import Example, Turn


def examples_of(path: Path) -> list[Example]:
    rows = json.loads(path.read_text("utf-8"))
    return [
        Example(f"{path.stem}-{number}", (Turn("system", row["system"]), Turn("user", row["instruction"])), row["output"])
        for number, row in enumerate(rows)
    ]


def profiled(profile: Any, wanted: int) -> list[dict[str, Any]]:
    """The operators that took most time themselves, in seconds of a processor and as a share."""
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    return [
        {
            "operator": row.key,
            "calls": row.count,
            "seconds": round(row.self_cpu_time_total / 1e6, 3),
            "share": round(row.self_cpu_time_total / whole, 4),
        }
        for row in rows[:wanted]
    ]


def main(config: str, result: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    given = json.loads(Path(config).read_text("utf-8"))
    work = Path(given["work"])
    work.mkdir(parents=True)
    found: dict[str, Any] = {"cpu_seconds": 0.0, "losses": []}
    worked = time.process_time()

    def progress(event: dict[str, Any]) -> None:
        nonlocal worked
        now = time.process_time()
        if "loss" in event:
            found["cpu_seconds"] += now - worked
            found["losses"].append(event["loss"])
        worked = now

    settings = settings_from(given["settings"])
    pairs, held_out = (examples_of(Path(given[name])) for name in ("train", "dev"))
    with profile(activities=[ProfilerActivity.CPU]) if given["profile"] else nullcontext() as recorded:
        made = train(TrainJob(Path(given["base"]), "benchmark", "", pairs, held_out, settings, work), progress)
    found["seconds"] = made.log[-1]["seconds"]
    found["tokens"] = round(made.tokens_per_second * found["seconds"])
    found["shortcuts"] = dict(made.shortcuts)
    found["adapter"] = str(made.adapter)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["profile"] = profiled(recorded, 15) if recorded else []
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
