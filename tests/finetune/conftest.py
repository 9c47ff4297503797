"""Fixtures of the fine-tuning tests."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_model import build_model, make_job

from finetune.train import TrainResult, train


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = build_model(tmp_path_factory.mktemp("tiny"))
    # Every training collects garbage, which takes as long as all the rest of a tiny one where it looks through the libraries.
    for name in ("finetune.trainer", "finetune.watch", "matplotlib.figure", "bitsandbytes"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    return base


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines and give the file."""

    def write(*items: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(make_job(tiny, tmp_path_factory.mktemp("work")), lambda event: None)
