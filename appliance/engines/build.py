"""From an ``[engines.NAME]`` section to an engine; the place to add a kind."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.engines.base import Engine
from appliance.errors import UsageError
from appliance.models.refs import ModelRef
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig


def check(name: str, settings: EngineConfig) -> None:
    """Raises UsageError for settings that do not go together, and for a key that is not there."""
    if settings.kind == "local":
        ModelRef.parse(settings.base)
    elif not settings.url or not settings.model:
        raise UsageError(f'[engines.{name}] kind = "openai" needs url and model')
    elif settings.api_key_env and not os.environ.get(settings.api_key_env):
        raise UsageError(f"[engines.{name}] api_key_env: the environment variable {settings.api_key_env} is not set")


def build(name: str, settings: EngineConfig, models: ModelStore, root: Path) -> Engine:
    """The engine `name`; a relative path in its settings starts at `root`. Raises what `check` raises, and ApplianceError."""
    check(name, settings)
    languages = frozenset(settings.languages)
    if settings.kind == "local":
        from appliance.engines.local import LocalEngine

        base = ModelRef.parse(settings.base).resolved(root)
        return LocalEngine(
            name,
            models.path(base),
            models.model_hash(base),
            languages,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            threads=settings.threads,
            chat_template=settings.template(root),
        )
    from appliance.engines.openai import OpenAIEngine

    key = os.environ.get(settings.api_key_env) if settings.api_key_env else None
    return OpenAIEngine(
        name,
        settings.url or "",
        settings.model or "",
        key,
        languages,
        context_window=settings.context_window,
        connect_timeout=settings.connect_seconds,
    )
