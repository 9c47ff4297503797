"""From tokens to text, piece by piece: whole characters only, stop strings never shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


class TextStream:
    """Collects tokens and releases text as soon as it can no longer change.

    Held back: bytes of an unfinished character, and a tail that may become a stop string. `stopped` is True once one was met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._tokens: list[int] = []
        # Text of tokens[:read] is known; decoding starts at `context` because the text of a token depends on the one before it.
        self._context = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])
        if text.endswith(_BROKEN) or len(text) <= len(known):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """The rest, without the bytes of a character that never ended."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])[len(known) :].rstrip(_BROKEN)
        released = self._release(text)
        rest, self._held = self._held, ""
        return released if self.stopped else released + rest

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
