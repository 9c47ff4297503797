"""Two processes on the CPU train what one trains, with whole weights (DDP) and with slices of them (FSDP)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_model import QUICK, SMALL, TEXTS, make_examples, make_job, preferences
from safetensors.torch import load_file

from finetune.building import micro_batch
from finetune.distributed import filled, fillers, sharded, sharded_here, wait
from finetune.settings import METHODS, learns_from, yields
from finetune.train import TrainJob, TrainResult, train
from finetune.types import TrainingError

_PROGRAM = """
import json, sys
from pathlib import Path
from test_finetune_distributed import job_of, told
from finetune.distributed import Helped
from finetune.train import train
from finetune.version import version_hash

job = job_of(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[4]))
stop = int(sys.argv[3])

def report(event):
    if event["step"] == stop:
        raise SystemExit(9)

try:
    result = train(job, report)
except Helped:
    sys.exit(0)
print(json.dumps([*told(result), sorted(set(result.shortcuts.values())), version_hash(result.adapter)]))
"""
_DDP = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
_FSDP = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2", "--num_processes=2", "--main_process_port=0")


def job_of(base: Path, work: Path, settings: Mapping[str, object]) -> TrainJob:
    """Thirteen examples and five for dev: neither can be shared out evenly."""
    changed = replace(SMALL, micro_batch=2, epochs=3, **settings)  # type: ignore[arg-type]
    kind = learns_from(changed.method)
    make = preferences if kind == "preferences" else make_examples
    data = {"train": make(13), "dev": make(5, start=40)}
    if kind == "texts":
        data = {"train": TEXTS[:5], "dev": TEXTS[5:7]}
    return make_job(base, work, settings=changed, checkpoint_seconds=0.0, **data)


def told(result: TrainResult) -> list[list[float]]:
    """What was told of each step: its loss, or that on dev."""
    return [[event.get("loss", 0), event.get("eval_loss", 0), event["step"]] for event in result.log]


def _run(
    base: Path, work: Path, launcher: tuple[str, ...], settings: dict[str, object], stop: int = -1
) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    program = work.parent / "program.py"
    program.write_text(_PROGRAM, "utf-8")
    launched = ("-m", *launcher) if launcher else ()
    command = [sys.executable, *launched, str(program), str(base), str(work), str(stop), json.dumps(settings)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# What a method needs besides to show within a few updates whether the processes agree.
_MORE: dict[str, dict[str, object]] = {
    "full": {"learning_rate": 1e-3, "gradient_checkpointing": True},
    "freeze": {"learning_rate": 1e-3},
    "galore": {"learning_rate": 1e-3},
    "pretrain": {"learning_rate": 1e-3},
    "lora+": {"learning_rate": 1e-3},
}
_CUTTABLE = [method for method in METHODS if method not in ("qlora", "galore")]


def _compared(launcher: tuple[str, ...], settings: dict[str, object], tiny: Path, tmp_path: Path) -> str:
    """Train alone, in this process, and together; the name of what came out together."""
    alone = told(train(job_of(tiny, tmp_path / "1", settings), lambda event: None))
    two = _run(tiny, tmp_path / "2", launcher, settings)
    assert two.returncode == 0, two.stderr[-3000:]
    *together, shortcuts, name = json.loads(two.stdout.splitlines()[-1])
    assert len(alone) == len(together) > 3 * 3
    for expected, found in zip(alone, together, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert (shortcuts == ["the weights are spread over processes"]) == (launcher == _FSDP)
    # What is saved is whole.
    file = "model.safetensors" if yields(str(settings["method"])) == "model" else "adapter_model.safetensors"
    saved = load_file(tmp_path / "2" / "adapter" / file)
    for key, value in load_file(tmp_path / "1" / "adapter" / file).items():
        assert saved[key].shape == value.shape
        assert float((saved[key] - value).norm()) <= 1e-3 * float(value.norm())
    # Only the first process reported.
    assert len((tmp_path / "2" / "metrics.jsonl").read_text("utf-8").splitlines()) == len(together)
    return str(name)


@pytest.mark.slow
def test_dpo_in_two_processes_ends_with_the_losses_of_one(tiny: Path, tmp_path: Path) -> None:
    _compared(_DDP, {"method": "dpo"}, tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "method"), [(_DDP, "lora"), (_FSDP, "full")], ids=["ddp-lora", "fsdp-full"])
def test_two_processes_end_with_the_losses_of_one_also_if_they_were_stopped(
    launcher: tuple[str, ...], method: str, tiny: Path, tmp_path: Path
) -> None:
    settings = {"method": method, **_MORE.get(method, {})}
    name = _compared(launcher, settings, tiny, tmp_path)
    stopped = _run(tiny, tmp_path / "3", launcher, settings, stop=6)
    assert stopped.returncode != 0
    again = _run(tiny, tmp_path / "3", launcher, settings)
    assert again.returncode == 0, again.stderr[-3000:]
    # Gone on, and to the same bits.
    assert json.loads(again.stdout.splitlines()[-1])[-1] == name


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_two_processes(method: str, tiny: Path, tmp_path: Path) -> None:
    _compared(_DDP, {"method": method, **_MORE.get(method, {})}, tiny, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("method", _CUTTABLE)
def test_every_method_with_weights_in_slices(method: str, tiny: Path, tmp_path: Path) -> None:
    _compared(_FSDP, {"method": method, **_MORE.get(method, {})}, tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("launcher", [_DDP, _FSDP], ids=["ddp", "fsdp"])
def test_two_gpus_end_with_the_loss_of_one(launcher: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"method": "full", "learning_rate": 1e-3}
    runs = [_run(tiny, tmp_path / str(number), words, settings) for number, words in enumerate(((), launcher))]
    assert [run.returncode for run in runs] == [0, 0], runs[1].stderr[-3000:]
    alone, together = (json.loads(run.stdout.splitlines()[-1])[-3] for run in runs)
    # Half precision adds up in another order.
    assert together == pytest.approx(alone, rel=2e-2)


@pytest.mark.parametrize(
    ("method", "more", "reason"),
    [
        ("lora", {"FSDP_VERSION": "1"}, "set fsdp_version to 2"),
        ("lora", {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ("lora", {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "set gradient_checkpointing in the settings"),
        ("qlora", {}, "4 bits cannot be cut"),
        ("galore", {}, "projected as a whole"),
        ("lora", {"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
    ],
)
def test_what_cannot_be_sharded_is_refused(method: str, more: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | more).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=reason):
        wait(method)


def test_the_libraries_are_not_told_of_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not sharded()
    wait("qlora")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharded()
    with sharded_here():
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert sharded()


def test_every_process_gets_as_many_rows() -> None:
    columns = {"input_ids": [[1, 2, 3], [4, 5], [6, 7]], "labels": [[-100, 2, 3], [-100, 5], [-100, 7]]}
    full = filled(columns, 4)
    assert full == {"input_ids": [[1, 2, 3], [4, 5], [6, 7], [1, 2]], "labels": [[-100, 2, 3], [-100, 5], [-100, 7], [-100, -100]]}
    assert filled(columns, 3) == columns
    assert (fillers(columns["labels"]), fillers(full["labels"])) == (0, 1)
    both = columns | {"rejected_ids": [[1, 9], [4, 8], [6, 9, 3]], "rejected_labels": [[-100, 9], [-100, 8], [-100, 9, 3]]}
    found = filled(both, 2)
    assert {name: values[:3] for name, values in found.items()} == both
    assert [values[3] for values in found.values()] == [[1, 2], [-100, -100], [1, 2], [-100, -100]]


def test_a_batch_that_cannot_be_shared_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="4 is no multiple of 3 processes with micro_batch 1"):
        micro_batch(QUICK)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert micro_batch(QUICK) == 2
