"""From an ``[engines.NAME]`` section to an engine; the place to add a kind."""

from __future__ import annotations

import os

from appliance.engines.base import Engine
from appliance.errors import UsageError
from appliance.models.refs import ModelRef
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig
from appliance.workspace import Workspace


def check(name: str, settings: EngineConfig) -> None:
    """Raises UsageError for settings that do not go together, and for a key that is not there."""
    where = f"[engines.{name}]"
    if settings.has_base:
        ModelRef.parse(settings.base)
    if settings.kind == "local":
        return
    if settings.weights != "float32" or settings.merge:
        raise UsageError(f'{where} weights and merge are for kind = "local" only; leave them out')
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
    from appliance.engines.vllm import VllmEngine
    from appliance.engines.vllm_started import context_window
    from finetune.lint import MAX_RANK

    base = workspace.model(settings.base)
    return VllmEngine(
        name,
        url,
        settings.model or "",
        _key(settings),
        frozenset(settings.languages),
        models.model_hash(base),
        context_window(models.path(base), settings),
        connect_timeout=settings.connect_seconds,
        max_rank=settings.max_lora_rank or MAX_RANK,
    )


def _started(name: str, settings: EngineConfig, models: ModelStore, workspace: Workspace) -> Engine:
    from appliance.engines.vllm_server import VllmServer
    from appliance.engines.vllm_started import StartedVllm, context_window, key_of, launch

    base = workspace.model(settings.base)
    server = VllmServer(name, launch(workspace, models, name, settings), workspace.db)
    return StartedVllm(
        name,
        server,
        key_of(workspace, name),
        frozenset(settings.languages),
        models.model_hash(base),
        context_window(models.path(base), settings),
        settings.connect_seconds,
    )
