"""From an ``[engines.NAME]`` section to an engine; the place to add a kind."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from appliance.engines.base import Engine
from appliance.errors import ApplianceError, UsageError
from appliance.models.refs import ModelRef
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig
from appliance.workspace import Workspace
from finetune.lint import MAX_RANK, EngineKind
from finetune.types import TrainingError
from retrieval.loading import ONE_AT_A_TIME

# Settings by what heeds them: the local engine, a server that is started here, both of these, vLLM's adapters, and a server elsewhere.
_LOCAL = ("weights", "merge", "prompt_cache_mb", "max_queue")
_STARTED = ("python", "server_args", "kv_cache_gib", "start_seconds", "max_loras")
_HERE = ("threads", "max_batch", "chat_template")
_RANK = ("max_lora_rank",)
_ELSEWHERE = ("model", "api_key_env")
_IGNORED = {
    "local": (*_STARTED, *_RANK, *_ELSEWHERE, "url", "urls"),
    "openai": (*_LOCAL, *_STARTED, *_HERE, *_RANK),
    "vllm": (*_LOCAL, *_ELSEWHERE),
    "vllm at an address": (*_LOCAL, *_STARTED, *_HERE),
}


def check(name: str, settings: EngineConfig) -> None:
    """Raises UsageError for settings that do not go together or have no effect, and for a key that is not there."""
    where = f"[engines.{name}]"
    if settings.has_base:
        ModelRef.parse(settings.base)
    kind = "vllm at an address" if settings.kind == "vllm" and settings.addresses else settings.kind
    idle = [field for field in _IGNORED[kind] if getattr(settings, field) != EngineConfig.model_fields[field].default]
    if idle:
        raise UsageError(f"{where} {', '.join(idle)}: without effect for an engine of kind {kind}; leave it out, or change the kind")
    if settings.kind == "local":
        return
    if settings.url and settings.urls:
        raise UsageError(f"{where} has url and urls; give the one address as url, or all of them as urls")
    if settings.kind == "openai" and not (settings.addresses and settings.model):
        raise UsageError(f'{where} kind = "openai" needs url and model')
    if settings.addresses and not settings.model:
        raise UsageError(f"{where} has an address and no model: name the base model as the server does (--served-model-name)")
    if settings.api_key_env and not os.environ.get(settings.api_key_env):
        raise UsageError(f"{where} api_key_env: the environment variable {settings.api_key_env} is not set")


def build(name: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    """The engine `name`; a relative path in its settings starts at the workspace. Raises what `check` raises, and ApplianceError."""
    check(name, settings)
    if settings.kind == "local":
        return _local(name, settings, models, workspace)
    if not settings.addresses:
        return _started(name, settings, models, workspace)
    one = _vllm if settings.kind == "vllm" else _openai
    engines = [one(name, url, settings, models, workspace) for url in settings.addresses]
    if len(engines) == 1:
        return engines[0]
    from appliance.engines.replicas import Replicas

    return Replicas(engines, settings.connect_seconds, settings.first_token_seconds)


def lint(settings: EngineConfig, models: ModelStore, workspace: Workspace, adapter: Path, kind: EngineKind | None = None) -> list[str]:
    """What keeps the adapter in the folder `adapter` from being served by an engine of these settings (or of this `kind` with their base).

    In plain words; empty if nothing does. See `finetune.version.lint_adapter`. Raises ApplianceError if the base is missing.
    """
    from finetune.version import lint_adapter

    base = models.path(workspace.model(settings.base))
    serving: EngineKind = kind or ("vllm" if settings.kind == "vllm" else "local")
    most, template = settings.max_lora_rank or MAX_RANK, settings.template(workspace.root)
    try:
        # It builds the base, though without its weights.
        with ONE_AT_A_TIME:
            return lint_adapter(adapter, base, engine=serving, max_rank=most, chat_template=template)
    except TrainingError as error:
        raise ApplianceError(str(error)) from error


def _local(name: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    from appliance.engines.local import LocalEngine

    base = workspace.model(settings.base)
    return LocalEngine(
        name,
        models.path(base),
        models.model_hash(base),
        frozenset(settings.languages),
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        threads=settings.threads,
        chat_template=settings.template(workspace.root),
        weights=settings.weights,
        merge=settings.merge,
        prompt_cache_mb=settings.prompt_cache_mb,
        context_window=settings.context_window if "context_window" in settings.model_fields_set else None,
    )


def _key(settings: EngineConfig) -> str | None:
    return os.environ.get(settings.api_key_env) if settings.api_key_env else None


def _openai(name: str, url: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    from appliance.engines.openai import OpenAIEngine

    return OpenAIEngine(
        name,
        url,
        settings.model or "",
        _key(settings),
        frozenset(settings.languages),
        context_window=settings.context_window,
        connect_timeout=settings.connect_seconds,
    )


def _vllm(name: str, url: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    from appliance.engines.vllm import VllmEngine, words_of
    from appliance.engines.vllm_started import context_window

    base = workspace.model(settings.base)
    return VllmEngine(
        name,
        url,
        settings.model or "",
        _key(settings),
        frozenset(settings.languages),
        models.model_hash(base),
        context_window(models.path(base), settings),
        partial(words_of, models.path(base), None),
        connect_timeout=settings.connect_seconds,
        max_rank=settings.max_lora_rank or MAX_RANK,
    )


def _started(name: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    from appliance.engines.vllm import words_of
    from appliance.engines.vllm_server import VllmServer
    from appliance.engines.vllm_started import StartedVllm, context_window, key_of, launch

    base = workspace.model(settings.base)
    path, base_hash = models.path(base), models.model_hash(base)
    return StartedVllm(
        name,
        VllmServer(name, partial(launch, workspace, models, name, settings), workspace.db),
        key_of(workspace, name),
        frozenset(settings.languages),
        base_hash,
        context_window(path, settings),
        partial(words_of, path, settings.template(workspace.root)),
        settings.connect_seconds,
    )
