"""`appliance tune --config`: what a file may say, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli.main import run
from appliance.workspace import Workspace

LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
stage: sft
finetuning_type: lora
dataset: 医疗
output_dir: saves/lora
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Workspace.create(tmp_path / "w") as workspace:
        workspace.create_domain("medical")
        workspace.save_setting("engines.default.base", "hub:Qwen/Qwen2.5-7B-Instruct")
    return tmp_path / "w"


def _tune(root: Path, text: str, *words: str, name: str = "sft.yaml") -> int:
    (root / name).write_text(text, "utf-8")
    return run(["--workspace", str(root), "tune", "--config", str(root / name), *words])


def test_a_llama_factory_file_tells_what_becomes_of_each_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tune(root, LLAMA_FACTORY) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "taken from the LLaMA-Factory file: stage → method" in said.err
    assert "no meaning here: output_dir" in said.err
    # Everything was in order but the data set.
    assert "医疗" in said.err and "known" in said.err


def test_unsupported_keys_stop_it_unless_they_are_ignored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = LLAMA_FACTORY + "neftune_noise_alpha: 5\nlora_rnak: 8\n"
    assert _tune(root, text) == 2
    said = capsys.readouterr().err
    assert "neftune_noise_alpha: leave it out" in said and 'lora_rnak: did you mean "lora_rank"?' in said
    assert _tune(root, text, "--ignore-unsupported") == 2
    said = capsys.readouterr().err
    assert "IGNORED, would change the result: neftune_noise_alpha" in said and "医疗" in said


def test_a_file_for_another_base_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tune(root, LLAMA_FACTORY.replace("2.5-7B", "3-8B")) == 2
    said = capsys.readouterr().err
    assert "the file trains hub:Qwen/Qwen3-8B-Instruct, engine default of medical has the base hub:Qwen/Qwen2.5-7B-Instruct" in said


def test_a_search_is_for_one_process(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _tune(root, "rank = 4\n\n[search]\nrank = [2, 4]\n", "--search", "2", name="plan.toml") == 2
    assert "start --search without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "says"),
    [
        (
            "[search]\nrank = [8, 0]\n",
            ("--search", "2"),
            "plan.toml: [search]: rank: expected a value from 1 to 1024, found 0",
        ),
        ("rank = 8\n", (), "method lora needs a data set: name one with --dataset or dataset = in the file"),
        ("[[stages]]\n[[stages]]\n", ("--dataset", "a"), "--dataset and --method name one stage's"),
        ('[[stages]]\ndataset = "a"\n', (), "'a'"),
        ('method = "full"\ndataset = "a"\n', ("--promote",), "makes a model, which no alias points at"),
    ],
)
def test_what_is_missing_is_named(root: Path, text: str, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _tune(root, text, *words, name="plan.toml") == 2
    assert says in capsys.readouterr().err
