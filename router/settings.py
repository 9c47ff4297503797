"""The thresholds of the rule policy."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Thresholds, all in [0, 1]. Raises ValueError naming a field that is out of range or out of order.

    `dense_floor` and `dense_ceiling` scale the cosine; `chinese_shift` is added to both where question and passage are
    Chinese, `foreign_shift` taken off where their languages differ, because multilingual-e5-small compresses cosines, most of
    all within Chinese. A model with other cosines needs other values here, and only here.
    `dense_weight` is the share of the scaled cosine in the support, the rest is term coverage.
    `weak` is the support below which an answer is refused, `strong` that from which the passages are trusted.
    They were chosen on the train and dev questions of the sample knowledge base: 147 answerable ones, each also with its
    documents withheld, and 23 unanswerable ones. There the best cosine has medians of 0.88 with and 0.84 without the answer in
    English, 0.91 and 0.88 in Chinese; support tells the two apart with an area under the ROC curve of 0.86. `weak` refuses 6 %
    of the answerable ones whose top passage is right, 38 % of those where it is wrong, and 17 % of the unanswerable, which are
    written to be close to what the documents say (``benchmarks/refusal_threshold.py``); colloquial wording is refused more often.
    From `strong` on, the top passage is of the right document in 97 %.
    `verified_match` is the similarity from which a verified answer is served (1 for the same question; for others the cosine, after
    their words were found to say the same; ``benchmarks/verified_matches.py``); `close_question` and `related_question` the
    cosine to a training question from which an adapter may answer alone, or beside passages (training questions about different facts
    reach 0.936 to each other in the sample base).
    `reading` is how well the engine's model answers from passages, 1 for models of about 7B parameters and more. The
    default is for the embedded 135M model: in `eval run` on the sample base and on PubMedQA its answers from the passages
    had a lower utility than the passages' own sentences.
    `stale_limit` is the stale share of an adapter's evidence above which it is not used alone, `prior_bonus` what the
    scenario advice adds to the predicted quality of its arm.
    """

    dense_floor: float = 0.81
    dense_ceiling: float = 0.91
    chinese_shift: float = 0.03
    foreign_shift: float = 0.02
    dense_weight: float = 0.5
    weak: float = 0.40
    strong: float = 0.60
    verified_match: float = 0.9
    close_question: float = 0.95
    related_question: float = 0.90
    stale_limit: float = 0.5
    reading: float = 0.7
    prior_bonus: float = 0.06

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name}: {value} is out of range; give a number from 0 to 1")
        for low, high in (("dense_floor", "dense_ceiling"), ("weak", "strong"), ("related_question", "close_question")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) must be below {high} ({getattr(self, high)})")

    def digest(self) -> str:
        """Eight hexadecimal digits that change with any threshold."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Prices:
    """What an arm's cost takes off its expected utility in a trained router: `tokens` for each 1,000 read and generated, `seconds` for each
    second of expected latency. Both are zero or more, else ValueError.

    The default makes 1,000 tokens worth two hundredths of a perfect answer: it decides between arms that are expected to do about
    equally well, and hardly anything else.
    """

    tokens: float = 0.02
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"{field.name}: {getattr(self, field.name)}; give a price of zero or more")
