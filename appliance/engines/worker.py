"""The thread that owns the model: continuous batching of requests, adapters loaded between steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from appliance.engines.base import AdapterRef, Delta, EngineBusy, EngineDown, EngineError, FinishReason, Sampling, Usage
from appliance.engines.text_stream import TextStream

if TYPE_CHECKING:
    import torch

    from appliance.engines.generation import Generation

logger = logging.getLogger("appliance.engines")

# Between two steps of the running answers prompts are read for about this many seconds: they stall for no longer, and a request that is
# cancelled costs no more. Tokens of such a piece: the first, and bounds.
_PIECE_SECONDS = 0.25
_PIECE, _SMALLEST, _LARGEST = 128, 32, 512

Sink = Callable[[Delta | EngineError], None]


@dataclass(eq=False, slots=True)
class Row:
    """One request: its prompt tokens, how to sample, and where its text goes. The first `fixed` tokens are template and system text, which
    other prompts may begin with too; `room` is the most tokens it may generate."""

    prompt: list[int]
    fixed: int
    sampling: Sampling
    adapter: str | None
    room: int
    sink: Sink
    cancelled: bool = False
    done: int = 0
    produced: int = 0
    token: int = 0
    text: TextStream | None = None
    chooser: torch.Generator | None = None
    started: float = field(default_factory=time.monotonic)


class Worker:
    """Runs until `close`. Every loop reads a piece of prompts, then adds one token to every running answer.

    Rows 0..n-1 of the cache are the running answers, row n the prompt being read. Requests join as soon as their prompt is read and
    leave as soon as they end or are cancelled. An error ends the requests it hit; the thread lives on. One that leaves the rows in
    disorder ends it.
    """

    def __init__(
        self,
        make: Callable[[], Generation],
        decode: Callable[[Sequence[int]], str],
        ends: frozenset[int],
        batch: int,
        queue: int,
        adapters: Sequence[AdapterRef] = (),
    ) -> None:
        """`adapters` are loaded with the model, before the first request."""
        self._make, self._decode, self._ends, self._batch, self._queue = make, decode, ends, batch, queue
        self._first = adapters
        self._changed = threading.Condition()
        self._waiting: deque[Row] = deque()
        self._jobs: deque[tuple[Callable[[Generation], None], Future[None]]] = deque()
        self._running: list[Row] = []
        self._reading: Row | None = None
        self._adapters: dict[str, str] = {}
        self._leaving: list[str] = []
        self._loads = 0
        self._closing = False
        # What the thread says of its end, once it has ended by itself.
        self._end: EngineError | None = None
        self._ready_at = float("inf")
        self._seconds = 1.0
        self._piece = _PIECE
        self.ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="local-engine", daemon=True)
        self._thread.start()

    # --- called from other threads

    def submit(self, row: Row) -> None:
        """Queue a request; `row.adapter` is a public name and becomes the inner one. Raises EngineBusy, EngineDown or EngineError."""
        with self._changed:
            self._check()
            if row.adapter is not None:
                if row.adapter not in self._adapters:
                    raise EngineError(f"no adapter {row.adapter!r} is loaded (loaded: {', '.join(sorted(self._adapters)) or 'none'})")
                row.adapter = self._adapters[row.adapter]
            if len(self._waiting) >= self._queue:
                wait = max(1.0, self._seconds * len(self._waiting) / self._batch)
                raise EngineBusy(f"{len(self._waiting)} requests are waiting already; try again in {wait:.0f} s", retry_after=wait)
            self._waiting.append(row)
            self._changed.notify()

    def cancel(self, row: Row) -> None:
        """The request leaves before the next step."""
        with self._changed:
            row.cancelled = True
            self._changed.notify()

    def load(self, adapter: AdapterRef) -> Future[None]:
        return self._schedule(lambda model: self._load(model, adapter))

    def unload(self, name: str) -> Future[None]:
        return self._schedule(lambda _: self._unload(name))

    def adapters(self) -> list[str]:
        with self._changed:
            return sorted(self._adapters)

    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def steady(self, seconds: float) -> bool:
        """Whether the model has been loaded for so long."""
        return time.monotonic() - self._ready_at >= seconds

    def close(self) -> None:
        """End the thread; requests in flight get an EngineError. Waits for the running step."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check(self) -> None:
        if not self.alive():
            raise self._end or EngineError("the engine is closed")

    def _schedule(self, job: Callable[[Generation], None]) -> Future[None]:
        future: Future[None] = Future()
        with self._changed:
            self._check()
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    # --- the thread

    def _run(self) -> None:
        try:
            model = self._make()
        except Exception as error:  # noqa: BLE001 - whatever stops the model from loading is told to whoever waits for it
            logger.error("the model of the local engine cannot be loaded: %s", error)
            why = EngineDown(f"the model cannot be loaded: {error}")
            self._fail_everything(why)
            self.ready.set_exception(why)
            return
        self._ends |= model.end_tokens
        self._load_first(model)
        self._ready_at = time.monotonic()
        self.ready.set_result(None)
        ended = self._serve(model)
        # Another worker may load the model again, which is to find this one's memory free.
        del model
        self._fail_everything(ended)

    def _serve(self, model: Generation) -> EngineError:
        """Until `close`, or an error that nothing can go on after; what the requests in flight are told."""
        try:
            while self._wait_for_work(model):
                self._run_jobs(model)
                self._drop_cancelled(model)
                self._read_prompts(model)
                self._extend_answers(model)
                self._retire_adapters(model)
        except Exception as error:
            # Rows could not be put in order: nothing that goes on could be trusted.
            logger.exception("the thread of the local engine ends")
            return EngineDown(f"the engine's thread has ended: {type(error).__name__}: {error}")
        return EngineError("the engine was closed")

    def _load_first(self, model: Generation) -> None:
        for adapter in self._first:
            try:
                self._load(model, adapter)
            except Exception as error:  # noqa: BLE001 - the others are served all the same
                logger.error("the local engine cannot load %s again: %s", adapter.name, error)

    def _wait_for_work(self, model: Generation) -> bool:
        with self._changed:
            while not (self._closing or self._jobs or self._waiting or self._running or self._reading):
                model.release()
                self._changed.wait()
            return not self._closing

    def _run_jobs(self, model: Generation) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    return
                job, future = self._jobs.popleft()
            try:
                job(model)
            except Exception as error:  # noqa: BLE001 - handed to the caller; the thread must outlive it
                future.set_exception(error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}"))
            else:
                future.set_result(None)

    def _load(self, model: Generation, adapter: AdapterRef) -> None:
        if adapter.name in self._adapters:
            return
        # peft makes the name part of module names, where a dot is not allowed; a number is safe for any public name.
        self._loads += 1
        inner = f"adapter{self._loads}"
        model.load_adapter(inner, adapter.path)
        with self._changed:
            self._adapters[adapter.name] = inner
        self._settle(model.merge_the_only_one)

    def _unload(self, name: str) -> None:
        with self._changed:
            if name in self._adapters:
                self._leaving.append(self._adapters.pop(name))

    def _retire_adapters(self, model: Generation) -> None:
        """Unloaded adapters go once no accepted request needs them."""
        with self._changed:
            needed = {row.adapter for row in (*self._waiting, *self._running, *([self._reading] if self._reading else []))}
            idle = [inner for inner in self._leaving if inner not in needed]
            self._leaving = [inner for inner in self._leaving if inner in needed]
        for inner in idle:
            self._settle(partial(model.delete_adapter, inner))
        if idle:
            self._settle(model.merge_the_only_one)

    def _settle(self, step: Callable[[], None]) -> None:
        """Do what reads the model from disk again and no answer depends on."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - the adapters go on as they were; the thread must outlive it
            logger.error("the adapters of the local engine stay as they are: %s: %s", type(error).__name__, error)

    def _drop_cancelled(self, model: Generation) -> None:
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
        for row in [row for row in self._running if row.cancelled]:
            self._leave(model, row)
        if self._reading is not None and self._reading.cancelled:
            self._stop_reading(model)

    def _stop_reading(self, model: Generation) -> None:
        model.clear(len(self._running))
        self._reading = None

    def _read_prompts(self, model: Generation) -> None:
        """Read waiting prompts, in order, up to the budget of one step."""
        budget = self._piece
        while budget > 0:
            if self._reading is None and len(self._running) < self._batch:
                with self._changed:
                    self._reading = self._waiting.popleft() if self._waiting else None
            if self._reading is None:
                return
            budget -= self._read_piece(model, self._reading, budget)

    def _read_piece(self, model: Generation, row: Row, most: int) -> int:
        """Read up to `most` tokens of a prompt; behind its last one the answer begins. Returns how many were read."""
        piece: list[int] = []
        try:
            if not row.done:
                row.done = model.begin(len(self._running), row.prompt[: row.fixed], row.adapter)
            piece = row.prompt[row.done : row.done + most]
            before = time.monotonic()
            logits = model.prefill(len(self._running), piece, row.adapter)
            self._adjust(len(piece), time.monotonic() - before)
            if row.done < row.fixed <= row.done + len(piece):
                model.keep(len(self._running), row.prompt[: row.fixed], row.adapter)
            row.done += len(piece)
            if row.done < len(row.prompt):
                return len(piece)
            self._reading = None
            self._running.append(row)
            self._start(row)
            self._take(model, row, logits)
        except Exception as error:  # noqa: BLE001 - the request learns of it; the thread must outlive it
            row.sink(_failure(error))
            if self._reading is row:
                self._stop_reading(model)
            else:
                self._leave(model, row)
        return len(piece)

    def _adjust(self, tokens: int, seconds: float) -> None:
        """Halve or double the piece where a full one takes far too long or far too short."""
        if seconds > 1.5 * _PIECE_SECONDS:
            self._piece = max(_SMALLEST, self._piece // 2)
        elif tokens == self._piece and seconds < _PIECE_SECONDS / 3:
            self._piece = min(_LARGEST, self._piece * 2)

    def _start(self, row: Row) -> None:
        from appliance.engines.choosing import generator_for

        row.text = TextStream(self._decode, row.sampling.stop)
        row.chooser = generator_for(row.sampling)

    def _extend_answers(self, model: Generation) -> None:
        rows = list(self._running)
        if not rows:
            return
        try:
            logits = model.decode([row.token for row in rows], [row.adapter for row in rows])
            for row, line in zip(rows, logits, strict=True):
                self._take(model, row, line)
        except Exception as error:  # noqa: BLE001 - every request of the batch learns of it; the thread must outlive it
            for row in self._running:
                row.sink(_failure(error))
            self._running.clear()
            if self._reading is not None:
                self._reading.sink(_failure(error))
                self._reading = None
            model.release()

    def _take(self, model: Generation, row: Row, logits: torch.Tensor) -> None:
        """Choose the row's next token, send its text, and end the row when it is complete."""
        from appliance.engines.choosing import choose

        assert row.text is not None
        row.token = choose(logits, row.sampling, row.chooser)
        row.produced += 1
        ended = row.token in self._ends
        text = "" if ended else row.text.push(row.token)
        reason: FinishReason | None = "stop" if ended or row.text.stopped else "length" if row.produced >= row.room else None
        if reason is None:
            if text:
                row.sink(Delta(text))
            return
        row.sink(Delta(text + row.text.finish(), reason, Usage(len(row.prompt), row.produced)))
        self._seconds += 0.2 * (time.monotonic() - row.started - self._seconds)
        self._leave(model, row)

    def _leave(self, model: Generation, row: Row) -> None:
        """Take a row out; the last running one fills its place, and a prompt being read moves up behind them."""
        at, last = self._running.index(row), len(self._running) - 1
        if at != last:
            model.move(last, at)
            self._running[at] = self._running[last]
        self._running.pop()
        model.clear(last)
        if self._reading is not None:
            model.move(last + 1, last)

    def _fail_everything(self, error: EngineError) -> None:
        with self._changed:
            self._closing = True
            self._end = error if isinstance(error, EngineDown) else None
            rows = [*self._running, *self._waiting, *([self._reading] if self._reading else [])]
            jobs = [future for _, future in self._jobs]
        for row in rows:
            row.sink(error)
        for future in jobs:
            future.set_exception(error)


def _failure(error: Exception) -> EngineError:
    return error if isinstance(error, EngineError) else EngineError(f"generation failed: {type(error).__name__}: {error}")
