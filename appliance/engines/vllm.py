"""A running vLLM server as an engine: chat completions of its base model, LoRA adapters loaded and chosen at run time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from appliance.engines.base import AdapterRef, Delta, EngineDown, EngineError, EngineLate, Health, Message, Sampling
from appliance.engines.openai import OpenAIEngine, UnknownModel, message_of
from finetune.chat_templates import control_words, defuse
from finetune.tokens import read_tokenizer
from finetune.types import TrainingError
from retrieval.loading import ONE_AT_A_TIME

# Seconds that a server has to load an adapter or to count tokens, and to say that it is well; one that hangs must not hold up the others.
_PATIENCE, _WELL = 60.0, 5.0


class VllmEngine(OpenAIEngine):
    """vLLM's API server at `url`, which ends in ``/v1``; it must run with ``--enable-lora`` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and see
    the adapters' folders under the same absolute paths. `model` is its name for the base model with `base_hash`.

    A server that was started anew has lost its adapters: `health` notices, and whoever keeps them loaded loads them again, as does a
    request for one of them. Adapters of a rank above `max_rank` are refused before the server is asked. May be used from one event loop at
    a time.

    `words` finds, once, what no message may spell (`finetune.chat_templates.control_words`): the server would read it as a control token.
    """

    serves_adapters = True

    def __init__(
        self,
        name: str,
        url: str,
        model: str,
        api_key: str | None,
        languages: Iterable[str],
        base_hash: str,
        context_window: int,
        words: Callable[[], Sequence[str]],
        connect_timeout: float = 1.5,
        max_rank: int = 64,
    ) -> None:
        super().__init__(name, url, model, api_key, languages, context_window, connect_timeout)
        self.base_hash = base_hash
        self._max_rank = max_rank
        self._find_words = words
        self._words: Sequence[str] | None = None
        self._finding = threading.Lock()
        # What should be loaded, what of it the server has, and all that it said it serves when it was last asked.
        self._wanted: dict[str, AdapterRef] = {}
        self._loaded: set[str] = set()
        self._served: set[str] = set()

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """See the contract and `OpenAIEngine.chat`."""
        if adapter is not None and adapter not in self._wanted:
            raise EngineError(f"no adapter {adapter!r} is loaded (loaded: {', '.join(sorted(self._wanted)) or 'none'})")
        ref = self._wanted.get(adapter) if adapter is not None else None
        messages = await self._plain(messages)
        for again in (True, False):
            self._follow()
            try:
                async with aclosing(super().chat(messages, adapter, sampling)) as deltas:
                    async for delta in deltas:
                        yield delta
                return
            except UnknownModel:
                # Said before the first token: the server was started anew, or another process unloaded the adapter.
                if ref is None or not again:
                    raise
                await self._load(ref)

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the whole prompt, template included; exact."""
        self._follow()
        root = self._url.removesuffix("/v1")
        body = {"model": self._model, "messages": await self._plain(messages), "add_generation_prompt": True}
        found = await self._post(f"{root}/tokenize", body)
        try:
            return int(json.loads(found)["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise EngineDown(f"{root}/tokenize sent something that is no count of tokens: {error!r}") from error

    async def adapters(self) -> list[str]:
        """Those that were loaded from here and that the server still had when it was last asked."""
        return sorted(self._loaded & self._wanted.keys())

    @property
    def strays(self) -> set[str]:
        """What the server had beside the base model and what was loaded from here when it was last asked; some may be models of its own."""
        return self._served - self._wanted.keys() - {self._model}

    async def load(self, adapter: AdapterRef) -> None:
        """Load a LoRA adapter; loading a name again does nothing. Raises EngineError where the server cannot use it, EngineDown where it
        cannot be asked: it is loaded then when a request asks for it."""
        if adapter.name in self._loaded and adapter.name in self._wanted:
            return
        self._wanted[adapter.name] = adapter
        try:
            await self._load(adapter)
        except EngineDown:
            raise
        except EngineError:
            self._wanted.pop(adapter.name, None)
            raise

    async def unload(self, name: str) -> None:
        """New requests cannot use the adapter any more, whoever loaded it; accepted ones finish with it. Unknown names are ignored."""
        known = self._wanted.pop(name, None) is not None or name in self._served
        self._loaded.discard(name)
        self._served.discard(name)
        if known:
            self._follow()
            await self._post(f"{self._url}/unload_lora_adapter", {"lora_name": name}, fine=(404,))

    async def health(self) -> Health:
        """Asks the server for its models, and thereby which adapters it has. The detail names no address: clients see it."""
        import httpx

        if self._closed:
            return Health(False, "the engine is closed")
        try:
            self._follow()
            response = await self._http().get(f"{self._url}/models")
        except EngineDown as error:
            return Health(False, str(error))
        except httpx.HTTPError as error:
            return Health(False, f"its server cannot be reached ({type(error).__name__}); is it running?")
        if response.status_code in (401, 403):
            return Health(False, f"its server refuses the API key ({response.status_code})")
        try:
            served = {str(card["id"]) for card in response.json()["data"]}
        except (ValueError, KeyError, TypeError):
            return Health(False, f"its server answers {response.status_code} and no list of models")
        if self._model not in served:
            return Health(False, f"its server does not serve the model {self._model}")
        self._served, self._loaded = served, served & self._wanted.keys()
        return Health(True)

    async def _plain(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as training has them: with what spells a control token broken up."""
        words = self._words if self._words is not None else await asyncio.to_thread(self._found)
        return [Message(role=message["role"], content=defuse(message["content"], words)) for message in messages]

    def _found(self) -> Sequence[str]:
        # One of the first requests finds them for all: transformers cannot even be imported by several threads at once.
        with self._finding:
            if self._words is None:
                self._words = self._find_words()
            return self._words

    def _follow(self) -> None:
        """Make `_url` the server's address, where that can change. Raises EngineDown where there is none now."""

    async def _load(self, adapter: AdapterRef) -> None:
        self._follow()
        rank = await asyncio.to_thread(rank_of, adapter.path)
        if rank > self._max_rank:
            raise EngineError(
                f"adapter {adapter.name} has rank {rank}, engine {self.name} was started for ranks up to {self._max_rank}; "
                "start it again (its limit follows the registered versions), or raise max_lora_rank"
            )
        # A relative path would be looked up on a model hub.
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path.resolve())}
        try:
            await self._post(f"{self._url}/load_lora_adapter", body, said_before="already been loaded")
        except UnknownModel as error:
            raise EngineError(
                f"the server of engine {self.name} cannot load adapters ({error}); it needs --enable-lora, "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and the workspace's folder under the same path"
            ) from error
        except EngineDown:
            # vLLM says 500 both for an adapter it cannot use and for its own failures: only one that is well has refused it.
            if not await self._is_well():
                raise
            raise EngineError(
                f"the server of engine {self.name} cannot use adapter {adapter.name}; its log says why; check it with: "
                f"appliance adapter lint {adapter.name} --kind vllm"
            ) from None
        self._loaded.add(adapter.name)

    async def _is_well(self) -> bool:
        import httpx

        try:
            return (await self._http().get(f"{self._url.removesuffix('/v1')}/health", timeout=_WELL)).status_code == 200
        except httpx.HTTPError:
            return False

    async def _post(self, url: str, body: dict[str, Any], *, fine: tuple[int, ...] = (), said_before: str | None = None) -> bytes:
        """What the server answers. Raises EngineDown, UnknownModel for 404 and EngineError for other refusals, but for a status that is
        `fine` and an error that says `said_before`."""
        import httpx

        try:
            response = await self._http().post(url, json=body, timeout=httpx.Timeout(_PATIENCE, connect=self._connect))
        except httpx.ReadTimeout as error:
            raise EngineLate(f"{url} did not answer within {_PATIENCE:g} s; does the server hang?") from error
        except httpx.HTTPError as error:
            raise EngineDown(f"{url} cannot be reached ({type(error).__name__}: {error}); is the server running?") from error
        if response.status_code == 200 or response.status_code in fine:
            return response.content
        said = message_of(response.content[:100_000])
        if said_before is not None and said_before in said:
            return response.content
        kinds = {404: UnknownModel, **dict.fromkeys(range(500, 600), EngineDown)}
        raise kinds.get(response.status_code, EngineError)(f"{url} answers {response.status_code}{said and ': ' + said}")


def words_of(path: Path, chat_template: str | None) -> list[str]:
    """What no message to the model in `path` may spell, see `control_words`. Raises EngineError if it has no tokenizer."""
    try:
        with ONE_AT_A_TIME:
            return control_words(read_tokenizer(path, chat_template))
    except TrainingError as error:
        raise EngineError(str(error)) from error


def rank_of(adapter: Path) -> int:
    """The largest rank in an adapter's folder. Raises EngineError where it holds no LoRA adapter."""
    file = adapter / "adapter_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        return max(int(rank) for rank in (config["r"], *(config.get("rank_pattern") or {}).values()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{file} does not describe a LoRA adapter ({error!r})") from error
