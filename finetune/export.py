"""An adapter merged into its base: a model of its own that any engine loads, proven to answer like the two together."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.disk import sync
from finetune.lint import CONFIG
from finetune.tokens import load_tokenizer
from finetune.types import TrainingError

FACTS = "export.json"
PROMPTS = ("What should be done first?", "How much does it cost, and who pays?", "应当先做什么？", "费用是多少，由谁支付？")
_NEW_TOKENS = 16
# How far logits may be apart, as a share of their own spread, and which share of the greedy tokens may differ, by the precision of the
# weights: they are rounded to 24, 11 or 8 bits after merging, which turns the choice between two tokens that are nearly as likely.
# SmolLM2-135M in float32 gave 2e-6 and no other token.
_TOLERANCE = {"float32": (1e-3, 0.0), "float16": (0.03, 0.02), "bfloat16": (0.2, 0.05)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the merged model compares with base and adapter: the root mean square difference of two logits as a share of their spread
    (standard deviation), the greedy tokens compared, and how many of them differ."""

    logits: float
    tokens: int
    differing: int


def export(
    adapter: Path,
    base: Path,
    out: Path,
    *,
    chat_template: str | None = None,
    shard_size: str = "5GB",
    facts: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> Agreement:
    """Write base and adapter as one model into the new folder `out`: safetensors of at most `shard_size`, tokenizer, chat template and
    export.json (`facts` and the check). The precision is the base's; merging is done in float32.

    The saved model is loaded again and compared with base plus adapter on `prompts`: every logit, and each greedy token. Raises
    TrainingError if they disagree, if the base is quantised, or if the adapter has no weights to merge; nothing is left in `out` then.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    kind = _kind(adapter)
    dtype = _check_base(base)
    if kind != "LORA":
        raise TrainingError(
            f"{adapter}: {kind} adapters cannot be merged: what they learn are not changes of weights "
            "(prefix tuning learns keys and values); serve the adapter beside its base"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out}: there is something already; name a new folder")
    staging = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}.tmp"
    with _removed(staging):
        tokenizer = load_tokenizer(base, chat_template)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
            both: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
            wanted = _answers(both, tokenizer, prompts)
            merged = both.merge_and_unload(safe_merge=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            # The first two lines: what is wrong, and the first tensor of which it is.
            said = " ".join(" ".join(str(error).splitlines()[:2]).split())
            raise TrainingError(
                f"{adapter} cannot be merged into {base}: {said}; check them with `appliance adapter lint` and `appliance model verify`"
            ) from error
        try:
            staging.mkdir(parents=True)
            merged.to(getattr(torch, dtype)).save_pretrained(staging, max_shard_size=shard_size)
            del model, both, merged
            tokenizer.save_pretrained(staging)
            found: Any = AutoModelForCausalLM.from_pretrained(staging, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, SafetensorError) as error:
            raise _not_written(out, error) from error
        agreement = _compare(found.eval(), wanted)
        apart, share = _TOLERANCE[dtype]
        if agreement.logits > apart or agreement.differing > share * agreement.tokens:
            raise TrainingError(
                f"the merged model does not answer like base and adapter: logits differ by {agreement.logits:.3g} of their spread "
                f"(at most {apart:g} in {dtype}), {agreement.differing} of {agreement.tokens} greedy tokens differ; "
                "nothing was written. Serve the adapter beside its base instead"
            )
        check = {**asdict(agreement), "dtype": dtype}
        try:
            (staging / FACTS).write_text(
                json.dumps({**(facts or {}), "check": check}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
            )
            for file in (*staging.iterdir(), staging):
                sync(file)
            if out.exists():
                out.rmdir()
            staging.rename(out)
            sync(out.parent)
        except OSError as error:
            raise _not_written(out, error) from error
    return agreement


def _not_written(out: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{out}: the model could not be written ({error}); check the space, the rights and --shard-size")


def _kind(adapter: Path) -> str:
    try:
        return str(json.loads((adapter / CONFIG).read_text(encoding="utf-8")).get("peft_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{adapter}: not an adapter ({error}); name the folder of one") from error


def _check_base(base: Path) -> str:
    """The precision of the base's weights. Raises TrainingError if they are quantised."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "")
        raise TrainingError(
            f"{base}: the base is quantised ({method}): its weights are rounded to a few values, and a merged adapter would be rounded "
            "away with them; merge into the unquantised base, or serve the adapter beside this one"
        )
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return dtype if dtype in _TOLERANCE else "float32"


def _answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[tuple[Any, int, Any]]:
    """For each prompt: ids of prompt and greedy answer, the prompt's length, and the logits at every position."""
    import torch

    made: list[tuple[Any, int, Any]] = []
    for text in prompts:
        encoded = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt")
        ids = encoded["input_ids"]
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=0
            )
            made.append((whole, ids.shape[1], model(input_ids=whole).logits.float()))
    return made


def _compare(model: Any, wanted: Sequence[tuple[Any, int, Any]]) -> Agreement:
    import torch

    worst, tokens, differing = 0.0, 0, 0
    for ids, prompt, logits in wanted:
        with torch.inference_mode():
            found = model(input_ids=ids).logits.float()
        apart = float((found - logits).square().mean().sqrt())
        worst = max(worst, apart / float(logits.std()))
        # The logits that choose the answer's tokens.
        theirs, ours = logits[0, prompt - 1 : -1], found[0, prompt - 1 : -1]
        differing += int((theirs.argmax(-1) != ours.argmax(-1)).sum())
        tokens += theirs.shape[0]
    return Agreement(worst, tokens, differing)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Whatever happens, `folder` is gone afterwards unless it was renamed."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
