"""Choosing the next token from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from appliance.engines.base import Sampling


def generator_for(sampling: Sampling) -> torch.Generator | None:
    """A random generator of the request's own, so that its seed means the same alone and in a batch; None for greedy."""
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Greedy without a generator, else nucleus sampling (Holtzman et al. 2020): the fewest tokens whose probabilities reach `top_p`."""
    if generator is None:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        ordered[beyond] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
