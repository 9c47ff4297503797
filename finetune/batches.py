"""How examples are put together into micro-batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class ByLength(Sampler[int]):
    """Indices in micro-batches of similar length, a new order each epoch.

    Sorting is by length in classes of 8 tokens after a shuffle, so that micro-batches differ from epoch to epoch; the
    micro-batches are then shuffled. The incomplete one, if any, comes last, of random examples; after it come `fillers` rows,
    whose indices follow those of `lengths`.
    """

    def __init__(self, lengths: Sequence[int], micro_batch: int, seed: int, fillers: int = 0) -> None:
        self.fillers = fillers
        self.lengths, self.micro_batch, self.seed, self.epoch = lengths, micro_batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        dice.shuffle(order)
        full = len(order) - len(order) % self.micro_batch
        grouped = sorted(order[:full], key=lambda number: self.lengths[number] // 8)
        batches = [grouped[start : start + self.micro_batch] for start in range(0, full, self.micro_batch)]
        dice.shuffle(batches)
        last = range(len(order), len(order) + self.fillers)
        return iter([number for batch in batches for number in batch] + order[full:] + list(last))
