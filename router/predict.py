"""What to expect of each arm before any evaluation has been run: simple, monotone, documented heuristics.

They are not calibrated; they only have to order the arms sensibly and to be explainable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from router.settings import PolicySettings
from router.types import Arm, Costs, Prediction, Situation

# Until latencies are measured: about 64 generated tokens at 17 a second on two CPU cores, and 600 tokens of passages to read.
ASSUMED_COSTS: Final[Mapping[Arm, Costs]] = MappingProxyType(
    {
        "base": Costs(latency_ms=4000, tokens=150),
        "finetuned": Costs(latency_ms=5000, tokens=150),
        "rag": Costs(latency_ms=7000, tokens=800),
        "hybrid": Costs(latency_ms=9000, tokens=800),
        "quote": Costs(latency_ms=100, tokens=0),
        "verified": Costs(latency_ms=50, tokens=0),
        "refuse": Costs(latency_ms=0, tokens=0),
    }
)


def between(value: float, low: float, high: float) -> float:
    """Where `value` lies from `low` (0) to `high` (1), clipped."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def support(features: Mapping[str, float], settings: PolicySettings) -> float:
    """How well the passages support the question, in [0, 1].

    The mean, weighted by `dense_weight`, of the best cosine scaled from `dense_floor` to `dense_ceiling` and the share of
    the question's rare words in the best passage. A passage in another language shares no words with the question:
    there the cosine stands alone, and likewise the words where no cosine is known. 0 when nothing was found.
    """
    if features.get("e_passages", 0.0) < 1:
        return 0.0
    coverage = features.get("e_term_coverage", 0.0)
    if "e_dense_top" not in features:
        return coverage
    foreign = bool(features.get("e_foreign"))
    shift = -settings.foreign_shift if foreign else settings.chinese_shift * features["q_zh"]
    dense = between(features["e_dense_top"], settings.dense_floor + shift, settings.dense_ceiling + shift)
    if foreign:
        return dense
    return settings.dense_weight * dense + (1 - settings.dense_weight) * coverage


def costs_of(arm: Arm, situation: Situation) -> Costs:
    """The measured cost of an arm if the situation knows it, else the assumed one."""
    return situation.costs.get(arm, ASSUMED_COSTS[arm])


def predict(arms: Iterable[Arm], situation: Situation, features: Mapping[str, float], settings: PolicySettings) -> dict[Arm, Prediction]:
    """Quality in [0, 1], latency and tokens of each of `arms`.

    With s = support, n = nearness of the adapter's training questions and f = the fresh share of its evidence (0 when it
    is stale for exactly these passages): quote s, halved for reasons and comparisons and for passages in another
    language; rag r (0.2 + 0.8 s) with r = `reading`; finetuned (0.1 + 0.6 n) f; hybrid that of rag + 0.15 n f (less 0.1
    when f is 0); base 0.1; verified its similarity; refuse 1 - max(s, n f).
    """
    found = support(features, settings)
    near = between(features.get("a_nearest", settings.related_question), settings.dense_floor, 1.0) if situation.adapter else 0.0
    fresh = 0.0 if features.get("a_stale_here") else 1.0 - features.get("a_stale_share", 0.0)
    halved = bool(features["q_reason"] or features["q_compare"] or features.get("e_foreign"))
    rag = settings.reading * (0.2 + 0.8 * found)
    quality: dict[Arm, float] = {
        "base": 0.1,
        "quote": found * (0.5 if halved else 1.0),
        "rag": rag,
        "finetuned": (0.1 + 0.6 * near) * fresh,
        "hybrid": rag + 0.15 * near * fresh if fresh else rag - 0.1,
        "verified": situation.verified or 0.0,
        "refuse": 1.0 - max(found, near * fresh),
    }
    predicted = {}
    for arm in arms:
        cost = costs_of(arm, situation)
        predicted[arm] = Prediction(min(1.0, max(0.0, quality[arm])), cost.latency_ms, cost.tokens)
    return predicted
