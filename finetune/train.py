"""Training one LoRA adapter. Nothing is registered here: the result is a folder for `finetune.version.finish_version`."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.near import group
from finetune.settings import TrainSettings
from finetune.tokens import Encoded, encode_all, load_tokenizer, stop_tokens, template_hash
from finetune.types import Example, TrainingError

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")
# Examples computed at once if the settings do not say: the largest divisor of batch_size up to this.
_MICRO_BATCH = 8


@dataclass(frozen=True, slots=True)
class TrainJob:
    """One training run. `base` is the folder of the model, `work` a scratch folder on the disk of the result.

    Without `dev` examples a tenth of `train` is held out, near duplicates together.
    """

    base: Path
    base_ref: str
    base_hash: str
    train: Sequence[Example]
    dev: Sequence[Example]
    settings: TrainSettings
    work: Path
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained adapter in `adapter` (peft's files) and what happened.

    `train_loss` is the mean over all updates, `eval_loss` the loss per token on dev of the kept epoch, `eval_loss_before`
    that of the base; `dropped` counts examples left out by reason, `seconds` is wall time, `tokens_per_second` counts
    tokens without padding over the training steps. `log` holds the progress events.
    """

    adapter: Path
    base_ref: str
    base_hash: str
    settings: TrainSettings
    train_examples: int
    dev_examples: int
    dropped: Mapping[str, int]
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
    log: Sequence[Mapping[str, Any]]

    def metrics(self) -> dict[str, Any]:
        """The figures of the run, as plain data."""
        names = ("train_examples", "dev_examples", "train_loss", "eval_loss", "eval_loss_before", "best_step", "steps")
        more = ("tokens_per_second", "seconds", "trainable_parameters")
        return {name: getattr(self, name) for name in names + more} | {"dropped": dict(self.dropped)}


def train(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> TrainResult:
    """Train; blocks until done. `progress` gets dicts: step, steps, epoch, loss or eval_loss, tokens_per_second, eta (seconds).

    Before the first step every example is proven to be tokenised as it will be served. Raises TrainingError with the
    reason and the remedy; KeyboardInterrupt passes. `work` may be removed at any time after a failure.
    """
    began = time.perf_counter()
    settings = job.settings
    context = _context(job.base)
    tokenizer = load_tokenizer(job.base, job.chat_template)
    stops = stop_tokens(tokenizer, job.base)
    train_part, dev_part = _parts(job)
    train_rows, dropped = encode_all(tokenizer, train_part, stops, settings, context)
    dev_rows, dev_dropped = encode_all(tokenizer, dev_part, stops, settings, context)
    if not train_rows or not dev_rows:
        which = "train" if not train_rows else "dev"
        raise TrainingError(f"every {which} example is longer than max_length ({settings.max_length} tokens); raise it or shorten them")
    scratch, adapter = job.work / "checkpoints", job.work / "adapter"
    for folder in (scratch, adapter):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    try:
        with _quiet():
            figures = _run(job, tokenizer, train_rows, dev_rows, scratch, adapter, progress)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory; set micro_batch (now {_micro_batch(settings)}) lower: the result stays the same, batch_size is kept by "
            f'accumulation. If it is 1 already, lower max_length (now {settings.max_length}; over_long = "drop") or rank'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return TrainResult(
        adapter=adapter,
        base_ref=job.base_ref,
        base_hash=job.base_hash,
        settings=settings,
        train_examples=len(train_rows),
        dev_examples=len(dev_rows),
        dropped={"over_long": dropped + dev_dropped} if dropped + dev_dropped else {},
        seconds=round(time.perf_counter() - began, 3),
        data_hash=data_hash(train_part, dev_part),
        template_hash=template_hash(tokenizer),
        libraries={name: version(name) for name in LIBRARIES},
        **figures,
    )


def data_hash(train_part: Sequence[Example], dev_part: Sequence[Example]) -> str:
    """The sha256 (hex) of what is trained on, in order."""
    rows = [
        [name, [(turn.role, turn.content) for turn in example.prompt], example.completion]
        for name, part in (("train", train_part), ("dev", dev_part))
        for example in part
    ]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _parts(job: TrainJob) -> tuple[Sequence[Example], Sequence[Example]]:
    if not job.train:
        raise TrainingError("there is no example to train on; the data set needs pairs with the split train")
    if job.dev:
        return job.train, job.dev
    groups = group(["\n".join(turn.content for turn in example.prompt if turn.role == "user") for example in job.train])
    if len(groups) < 2:
        raise TrainingError("there is no dev example, and the train examples are too alike to hold one out; add pairs with the split dev")
    wanted, held = max(1, round(len(job.train) / 10)), set[int]()
    # The smallest groups first: no dice, so the same examples are held out every time.
    for members in sorted(groups, key=len):
        if held and len(held) + len(members) > wanted:
            break
        held.update(members)
    kept = [example for number, example in enumerate(job.train) if number not in held]
    return kept, [example for number, example in enumerate(job.train) if number in held]


def _run(
    job: TrainJob,
    tokenizer: Any,
    train_rows: Sequence[Encoded],
    dev_rows: Sequence[Encoded],
    scratch: Path,
    adapter: Path,
    progress: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train and save; the figures of TrainResult that come from it."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, EarlyStoppingCallback, PrinterCallback
    from trl import SFTConfig

    from finetune.trainer import AdapterTrainer, Watch, writing

    settings = job.settings
    gpu = torch.cuda.is_available()
    half = gpu and torch.cuda.is_bf16_supported()
    micro = _micro_batch(settings)
    updates = math.ceil(len(train_rows) / settings.batch_size) * settings.epochs
    # peft draws the adapter's first weights when the trainer is built.
    torch.manual_seed(settings.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            job.base, dtype=torch.bfloat16 if half else torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"{job.base}: the model cannot be loaded ({error}); check it with `appliance model verify`") from error
    watch = Watch(progress)
    stopping = [EarlyStoppingCallback(settings.patience, settings.threshold)] if settings.patience else []
    try:
        trainer = AdapterTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(scratch),
                learning_rate=settings.learning_rate,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=micro,
                per_device_eval_batch_size=micro,
                gradient_accumulation_steps=settings.batch_size // micro,
                warmup_steps=min(settings.warmup_steps, updates // 10),
                lr_scheduler_type="constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler,
                weight_decay=settings.weight_decay,
                max_grad_norm=settings.max_grad_norm,
                seed=settings.seed,
                # Lengths were checked one by one; trl must not cut.
                max_length=None,
                completion_only_loss=True,
                packing=False,
                bf16=half,
                use_cpu=not gpu,
                activation_checkpointing=False,
                eval_strategy="epoch",
                eval_on_start=True,
                save_strategy="best",
                save_only_model=True,
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
                logging_steps=1,
                logging_nan_inf_filter=False,
                include_num_input_tokens_seen="non_padding",
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=_dataset(train_rows),
            eval_dataset=_dataset(dev_rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=settings.target if isinstance(settings.target, str) else list(settings.target),
                bias="none",
            ),
            callbacks=[watch, *stopping],
        )
    except ValueError as error:
        raise TrainingError(f"the adapter cannot be put on this model: {error}") from error
    trainer.remove_callback(PrinterCallback)
    outcome = trainer.train()
    best = trainer.state.best_metric
    if best is None or trainer.state.best_model_checkpoint is None:
        raise TrainingError("no epoch was evaluated, so there is no best one; check the dev split")
    with writing(adapter):
        trainer.model.save_pretrained(adapter, safe_serialization=True, save_embedding_layers=False)
    return {
        "train_loss": round(outcome.training_loss, 6),
        "eval_loss": round(best, 6),
        "eval_loss_before": round(next(event["eval_loss"] for event in watch.events if "eval_loss" in event), 6),
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "tokens_per_second": round(watch.rate(trainer.state), 2),
        "trainable_parameters": sum(value.numel() for value in trainer.model.parameters() if value.requires_grad),
        "log": tuple(watch.events),
    }


def _dataset(rows: Sequence[Encoded]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _micro_batch(settings: TrainSettings) -> int:
    if settings.micro_batch is not None:
        return settings.micro_batch
    return max(size for size in range(1, _MICRO_BATCH + 1) if settings.batch_size % size == 0)


def _context(base: Path) -> int:
    """The tokens the model can attend to. Raises TrainingError if `base` holds no model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error
    return int(getattr(config, "max_position_embeddings", None) or 10**6)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the libraries say about themselves; their state is put back afterwards."""
    from transformers.utils import logging as library

    # bitsandbytes comes with peft and warns of a 4-bit kernel that plain LoRA does not use.
    noisy = [(logging.getLogger(name), logging.getLogger(name).level) for name in ("bitsandbytes", "transformers", "trl", "peft")]
    shown = library.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        library.disable_progress_bar()
        for logger, _ in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in noisy:
                logger.setLevel(level)
            if shown:
                library.enable_progress_bar()


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
