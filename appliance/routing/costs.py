"""What each arm costs here: moving averages of what was seen, starting from what the router assumes."""

from __future__ import annotations

from appliance.types import Answer
from router.predict import ASSUMED_COSTS
from router.types import Arm, Costs

_WEIGHT = 0.1


class CostBook:
    """Latency (ms) and tokens (read and generated) by arm, as exponential moving averages of this process."""

    def __init__(self) -> None:
        self._known: dict[Arm, Costs] = dict(ASSUMED_COSTS)

    def expected(self) -> dict[Arm, Costs]:
        return dict(self._known)

    def record(self, arm: Arm, answer: Answer) -> None:
        """Take a finished answer into the averages."""
        old = self._known[arm]
        tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
        self._known[arm] = Costs(
            latency_ms=(1 - _WEIGHT) * old.latency_ms + _WEIGHT * answer.timings["total"],
            tokens=(1 - _WEIGHT) * old.tokens + _WEIGHT * tokens,
        )
