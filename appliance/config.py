"""The configuration: what can be set, and where each value came from.

A flag (``--set section.key=value``) wins over the environment (``APPLIANCE_SECTION__KEY``), which wins over
``appliance.toml``, which wins over the defaults written here.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from appliance.errors import UsageError
from appliance.settings import (
    AnsweringConfig,
    DatabaseConfig,
    DomainConfig,
    EngineConfig,
    EvalConfig,
    FeedbackConfig,
    GatewayConfig,
    IngestConfig,
    ModelsConfig,
    RetrievalConfig,
    RouterConfig,
    Section,
    ServerConfig,
)

FILE_NAME = "appliance.toml"
ENV_PREFIX = "APPLIANCE_"


class Config(Section):
    """Everything that can be set."""

    models: ModelsConfig = ModelsConfig()
    engines: Mapping[str, EngineConfig] = Field(default_factory=lambda: {"default": EngineConfig()})
    domains: Mapping[str, DomainConfig] = Field(default_factory=dict)
    retrieval: RetrievalConfig = RetrievalConfig()
    ingest: IngestConfig = IngestConfig()
    answering: AnsweringConfig = AnsweringConfig()
    router: RouterConfig = RouterConfig()
    server: ServerConfig = ServerConfig()
    gateway: GatewayConfig = GatewayConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    eval: EvalConfig = EvalConfig()
    database: DatabaseConfig = DatabaseConfig()

    def domain(self, name: str) -> DomainConfig:
        return self.domains.get(name, DomainConfig())

    def engine_of(self, domain: str) -> tuple[str, EngineConfig]:
        """Name and settings of the engine that answers for `domain`. Raises UsageError if it names one that is not there."""
        name = self.domain(domain).engine
        if name not in self.engines:
            raise UsageError(f"[domains.{domain}] engine = {name!r} is not among the engines: {', '.join(sorted(self.engines))}")
        return name, self.engines[name]


def load(file: Path, flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> tuple[Config, dict[str, str]]:
    """The configuration and, for every leaf that was set, its origin. Raises UsageError naming the key and its origin."""
    origins: dict[str, str] = {}
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        values = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML: {error}") from error
    for path, _ in leaves(values):
        origins[path] = file.name
    for path, text, origin in _overrides(flags or {}, os.environ if environ is None else environ):
        _put(values, path, text, origin)
        origins[path] = origin
    # A file that names other engines still has the default one.
    values.setdefault("engines", {}).setdefault("default", {})
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(problem, origins, file) for problem in error.errors())) from error
    return config, origins


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted path, value) below `values`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _overrides(flags: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX) and "__" in name:
            yield name.removeprefix(ENV_PREFIX).lower().replace("__", "."), text, f"environment {name}"
    for path, text in flags.items():
        yield path, text, "flag --set"


def _put(values: dict[str, Any], path: str, text: str, origin: str) -> None:
    *parents, leaf = path.split(".")
    here = values
    for key in parents:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise UsageError(f"{origin}: {path} goes through {key}, which is a value, not a section")
    here[leaf] = _parse(text)


def _parse(text: str) -> Any:
    """JSON where it is JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _explain(problem: Any, origins: Mapping[str, str], file: Path) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    origin = origins.get(path) or next((o for p, o in origins.items() if p.startswith(path) or path.startswith(p)), file.name)
    if problem["type"] == "extra_forbidden":
        *parents, leaf = [str(part) for part in problem["loc"]]
        known = _fields(parents)
        near = difflib.get_close_matches(leaf, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{origin}: unknown setting {path}; {hint}"
    return f"{origin}: {path} = {problem['input']!r}: {problem['msg']}"


def _fields(parents: list[str]) -> list[str]:
    sections: dict[str, type[Section]] = {"engines": EngineConfig, "domains": DomainConfig}
    model: type[BaseModel] = Config
    if parents:
        found = sections.get(parents[0]) or Config.model_fields[parents[0]].annotation
        if parents[2:] and isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[parents[2]].annotation
        model = found if isinstance(found, type) and issubclass(found, BaseModel) else Config
    return sorted(model.model_fields)
