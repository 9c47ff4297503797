"""LLaMA-Factory training one LoRA adapter, in its own environment: ``llamafactory_peer.py CONFIG RESULT``.

CONFIG is the JSON of its own settings. RESULT becomes {"seconds", "cpu_seconds": of the updates; "tokens": without padding; "losses":
one an update; "peak_mib": of the process}.
"""

from __future__ import annotations

import importlib.machinery
import json
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any


def main(config: str, result: str) -> None:
    # Imported where LLaMA-Factory starts, used for sound only; its wheels do not fit every build of torch.
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = torchaudio
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    found: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "losses": []}

    class Meter(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began, self.worked = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["seconds"] += time.perf_counter() - self.began
            found["cpu_seconds"] += time.process_time() - self.worked
            found["tokens"] = int(state.num_input_tokens_seen)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                found["losses"].append(logs["loss"])

    run_exp(json.loads(Path(config).read_text("utf-8")), callbacks=[Meter()])
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(result).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
