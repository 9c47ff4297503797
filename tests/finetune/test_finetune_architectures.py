"""Each architecture trains, is saved, served by the local engine's own code, and merged: always with the same answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES, build
from finetune_model import QUICK, build_model, make_examples, make_job

from appliance.engines.base import AdapterRef, Message, Sampling
from appliance.engines.local import LocalEngine
from finetune.chat_templates import NAMED
from finetune.export import export
from finetune.train import train
from finetune.types import Example, TrainingError, Turn
from finetune.version import finish_version, lint_adapter

# A conversation in each language, with and without a system message.
TURNS = (
    (Turn("system", "Answer briefly."), Turn("user", "What is the fee of account A7?")),
    (Turn("user", "账户B3的月费是多少？"), Turn("assistant", "3欧元。"), Turn("user", "账户B5呢？")),
)
# The modules of a decoder layer that "all-linear" finds.
LINEAR = {
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "glm4": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},
}
USUAL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("source"), template=None)


def _greedy(base: Path, adapter: Path | None, template: str) -> list[str]:
    """The answers as transformers and peft give them, one conversation alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()
    said: list[str] = []
    for turns in TURNS:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        ids = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
        said.append(_whole(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)))
    return said


def _whole(text: str) -> str:
    """Without a character that was cut off at the end, which a stream holds back."""
    return text.rstrip("\ufffd")


async def _served(base: Path, adapter: Path | None, template: str | None) -> list[str]:
    engine = LocalEngine("tiny", base, "basehash", ["en", "zh"], chat_template=template)
    try:
        if adapter:
            await engine.load(AdapterRef("trained", adapter))
        said = []
        for turns in TURNS:
            messages: list[Message] = [{"role": turn.role, "content": turn.content} for turn in turns]
            deltas = [delta.text async for delta in engine.chat(messages, "trained" if adapter else None, Sampling(max_tokens=8))]
            said.append(_whole("".join(deltas)))
        return said
    finally:
        await engine.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in ("qwen2", "gpt_neox", "gemma3_text", "phi3") else pytest.mark.slow) for kind in ARCHITECTURES],
)
async def test_it_trains_saves_serves_and_merges(kind: str, source: Path, tmp_path: Path) -> None:
    base = build(tmp_path / "base", kind, source)
    template = NAMED["alpaca" if kind == "qwen2" else "chatml"]
    chat = [Example(f"c{number}", turns, "第{number}个答案 yes.") for number, turns in enumerate(TURNS)]
    settings = replace(QUICK, epochs=1, batch_size=8, learning_rate=5e-2)
    job = make_job(
        base, tmp_path / "work", train=[*make_examples(6), *chat], dev=make_examples(2, start=40), chat_template=template, settings=settings
    )
    result = train(job, lambda event: None)
    assert result.eval_loss < result.eval_loss_before
    version = finish_version(result, tmp_path / "adapters", "bank", dataset="d", dataset_version="1")
    assert lint_adapter(version.path, base, base_hash="basehash", chat_template=template) == []
    targets = json.loads((version.path / "adapter_config.json").read_text("utf-8"))["target_modules"]
    assert {name.split(".")[-1] for name in targets} == LINEAR.get(kind, USUAL)

    wanted = _greedy(base, version.path, template)
    assert wanted != _greedy(base, None, template)
    assert await _served(base, version.path, template) == wanted

    agreement = export(version.path, base, tmp_path / "merged", chat_template=template)
    assert agreement.logits < 1e-4 and agreement.differing == 0 and agreement.tokens > 0
    # The exported folder brings the template along.
    assert await _served(tmp_path / "merged", None, None) == wanted


def test_code_that_comes_with_a_model_is_never_run(source: Path, tmp_path: Path) -> None:
    base = build(tmp_path / "base", "llama", source)
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "remote.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "utf-8")
    remote = {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "baichuan", "auto_map": remote}), "utf-8")
    with pytest.raises(TrainingError, match="contains custom code"):
        train(make_job(base, tmp_path / "work", chat_template=NAMED["chatml"]), lambda event: None)
    assert not (tmp_path / "ran").exists()
