"""Keys and values of several running sequences in one buffer per layer, each row at its own length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

_COLUMNS = 256


class SlotCache(Cache):  # type: ignore[misc]
    """A cache whose rows start, grow and end independently, so that requests can join and leave between steps.

    Buffers are [rows, key-value heads, columns, head size]; row r is valid in columns [0, lengths[r]). Before each forward pass call
    `prepare`, which fixes the rows it runs for and gives the positions and the mask; afterwards call `commit`.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self._rows = rows
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self.lengths = [0] * rows
        self._first = self._last = self._new = self._width = 0
        self._row_index = self._column_index = torch.empty(0, dtype=torch.long)

    def prepare(self, first: int, last: int, new: int) -> tuple[Tensor, Tensor]:
        """Rows [first, last) get `new` tokens each. Returns positions [rows, new] and the columns [width] that attention sees."""
        lengths = torch.tensor(self.lengths[first:last])
        self._first, self._last, self._new = first, last, new
        self._width = int(lengths.max()) + new
        positions = lengths[:, None] + torch.arange(new)
        self._row_index, self._column_index = torch.arange(first, last)[:, None], positions
        return positions, torch.arange(self._width)

    def commit(self) -> None:
        """The tokens of the last forward pass now belong to their rows."""
        for row in range(self._first, self._last):
            self.lengths[row] += self._new

    def fill(self, row: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put keys and values, [1, heads, positions, size] for every layer, behind what `row` has."""
        self.prepare(row, row + 1, layers[0][0].shape[2])
        for number, (keys, values) in enumerate(layers):
            self.update(keys, values, number)
        self.commit()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Called by the model's layers: store the new keys and values [rows, heads, new, size], return all of these rows."""
        if layer_idx == len(self._keys):
            self._keys.append(self._buffer(key_states, None))
            self._values.append(self._buffer(value_states, None))
        if self._keys[layer_idx].shape[2] < self._width or len(self._keys[layer_idx]) < self._last:
            self._keys[layer_idx] = self._buffer(key_states, self._keys[layer_idx])
            self._values[layer_idx] = self._buffer(value_states, self._values[layer_idx])
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        # The two index tensors stand around a slice, so what is assigned is [rows, new, heads, size].
        keys[self._row_index, :, self._column_index] = key_states.transpose(1, 2)
        values[self._row_index, :, self._column_index] = value_states.transpose(1, 2)
        rows = slice(self._first, self._last)
        return keys[rows, :, : self._width], values[rows, :, : self._width]

    def _buffer(self, like: Tensor, old: Tensor | None) -> Tensor:
        # Zeros, not garbage: a masked column still enters the product, where 0 x NaN would be NaN. Growing by half keeps copies rare.
        rows, columns = (0, 0) if old is None else (len(old), old.shape[2])
        if columns < self._width:
            columns = -(-max(self._width, columns * 3 // 2) // _COLUMNS) * _COLUMNS
        if rows < self._last:
            # One request alone must not pay for the memory of a full batch.
            rows = min(self._rows, max(self._last, 2 * rows))
        new = torch.zeros(rows, like.shape[1], columns, like.shape[3], dtype=like.dtype)
        if old is not None:
            new[: len(old), :, : old.shape[2]] = old
        return new

    def copy(self, row: int, first: int, last: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the keys and values of the positions [first, last) of `row`, [1, heads, positions, size] for every layer."""
        return [
            (keys[row : row + 1, :, first:last].clone(), values[row : row + 1, :, first:last].clone())
            for keys, values in zip(self._keys, self._values, strict=True)
        ]

    def move(self, source: int, target: int) -> None:
        """Row `source` takes the place of row `target`; its own place becomes empty."""
        length = self.lengths[source]
        for buffer in (*self._keys, *self._values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target], self.lengths[source] = length, 0

    def release(self) -> None:
        """Forget every row and give the memory back."""
        self._keys, self._values = [], []
        self.lengths = [0] * self._rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest row among those of the running forward pass."""
        return self._width - self._new
