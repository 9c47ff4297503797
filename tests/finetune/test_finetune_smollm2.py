"""The real embedded model: it learns, and its template passes the parity check in both languages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_model import QUICK, make_examples, make_job, smollm2

from finetune.tokens import encode, load_tokenizer, stop_tokens
from finetune.train import train
from finetune.version import finish_version, lint_adapter, list_versions

BASE = smollm2()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("models"),
    pytest.mark.skipif(BASE is None, reason="the embedded model is not on this machine"),
]


def test_smollm2_learns_in_two_steps(tmp_path: Path) -> None:
    assert BASE is not None
    tokenizer = load_tokenizer(BASE)
    for example in make_examples(4):
        encoded = encode(tokenizer, example, stop_tokens(tokenizer, BASE))
        assert tokenizer.decode(encoded.input_ids[encoded.prompt :]) == example.completion + "<|im_end|>"
    settings = replace(QUICK, epochs=1, learning_rate=1e-3)
    result = train(make_job(BASE, tmp_path / "work", train=make_examples(8), settings=settings), lambda event: None)
    assert result.eval_loss < result.eval_loss_before
    version = finish_version(result, tmp_path / "adapters", "bank", dataset="d", dataset_version="1")
    assert lint_adapter(version.path, BASE) == []


def test_a_killed_run_leaves_nothing_listed(tmp_path: Path) -> None:
    assert BASE is not None
    code = (
        "import os, signal, sys; from pathlib import Path; from finetune_model import make_job; from finetune.train import train\n"
        "def die(event):\n    if event['step'] == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "root = Path(sys.argv[2]); train(make_job(Path(sys.argv[1]), root / 'bank.tmp'), die)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    killed = subprocess.run([sys.executable, "-c", code, BASE, tmp_path], env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "bank.tmp").exists()
    assert list_versions(tmp_path) == []
