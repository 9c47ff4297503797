"""DoRA, rsLoRA and prefixes in one batch with plain LoRA: every answer is what peft's own model gives alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_engines_local import QUESTIONS, WINDOW, adapters, anyio_backend, ask, base, engine_on, make_adapter, reference, user

from appliance.engines.base import AdapterRef, EngineError, PromptTooLong

__all__ = ["adapters", "anyio_backend", "base"]
pytestmark = pytest.mark.anyio
POSITIONS = 5


@pytest.fixture(scope="module")
def variants(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterRef]:
    """Adapters of every kind, all of which change the output."""

    def folder() -> Path:
        return tmp_path_factory.mktemp("variant")

    return {
        "dora@1": make_dora(base, folder(), "dora@1", 1),
        "dora@2": make_dora(base, folder(), "dora@2", 2, use_rslora=True),
        "rs@1": make_adapter(base, folder(), "rs@1", 3, use_rslora=True),
        "lora@1": make_adapter(base, folder(), "lora@1", 4),
        "前缀@1": make_prefix(base, folder(), "前缀@1", 5),
        "prefix@2": make_prefix(base, folder(), "prefix@2", 6),
    }


def make_dora(base: Path, folder: Path, name: str, seed: int, **settings: Any) -> AdapterRef:
    import torch
    from safetensors.torch import load_file, save_file

    ref = make_adapter(base, folder, name, seed, use_dora=True, **settings)
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.manual_seed(seed)
    for key, value in tensors.items():
        if key.endswith("magnitude_vector"):
            tensors[key] = value * (1 + 0.3 * torch.randn_like(value))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return ref


def make_prefix(base: Path, folder: Path, name: str, seed: int) -> AdapterRef:
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=POSITIONS)
    )
    model.save_pretrained(folder)
    (folder / "version.json").write_text(json.dumps({"base_hash": "base-hash"}), encoding="utf-8")
    return AdapterRef(name, folder)


async def test_a_batch_mixes_every_kind_of_adapter(base: Path, variants: dict[str, AdapterRef]) -> None:
    engine = engine_on(base, max_batch=3)
    for variant in variants.values():
        await engine.load(variant)
    asked = [(question, name) for question in (QUESTIONS[1], QUESTIONS[4]) for name in (None, *variants)]
    together = await asyncio.gather(*(ask(engine, question, name) for question, name in asked))
    for (question, name), got in zip(asked, together, strict=True):
        assert got.text == reference(base, question, variants[name] if name else None), name
    assert len({got.text for got in together}) == len(asked)
    await engine.close()


async def test_what_was_unloaded_leaves_no_trace(base: Path, variants: dict[str, AdapterRef]) -> None:
    engine = engine_on(base)
    plain = (await ask(engine, QUESTIONS[1])).text
    for variant in variants.values():
        await engine.load(variant)
    with_dora = (await ask(engine, QUESTIONS[1], "dora@1")).text
    for name in ("dora@2", "prefix@2", "rs@1", "lora@1", "前缀@1"):
        await engine.unload(name)
    assert (await ask(engine, QUESTIONS[1], "dora@1")).text == with_dora
    await engine.unload("dora@1")
    assert (await ask(engine, QUESTIONS[1])).text == plain
    assert engine._worker is not None and await engine.adapters() == []
    await engine.load(variants["dora@1"])
    assert (await ask(engine, QUESTIONS[1], "dora@1")).text == with_dora
    await engine.close()


async def test_a_prefix_takes_its_positions_from_the_window(base: Path, variants: dict[str, AdapterRef]) -> None:
    engine = engine_on(base)
    await engine.load(variants["prefix@2"])
    text = "长" * 40
    while await engine.count_tokens(user(text + "长")) < WINDOW - POSITIONS:
        text += "长"
    room = WINDOW - POSITIONS - await engine.count_tokens(user(text))
    got = await ask(engine, text, "prefix@2", max_tokens=50)
    assert got.usage.completion_tokens <= room
    with pytest.raises(PromptTooLong):
        await ask(engine, text + "长" * POSITIONS, "prefix@2")
    await engine.close()


async def test_damaged_variants_are_refused(base: Path, variants: dict[str, AdapterRef], tmp_path: Path) -> None:
    engine = engine_on(base)
    for name, key, value, says in (
        ("prefix@2", "num_virtual_tokens", POSITIONS + 1, "does not fit this model: it holds"),
        ("dora@1", "peft_type", "LOHA", "is of type LOHA"),
    ):
        path = Path(shutil.copytree(variants[name].path, tmp_path / name))
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8")) | {key: value}
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(EngineError, match=says):
            await engine.load(AdapterRef("bad", path))
    assert await engine.adapters() == []
    await engine.close()
