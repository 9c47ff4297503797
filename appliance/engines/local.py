"""The embedded engine: transformers and peft in this process, requests batched, adapters chosen per request."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engines.base import AdapterRef, Delta, EngineError, Health, Message, PromptTooLong, Sampling
from appliance.engines.worker import Row, Worker
from appliance.settings import Weights
from retrieval.loading import ONE_AT_A_TIME

if TYPE_CHECKING:
    from appliance.engines.chat_format import ChatFormat
    from appliance.engines.generation import Generation

# Files in an adapter's folder that may say which base it was trained on.
_CARDS = ("version.json", "adapter_card.json")


class LocalEngine:
    """One base model in memory, served by one thread; see `appliance.engines.base.Engine` for the contract.

    `path` is a folder that `from_pretrained` loads; `base_hash` identifies its weights. At most `max_batch` requests run together and
    `max_queue` more may wait. `chat_template` overrides the tokenizer's own. `weights` says how the base model is held in memory. With
    `merge`, a LoRA adapter that is loaded alone is put into the weights. `prompt_cache_mb` (MiB) bounds what is kept of how prompts begin.
    `context_window` makes the model's own smaller. The model is loaded on first use or by `start`. May be used from several event loops.
    Raises EngineError at construction when `path` has no readable config.
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
        # How many positions each loaded adapter takes before the prompt.
        self._prefixes: dict[str, int] = {}

    async def start(self) -> None:
        """Load the model now; later calls return at once. Raises EngineError when it cannot be loaded."""
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
        return [] if self._worker is None else self._worker.adapters()

    async def load(self, adapter: AdapterRef) -> None:
        """Load a LoRA, DoRA or prefix adapter trained on this base; loading a name again does nothing."""
        await asyncio.to_thread(_check_base, adapter, self.base_hash)
        worker = await self._started()
        self._prefixes[adapter.name] = await asyncio.to_thread(_positions, adapter)
        await _finished(worker.load(adapter))

    async def unload(self, name: str) -> None:
        """New requests cannot use the adapter any more; accepted ones still finish with it. Unknown names are ignored."""
        if self._worker is not None:
            await _finished(self._worker.unload(name))

    async def health(self) -> Health:
        worker = self._worker
        if self._closed:
            return Health(False, "the engine is closed")
        if worker is None:
            return Health(True, "the model will be loaded on first use")
        if not worker.ready.done():
            return Health(True, "the model is being loaded")
        return Health(True) if worker.alive() else Health(False, "the engine's thread has ended; restart the server")

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
        text = await asyncio.to_thread(self._chat_format)
        with self._guard:
            if self._closed:
                raise EngineError("the engine is closed")
            if self._worker is None:
                ends = frozenset() if text.end_token is None else frozenset({text.end_token})
                self._worker = Worker(self._make, text.decode, ends, self._max_batch, self._max_queue)
            worker = self._worker
        try:
            await _finished(worker.ready)
        except EngineError:
            with self._guard:
                # The next request tries again: the cause may have gone (a full memory, a missing file).
                self._worker = None if self._worker is worker else self._worker
            raise
        return worker

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
