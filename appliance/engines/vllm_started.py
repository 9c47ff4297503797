"""A vLLM server that the appliance starts itself, as an engine: how it is started, and where it is now."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from appliance.adapters.registry import AdapterVersion, Registry
from appliance.engines.base import EngineDown, EngineError
from appliance.engines.vllm import VllmEngine, rank_of
from appliance.engines.vllm_server import Launch, Limits, VllmServer
from appliance.errors import ApplianceError
from appliance.files import write_whole
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig
from appliance.workspace import Workspace
from finetune.lint import MAX_RANK

logger = logging.getLogger("appliance.engines")

# What the server calls the base model.
_MODEL = "base"
# The ranks that vLLM's --max-lora-rank takes (vllm/config/lora.py).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# What a domain may have loaded at once: its live version, and one that is tried or on its way out.
_A_DOMAIN = 2
# Each place in a batch takes memory, used or not: beyond so many, requests wait for each other.
_MOST_PLACES = 32
# The model's own defaults for sampling would change what other engines are asked for in the same words.
ALWAYS = ("--generation-config", "vllm")
# Half precision is slower than float32 on most CPUs, and compiling saves little there but takes a minute.
ON_CPU = ("--dtype", "float32", "--enforce-eager")
# The environment that `make vllm` builds, beside the appliance's own.
_ENVIRONMENT = ".venv-vllm"


def limits(workspace: Workspace, name: str, settings: EngineConfig, base_hash: str) -> Limits:
    """What the server of the engine `name` needs for the domains it answers for and their registered versions."""
    registry = Registry(workspace)
    domains = [domain for domain in workspace.domains() if workspace.config.engine_of(domain)[0] == name]
    versions = [version for domain in domains for version in registry.versions(domain)]
    most = settings.max_lora_rank or MAX_RANK
    ranks = [rank for version in versions if version.base_hash == base_hash and (rank := _rank(version)) <= most]
    wanted = settings.max_lora_rank or max(16, *ranks, 1)
    places = settings.max_loras or min(_MOST_PLACES, max(4, _A_DOMAIN * len(domains)))
    return Limits(places, max(places, _A_DOMAIN * len(domains)), next(rank for rank in _RANKS if rank >= wanted))


def _rank(version: AdapterVersion) -> int:
    """The version's rank; 0 for what vLLM does not serve, or what is no longer there."""
    if version.kind != "adapter":
        return 0
    try:
        return rank_of(version.path)
    except EngineError:
        return 0


def launch(workspace: Workspace, models: ModelStore, name: str, settings: EngineConfig) -> Launch:
    """How the server of the engine `name` is started. Raises ApplianceError where its environment or its model is missing."""
    python = _python(settings)
    reference = workspace.model(settings.base)
    base, base_hash = models.path(reference), models.model_hash(reference)
    found = limits(workspace, name, settings, base_hash)
    arguments = [
        *("--model", str(base), "--served-model-name", _MODEL),
        *("--max-model-len", str(context_window(base, settings))),
        *ALWAYS,
        *("--enable-lora", "--max-loras", str(found.places), "--max-cpu-loras", str(found.kept), "--max-lora-rank", str(found.rank)),
        *("--shutdown-timeout", "5", "--disable-uvicorn-access-log"),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "APPLIANCE_"))}
    environment |= {
        "VLLM_API_KEY": key_of(workspace, name),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is in the store: nothing is fetched.
        "HF_HUB_OFFLINE": "1",
    }
    if shutil.which("nvidia-smi") is None:
        arguments += ON_CPU
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
        if settings.threads is not None:
            environment |= {"OMP_NUM_THREADS": str(settings.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if "max_batch" in settings.model_fields_set:
        arguments += ["--max-num-seqs", str(settings.max_batch)]
    template = settings.template(workspace.root)
    folder = workspace.folder("runs") / "logs"
    folder.mkdir(exist_ok=True)
    if template is not None:
        file = folder / f"engine-{name}.jinja"
        write_whole(file, template)
        arguments += ["--chat-template", str(file)]
    shared = [base_hash, template, settings.context_window, *settings.server_args]
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
    command = (str(python), "-m", "vllm.entrypoints.openai.api_server", *arguments, *settings.server_args)
    return Launch(command, environment, folder / f"engine-{name}.log", settings.start_seconds, digest, found)


def key_of(workspace: Workspace, name: str) -> str:
    """The key of the engine's server, the same in every process of the workspace."""
    return hmac.new(workspace.db.secret(), f"engine {name}".encode(), "sha256").hexdigest()


def context_window(base: Path, settings: EngineConfig) -> int:
    """Tokens of a prompt and its answer: `context_window` of the configuration, but no more than the model in `base` takes."""
    try:
        config = json.loads((base / "config.json").read_text("utf-8"))
        return min(int({**config, **config.get("text_config", {})}["max_position_embeddings"]), settings.context_window)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"{base / 'config.json'} does not describe a language model ({error!r}); verify or pull the model again"
        ) from error


def _python(settings: EngineConfig) -> Path:
    python = Path(settings.python).expanduser() if settings.python else Path(sys.prefix).parent / _ENVIRONMENT / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ApplianceError(
            f"{python} is no Python that can be run; build vLLM's environment with `make vllm`, or name one: python = PATH"
        )
    return python


class StartedVllm(VllmEngine):
    """The engine over a server that `VllmServer` keeps running, wherever it is now."""

    def __init__(
        self,
        name: str,
        server: VllmServer,
        key: str,
        languages: Iterable[str],
        base_hash: str,
        window: int,
        words: Callable[[], Sequence[str]],
        connect: float,
    ) -> None:
        super().__init__(name, "http://127.0.0.1/v1", _MODEL, key, languages, base_hash, window, words, connect)
        self._server = server

    async def start(self, seconds: float) -> None:
        """Wait until the server answers, at most so long; not for one that ends again and again."""
        until = time.monotonic() + seconds
        # What changes is another thread's.
        while self._server.running is None and self._server.failures < 2 and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def warnings(self, wanted: int) -> list[str]:
        """What overflows with so many adapters wanted at once, and what to do; empty if nothing does."""
        running = self._server.running
        found = []
        if running is not None and wanted > running.limits.places:
            found.append(
                f"engine {self.name}: {wanted} adapters are wanted and {running.limits.places} fit into one batch, so requests wait for "
                f"each other; start it again (its limits follow the domains), or raise [engines.{self.name}] max_loras"
            )
        if running is not None and wanted > running.limits.kept:
            found.append(f"engine {self.name}: only {running.limits.kept} of them stay in memory; the others are read anew when asked for")
        return found

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(self._server.close)

    def _follow(self) -> None:
        running = self._server.running
        if running is None:
            raise EngineDown(self._server.detail, retry_after=5.0)
        if running.url != self._url:
            # A new server has none of the adapters.
            self._loaded.clear()
            self._served.clear()
            self._url, self._max_rank, self._client = running.url, running.limits.rank, None
