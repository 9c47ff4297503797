"""How fast a LoRA adapter is trained, beside LLaMA-Factory: the same model, pairs, LoRA settings and updates, in one run.

Both train SmolLM2-135M in float32 on the same MedQuAD pairs (without data: on those of the sample), rank 16 on all linear layers, 8
examples an update, all computed at once (`micro_batch` 8 here, `per_device_train_batch_size` 8 there; left to itself ours takes 4, which
needs less memory and less padding), each run in a fresh process, the two in turn; the ratios are medians over the rounds. A second
counts while an update is computed, tokens count without padding. The final loss is that of both adapters on the same held-out pairs, by
the plain computation of transformers. LLaMA-Factory keeps no activations out of memory (`disable_gradient_checkpointing`), which is its
faster way.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, Claim, at_least, at_most, finish, options, print_table
from peer_environment import PEERS, python_of
from training_run import examples_of

from appliance.cli.session import Progress
from appliance.demo import DOMAINS, SAMPLE
from appliance.service import open_service
from appliance.settings import DEFAULT_CHAT
from appliance.workspace import Workspace
from finetune.tokens import Encoded, encode, load_tokenizer, stop_tokens

SET = "medical-en-medquad"
SYSTEM = "You are a helpful assistant."
PEER = "LLaMA-Factory"
BATCH = 8
LONGEST = 512
SETTINGS: dict[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "learning_rate": 2e-4,
    "epochs": 1,
    "batch_size": BATCH,
    "micro_batch": BATCH,
    "warmup_steps": 0,
    "scheduler": "cosine",
    "max_length": 1024,
    "patience": 0,
}


def pairs_of(data: Path | None) -> list[dict[str, str]]:
    """Pairs as rows of an alpaca file, those that train first."""
    if data is not None and (data / SET / "qa.jsonl").is_file():
        with (data / SET / "qa.jsonl").open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        found = sorted(found, key=lambda row: row["split"] != "train")
    else:
        files = sorted(path for name in DOMAINS for path in (SAMPLE / name).rglob("*.jsonl"))
        found = [json.loads(line) for path in files for line in path.read_text("utf-8").splitlines()]
        found = [row for row in found if row.get("question") and row.get("answer")]
    return [{"system": SYSTEM, "instruction": row["question"], "input": "", "output": row["answer"]} for row in found]


def write_sets(folder: Path, rows: list[dict[str, str]], base: Path, wanted: int, held: int) -> dict[str, list[Encoded]]:
    """train.json and dev.json of pairs that fit, and LLaMA-Factory's registry of them; the same as tokens."""
    tokenizer = load_tokenizer(base)
    stops = stop_tokens(tokenizer, base)
    fitting: list[dict[str, str]] = []
    every = folder / "every.json"
    every.write_text(json.dumps(rows[: 4 * (wanted + held)] + rows[-4 * held :], ensure_ascii=False), "utf-8")
    for row, example in zip(json.loads(every.read_text("utf-8")), examples_of(every), strict=True):
        if len(encode(tokenizer, example, stops).input_ids) <= LONGEST:
            fitting.append(row)
    sets = {"train": fitting[:wanted], "dev": fitting[-held:]}
    for name, part in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False), "utf-8")
    columns = {"system": "system", "prompt": "instruction", "query": "input", "response": "output"}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": {"file_name": "train.json", "columns": columns}}), "utf-8")
    return {name: [encode(tokenizer, example, stops) for example in examples_of(folder / f"{name}.json")] for name in sets}


def ours(under: Sequence[str], folder: Path, base: Path, turn: str, profile: bool = False) -> dict[str, Any]:
    config = {"base": str(base), "train": str(folder / "train.json"), "dev": str(folder / "dev.json"), "profile": profile}
    config |= {"work": str(folder / f"ours{turn}"), "settings": SETTINGS}
    return run(under, folder, Path(sys.executable), ROOT / "benchmarks" / "training_run.py", config, f"ours{turn}")


def theirs(under: Sequence[str], folder: Path, base: Path, turn: str) -> dict[str, Any]:
    output = folder / f"theirs{turn}"
    config = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(base),
        "finetuning_type": "lora",
        "lora_rank": SETTINGS["rank"],
        "lora_alpha": SETTINGS["alpha"],
        "lora_dropout": SETTINGS["dropout"],
        "lora_target": "all",
        "dataset_dir": str(folder),
        "dataset": "pairs",
        "template": "smollm2",
        "cutoff_len": SETTINGS["max_length"],
        "output_dir": str(output),
        "learning_rate": SETTINGS["learning_rate"],
        "num_train_epochs": SETTINGS["epochs"],
        "per_device_train_batch_size": BATCH,
        "lr_scheduler_type": SETTINGS["scheduler"],
        "disable_gradient_checkpointing": True,
        "include_num_input_tokens_seen": "non_padding",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
    }
    return {
        **run(under, folder, python_of("llamafactory"), PEERS / "llamafactory_peer.py", config, f"theirs{turn}"),
        "adapter": str(output),
    }


def run(under: Sequence[str], folder: Path, python: Path, script: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Train in a process of its own; what it wrote. Raises CalledProcessError if it fails."""
    paths = folder / f"{name}.config.json", folder / f"{name}.result.json"
    paths[0].write_text(json.dumps(config), "utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE", "DISABLE_VERSION_CHECK": "1"}
    environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    if python == Path(sys.executable):
        environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([*under, str(python), str(script), *map(str, paths)], check=True, stdout=sys.stderr, env=environment)
    found: dict[str, Any] = json.loads(paths[1].read_text("utf-8"))
    return found


def held_out_loss(base: Path, adapter: Path, rows: list[Encoded]) -> float:
    """The mean loss per answer token, one example at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)).eval()
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            labels = torch.tensor([row.labels])
            tokens = float((labels != -100).sum())
            total += float(model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss) * tokens
            count += tokens
    return total / count


def row_of(system: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "system": system,
        "tokens": found["tokens"],
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "tokens_a_s": found["tokens"] / found["seconds"],
        "tokens_a_cpu_s": found["tokens"] / found["cpu_seconds"],
        "peak_mib": found["peak_mib"],
        "first_loss": found["losses"][0],
        "last_loss": found["losses"][-1],
    }


def compared(rounds: list[tuple[dict[str, Any], dict[str, Any]]], losses: Mapping[str, float]) -> list[Claim]:
    """The claims over rounds of (ours, theirs)."""

    def ratio(key: str) -> float:
        return float(statistics.median(mine[key] / other[key] for mine, other in rounds))

    loss = round(losses["ours"] / losses[PEER], 4)
    return [
        at_least("train_tokens_ratio", ratio("tokens_a_s"), 2.0, ""),
        at_least("train_tokens_ratio.cpu", ratio("tokens_a_cpu_s"), 2.0, ""),
        at_most("train_loss_ratio", loss, 1.02, ""),
        at_least("train_loss_ratio.low", loss, 0.98, ""),
        at_most("train_peak_memory_ratio", ratio("peak_mib"), 1.0, ""),
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--pairs", type=int, help="to train on (default: 96; with --quick 16)")
    parser.add_argument("--rounds", type=int, help="times each system trains (default: 3; with --quick 1)")
    parser.add_argument("--under", default="", metavar="COMMAND", help="put before each training run, such as a lock or taskset")
    parser.add_argument("--no-peer", action="store_true", help="ours alone, without claims")
    given = parser.parse_args()
    wanted, rounds = given.pairs or (16 if given.quick else 96), given.rounds or (1 if given.quick else 3)
    under = shlex.split(given.under)
    with tempfile.TemporaryDirectory(prefix="training-speed-") as temporary:
        folder = Path(temporary)
        service = open_service(Workspace.create(folder / "models"))
        reference = service.workspace.model(DEFAULT_CHAT)
        with Progress() as progress:
            service.models.pull(reference, progress)
        base = service.models.path(reference)
        held = 2 if given.quick else max(BATCH, wanted // 4)
        sets = write_sets(folder, pairs_of(given.data), base, wanted, held)
        turns: list[tuple[dict[str, Any], dict[str, Any]]] = []
        rows: list[dict[str, Any]] = []
        losses: dict[str, float] = {}
        for turn in map(str, range(rounds)):
            mine = ours(under, folder, base, turn)
            rows.append(row_of("ours", mine))
            if not given.no_peer:
                other = theirs(under, folder, base, turn)
                rows.append(row_of(PEER, other))
                turns.append((rows[-2], rows[-1]))
                if not losses:
                    losses = {name: held_out_loss(base, Path(one["adapter"]), sets["dev"]) for name, one in (("ours", mine), (PEER, other))}
        profile = ours(under, folder, base, "profile", profile=True)["profile"]
        print_table("training", rows)
        print_table("where ours spends its time", profile)
        about = {
            "quick": given.quick,
            "set": SET if given.data else "sample",
            "model": DEFAULT_CHAT,
            "pairs": len(sets["train"]),
            "held_out": len(sets["dev"]),
            "tokens": sum(len(row.input_ids) for row in sets["train"]),
            "median_tokens": statistics.median(len(row.input_ids) for row in sets["train"]),
            "rounds": rounds,
            "threads": len(os.sched_getaffinity(0)),
            **SETTINGS,
            "shortcuts": mine["shortcuts"],
            "held_out_loss": losses,
            "pins": pins() if turns else {},
        }
        finish(given.json, about, [*rows, *profile], compared(turns, losses) if turns else [])


def pins() -> dict[str, str]:
    lines = (PEERS / "llamafactory.txt").read_text("utf-8").splitlines()
    every = dict(line.split("==") for line in lines if "==" in line)
    return {name: every[name] for name in ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate")}


if __name__ == "__main__":
    main()
