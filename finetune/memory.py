"""How much memory a run will need, estimated before it starts, and how much it took. What to change is said in `finetune.proposals`."""

from __future__ import annotations

import ctypes
import gc
import inspect
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.settings import TrainSettings, yields
from finetune.types import TrainingError

if TYPE_CHECKING:
    from torch.nn import Module

GIB = 2**30
# Bytes per weight in NF4 with double quantisation: 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314, section 3).
_NF4 = 4.127 / 8
# What a run takes on a CPU besides: libraries loaded at its start, their buffers, the allocator's slack (measured, see `estimate`).
_OVERHEAD = int(0.4 * GIB)
# What a config calls that which is done to the logits after the head.
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


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
    (name, inputs, outputs), the hidden width, the vocabulary, layers, and the keys and values of one token in one layer.

    `narrow` says whether it can leave out logits, `plain_head` whether they are the head's linear function and nothing else.
    """

    parameters: int
    linears: tuple[tuple[str, int, int], ...]
    hidden: int
    vocabulary: int
    layers: int
    key_value: int
    narrow: bool = True
    plain_head: bool = True


@dataclass(frozen=True, slots=True)
class Spans:
    """(first token with loss, length in tokens) of every example, in the order of their lengths. There is at least one."""

    places: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(end for _, end in self.places)

    @property
    def answer(self) -> int:
        """The most tokens with loss in an example."""
        return max(end - first for first, end in self.places)

    def ends(self, count: int, tokens: int) -> Spans:
        """The last `tokens` of the `count` shortest examples."""
        return Spans(tuple((max(0, first - max(0, end - tokens)), min(end, tokens)) for first, end in self.places[:count]))

    def widest(self, micro: int) -> int:
        """The most positions where any of `micro` examples of about the same length has loss."""
        batches = (self.places[start : start + micro] for start in range(0, len(self.places), micro))
        return max(max(end for _, end in batch) - min(first for first, _ in batch) for batch in batches)


def shape_of(base: Path) -> Shape:
    """The shape of the model in `base`, built from its config without weights. Raises TrainingError if there is none."""
    import torch
    from torch.nn import Linear
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
    changed = any(getattr(text, name, None) not in (None, 1.0) for name in _AFTER_HEAD)
    return Shape(
        parameters=sum(value.numel() for value in model.parameters()),
        linears=tuple(_linears(model)),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=text.num_hidden_layers,
        key_value=2 * width * (getattr(text, "num_key_value_heads", None) or heads),
        narrow="logits_to_keep" in inspect.signature(model.forward).parameters,
        plain_head=type(model.get_output_embeddings()) is Linear and not changed and not getattr(config, "output_router_logits", False),
    )


def _linears(model: Module) -> Iterator[tuple[str, int, int]]:
    from torch.nn import Linear

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module is not head:
            yield name, module.in_features, module.out_features


def estimate(shape: Shape, settings: TrainSettings, micro: int, spans: Spans, half: bool, shares: int = 1) -> Memory:
    """The memory that training takes at its peak, with `micro` examples of `spans` computed at once; `half` says whether the run
    computes in bfloat16. The weights and all that belongs to them are cut into `shares` (FSDP).

    Weights, gradients and optimizer states are counted as in Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3.1): AdamW keeps
    two states per trained value. What is trained has 4 bytes a value, its gradient and each state too; weights that stay as they are
    have those of the computation. So full training in half precision takes 16 bytes a weight, as there, and 2 for the copies that it
    computes with. QLoRA's weights beside the quantised ones have 4 bytes (peft's `prepare_model_for_kbit_training`), its adapter 2 on a
    GPU (trl). GaLore keeps states for a projection to r of the smaller side, and the projection (arXiv:2403.03507, table 1).

    Activations follow the method of Korthikanti et al. 2022 (arXiv:2205.05198, section 4) with the layer's own linear modules: each
    one's input and output are kept for the backward pass, and with dropout the adapter's own copy of its input and the mask.
    With checkpointing only each layer's input is kept, and one layer in full while it is computed again.

    Logits are held three times (as float32, their log-softmax, their gradient): with the shortcut "head" for a few positions at a
    time, beside the gradient of a head that is trained, twice; without it for all positions where an example of the batch has loss.
    DPO, always without it, holds them six times (also their exponentials, and a gradient for each of the two parts of its sum).

    The proof of the shortcuts goes before the first step: a few examples without checkpointing, all their logits, and no optimizer states
    yet (`finetune.shortcuts`). Where that takes more than the training it is what is returned.

    Estimate over measured peak of the process, SmolLM2-135M in float32 on a CPU, two updates of 8 examples of some 130 tokens, all at once:
    full 1.10, with checkpointing 1.05, freeze 1.14, GaLore 1.03, LoRA without the shortcut for the head 1.06, with checkpointing 0.97,
    DoRA 0.97, prefix 0.95; 4 at once LoRA 1.02, QLoRA 0.83, DPO 1.03, LoRA with examples of 421 tokens 0.91, pretrain with windows of
    up to 512 tokens 0.82. In half precision, on a GPU, it was not measured.
    """
    size = 2 if half else 4
    linear = sum(inputs * outputs for _, inputs, outputs in shape.linears)
    trained, states = _trained(shape, settings, linear)
    stored = shape.parameters * size + trained * 4
    # What the computation needs besides of the weights.
    copies = 0.0
    wide = 4
    if yields(settings.method) == "model":
        stored = shape.parameters * 4
        copies = min(trained, linear) * 2 if half else 0
    elif settings.method == "qlora":
        wide = size
        stored = linear * _NF4 + (shape.parameters - linear) * 4 + trained * wide
    if shares > 1:
        # The layer that computes is whole.
        copies += linear / shape.layers * size
    # DPO computes two answers to every prompt.
    answers = 2 if settings.method == "dpo" else 1
    plain = kept = _kept(shape, settings, size)
    if settings.gradient_checkpointing:
        kept = shape.hidden * shape.layers + kept / shape.layers
    training = Memory(
        weights=round(stored / shares),
        gradients=round(trained * wide / shares),
        optimizer=round(states * wide / shares),
        activations=round(micro * answers * spans.longest * kept * size + copies),
        logits=_logits(shape, settings, micro, spans, shape.plain_head and answers == 1 and shares == 1),
        overhead=0 if half else _OVERHEAD,
    )
    if shares > 1:
        return training
    from finetune.shortcuts import ENOUGH, EXAMPLES

    few = spans.ends(EXAMPLES, ENOUGH)
    proof = replace(
        training,
        optimizer=0,
        activations=round(EXAMPLES * answers * few.longest * plain * size + copies),
        logits=_logits(shape, settings, EXAMPLES, few, False),
    )
    return max(training, proof, key=lambda memory: memory.total)


def _trained(shape: Shape, settings: TrainSettings, linear: int) -> tuple[float, float]:
    """How many values are trained, and how many the optimizer keeps for them; `linear` are the weights of the linear modules."""
    if settings.method == "prefix":
        trained: float = settings.prefix_tokens * shape.key_value * shape.layers
    elif settings.method == "freeze":
        trained = linear * min(1.0, settings.freeze_layers / shape.layers)
    elif yields(settings.method) == "model":
        trained = shape.parameters
    else:
        trained = sum(settings.rank * (inputs + outputs) for inputs, outputs in _targets(shape, settings))
        if settings.method == "dora":
            trained += sum(outputs for _, outputs in _targets(shape, settings))
    if settings.method != "galore":
        return trained, 2 * trained
    projected = sum(
        2 * min(settings.galore_rank, inputs, outputs) * max(inputs, outputs)
        + min(settings.galore_rank, inputs, outputs) * min(inputs, outputs)
        for _, inputs, outputs in shape.linears
    )
    return trained, 2 * (trained - linear) + projected


def _kept(shape: Shape, settings: TrainSettings, size: int) -> float:
    """Values of `size` bytes that are kept of one token for the backward pass, of all layers."""
    kept = float(sum(inputs + outputs for _, inputs, outputs in shape.linears))
    if settings.method == "freeze":
        return kept * min(1.0, settings.freeze_layers / shape.layers)
    if settings.method == "prefix" or yields(settings.method) == "model":
        return kept
    targets = _targets(shape, settings)
    kept += len(targets) * settings.rank
    if settings.method == "dora":
        # The answers of base and adapter, which the trained lengths multiply.
        kept += sum(2 * outputs for _, outputs in targets)
    if settings.dropout:
        kept += sum(inputs for inputs, _ in targets) * (1 + 1 / size)
    return kept


def _logits(shape: Shape, settings: TrainSettings, micro: int, spans: Spans, few: bool) -> int:
    """Bytes for the logits of `micro` examples computed at once, a `few` positions at a time or all; see `estimate`."""
    from finetune.fused import LOGITS

    one = 4 * shape.vocabulary
    if few:
        learns = yields(settings.method) == "model" and settings.method != "freeze"
        return 3 * one * min(max(16, LOGITS // shape.vocabulary), micro * spans.answer) + (2 * one * shape.hidden if learns else 0)
    positions = micro * (spans.widest(micro) if shape.narrow else spans.longest)
    return one * positions * (2 * 6 if settings.method == "dpo" else 3)


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


def held() -> int:
    """Bytes that this process has now: of the GPU if there is one, else resident in memory."""
    import psutil
    import torch

    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Let the system have what was freed, of which glibc keeps gigabytes after a training; other libraries of C have no such call."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def start_peak() -> bool:
    """Make `peak` count from now on. False where the system cannot: then it counts from the start of the process.

    On Linux by writing 5 to clear_refs, see proc_pid_clear_refs(5).
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False
    return True


def peak() -> int:
    """The most bytes this process has had since `start_peak`: of the GPU if there is one, else resident in memory."""
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


def _targets(shape: Shape, settings: TrainSettings) -> list[tuple[int, int]]:
    """(inputs, outputs) of the modules that get an adapter."""
    names = (settings.target,) if isinstance(settings.target, str) else settings.target
    return [
        (inputs, outputs)
        for name, inputs, outputs in shape.linears
        if settings.target == "all-linear" or any(name == wanted or name.endswith(f".{wanted}") for wanted in names)
    ]
