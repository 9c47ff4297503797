"""Every training method on one real set: what it trains, needs and reaches, and what the model forgets meanwhile.

SmolLM2-135M in float32 is trained on MedQuAD pairs by each method with its own learning rate, each in a fresh process. `loss` is per
token on pairs held out (DPO: the preference loss; pretrain: of their text), ROUGE-L and BLEU are of greedy answers to other pairs held
out, `forgot_*` is by how much the loss per token of general texts (XQuAD's paragraphs, English and Chinese) grew, `tokens_a_cpu_s` counts
seconds of a processor, which other work on the machine leaves alone. Small numbers of pairs and of updates: the table shows what the
methods cost and that each learns, not which one is best.

Beside it stands what others publish, all in GB per billion parameters; `gb_a_billion` is our measured peak in that unit, of the whole
process, with 32-bit weights and activations of the batches in hand:

- `llama_factory`: stated as estimated hardware requirement with 16-bit weights (github.com/hiyouga/LLaMA-Factory, README.md, section
  Hardware Requirement, commit 00409ff2).
- `peft_readme`: measured on an A100 with T0_3B, an encoder with a decoder, "3B params" (README of peft 0.21.2, section High performance on
  consumer hardware: 47.14 GB full, 14.4 GB LoRA).
- `peft_benchmark`: the most that an L40S had in use, evaluation with 50 examples at once included, for Llama-3.2-3B in bfloat16, 4
  examples of at most 768 tokens an update, LoRA on q_proj and v_proj (github.com/huggingface/peft, method_comparison/MetaMathQA/results:
  commit 0a179c1e for full, LoRA of rank 32 and rsLoRA of rank 64, 52903c83 for DoRA of rank 32, 19481100 for prefix tuning with 200
  tokens). Full training keeps weights and states in 16 bits there, in 32 here.

Not comparable are the fixed cost of a process, which weighs much with a model as small as ours; time (their GPUs); and quality: theirs is
the share of GSM8K that a 3B model solves, ours ROUGE-L and BLEU of a 135M one. A dash means that nothing is published for the method.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import ROOT, Claim, at_most, finish, machine, options, print_table

from appliance.cli.session import Progress
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_CHAT
from finetune.memory import shape_of
from finetune.settings import METHODS

SET, GENERAL = "medical-en-medquad", "general-enzh-xquad"
# Characters of the pairs taken: short ones, so that many fit into the time.
SHORT, LONG = 60, 600
SETTINGS: dict[str, Any] = {"batch_size": 8, "micro_batch": 4, "warmup_steps": 0, "patience": 0, "max_length": 512, "over_long": "drop"}
# GB per billion parameters; sources above.
LLAMA_FACTORY = {"full": 18.0, "pretrain": 18.0, "freeze": 2.0, "lora": 2.0, "galore": 2.0, "qlora": 0.5}
PEFT_README = {"full": 47.14 / 3, "lora": 14.4 / 3}
_LLAMA_3B = 3.212749824
PEFT_BENCHMARK = {
    "full": 37.241225216 / _LLAMA_3B,
    "lora": 22.273851392 / _LLAMA_3B,
    "rslora": 22.538092544 / _LLAMA_3B,
    "dora": 24.540872704 / _LLAMA_3B,
    "prefix": 20.912799744 / _LLAMA_3B,
}


def rows_of(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_sets(data: Path, folder: Path, train: int, held: int, texts: int) -> None:
    """train, dev and held: pairs with different questions, spread over the set; texts: paragraphs in both languages."""
    found = [row for row in rows_of(data / SET / "qa.jsonl") if SHORT <= len(row["answer"]) <= LONG]
    wanted = train + 2 * held
    if len(found) < wanted:
        raise SystemExit(f"{SET} has {len(found)} short pairs, {wanted} are needed; lower --train or --held")
    spread = [found[place * len(found) // wanted] for place in range(wanted)]
    pairs = [{"question": row["question"], "answer": row["answer"]} for row in spread]
    parts = {"dev": pairs[1::4][:held], "held": pairs[3::4][:held]}
    kept = [pair for pair in pairs if pair not in parts["dev"] and pair not in parts["held"]]
    paragraphs = rows_of(data / GENERAL / "corpus.jsonl")
    general = [
        {"lang": lang, "text": row["text"]}
        for lang in ("en", "zh")
        for row in [row for row in paragraphs if row["id"].startswith(f"xquad-{lang}")][:texts]
    ]
    for name, part in (parts | {"train": kept[:train], "texts": general}).items():
        (folder / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False), "utf-8")


def run(folder: Path, base: Path, method: str, epochs: int, new_tokens: int) -> dict[str, Any]:
    config: dict[str, Any] = {"base": str(base), "method": method, "settings": SETTINGS | {"epochs": epochs}, "new_tokens": new_tokens}
    config |= {name: str(folder / f"{name}.json") for name in ("train", "dev", "held", "texts")} | {"work": str(folder / f"work-{method}")}
    asked, told = folder / f"{method}-config.json", folder / f"{method}-result.json"
    asked.write_text(json.dumps(config), "utf-8")
    words = [sys.executable, str(ROOT / "benchmarks" / "methods_run.py"), str(asked), str(told)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise SystemExit(f"method {method} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(told.read_text("utf-8"))
    return found


def shown(found: dict[str, Any], base: dict[str, Any], parameters: int) -> dict[str, Any]:
    """One line of the table."""
    method = found["method"]
    peak = found.get("peak_mib")
    return {
        "method": method,
        "trainable": found.get("trainable"),
        "peak_mib": peak,
        "estimated_mib": found.get("estimated_mib"),
        "gb_a_billion": None if peak is None else round(peak * 2**20 / parameters, 1),
        "llama_factory": LLAMA_FACTORY.get(method),
        "peft_readme": _rounded(PEFT_README.get(method)),
        "peft_benchmark": _rounded(PEFT_BENCHMARK.get(method)),
        "tokens_a_s": found.get("tokens_a_s"),
        "tokens_a_cpu_s": found.get("tokens_a_cpu_s"),
        "loss_before": found.get("loss_before"),
        "loss": found.get("loss"),
        "rouge_l": round(found["rouge_l"], 4),
        "bleu": round(found["bleu"], 2),
        "forgot_en": round(found["general_en"] - base["general_en"], 4),
        "forgot_zh": round(found["general_zh"] - base["general_zh"], 4),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def kept_rows(file: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `file`, which must be of the same settings and sources."""
    kept = json.loads(file.read_text("utf-8")) if file is not None and file.is_file() else {}
    if kept.get("settings") != json.loads(json.dumps(settings)) or kept["machine"]["sources"] != machine()["sources"]:
        raise SystemExit("--again needs a --json file of the same settings and sources; run all methods")
    return list(kept["rows"])


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--train", type=int, help="pairs to train on (default: 96, quick: 16)")
    parser.add_argument("--held", type=int, help="pairs held out for the loss, and as many for the answers (default: 16, quick: 4)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS), help="which, with commas between them")
    parser.add_argument("--again", action="store_true", help="measure these anew, and keep the other rows that --json holds")
    given = parser.parse_args()
    if given.data is None or not (Path(given.data) / SET / "qa.jsonl").is_file():
        raise SystemExit(f"needs the data sets {SET} and {GENERAL}: name their folder with --data or $APPLIANCE_DATA")
    train, held = given.train or (16 if given.quick else 96), given.held or (4 if given.quick else 16)
    settings = SETTINGS | {"quick": given.quick, "train": train, "held": held, "epochs": given.epochs, "model": DEFAULT_CHAT}
    kept = kept_rows(given.json, settings) if given.again else []
    with Progress() as progress:
        base = ModelStore.default().pull(DEFAULT_CHAT, progress)
    parameters = shape_of(base).parameters
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="methods-") as name, Progress() as progress:
        folder = Path(name)
        write_sets(Path(given.data), folder, train, held, 8)
        wanted = ["base", *given.methods.split(",")]
        for number, method in enumerate(wanted):
            progress("methods", number, len(wanted), method=method)
            measured.append(run(folder, base, method, given.epochs, 48))
    rows = [shown(found, measured[0], parameters) for found in measured]
    if kept:
        anew = {row["method"]: row for row in rows}
        rows = [anew.get(row["method"], row) for row in kept]
    print_table(f"{SET}: {train} pairs, {given.epochs} epochs", rows)
    by_method = {row["method"]: row for row in rows}
    claims: list[Claim] = []
    for row in rows[1:]:
        claims.append(at_most(f"loss_ratio.{row['method']}", row["loss"] / row["loss_before"], 1.0, "ratio"))
    if {"lora", "full"} <= by_method.keys():
        claims.append(at_most("lora_peak_over_full", by_method["lora"]["peak_mib"] / by_method["full"]["peak_mib"], 1.0, "ratio"))
    finish(given.json, settings, rows, claims)


if __name__ == "__main__":
    main()
