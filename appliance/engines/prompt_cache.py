"""Keys and values of how prompts begin, kept so that a beginning which came before is not computed again."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Sequence

from appliance.engines.variants import Layer

# A shorter beginning costs more to look after than to compute.
_LEAST = 16
# Beginnings remembered, as token numbers only, to notice one that comes again.
_SEEN = 64

Key = tuple[str | None, tuple[int, ...]]


class PromptCache:
    """At most `limit` bytes of keys and values, the longest unused going first; 0 keeps none.

    It is given only the fixed part of prompts (template and system text), keeps of it what two prompts had in common, and finds it by the
    adapter and the tokens themselves.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.used = limit, 0
        self._kept: OrderedDict[Key, list[Layer]] = OrderedDict()
        self._seen: deque[Key] = deque(maxlen=_SEEN)

    def find(self, adapter: str | None, fixed: Sequence[int]) -> list[Layer]:
        """Keys and values of the longest known beginning of `fixed`, for every layer; empty if there is none."""
        known, best = max(((in_common(tokens, fixed), (name, tokens)) for name, tokens in self._kept if name == adapter), default=(0, None))
        if best is None or known < _LEAST:
            return []
        self._kept.move_to_end(best)
        return [(keys[:, :, :known], values[:, :, :known]) for keys, values in self._kept[best]]

    def wanted(self, adapter: str | None, fixed: Sequence[int]) -> int:
        """How many of these tokens are worth keeping and not kept yet: what an earlier prompt began with too. Remembers `fixed`."""
        if not self._limit or len(fixed) < _LEAST:
            return 0
        repeated = max((in_common(tokens, fixed) for name, tokens in self._seen if name == adapter), default=0)
        known = max((in_common(tokens, fixed) for name, tokens in self._kept if name == adapter), default=0)
        key = (adapter, tuple(fixed))
        if key in self._seen:
            self._seen.remove(key)
        self._seen.append(key)
        return repeated if repeated >= _LEAST and repeated > known else 0

    def keep(self, adapter: str | None, tokens: Sequence[int], layers: list[Layer]) -> None:
        """Keep `layers`, [1, heads, tokens, size] each, which belong to this beginning."""
        size = _bytes(layers)
        if size > self._limit:
            return
        # What the new one begins with is found in it as well.
        for key in [key for key in self._kept if key[0] == adapter and in_common(key[1], tokens) == len(key[1])]:
            self._drop(key)
        self._kept[adapter, tuple(tokens)] = layers
        self.used += size
        while self.used > self._limit:
            self._drop(next(iter(self._kept)))

    def forget(self, adapter: str | None) -> None:
        """Drop all that was computed with this adapter."""
        for key in [key for key in self._kept if key[0] == adapter]:
            self._drop(key)
        self._seen = deque((key for key in self._seen if key[0] != adapter), maxlen=_SEEN)

    def _drop(self, key: Key) -> None:
        self.used -= _bytes(self._kept.pop(key))


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    most = min(len(one), len(other))
    return bisect_left(range(1, most + 1), True, key=lambda size: list(one[:size]) != list(other[:size]))


def _bytes(layers: Sequence[Layer]) -> int:
    return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in layer)
