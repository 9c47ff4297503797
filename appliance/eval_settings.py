"""The section [eval] of the configuration: what answers are worth to the team, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from appliance.settings import Section
from eval.types import Metric


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
