"""Two processes on the CPU train what one trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_model import QUICK

from finetune.building import micro_batch
from finetune.distributed import filled, fillers
from finetune.types import TrainingError

_PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
from finetune_model import QUICK, make_examples, make_job
from finetune.distributed import Helped
from finetune.train import train
from finetune.version import version_hash

# Thirteen examples and five for dev: neither can be shared out evenly.
settings = replace(QUICK, micro_batch=2, epochs=3)
job = make_job(Path(sys.argv[1]), Path(sys.argv[2]), train=make_examples(13), dev=make_examples(5, start=40), settings=settings)
job = replace(job, checkpoint_seconds=0.0)
stop = int(sys.argv[3])

def report(event):
    if event["step"] == stop:
        raise SystemExit(9)

try:
    result = train(job, report)
except Helped:
    sys.exit(0)
told = [[event.get("loss", 0), event.get("eval_loss", 0), event["step"]] for event in result.log]
print(json.dumps([*told, version_hash(result.adapter)]))
"""


def _run(base: Path, work: Path, processes: int, stop: int = -1) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    program = work.parent / "program.py"
    program.write_text(_PROGRAM, "utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(program), str(base), str(work), str(stop)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
def test_two_processes_end_with_the_losses_of_one(tiny: Path, tmp_path: Path) -> None:
    one, two = (_run(tiny, tmp_path / str(count), count) for count in (1, 2))
    assert one.returncode == 0 and two.returncode == 0, two.stderr[-3000:]
    *alone, _ = json.loads(one.stdout.splitlines()[-1])
    *together, name = json.loads(two.stdout.splitlines()[-1])
    assert len(alone) == len(together) == 3 * 4 + 4
    for expected, found in zip(alone, together, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    # Only the first process reported.
    assert len((tmp_path / "2" / "metrics.jsonl").read_text("utf-8").splitlines()) == 16

    stopped = _run(tiny, tmp_path / "3", 2, stop=6)
    assert stopped.returncode != 0
    again = _run(tiny, tmp_path / "3", 2)
    assert again.returncode == 0, again.stderr[-3000:]
    # Gone on, and to the same bits.
    assert json.loads(again.stdout.splitlines()[-1])[-1] == name


def test_every_process_gets_as_many_rows() -> None:
    columns = {"input_ids": [[1, 2, 3], [4, 5], [6, 7]], "labels": [[-100, 2, 3], [-100, 5], [-100, 7]]}
    full = filled(columns, 4)
    assert full == {"input_ids": [[1, 2, 3], [4, 5], [6, 7], [1, 2]], "labels": [[-100, 2, 3], [-100, 5], [-100, 7], [-100, -100]]}
    assert filled(columns, 3) == columns
    assert (fillers(columns["labels"]), fillers(full["labels"])) == (0, 1)
    with pytest.raises(TrainingError, match="trains in one process"):
        filled(columns | {"rejected_ids": []}, 4)


def test_a_batch_that_cannot_be_shared_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="4 is no multiple of 3 processes with micro_batch 1"):
        micro_batch(QUICK)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert micro_batch(QUICK) == 2
