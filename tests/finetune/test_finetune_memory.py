"""What a run needs is estimated as it is computed, and what is proposed can be followed."""

from __future__ import annotations

import ctypes
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import build
from finetune_model import QUICK, job_for, make_job, smollm2

from finetune import building, memory, proposals
from finetune.building import build_model, context_of, micro_batch
from finetune.memory import Memory, Spans, estimate, shape_of
from finetune.methods import method_of
from finetune.proposals import Expected, changes, spans_of
from finetune.settings import ADAPTER_METHODS, METHODS, TrainSettings, yields
from finetune.tokens import load_tokenizer, stop_tokens
from finetune.train import TrainResult, train
from finetune.types import TrainingError

# The shape of a model with 7 billion parameters: 32 layers of width 4096, 11008 between, 32000 words.
SEVEN = memory.Shape(
    parameters=6_738_415_616,
    linears=tuple(
        (f"model.layers.{layer}.{name}", inputs, outputs)
        for layer in range(32)
        for name, inputs, outputs in [
            *((f"self_attn.{part}_proj", 4096, 4096) for part in "qkvo"),
            *((f"mlp.{part}_proj", 4096, 11008) for part in ("gate", "up")),
            ("mlp.down_proj", 11008, 4096),
        ]
    ),
    hidden=4096,
    vocabulary=32000,
    layers=32,
    key_value=8192,
)


# Examples of 1024 tokens, 256 of them with loss.
SPANS = Spans(((768, 1024),) * 8)


def _of(settings: TrainSettings, micro: int = 1, half: bool = True, shares: int = 1) -> Memory:
    return estimate(SEVEN, settings, micro, SPANS, half, shares)


def test_weights_and_states_are_what_the_papers_count() -> None:
    for method in ("full", "pretrain"):
        full = _of(TrainSettings(method=method))
        # Sixteen bytes a weight: the weight, its gradient and two states, four each.
        assert (full.weights, full.gradients, full.optimizer) == (4 * SEVEN.parameters, 4 * SEVEN.parameters, 8 * SEVEN.parameters)
    lora = _of(TrainSettings(rank=16))
    # 16 (4096 + 4096) for four modules and 16 (4096 + 11008) for three, in 32 layers.
    trained = 32 * 16 * (4 * 8192 + 3 * 15104)
    assert (lora.weights, lora.gradients, lora.optimizer) == (2 * SEVEN.parameters + 4 * trained, 4 * trained, 8 * trained)
    assert _of(TrainSettings(), half=False).weights == 4 * SEVEN.parameters + 4 * trained
    # Embeddings and head, 32000 by 4096 each, and the norms in float32, the adapter in half precision.
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert _of(TrainSettings(method="qlora")).weights == round(linear * 4.127 / 8 + 4 * (SEVEN.parameters - linear) + 2 * trained)
    assert _of(TrainSettings(method="qlora")).gradients == 2 * trained
    assert _of(TrainSettings(method="galore", galore_rank=128)).optimizer < 0.2 * full.optimizer
    assert _of(TrainSettings(method="freeze", freeze_layers=2)).optimizer < 0.1 * full.optimizer
    assert _of(TrainSettings(method="prefix", prefix_tokens=16)).gradients == 4 * 16 * 8192 * 32
    assert _of(TrainSettings(target=("q_proj", "v_proj"))).gradients == 4 * 32 * 16 * 2 * 8192
    # Spread over processes, each has its share.
    spread = _of(TrainSettings(method="full"), shares=4)
    assert (spread.weights, spread.optimizer) == (SEVEN.parameters, 2 * SEVEN.parameters)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_weights_are_counted_as_they_are_loaded(
    method: str, half: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "half_precision", lambda settings: half)
    job = job_for(method, tiny, tmp_path)
    model = build_model(job, method_of(job.settings, tmp_path), [5, 6, 7])
    sizes = [(value.numel() * value.element_size(), value.requires_grad, value.numel()) for value in model.parameters()]
    # trl makes QLoRA's adapter half precision when the trainer is made; on a CPU that is taken back.
    stored = sum(values * 2 if learns and half and method == "qlora" else size for size, learns, values in sizes)
    counted = estimate(shape_of(tiny), job.settings, 1, SPANS, half)
    assert counted.weights == pytest.approx(stored, rel=0.02)
    assert counted.gradients == pytest.approx(
        sum(size for size, learns, _ in sizes if learns) / (2 if half and method == "qlora" else 1), rel=0.02
    )


_FREED = """
import psutil, torch
from finetune.memory import give_back

resident = lambda: psutil.Process().memory_info().rss
before = resident()
pieces = [torch.ones(20_000) for _ in range(4000)]
pieces = pieces[-1:]
kept = resident() - before
give_back()
print(kept >> 20, (resident() - before) >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_was_freed_is_given_back() -> None:
    """Pieces below glibc's own limit for giving back at once, under one that is still used; in a process whose heap no other test has."""
    done = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 200 and left < 100


def test_half_precision_is_for_gpus_that_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # As an older GPU says.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not building.half_precision(TrainSettings())
    with pytest.raises(TrainingError, match='"bfloat16" needs a GPU that has it'):
        building.half_precision(TrainSettings(precision="bfloat16"))


def test_activations_follow_the_batch_and_checkpointing() -> None:
    one, four = _of(TrainSettings()), _of(TrainSettings(), 4)
    assert four.activations == pytest.approx(4 * one.activations, rel=1e-6)
    assert _of(TrainSettings(gradient_checkpointing=True), 4).activations < 0.1 * four.activations
    assert _of(TrainSettings(method="dpo")).activations == pytest.approx(2 * one.activations, rel=1e-6)
    assert _of(TrainSettings(dropout=0.0)).activations < one.activations < _of(TrainSettings(method="dora")).activations


def test_logits_are_counted_where_they_are_made() -> None:
    one = 3 * 4 * SEVEN.vocabulary
    # A few at a time, however many have loss.
    assert _of(TrainSettings(), 4).logits == _of(TrainSettings(), 8).logits == one * (2**22 // 32000)
    assert _of(TrainSettings(method="full")).logits == one * (2**22 // 32000) + 2 * 4 * 32000 * 4096
    # Two answers each, without the shortcut.
    assert _of(TrainSettings(method="dpo"), 4).logits == 2 * one * 4 * 2 * 256
    spans = Spans(((10, 20), (5, 30), (80, 100), (20, 110)))
    assert (spans.longest, spans.answer, spans.widest(1), spans.widest(2), spans.widest(3)) == (110, 90, 90, 90, 95)
    scaled = replace(SEVEN, plain_head=False)
    assert estimate(scaled, TrainSettings(), 2, spans, True).logits == one * 2 * 90
    assert estimate(replace(scaled, narrow=False), TrainSettings(), 2, spans, True).logits == one * 2 * 110


def test_spans_are_those_of_both_answers() -> None:
    columns = {"input_ids": [[1] * 6, [1] * 4], "labels": [[-100] * 3 + [1] * 3, [-100] * 2 + [1] * 2]}
    assert spans_of(columns).places == ((2, 4), (3, 6))
    columns |= {"rejected_ids": [[1] * 5, [1] * 9], "rejected_labels": [[-100] * 3 + [1] * 2, [-100] * 2 + [1] * 7]}
    assert spans_of(columns).places == ((2, 9), (3, 6))


def test_the_proposal_is_the_first_change_that_fits() -> None:
    settings = TrainSettings(batch_size=8)
    run = Expected(SEVEN, settings, 8, SPANS, True, 0, 24 * memory.GIB)
    warning = run.warning()
    assert warning is not None and "24.0 GiB are free: set micro_batch = " in warning
    assert "set gradient_checkpointing = true and micro_batch = " in run.proposal(int(14.5 * memory.GIB))
    assert 'set method = "qlora" with gradient_checkpointing = true' in run.proposal(6 * memory.GIB)
    assert run.proposal(memory.GIB).startswith("no setting makes it fit; take a smaller base, a lower max_length (now 1024)")
    assert replace(run, free=400 * memory.GIB).warning() is None
    full = replace(run, settings=replace(settings, method="full"))
    assert 'set method = "qlora" (an adapter instead of a model) with' in full.proposal(6 * memory.GIB)
    dora = replace(run, settings=replace(settings, method="dora"))
    assert 'set method = "qlora" (plain LoRA instead of dora) with' in dora.proposal(6 * memory.GIB)
    assert replace(dora, goes_on=True).proposal(6 * memory.GIB).startswith("no setting makes it fit")


@pytest.mark.parametrize("method", METHODS)
def test_every_proposal_can_be_followed(method: str, tiny: Path, tmp_path: Path) -> None:
    job = job_for(method, tiny, tmp_path)
    settings = replace(job.settings, batch_size=8)
    found = list(changes(settings, 4))
    assert [change for change, _ in found[:2]] == ["micro_batch = 2", "micro_batch = 1"]
    tokenizer = load_tokenizer(tiny)
    stops, context = stop_tokens(tokenizer, tiny), context_of(tiny)
    # One of each kind.
    kinds = {(less.method, less.gradient_checkpointing): less for _, less in found}
    for less in kinds.values():
        way = method_of(less, tmp_path / less.method)
        rows, _ = way.encode(tokenizer, job.train, stops, context)
        build_model(replace(job, settings=less), way, way.columns(rows)["input_ids"][0])
    assert ((method, True) in kinds) == (method != "prefix")
    assert all(less.method in (method, "qlora") for less in kinds.values())
    said = {change for change, less in found if less.method != method}
    assert all(("adapter instead of a model" in change) == (yields(method) == "model") for change in said)
    assert list(changes(replace(settings, method="qlora", gradient_checkpointing=True), 1)) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_proposal_can_be_shared_out(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(method=method, batch_size=24)
    for together, more in (("2", {}), ("3", {"ACCELERATE_USE_FSDP": "true"})):
        for name, value in {"WORLD_SIZE": together, **more}.items():
            monkeypatch.setenv(name, value)
        found = [less for _, less in changes(settings, 4)]
        assert {less.micro_batch for less in found} == {less.micro_batch for less in found if micro_batch(less)} >= {1, 2}
        # Weights in 4 bits cannot be cut in slices.
        assert method == "qlora" or not more or all(less.method == method for less in found)


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_what_goes_on_from_an_adapter_stays_of_its_kind(method: str) -> None:
    found = {less.method for _, less in changes(TrainSettings(method=method), 4, goes_on=True)}
    assert found == ({method, "qlora"} if method in ("lora", "lora+", "pissa") else {method})


def test_the_shape_of_a_model(tiny: Path, tmp_path: Path) -> None:
    shape = shape_of(tiny)
    assert (shape.layers, shape.hidden, len(shape.linears), shape.key_value) == (2, 16, 14, 16)
    assert all(not name.endswith("lm_head") for name, _, _ in shape.linears)
    assert shape.narrow and shape.plain_head
    with pytest.raises(TrainingError, match="not a model folder"):
        shape_of(tmp_path)


def test_a_head_with_more_than_a_linear_function_is_told(tiny: Path, tmp_path: Path) -> None:
    import json

    config = build(tmp_path / "base", "gemma3_text", tiny) / "config.json"
    assert shape_of(config.parent).plain_head
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"final_logit_softcapping": 30.0}), "utf-8")
    assert not shape_of(config.parent).plain_head


def test_estimate_and_peak_are_kept_with_the_figures(trained: TrainResult) -> None:
    facts = trained.metrics()["memory"]
    assert facts["estimated"] > facts["total"] > 0 and facts["peak"] > 0


def test_every_run_has_a_peak_of_its_own() -> None:
    import torch

    if not memory.start_peak():
        pytest.skip("this system cannot count anew")
    before = memory.peak()
    much = torch.ones(64 << 20, dtype=torch.uint8)
    high = memory.peak()
    assert high >= before + much.numel() * 0.9
    del much
    assert memory.start_peak() and memory.peak() < high - (32 << 20)


def test_a_run_that_took_more_than_estimated_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(tiny, tmp_path, settings=replace(QUICK, epochs=1))
    monkeypatch.setattr(proposals, "held", lambda: 0)
    monkeypatch.setattr(proposals, "peak", lambda: 3 * memory.GIB)
    with caplog.at_level(logging.WARNING):
        result = train(job, lambda event: None)
    assert "the run took 3.0 GiB of memory at its peak, 0.4 GiB were estimated: leave that much more free" in caplog.text
    assert result.memory["peak"] == 3 * memory.GIB
    run = Expected(SEVEN, TrainSettings(), 1, SPANS, True, 0, memory.GIB)
    facts: Mapping[str, int] = {"peak": 109, "estimated": 100}
    assert run.exceeded(facts) is None and run.exceeded({**facts, "peak": 111}) is not None
    # Where the system cannot count anew, the peak may be another run's.
    assert replace(run, counted=False).exceeded({**facts, "peak": 111}) is None


def test_too_much_is_said_before_the_start(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(proposals, "available", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        train(make_job(tiny, tmp_path, settings=replace(QUICK, epochs=1)), lambda event: None)
    assert "0.0 GiB are free: no setting makes it fit" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="the embedded model is not on this machine")
@pytest.mark.parametrize("wanted", [{}, {"gradient_checkpointing": True}, {"method": "full"}])
def test_the_estimate_is_within_a_third_of_the_peak(tmp_path: Path, wanted: dict[str, Any]) -> None:
    import json
    import subprocess
    import sys

    code = (
        "import json, sys; from dataclasses import replace; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from finetune_model import QUICK, make_examples, make_job, smollm2; from finetune.train import train\n"
        "rows = [replace(e, completion=e.completion * 6) for e in make_examples(8)]\n"
        "settings = replace(QUICK, epochs=1, batch_size=8, rank=16, learning_rate=1e-5, **json.loads(sys.argv[3]))\n"
        "result = train(make_job(smollm2(), Path(sys.argv[4]), train=rows, dev=rows[:2], settings=settings), lambda event: None)\n"
        "print(json.dumps(dict(result.memory)))"
    )
    here = Path(__file__).parent
    words = [sys.executable, "-c", code, str(here), str(here.parents[1]), json.dumps(wanted), str(tmp_path)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    facts = json.loads(out.strip().splitlines()[-1])
    assert 0.67 < facts["estimated"] / facts["peak"] < 1.5
