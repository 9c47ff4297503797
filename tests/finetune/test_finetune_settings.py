from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config_file import load_settings
from finetune.settings import TrainSettings, settings_from
from finetune.types import TrainingError


def test_defaults() -> None:
    settings = TrainSettings()
    assert (settings.method, settings.rank, settings.alpha, settings.dropout, settings.target) == ("lora", 16, 32, 0.05, "all-linear")
    assert (settings.rate, settings.epochs, settings.batch_size, settings.warmup_steps) == (2e-4, 3, 16, 100)
    assert settings_from(settings.to_json()).to_json() == settings.to_json()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'rank = 8\nlearning_rate = 3e-4\nepochs = 2\ntarget = ["q_proj", "v_proj"]\nover_long = "drop"\n'),
        # YAML 1.1 reads 3e-4 as text.
        ("a.yaml", "# 训练\nrank: 8\nlearning_rate: 3e-4\nepochs: 2\ntarget: [q_proj, v_proj]\nover_long: drop\n"),
        ("a.yml", "\ufeffrank: 8\nlearning_rate: 0.0003\nepochs: 2\ntarget: [q_proj, v_proj]\nover_long: drop\n"),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    expected = TrainSettings(rank=8, learning_rate=3e-4, epochs=2, target=("q_proj", "v_proj"), over_long="drop", seed=9)
    assert load_settings(tmp_path / name, TrainSettings(seed=9)) == expected


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("", "utf-8")
    assert load_settings(tmp_path / "a.yaml") == TrainSettings()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "learning_rat = 1", 'unknown key "learning_rat"; did you mean "learning_rate"?'),
        ("a.toml", "zzz = 1", "valid keys: method, rank"),
        ("a.toml", 'rank = "16"', "rank: expected a whole number, found '16'"),
        ("a.toml", "rank = 16.5", "rank: expected a whole number"),
        ("a.toml", "epochs = true", "epochs: expected a whole number"),
        ("a.toml", 'learning_rate = "fast"', "learning_rate: expected a number, found 'fast'"),
        ("a.toml", "method = 1", "method: expected text"),
        ("a.toml", "target = [1]", "target: expected text or a list of texts"),
        ("a.toml", 'method = "qlorra"', "method: there is no 'qlorra'; expected lora, qlora"),
        ("a.toml", "gradient_checkpointing = 1", "gradient_checkpointing: expected true or false, found 1"),
        ("a.toml", "warmup_ratio = 1.5", "warmup_ratio: expected a value from 0 to 1"),
        ("a.toml", 'scheduler = "cosin"', 'did you mean "cosine"'),
        ("a.toml", 'over_long = "cut"', "over_long: there is no 'cut'; expected error, drop, window"),
        ("a.toml", "rank = 0", "rank: expected a value from 1 to 1024, found 0"),
        ("a.toml", "dropout = 1.0", "dropout: expected a value from"),
        ("a.toml", "learning_rate = 5", "learning_rate: expected a number above 0"),
        ("a.toml", "learning_rate = nan", "learning_rate: expected a number above 0"),
        ("a.toml", "max_grad_norm = 0", "max_grad_norm: expected a number above 0"),
        ("a.toml", "micro_batch = 3", "micro_batch: expected a divisor of batch_size (16), found 3"),
        ("a.toml", 'target = "lm_head"', "target: expected"),
        ("a.toml", "rank = ", "cannot be parsed"),
        ("a.yaml", "rank: [", "cannot be parsed"),
        ("a.yaml", "- rank", "expected keys with values"),
        (
            "a.yaml",
            "rank: 8\nepochs: 2\nrank: 16",
            "the key 'rank' stands there twice; keep one of the two in \"<unicode string>\", line 3",
        ),
        ("a.yaml", "eval_dataset: 2024-02-30", "'2024-02-30' is no value (day is out of range for month); put a text in quotes"),
        ("a.json", "{}", "expected a file ending in .toml, .yaml or .yml"),
        ("missing.toml", None, "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(TrainingError) as caught:
        load_settings(tmp_path / name)
    assert says in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-le"])
def test_another_encoding_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_text("# 训练\n", encoding)
    with pytest.raises(TrainingError, match=rf"{name}: not text in UTF-8.*; save the file as UTF-8"):
        load_settings(tmp_path / name)


def test_what_a_merge_brings_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("<<: &common {rank: 8, epochs: 2}\nrank: 4\n", "utf-8")
    assert load_settings(tmp_path / "a.yaml") == TrainSettings(rank=4, epochs=2)
