"""What each arm costs here: moving averages of what was seen, starting from a CPU's rough figures."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.types import Answer
from router.types import Arm, Costs

# Starting points until this machine has answered something: SmolLM2-135M in float32 on two cores.
START: Mapping[Arm, Costs] = {
    "base": Costs(2500, 110),
    "quote": Costs(250, 0),
    "rag": Costs(4500, 900),
    "finetuned": Costs(2500, 110),
    "hybrid": Costs(5500, 900),
    "verified": Costs(60, 0),
    "refuse": Costs(50, 0),
}
_WEIGHT = 0.1


class CostBook:
    """Latency (ms) and tokens (read and generated) by arm, as exponential moving averages of this process."""

    def __init__(self) -> None:
        self._known: dict[Arm, Costs] = dict(START)

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
