"""From a job and its encoded examples to a trainer that is ready to run. Loads torch."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.distributed import filled, processes, sharded, sharded_here
from finetune.methods.base import Method
from finetune.settings import TrainSettings, yields
from finetune.types import TrainingError

if TYPE_CHECKING:
    from finetune.train import TrainJob
    from finetune.trainer import AdapterTrainer
    from finetune.watch import Watch

# Examples computed at once if the settings do not say: the largest divisor of batch_size up to this. Twice as many take half as much
# memory again, and are 3 % faster on a CPU (SmolLM2-135M, 200 tokens each).
_MICRO_BATCH = 4


def build_trainer(
    job: TrainJob,
    method: Method,
    tokenizer: Any,
    train_rows: Sequence[Any],
    dev_rows: Sequence[Any],
    checkpoints: Path,
    watch: Watch,
) -> AdapterTrainer:
    """The trainer of `job`, with the model prepared by `method`; it writes checkpoints into `checkpoints` and reports to `watch`.

    Raises TrainingError if the model cannot be loaded or the method does not fit it.
    """
    import torch
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback
    from trl import SFTConfig

    from finetune.resume import Cadence

    settings = job.settings
    gpu, half = torch.cuda.is_available(), half_precision(settings)
    micro, together = micro_batch(settings), processes()
    updates = math.ceil(len(train_rows) / settings.batch_size) * settings.epochs
    rows = [method.columns(part) for part in (train_rows, dev_rows)]
    if together > 1:
        rows = [filled(columns, micro * together) for columns in rows]
    cadence = Cadence(job.checkpoint_seconds)
    model = build_model(job, method, method.columns(train_rows[:1])["input_ids"][0])
    try:
        if sharded():
            from finetune.sharding import shard

            shard(model)
        with sharded_here():
            trainer: AdapterTrainer = method.trainer_class(job.start)(
                model=model,
                args=SFTConfig(
                    output_dir=str(checkpoints),
                    learning_rate=settings.rate,
                    num_train_epochs=settings.epochs,
                    per_device_train_batch_size=micro,
                    per_device_eval_batch_size=micro,
                    gradient_accumulation_steps=settings.batch_size // (micro * together),
                    ddp_find_unused_parameters=False,
                    warmup_steps=min(settings.warmup_steps, int(updates * settings.warmup_ratio)),
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
                    activation_checkpointing=settings.gradient_checkpointing,
                    activation_checkpointing_kwargs={"use_reentrant": False},
                    eval_strategy="epoch",
                    eval_on_start=watch.step is None,
                    save_strategy="epoch",
                    restore_callback_states_from_checkpoint=True,
                    metric_for_best_model="eval_loss",
                    greater_is_better=False,
                    logging_steps=1,
                    logging_nan_inf_filter=False,
                    include_num_input_tokens_seen="non_padding",
                    disable_tqdm=True,
                    report_to="none",
                ),
                train_dataset=Dataset.from_dict(rows[0]),
                eval_dataset=Dataset.from_dict(rows[1]),
                processing_class=tokenizer,
                callbacks=[watch, cadence, *([EarlyStoppingCallback(settings.patience, settings.threshold)] if settings.patience else [])],
                optimizer_cls_and_kwargs=method.optimizer(model),
            )
    except ValueError as error:
        raise _misfit(settings, error) from error
    # What is spread already is neither wrapped nor moved again.
    trainer.is_distributed_loading_by_transformers = sharded()
    if not gpu and not sharded():
        # trl rounds what is trained beside quantised weights to bfloat16, which is neither faster nor smaller here.
        for value in model.parameters():
            value.data = value.data.float() if value.requires_grad else value.data
    cadence.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer


def build_model(job: TrainJob, method: Method, sample: list[int]) -> Any:
    """The model of `job` before its first update, prepared by `method`; `sample` are the ids of a training example.

    Raises TrainingError if it cannot be loaded or the method does not fit it.
    """
    import torch

    half = half_precision(job.settings) and yields(job.settings.method) == "adapter"
    # peft draws the adapter's first weights when the model is prepared.
    torch.manual_seed(job.settings.seed)
    # What is trained itself stays in float32, and is computed with in half precision where the device has it.
    with sharded_here():
        model = method.load(job.base, torch.bfloat16 if half else torch.float32)
    try:
        return method.prepare(model, job.start, sample)
    except ValueError as error:
        raise _misfit(job.settings, error) from error


def half_precision(settings: TrainSettings) -> bool:
    """Whether the run computes in bfloat16. Raises TrainingError if that is asked for and the device cannot."""
    import torch

    # A GPU that only emulates it is slower with it.
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.precision == "bfloat16" and not able:
        raise TrainingError('precision: "bfloat16" needs a GPU that has it; use "auto" or "float32"')
    return able and settings.precision != "float32"


def micro_batch(settings: TrainSettings) -> int:
    """How many examples a process computes at once. Raises TrainingError if the batch cannot be shared out."""
    together = processes()
    if settings.batch_size % (together * (settings.micro_batch or 1)):
        raise TrainingError(
            f"batch_size: {settings.batch_size} is no multiple of {together} processes with micro_batch {settings.micro_batch or 1}; "
            "an update is shared out evenly, change one of them"
        )
    if settings.micro_batch is not None:
        return settings.micro_batch
    return max(size for size in range(1, _MICRO_BATCH + 1) if settings.batch_size % (together * size) == 0)


def context_of(base: Path) -> int:
    """The tokens the model can attend to. Raises TrainingError if `base` holds no model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error
    return int(getattr(config, "max_position_embeddings", None) or 10**6)


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Only operations that give the same bits every time, if `wanted`; torch raises RuntimeError where it has none.

    cuBLAS is told by its environment variable, see https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    import torch

    if not wanted:
        yield
        return
    key, cudnn = "CUBLAS_WORKSPACE_CONFIG", torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, os.environ.get(key)
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    os.environ.setdefault(key, ":4096:8")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]
        if before[2] is None:
            del os.environ[key]


@contextmanager
def quiet() -> Iterator[None]:
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


def _misfit(settings: TrainSettings, error: ValueError) -> TrainingError:
    return TrainingError(f"method {settings.method} does not fit this model: {error}")
