"""The embedded engine: transformers and peft in this process, requests batched, adapters chosen per request."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engines.base import AdapterRef, Delta, EngineDown, EngineError, Health, Message, PromptTooLong, Sampling
from appliance.engines.worker import Row, Worker
from appliance.settings import Weights
from retrieval.loading import ONE_AT_A_TIME

if TYPE_CHECKING:
    from appliance.engines.chat_format import ChatFormat
    from appliance.engines.generation import Generation

# Files in an adapter's folder that may say which base it was trained on.
_CARDS = ("version.json", "adapter_card.json")
# Seconds until a thread that has ended twice is started again, and at most. One that had its model for so long before has ended once.
_PAUSE, _LONGEST_PAUSE, _STEADY = 1.0, 60.0, 60.0


class LocalEngine:
    """One base model in memory, served by one thread; see `appliance.engines.base.Engine` for the contract.

    `path` is a folder that `from_pretrained` loads; `base_hash` identifies its weights. At most `max_batch` requests run together and
    `max_queue` more may wait. `chat_template` overrides the tokenizer's own. `weights` says how the base model is held in memory. With
    `merge`, a LoRA adapter that is loaded alone is put into the weights. `prompt_cache_mb` (MiB) bounds what is kept of how prompts begin.
    `context_window` makes the model's own smaller. The model is loaded on first use or by `start`. Where the thread has ended it is started
    again, with its adapters, by the next use or question about its health: at once, then after pauses that grow. May be used from several
    event loops. Raises EngineError at construction when `path` has no readable config.
    """

    serves_adapters = True

    def __init__(
        self,
        name: str,
        path: Path,
        base_hash: str,
        languages: Iterable[str],
        max_batch: int = 8,
        max_queue: int = 64,
        threads: int | None = None,
        chat_template: str | None = None,
        weights: Weights = "float32",
        merge: bool = False,
        prompt_cache_mb: int = 64,
        context_window: int | None = None,
    ) -> None:
        self.name, self.base_hash, self.languages = name, base_hash, frozenset(languages)
        self._path, self._max_batch, self._max_queue, self._threads, self._template = path, max_batch, max_queue, threads, chat_template
        self._weights, self._merge, self._prompt_cache = weights, merge, prompt_cache_mb * 2**20
        self.context_window = min(_context_window(path), context_window or sys.maxsize)
        self._guard = threading.Lock()
        self._format: ChatFormat | None = None
        self._worker: Worker | None = None
        self._closed = False
        # The pause after which a thread that ended is started again, None if none has; and when that is.
        self._pause: float | None = None
        self._due = 0.0
        # What is loaded, also into the model that is loaded again; and how many positions each adapter takes before the prompt.
        self._wanted: dict[str, AdapterRef] = {}
        self._prefixes: dict[str, int] = {}

    async def start(self) -> None:
        """Load the model now; later calls return at once. Raises EngineDown when it cannot be loaded."""
        await self._started()

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        """See the contract. Sampling that makes no sense is an EngineError."""
        _check_sampling(sampling)
        prompt, fixed = await asyncio.to_thread(self._prompt, messages)
        # A prefix stands before the prompt. At least one token must have room for the answer.
        window = self.context_window - (self._prefixes.get(adapter, 0) if adapter else 0)
        if len(prompt) >= window:
            raise PromptTooLong(len(prompt), window - 1)
        worker = await self._started()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delta | EngineError] = asyncio.Queue()

        def sink(item: Delta | EngineError) -> None:
            # A loop that has ended meanwhile has nobody left to tell, and says so with a RuntimeError.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        row = Row(prompt, fixed, sampling, adapter, min(sampling.max_tokens, window - len(prompt)), sink)
        worker.submit(row)
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            worker.cancel(row)

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt, template included; exact."""
        return len(await asyncio.to_thread(lambda: self._chat_format().encode(messages)))

    async def adapters(self) -> list[str]:
        """Those that are loaded, or will be with the model."""
        worker = self._worker
        return worker.adapters() if worker is not None and worker.alive() and worker.ready.done() else sorted(self._wanted)

    async def load(self, adapter: AdapterRef) -> None:
        """Load a LoRA, DoRA or prefix adapter trained on this base; loading a name again does nothing."""
        await asyncio.to_thread(_check_base, adapter, self.base_hash)
        worker = await self._started()
        self._prefixes[adapter.name] = await asyncio.to_thread(_positions, adapter)
        await _finished(worker.load(adapter))
        self._wanted[adapter.name] = adapter

    async def unload(self, name: str) -> None:
        """New requests cannot use the adapter any more; accepted ones still finish with it. Unknown names are ignored."""
        self._wanted.pop(name, None)
        worker = self._worker
        if worker is not None and worker.alive():
            await _finished(worker.unload(name))

    async def health(self) -> Health:
        """Starts the thread again where it has ended; nobody waits for that here."""
        if self._closed:
            return Health(False, "the engine is closed")
        if self._format is None or (self._worker is None and self._pause is None):
            return Health(True, "the model will be loaded on first use")
        try:
            worker = self._running(self._format)
        except EngineError as error:
            return Health(False, str(error))
        return Health(True, "" if worker.ready.done() else "the model is being loaded")

    async def close(self) -> None:
        """End the thread; requests in flight get an EngineError. Closing twice is fine."""
        with self._guard:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.close)

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Its tokens, and how many of them are fixed."""
        text = self._chat_format()
        return text.encode_parts(messages) if self._prompt_cache else (text.encode(messages), 0)

    def _chat_format(self) -> ChatFormat:
        from appliance.engines.chat_format import ChatFormat

        with self._guard:
            if self._format is None:
                self._format = ChatFormat(self._path, self._template)
            return self._format

    async def _started(self) -> Worker:
        worker = self._running(await asyncio.to_thread(self._chat_format))
        await _finished(worker.ready)
        return worker

    def _running(self, text: ChatFormat) -> Worker:
        """The worker, a new one where there is none or its thread has ended. Raises EngineDown while that is not tried again yet: the cause
        may go (a full memory, a missing file), but what ends each time must not load the model all the time."""
        with self._guard:
            if self._closed:
                raise EngineError("the engine is closed")
            if self._worker is not None and not self._worker.alive():
                first = self._pause is None or self._worker.steady(_STEADY)
                self._pause = 0.0 if first else min(max(_PAUSE, 2 * (self._pause or 0.0)), _LONGEST_PAUSE)
                self._due = time.monotonic() + self._pause
                self._worker = None
            if self._worker is None:
                if (wait := self._due - time.monotonic()) > 0:
                    raise EngineDown(f"the engine's thread has ended; it is started again within {self._pause:g} s", retry_after=wait)
                ends = frozenset() if text.end_token is None else frozenset({text.end_token})
                adapters = tuple(self._wanted.values())
                self._worker = Worker(self._make, text.decode, ends, self._max_batch, self._max_queue, adapters)
            return self._worker

    def _make(self) -> Generation:
        # It imports from transformers.
        with ONE_AT_A_TIME:
            from appliance.engines.generation import Generation

        return Generation(self._path, self._max_batch, self._threads, self._weights, self._merge, self._prompt_cache)


async def _finished(future: Future[None]) -> None:
    # Shielded: a caller that gives up must not cancel what the thread is about to complete.
    await asyncio.shield(asyncio.wrap_future(future))


def _context_window(path: Path) -> int:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        window = {**config, **config.get("text_config", {})}["max_position_embeddings"]
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"{path / 'config.json'} does not describe a language model ({error!r}); verify or pull the model again"
        ) from error
    return int(window)


def _check_sampling(sampling: Sampling) -> None:
    if sampling.max_tokens < 1:
        raise EngineError(f"max_tokens is {sampling.max_tokens}, expected at least 1")
    if not 0 <= sampling.temperature <= 100:
        raise EngineError(f"temperature is {sampling.temperature}, expected 0 (greedy) to 100")
    if not 0 < sampling.top_p <= 1:
        raise EngineError(f"top_p is {sampling.top_p}, expected more than 0 and at most 1")


def _positions(adapter: AdapterRef) -> int:
    from appliance.engines.variants import read_config

    return int(read_config(adapter.path).get("num_virtual_tokens") or 0)


def _check_base(adapter: AdapterRef, base_hash: str) -> None:
    if not (adapter.path / "adapter_config.json").is_file():
        raise EngineError(f"adapter {adapter.name}: {adapter.path} has no adapter_config.json")
    for card in _CARDS:
        path = adapter.path / card
        if not path.is_file():
            continue
        try:
            trained_on = json.loads(path.read_text(encoding="utf-8")).get("base_hash")
        except (OSError, ValueError, AttributeError) as error:
            raise EngineError(f"adapter {adapter.name}: {path} cannot be read: {error}") from error
        if trained_on and base_hash and trained_on != base_hash:
            raise EngineError(
                f"adapter {adapter.name} was trained for another base model "
                f"(base hash {trained_on[:12]}…, this engine's is {base_hash[:12]}…); "
                "train it again on this base, or serve it with an engine of its own base"
            )
