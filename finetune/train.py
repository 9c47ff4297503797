"""One training run, whatever the method. Nothing is registered here: the result is a folder for `finetune.version.finish_version`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.building import build_model, build_trainer, context_of, half_precision, micro_batch, quiet, repeatable
from finetune.distributed import Helped, is_main, processes, sharded, wait
from finetune.memory import give_back
from finetune.methods import method_of
from finetune.near import group
from finetune.proposals import expect
from finetune.runs import ADAPTER, CHECKPOINTS, open_run, run_key
from finetune.settings import TrainSettings, held_out, learns_from
from finetune.tokens import ENCODING, adjusted, load_tokenizer, stop_tokens, template_hash
from finetune.types import Example, TrainingError

if TYPE_CHECKING:
    from finetune.methods.base import Method
    from finetune.trainer import AdapterTrainer
    from finetune.watch import Watch

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One training run. `base` is the folder of the model, `work` the folder of the run, on the disk of the result.

    A checkpoint is written after every epoch, and within one when `checkpoint_seconds` have passed (0: after every update); `fresh`
    ignores those there are.

    `start` is the folder of an adapter to go on from. Without `dev` examples `val_size` of `train` is held out, near duplicates together.
    """

    base: Path
    base_ref: str
    base_hash: str
    train: Sequence[Example]
    dev: Sequence[Example]
    settings: TrainSettings
    work: Path
    chat_template: str | None = None
    start: Path | None = None
    fresh: bool = False
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What was trained, in the folder `adapter` (peft's files, or a complete model where the method makes one), and what happened.

    `train_loss` is the mean over all updates, `eval_loss` the loss per token on dev of the kept epoch, `eval_loss_before`
    that of the base; `dropped` counts examples left out by reason, `adjusted` those that the policy "window" changed, `seconds`
    is wall time (of steps alone before a kill), `tokens_per_second` counts tokens without padding over the training steps,
    `shortcuts` says of each whether it was "taken", else why not. `memory` is in bytes (see `finetune.proposals`). `log` holds
    the progress events.
    """

    adapter: Path
    base_ref: str
    base_hash: str
    settings: TrainSettings
    train_examples: int
    dev_examples: int
    dropped: Mapping[str, int]
    adjusted: Mapping[str, int]
    train_loss: float
    eval_loss: float
    eval_loss_before: float
    best_step: int
    steps: int
    tokens_per_second: float
    seconds: float
    trainable_parameters: int
    data_hash: str
    template_hash: str
    libraries: Mapping[str, str]
    shortcuts: Mapping[str, str]
    memory: Mapping[str, int]
    log: Sequence[Mapping[str, Any]]

    def metrics(self) -> dict[str, Any]:
        """The figures of the run, as plain data."""
        names = ("train_examples", "dev_examples", "train_loss", "eval_loss", "eval_loss_before", "best_step", "steps")
        more = ("tokens_per_second", "seconds", "trainable_parameters")
        return {name: getattr(self, name) for name in names + more} | {
            "dropped": dict(self.dropped),
            "adjusted": dict(self.adjusted),
            "shortcuts": dict(self.shortcuts),
            "memory": dict(self.memory),
        }


def train(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> TrainResult:
    """Train; blocks until done. `progress` gets dicts: step, steps, epoch, loss or eval_loss, tokens_per_second, eta (seconds).

    Before the first step every example is proven to be tokenised as it will be served. Raises TrainingError with the
    reason and the remedy; KeyboardInterrupt passes. After either, or a kill, the same job in the same `work` goes on from its
    last checkpoint to the same result; `finetune.runs.clear` removes what only an unfinished run needs. Where several processes
    train together, all but the first end with `finetune.distributed.Helped`.
    """
    began = time.perf_counter()
    settings = job.settings
    method = method_of(settings, job.work)
    context = context_of(job.base)
    tokenizer = load_tokenizer(job.base, job.chat_template)
    stops = stop_tokens(tokenizer, job.base)
    train_part, dev_part = _parts(job)
    train_rows, dropped = method.encode(tokenizer, train_part, stops, context)
    dev_rows, dev_dropped = method.encode(tokenizer, dev_part, stops, context)
    if not train_rows or not dev_rows:
        which = "train" if not train_rows else "dev"
        raise TrainingError(f"every {which} example is longer than max_length ({settings.max_length} tokens); raise it or shorten them")
    micro, half, logger = micro_batch(settings), half_precision(settings), logging.getLogger(__name__)
    expected = expect(job.base, settings, method.columns([*train_rows, *dev_rows]), micro, half, job.start is not None)
    # Before they are cut, weights are whole in main memory, which is not what is estimated.
    if not sharded() and (warning := expected.warning()):
        logger.warning("%s", warning)
    checkpoints, adapter = job.work / CHECKPOINTS, job.work / ADAPTER

    from finetune.resume import discard_torn, newest, step_of
    from finetune.watch import Watch

    if is_main():
        open_run(job.work, key_of(job), job.fresh)
        discard_torn(checkpoints)
    wait(settings.method)
    checkpoint = newest(checkpoints)
    watch = Watch(progress, job.work, step_of(checkpoint), is_main())
    before = watch.seconds
    try:
        with quiet(), closing(watch), repeatable(settings.deterministic):
            trainer = build_trainer(job, method, tokenizer, train_rows, dev_rows, checkpoints, watch)
            figures = run_trainer(trainer, method, tokenizer, watch, job, checkpoint)
    except (RuntimeError, MemoryError) as error:
        if "deterministic implementation" in str(error):
            raise TrainingError(f"deterministic: this model and device cannot be trained so ({error}); set it to false") from error
        if not _out_of_memory(error):
            raise
        raise TrainingError(f"out of memory; {expected.remedy()}") from error
    memory = expected.facts()
    # What comes next in this process, a gate or another stage, needs it.
    del trainer
    give_back()
    if not sharded() and (warning := expected.exceeded(memory)):
        logger.warning("%s", warning)
    return TrainResult(
        adapter=adapter,
        base_ref=job.base_ref,
        base_hash=job.base_hash,
        settings=settings,
        train_examples=len(train_part) - dropped,
        dev_examples=len(dev_part) - dev_dropped,
        dropped={"over_long": dropped + dev_dropped} if dropped + dev_dropped else {},
        adjusted=adjusted([*train_rows, *dev_rows]),
        seconds=round(before + time.perf_counter() - began, 3),
        data_hash=data_hash(train_part, dev_part),
        template_hash=template_hash(tokenizer),
        libraries={name: version(name) for name in LIBRARIES},
        memory=memory,
        **figures,
    )


def key_of(job: TrainJob) -> str:
    """The sha256 (hex) over everything that decides the result of `job`."""
    start = None if job.start is None else [_file_hash(file) for file in sorted(job.start.glob("*.safetensors"))]
    return run_key(
        {
            "data": data_hash(job.train, job.dev),
            "encoding": ENCODING,
            "settings": job.settings.to_json(),
            "base": job.base_hash,
            "template": job.chat_template,
            "start": start,
            "libraries": {name: version(name) for name in LIBRARIES},
            "processes": processes(),
            "sharded": sharded(),
        }
    )


def data_hash(train_part: Sequence[Example], dev_part: Sequence[Example]) -> str:
    """The sha256 (hex) of what is trained on, in order."""
    rows = [
        [name, [(turn.role, turn.content) for turn in example.prompt], example.completion, example.rejected]
        for name, part in (("train", train_part), ("dev", dev_part))
        for example in part
    ]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _parts(job: TrainJob) -> tuple[Sequence[Example], Sequence[Example]]:
    if not job.train:
        raise TrainingError("there is no example to train on; the data set needs pairs with the split train")
    if job.dev:
        return job.train, job.dev
    asked = ["\n".join(turn.content for turn in example.prompt if turn.role == "user") or example.completion for example in job.train]
    groups = group(asked)
    if len(groups) < 2:
        what, more = ("document", "ingest another one") if learns_from(job.settings.method) == "texts" else ("pair", "add other ones")
        why = f"there is only one {what}" if len(job.train) == 1 else f"the {what}s are near duplicates of each other"
        raise TrainingError(f"nothing can be held out to measure the training on: {why}; {more}")
    wanted, held = held_out(job.settings.val_size, len(job.train)), set[int]()
    # The smallest groups first: no dice, so the same examples are held out every time.
    for members in sorted(groups, key=len):
        if held and len(held) + len(members) > wanted:
            break
        held.update(members)
    kept = [example for number, example in enumerate(job.train) if number not in held]
    return kept, [example for number, example in enumerate(job.train) if number in held]


def run_trainer(
    trainer: AdapterTrainer, method: Method, tokenizer: Any, watch: Watch, job: TrainJob, checkpoint: Path | None
) -> dict[str, Any]:
    """Train, from `checkpoint` if there is one, and save into the run's folder; the figures of TrainResult that come from it."""
    from finetune.resume import restore, run
    from finetune.sharding import is_sharded
    from finetune.shortcuts import shortcuts
    from finetune.trainer import writing

    with shortcuts(trainer) as taken:
        best = run(trainer, checkpoint)
    if not is_main():
        raise Helped
    watch.finish()
    losses = [event["loss"] for event in watch.events if "loss" in event]
    model, folder = trainer.model, job.work / ADAPTER
    if is_sharded(model):
        # The slices of the other processes are not needed: what was trained is whole in the checkpoint.
        model = build_model(job, method, trainer.train_dataset[0]["input_ids"])
        restore(model, best)
    with writing(folder):
        method.save(model, tokenizer, folder)
    return {
        "train_loss": round(sum(losses) / len(losses), 6),
        "eval_loss": round(trainer.state.best_metric, 6),
        "eval_loss_before": round(next(event["eval_loss"] for event in watch.events if "eval_loss" in event), 6),
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "tokens_per_second": round(watch.rate(trainer.state), 2),
        "trainable_parameters": sum(value.numel() for value in trainer.model.parameters() if value.requires_grad),
        "shortcuts": taken,
        "log": tuple(watch.events),
    }


def _file_hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
