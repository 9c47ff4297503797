from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_model import CHATML, QUICK, SMALL, TEXTS, build_model, make_examples, make_job

from finetune.batches import ByLength
from finetune.train import TrainResult, train
from finetune.trainer import AdapterTrainer
from finetune.types import TrainingError
from finetune.version import version_hash
from finetune.watch import Watch

Event = dict[str, Any]


def _silent(event: Event) -> None:
    pass


def test_it_learns_and_reports(tiny: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = train(make_job(tiny, tmp_path), events.append)
    assert result.eval_loss < result.eval_loss_before
    assert (result.train_examples, result.dev_examples, result.steps, result.dropped) == (12, 4, 6, {})
    assert result.tokens_per_second > 0
    assert events == list(result.log)
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events if "eval_loss" in event] == [0, 3, 6]
    assert all(event["steps"] == 6 for event in events)
    assert events[-1]["eta"] == 0
    assert {file.name for file in result.adapter.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}


def test_the_same_run_gives_the_same_adapter(tiny: Path, tmp_path: Path, trained: TrainResult) -> None:
    again = train(make_job(tiny, tmp_path / "a"), _silent)
    other = train(make_job(tiny, tmp_path / "b", settings=replace(QUICK, seed=7)), _silent)
    assert version_hash(again.adapter) == version_hash(trained.adapter)
    assert [event.get("loss") for event in again.log] == [event.get("loss") for event in trained.log]
    assert again.data_hash == trained.data_hash
    assert version_hash(other.adapter) != version_hash(trained.adapter)


def test_micro_batches_change_the_work_and_not_the_result(tiny: Path, tmp_path: Path) -> None:
    # With one update for all examples only the cutting differs.
    whole = replace(QUICK, batch_size=12, epochs=1)
    losses = [train(make_job(tiny, tmp_path / str(micro), settings=replace(whole, micro_batch=micro)), _silent) for micro in (1, 4, 12)]
    for result in losses[1:]:
        assert result.log[1]["loss"] == pytest.approx(losses[0].log[1]["loss"], rel=1e-5)
        assert result.log[1]["grad_norm"] == pytest.approx(losses[0].log[1]["grad_norm"], rel=1e-3)
        assert result.eval_loss == pytest.approx(losses[0].eval_loss, rel=1e-4)


def test_the_kept_epoch_is_the_best_and_early_stopping_stops(tiny: Path, tmp_path: Path) -> None:
    # At this rate the loss on dev goes up and down; no improvement ever reaches the threshold.
    settings = replace(QUICK, learning_rate=0.1, epochs=6, patience=1, threshold=50.0)
    result = train(make_job(tiny, tmp_path, settings=settings), _silent)
    evaluated = [event["eval_loss"] for event in result.log if "eval_loss" in event and event["step"]]
    assert result.steps < 18
    assert result.eval_loss == pytest.approx(min(evaluated), abs=1e-6)


def test_the_saved_adapter_is_the_one_that_was_evaluated(tiny: Path, trained: TrainResult) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune.tokens import encode, load_tokenizer, stop_tokens

    tokenizer = load_tokenizer(tiny)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), trained.adapter).eval()
    total, tokens = 0.0, 0
    for example in make_examples(4, start=40):
        encoded = encode(tokenizer, example, stop_tokens(tokenizer, tiny))
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor([encoded.labels])
        count = int((labels != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * count
        tokens += count
    assert total / tokens == pytest.approx(trained.eval_loss, rel=1e-4)


def test_warm_up_is_never_more_than_a_tenth(tiny: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, batch_size=1, epochs=2, warmup_steps=100, scheduler="constant")
    result = train(make_job(tiny, tmp_path, settings=settings), _silent)
    rates = [event["learning_rate"] for event in result.log if "learning_rate" in event]
    assert len(rates) == 24
    assert rates[2:] == [QUICK.learning_rate] * 22
    assert rates[0] < QUICK.learning_rate


def test_without_dev_a_tenth_is_held_out(tiny: Path, tmp_path: Path) -> None:
    result = train(make_job(tiny, tmp_path, dev=[], settings=replace(QUICK, epochs=1)), _silent)
    assert (result.train_examples, result.dev_examples) == (11, 1)


def test_dropped_examples_are_counted(tiny: Path, tmp_path: Path) -> None:
    examples = [*make_examples(8), replace(make_examples(1)[0], id="long", completion="长" * 100)]
    settings = replace(QUICK, epochs=1, over_long="drop", max_length=150)
    result = train(make_job(tiny, tmp_path, train=examples, settings=settings), _silent)
    assert (result.train_examples, result.dropped) == (8, {"over_long": 1})


def test_a_template_of_ones_own_is_trained_with(tmp_path: Path, trained: TrainResult) -> None:
    base = build_model(tmp_path / "plain", template=None)
    result = train(make_job(base, tmp_path / "work", chat_template=CHATML, settings=replace(QUICK, epochs=1)), _silent)
    assert result.template_hash == trained.template_hash


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": []}, "there is no example to train on"),
        ({"train": make_examples(1), "dev": []}, "nothing can be held out .*there is only one pair; add other ones"),
        ({"train": [make_examples(1)[0]] * 5, "dev": []}, "the pairs are near duplicates of each other; add other ones"),
        (
            {"train": TEXTS[:1], "dev": [], "settings": replace(SMALL, method="pretrain")},
            "there is only one document; ingest another one",
        ),
        ({"settings": replace(QUICK, max_length=8, over_long="drop")}, "every train example is longer than max_length"),
        ({"settings": replace(QUICK, max_length=8)}, "example e0: .* at most 8 fit"),
        ({"settings": replace(QUICK, target=("no_such_proj",))}, "method lora does not fit this model: .*no_such_proj"),
        ({"base": Path("/nonexistent")}, "not a model folder"),
    ],
)
def test_a_run_that_cannot_start_says_why(tiny: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        train(make_job(tiny, tmp_path, **changes), _silent)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = build_model(tmp_path / "broken")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][:] = math.nan
    save_file({name: torch.clone(value) for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match="eval_loss became nan at step 0; lower learning_rate"):
        train(make_job(base, tmp_path / "work"), _silent)


def test_a_missing_evaluation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the evaluation gave no loss"):
        Watch(_silent, tmp_path).on_evaluate(None, None, None, {})


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_proposes_what_to_change(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def fail(*args: object) -> None:
        raise fault

    monkeypatch.setattr(AdapterTrainer, "_loss_sum", fail)
    with pytest.raises(TrainingError, match=r"out of memory; set micro_batch = 2 \(about"):
        train(make_job(tiny, tmp_path), _silent)


def test_an_interrupt_passes_and_the_next_run_goes_on(tiny: Path, tmp_path: Path, trained: TrainResult) -> None:
    from transformers.utils import logging as library

    def interrupt(event: Event) -> None:
        if event["step"] == 4:
            raise KeyboardInterrupt

    shown = library.is_progress_bar_enabled()
    with pytest.raises(KeyboardInterrupt):
        train(make_job(tiny, tmp_path), interrupt)
    assert library.is_progress_bar_enabled() == shown
    assert list((tmp_path / "adapter").iterdir()) == []
    steps: list[int] = []
    again = train(make_job(tiny, tmp_path), lambda event: steps.append(event["step"]))
    assert steps == [3, 4, 5, 6, 6]
    assert version_hash(again.adapter) == version_hash(trained.adapter)
    assert [event.get("loss") for event in again.log] == [event.get("loss") for event in trained.log]
    assert [event.get("eval_loss") for event in again.log] == [event.get("eval_loss") for event in trained.log]


@pytest.mark.parametrize(("count", "micro"), [(1, 4), (10, 4), (64, 8)])
def test_batches_are_of_like_length_and_complete(count: int, micro: int) -> None:
    lengths = [17 * number % 97 + 1 for number in range(count)]
    sampler = ByLength(lengths, micro, seed=1)
    orders: list[list[int]] = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(count))
    assert len(sampler) == count
    assert orders[0] == orders[2]
    assert count == 1 or orders[0] != orders[1]
    if count == 64:
        batches = [orders[0][start : start + micro] for start in range(0, count, micro)]
        padded = sum(max(lengths[number] for number in batch) * len(batch) for batch in batches)
        assert padded < 1.2 * sum(lengths)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the checkpoint could not be written .*there is none before it: free some space"):
        train(make_job(tiny, tmp_path, settings=replace(QUICK, rank=512, epochs=1)), _silent)
    assert list((tmp_path / "checkpoints").iterdir()) == []
