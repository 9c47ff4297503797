"""What answers cost, in the prices a team has set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eval.types import Outcome

# The name under which what no engine generated is priced.
NO_ENGINE = "appliance"
_MS_AN_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class Price:
    """In any one currency: for 1,000 tokens read, for 1,000 generated, and for an hour of the machine, by the time an answer takes."""

    read_1k: float = 0.0
    generated_1k: float = 0.0
    hour: float = 0.0


def cost(outcome: Outcome, prices: Mapping[str, Price]) -> float | None:
    """The price of an outcome; None if its engine has none, or what it is priced by was not measured.

    An hour counts as if the answer had the machine for itself: what is batched costs less.
    """
    price = prices.get(outcome.engine or NO_ENGINE)
    if price is None or outcome.unavailable:
        return None
    tokens, generated = outcome.tokens, outcome.generated
    if (price.hour and outcome.latency_ms is None) or ((price.read_1k or price.generated_1k) and (tokens is None or generated is None)):
        return None
    read = (tokens or 0.0) - (generated or 0.0)
    by_tokens = (read * price.read_1k + (generated or 0.0) * price.generated_1k) / 1000
    return by_tokens + price.hour * (outcome.latency_ms or 0.0) / _MS_AN_HOUR
