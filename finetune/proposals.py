"""Whether a run fits into memory, said before it starts; and what to change when it does not, or did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.distributed import processes, sharded
from finetune.memory import GIB, Memory, Shape, Spans, available, estimate, held, peak, shape_of, start_peak
from finetune.settings import TrainSettings, learns_from, yields

# A peak above the estimate by no more than this factor is what the estimate is good for (measured, see `finetune.memory.estimate`).
_TOLERATED = 1.1
# Whose adapters QLoRA can train further (see `finetune.stages`).
_PLAIN = ("lora", "lora+", "pissa")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run is expected to take; `before` is what the process had, `free` what it may take, both in bytes.

    `goes_on` says whether it starts from an adapter, `counted` whether its peak is measured from its start.
    """

    shape: Shape
    settings: TrainSettings
    micro: int
    spans: Spans
    half: bool
    before: int
    free: int
    goes_on: bool = False
    counted: bool = True

    def memory(self) -> Memory:
        return estimate(self.shape, self.settings, self.micro, self.spans, self.half, processes() if sharded() else 1)

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
        for change, less in changes(self.settings, self.micro, self.goes_on):
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

    def exceeded(self, facts: Mapping[str, int]) -> str | None:
        """What to say after the run if `facts` show that it took clearly more than was estimated; None if not, or if nobody can tell."""
        if not self.counted or facts["peak"] <= _TOLERATED * facts["estimated"]:
            return None
        return (
            f"the run took {facts['peak'] / GIB:.1f} GiB of memory at its peak, {facts['estimated'] / GIB:.1f} GiB were estimated: "
            "leave that much more free for the next one like it"
        )


def expect(
    base: Path, settings: TrainSettings, columns: Mapping[str, Sequence[Sequence[int]]], micro: int, half: bool, goes_on: bool
) -> Expected:
    """What training on `columns` (`input_ids` and `labels` of every example) will take; the peak is measured from here on.

    Raises TrainingError if `base` is no model.
    """
    counted = start_peak()
    return Expected(shape_of(base), settings, micro, spans_of(columns), half, held(), available(), goes_on, counted)


def spans_of(columns: Mapping[str, Sequence[Sequence[int]]]) -> Spans:
    """Where the examples in `columns` have loss; of a preference where one of its answers has."""
    ids, labels = columns["input_ids"], columns["labels"]
    others = columns.get("rejected_ids", ids), columns.get("rejected_labels", labels)
    found = [
        (len(one), min(_first(ours), _first(theirs)), max(len(one), len(other)))
        for one, ours, other, theirs in zip(ids, labels, *others, strict=True)
    ]
    return Spans(tuple((first, end) for _, first, end in sorted(found)))


def changes(settings: TrainSettings, micro: int, goes_on: bool = False) -> Iterator[tuple[str, TrainSettings]]:
    """What can be set to take less memory, in words and as settings, from what costs nothing to what costs most.

    Only what can be followed: `micro` is what is computed at once now, `goes_on` says whether the run starts from an adapter.
    """
    together = processes()
    sizes = [size for size in range(micro - 1, 0, -1) if settings.batch_size % (size * together) == 0]
    for size in sizes:
        yield f"micro_batch = {size}", replace(settings, micro_batch=size)
    if settings.method != "prefix" and not settings.gradient_checkpointing:
        for size in (micro, *sizes):
            less = replace(settings, micro_batch=size, gradient_checkpointing=True)
            yield f"gradient_checkpointing = true and micro_batch = {size}", less
    if settings.method == "qlora" or learns_from(settings.method) != "pairs" or sharded() or (goes_on and settings.method not in _PLAIN):
        return
    instead = "" if settings.method == "lora" else f" (plain LoRA instead of {settings.method})"
    if yields(settings.method) == "model":
        instead = " (an adapter instead of a model)"
    for size in (micro, *sizes):
        less = replace(settings, method="qlora", micro_batch=size, gradient_checkpointing=True)
        yield f'method = "qlora"{instead} with gradient_checkpointing = true and micro_batch = {size}', less


def _first(labels: Sequence[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != -100)
