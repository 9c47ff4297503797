"""The adapters of one linear layer, multiplied for rows that have different ones. Loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Copying the matrices that are used, and reading the copies, takes the memory about this many times longer than reading them in place.
_COPY = 3


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Where rows stand to be multiplied: each of the `adapters` that are `used` has as many places, and each row stands in one of them.

    `rows` [places] is the row in each place (those left over hold any row), `places` [rows] the place of each row; both None for rows that
    stand as they came. `shares` [adapters, places of one, 1, 1] is by what each product is multiplied; None for 1.
    """

    used: slice | Tensor
    adapters: int
    rows: Tensor | None
    places: Tensor | None
    shares: Tensor | None


def planned(wanted: Sequence[int | None], share: float = 1.0) -> Plan | None:
    """`wanted` is the number of each row's adapter, or None; `share` times its product is added to the row. None if no row has any."""
    used = sorted({number for number in wanted if number is not None})
    if not used:
        return None
    standing = {number: [row for row, own in enumerate(wanted) if own == number] for number in used}
    for row, own in enumerate(wanted):
        if own is None:
            # In a place that costs nothing more, if there is one. Its product is made of its own values alone, and multiplied by 0.
            min(standing.values(), key=len).append(row)
    most = max(len(rows) for rows in standing.values())
    sparse = used[-1] + 1 - used[0] > _COPY * len(used)
    numbers = used if sparse else range(used[0], used[-1] + 1)
    order: list[int] = []
    shares: list[float] = []
    places = [0] * len(wanted)
    for number in numbers:
        for at, row in enumerate(standing.get(number, ()), len(order)):
            places[row] = at
        rows = [*standing.get(number, ()), *[0] * most][:most]
        order += rows
        shares += [0.0 if wanted[row] is None else share for row in rows]
    moved = order != list(range(len(wanted)))
    return Plan(
        torch.tensor(used) if sparse else slice(used[0], used[-1] + 1),
        len(numbers),
        torch.tensor(order) if moved else None,
        torch.tensor(places) if moved else None,
        None if set(shares) == {1.0} else torch.tensor(shares).view(len(numbers), most, 1, 1),
    )


class Stack:
    """What each adapter adds to a layer: scale B A x, with B A of low rank (LoRA, arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.names: tuple[str, ...] = ()
        self._ranks: tuple[int, ...] = ()
        # [adapters, inputs, rank] and [adapters, rank, outputs], the smaller ranks filled with zeros.
        self._down, self._up = torch.empty(0, inputs, 0), torch.empty(0, 0, outputs)

    def add(self, name: str, down: Tensor, up: Tensor) -> None:
        """A [rank, inputs] and B [outputs, rank], with its scale in it."""
        self._hold((*self.names, name), (*self._ranks, len(down)), [*self._parts(), (down.t(), up.t())])

    def remove(self, name: str) -> None:
        """A name that is not there is ignored."""
        kept = [number for number, other in enumerate(self.names) if other != name]
        if len(kept) < len(self.names):
            parts = self._parts()
            self._hold(tuple(self.names[n] for n in kept), tuple(self._ranks[n] for n in kept), [parts[n] for n in kept])

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        """A [inputs, rank] and B [rank, outputs] of each adapter, without what fills them."""
        return [(down[:, :rank], up[:rank]) for down, up, rank in zip(self._down, self._up, self._ranks, strict=True)]

    def _hold(self, names: tuple[str, ...], ranks: tuple[int, ...], parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        most, inputs, outputs = max(ranks, default=0), self._down.shape[1], self._up.shape[2]
        down, up = torch.zeros(len(parts), inputs, most), torch.zeros(len(parts), most, outputs)
        for number, (a, b) in enumerate(parts):
            down[number, :, : a.shape[1]], up[number, : len(b)] = a, b
        self.names, self._ranks, self._down, self._up = names, ranks, down, up

    def difference(self, name: str) -> Tensor | None:
        """What the adapter adds to the weights, [outputs, inputs]; None if it leaves this layer alone."""
        if name not in self.names:
            return None
        down, up = self._parts()[self.names.index(name)]
        return (down @ up).t()

    def add_to(self, made: Tensor, x: Tensor, plan: Plan) -> None:
        """Add to `made` [rows, positions, outputs] what the rows' adapters make of x [rows, positions, inputs]."""
        _, positions, outputs = made.shape
        standing = x if plan.rows is None else x.index_select(0, plan.rows)
        low = torch.bmm(standing.view(plan.adapters, -1, x.shape[2]), self._down[plan.used])
        if plan.shares is not None:
            low.view(*plan.shares.shape[:2], positions, -1).mul_(plan.shares)
        if plan.places is None:
            made.view(plan.adapters, -1, outputs).baddbmm_(low, self._up[plan.used])
        else:
            made.add_(torch.bmm(low, self._up[plan.used]).view(-1, positions, outputs).index_select(0, plan.places))
