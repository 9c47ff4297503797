"""How much memory a run will need, estimated before it starts and measured after; and what to change when it is too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.settings import MODEL_METHODS, TrainSettings
from finetune.types import TrainingError

if TYPE_CHECKING:
    from torch.nn import Module

GIB = 2**30
# Bytes per weight in NF4 with double quantisation: 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_NF4 = 4.127 / 8
# What a run takes on a CPU besides: libraries loaded at its start, their buffers, the allocator's slack (measured, see `estimate`).
_OVERHEAD = int(0.4 * GIB)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for, beyond what the process has before the model is loaded."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int = _OVERHEAD

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def to_json(self) -> dict[str, int]:
        """Plain data for `json.dumps`, with the total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model matters here, in numbers of values: all its weights, those of its layers' linear modules, for each of these
    (name, inputs, outputs), the hidden width, the vocabulary, layers, and the keys and values of one token in one layer."""

    parameters: int
    linears: tuple[tuple[str, int, int], ...]
    hidden: int
    vocabulary: int
    layers: int
    key_value: int


def shape_of(base: Path) -> Shape:
    """The shape of the model in `base`, built from its config without weights. Raises TrainingError if there is none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base}: not a model folder ({error}); check it with `appliance model verify`") from error
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=sum(value.numel() for value in model.parameters()),
        linears=tuple(_linears(model)),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        key_value=2 * width * (getattr(text, "num_key_value_heads", None) or heads),
    )


def _linears(model: Module) -> Iterator[tuple[str, int, int]]:
    from torch.nn import Linear

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module is not head:
            yield name, module.in_features, module.out_features


def estimate(shape: Shape, settings: TrainSettings, micro: int, longest: int, answer: int, half: bool) -> Memory:
    """The memory that training takes at its peak. `micro` examples of at most `longest` tokens, `answer` of them with loss, are computed
    at once; `half` says whether weights and activations have 2 bytes instead of 4.

    Weights, gradients and optimizer states are counted as in Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3.1): AdamW keeps two
    states per trained value. GaLore keeps them for a projection to r of the smaller side, and the projection (arXiv:2403.03507, table 1).
    Activations follow the method of Korthikanti et al. 2022 (arXiv:2205.05198, section 4) with the layer's own linear modules: each
    one's input and output are kept for the backward pass, and with dropout the adapter's own copy of its input and the mask.
    With checkpointing only each layer's input is kept, and one layer in full while it is computed again. Logits, made where there is loss,
    are held three times (as float32, their log-softmax, their gradient).

    Estimate over measured peak of the process, SmolLM2-135M in float32 on a CPU, runs of one or two updates: with 8 examples of 130
    tokens at once LoRA 0.97, with checkpointing 1.03, prefix 1.05, GaLore 1.01, freeze 1.27; LoRA with 4 examples of 421 tokens 0.89;
    on 16 MedQuAD pairs, 4 at once, LoRA 1.12 and QLoRA 0.85.
    """
    size = 2 if half else 4
    per_layer = sum(inputs + outputs for _, inputs, outputs in shape.linears) / shape.layers
    targets = [(inputs, outputs) for name, inputs, outputs in shape.linears if _is_target(name, settings)]
    adapter = settings.method not in (*MODEL_METHODS, "prefix")
    linear = sum(inputs * outputs for _, inputs, outputs in shape.linears)
    weights: float = shape.parameters * size
    if settings.method == "qlora":
        weights = linear * _NF4 + (shape.parameters - linear) * size
    trained: float = shape.parameters
    states: float = 2 * trained
    if adapter:
        trained = sum(settings.rank * (inputs + outputs) for inputs, outputs in targets)
        states = 2 * trained
        per_layer += len(targets) * settings.rank / shape.layers
        if settings.dropout:
            per_layer += sum(inputs for inputs, _ in targets) * (1 + 1 / size) / shape.layers
    elif settings.method == "prefix":
        trained = settings.prefix_tokens * shape.key_value * shape.layers
        states = 2 * trained
    elif settings.method == "freeze":
        share = min(1.0, settings.freeze_layers / shape.layers)
        trained, states, per_layer = linear * share, 2 * linear * share, per_layer * share
    elif settings.method == "galore":
        rest = shape.parameters - linear
        projected = sum(
            2 * min(settings.galore_rank, inputs, outputs) * max(inputs, outputs)
            + min(settings.galore_rank, inputs, outputs) * min(inputs, outputs)
            for _, inputs, outputs in shape.linears
        )
        states = 2 * rest + projected
    # DPO computes two answers to every prompt.
    tokens = micro * longest * (2 if settings.method == "dpo" else 1)
    kept = per_layer * shape.layers
    if settings.gradient_checkpointing:
        kept = shape.hidden * shape.layers + per_layer
    lossy = micro * answer * (2 if settings.method == "dpo" else 1)
    return Memory(
        weights=round(weights),
        gradients=round(trained * size),
        optimizer=round(states * size),
        activations=round(tokens * kept * size),
        logits=round(3 * lossy * shape.vocabulary * 4),
        overhead=0 if half else _OVERHEAD,
    )


def available() -> int:
    """Bytes that a run may take now: the GPU's free memory, else the machine's, within the limit of the container."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text("ascii").strip()) != "max":
        free = min(free, int(most) - int(used.read_text("ascii")))
    return free


def peak() -> int:
    """The most bytes this process has had: of the GPU if there is one, else resident in memory."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a child process begins with that of the process that started it.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run is expected to take; `before` is what the process had, `free` what it may take, both in bytes."""

    shape: Shape
    settings: TrainSettings
    micro: int
    longest: int
    answer: int
    half: bool
    before: int
    free: int

    def memory(self) -> Memory:
        return estimate(self.shape, self.settings, self.micro, self.longest, self.answer, self.half)

    def warning(self) -> str | None:
        """What to say before the start if the run will not fit, with what to change; None if it will."""
        needed = self.memory().total
        if needed <= self.free:
            return None
        return f"this run needs about {needed / GIB:.1f} GiB, {self.free / GIB:.1f} GiB are free: {self.proposal(self.free)}"

    def remedy(self) -> str:
        """What to change after memory ran out: something that takes a fifth less than the run that failed."""
        memory = self.memory()
        return self.proposal(min(self.free, memory.overhead + int(0.8 * (memory.total - memory.overhead))))

    def proposal(self, limit: int) -> str:
        """What to set so that the run fits into `limit` bytes, in words; or that nothing here makes it fit."""
        for change, less in _changes(self.settings, self.micro):
            needed = replace(self, settings=less, micro=less.micro_batch or self.micro).memory().total
            if needed <= limit:
                return f"set {change} (about {needed / GIB:.1f} GiB)"
        return (
            f"no setting makes it fit; take a smaller base, a lower max_length (now {self.settings.max_length}), "
            "or a machine with more memory"
        )

    def facts(self) -> dict[str, int]:
        """Estimate and measured peak of the process, in bytes, as plain data; to be asked for when the run is over."""
        return {"estimated": self.before + self.memory().total, "peak": peak(), **self.memory().to_json()}


def expect(base: Path, settings: TrainSettings, columns: Mapping[str, Sequence[Sequence[int]]], micro: int, half: bool) -> Expected:
    """What training on `columns` (`input_ids` and `labels` of every example) will take. Raises TrainingError if `base` is no model."""
    import psutil
    import torch

    longest = max(len(ids) for key in ("input_ids", "rejected_ids") for ids in columns.get(key, ()))
    answer = max(sum(label != -100 for label in labels) for labels in columns["labels"])
    before = 0 if torch.cuda.is_available() else int(psutil.Process().memory_info().rss)
    return Expected(shape_of(base), settings, micro, longest, answer, half, before, available())


def _changes(settings: TrainSettings, micro: int) -> Iterator[tuple[str, TrainSettings]]:
    """From what costs nothing to what costs most."""
    sizes = [size for size in range(micro - 1, 0, -1) if settings.batch_size % size == 0]
    for size in sizes:
        yield f"micro_batch = {size}", replace(settings, micro_batch=size)
    for size in (micro, *sizes):
        yield f"gradient_checkpointing = true and micro_batch = {size}", replace(settings, micro_batch=size, gradient_checkpointing=True)
    if settings.method != "qlora":
        for size in (micro, *sizes):
            less = replace(settings, method="qlora", micro_batch=size, gradient_checkpointing=True)
            yield f'method = "qlora" with gradient_checkpointing = true and micro_batch = {size}', less


def _is_target(name: str, settings: TrainSettings) -> bool:
    return settings.target == "all-linear" or any(name == wanted or name.endswith(f".{wanted}") for wanted in _names(settings.target))


def _names(target: Any) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else tuple(target)
