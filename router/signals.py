"""Numbers about a question and its evidence; each is cheap (well under a millisecond) and has a name a person can read."""

from __future__ import annotations

import math
import re
from typing import Final

from retrieval.text import words
from retrieval.types import Evidence
from router.types import AdapterFacts, Situation

# What a question wants is said in its first sentences; the rest of a huge one is pasted material.
_READ: Final = 2000

_NUMBER: Final = re.compile(r"\d+(?:[.,:]\d+)*")
_DATE: Final = re.compile(
    r"\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|(?<!\d)(?:19|20)\d\d(?!\d)|\d{1,2}\s*月(?:\s*\d{1,2}\s*[日号])?"
    r"|\b(?:\d{1,2}\s+)?(?:january|february|march|april|june|july|august|september|october|november|december)\b"
    r"|\bmay\s+\d|\b\d{1,2}\s+may\b",
    re.IGNORECASE,
)
_CLAUSE: Final = re.compile(
    r"第\s*[一二三四五六七八九十百千零〇两\d]+\s*[条章款项节]|§+\s*\d+|\b(?:article|section|clause|paragraph|annex|schedule|rule)\s+(?:\d+|[ivxlc]+\b)",
    re.IGNORECASE,
)
_RECENT: Final = re.compile(
    r"\b(?:now|nowadays|current(?:ly)?|latest|today|recent(?:ly)?|newest|as of|up[- ]to[- ]date|this (?:year|month|week)"
    r"|still (?:valid|in force|apply))\b"
    r"|现在|目前|当前|最新|如今|今年|本月|最近|现行|近期|今天",
    re.IGNORECASE,
)
_COMPARE: Final = re.compile(
    r"\b(?:compar\w+|differ\w*|versus|vs|rather than|better|worse|instead of|pros and cons)\b"
    r"|比较|区别|差别|差异|不同|相比|哪个更|异同|利弊|更好|优缺点",
    re.IGNORECASE,
)
_REASON: Final = re.compile(
    r"\b(?:why|explain|reasons?|advice|advise|recommend\w*|suggest\w*|should (?:i|we|one|you)|what if|implications?|assess|evaluate"
    r"|strategy|best way|how (?:should|would|do i|do we|can i|can we|to))\b"
    r"|为什么|为何|原因|怎么办|怎么处理|如何(?:处理|应对|判断|评估|选择|避免)|该怎么|应该|建议|分析|解释|评估|是否合理|怎样",
    re.IGNORECASE,
)
_EXACT: Final = re.compile(
    r"\b(?:how (?:much|many|long|often|soon|late|early|quickly|far|old|high|large|big)|when|who|whom|whose|where|by what"
    r"|what (?:time|date|day|percentage)|which"
    r"|deadlines?|dos(?:e|es|age)|fees?|prices?|costs?|charges?|rates?|limits?|thresholds?|maximum|minimum|amount|percent\w*|number|extension|phone"
    r"|notice|period|term|exact(?:ly)?|verbatim|quote|wording)\b"
    r"|多少|几|多久|多长|多大|多高|何时|什么时候|哪天|哪年|哪个|哪些|哪里|哪儿|谁|期限|时限|截止|剂量|用量|费用|收费|价格|金额|比例|利率|费率|额度|限额"
    r"|标准|上限|下限|阈值|最高|最低|最多|最少|最长|最短|最晚|最迟|不超过|电话|分机|编号|号码|原文|规定",
    re.IGNORECASE,
)


def question_features(question: str, lang: str) -> dict[str, float]:
    """Features of the text alone, counts unless said otherwise: ``q_words``, ``q_chars``, ``q_zh`` (0 or 1), ``q_numbers``,
    ``q_dates``, ``q_clauses`` (第…条, §, Article), ``q_recent``, ``q_compare``, ``q_reason``, ``q_exact`` (cue words).

    Only the first 2,000 characters are read, except for ``q_chars``.
    """
    head = question[:_READ]
    return {
        "q_words": float(len(words(head, lang))),
        "q_chars": float(len(question)),
        "q_zh": float(lang == "zh"),
        "q_numbers": float(len(_NUMBER.findall(head))),
        "q_dates": float(len(_DATE.findall(head))),
        "q_clauses": float(len(_CLAUSE.findall(head))),
        "q_recent": float(len(_RECENT.findall(head))),
        "q_compare": float(len(_COMPARE.findall(head))),
        "q_reason": float(len(_REASON.findall(head))),
        "q_exact": float(len(_EXACT.findall(head))),
    }


def evidence_features(evidence: Evidence, lang: str) -> dict[str, float]:
    """The signals of the evidence with the prefix ``e_`` (those that are not finite are left out); ``e_foreign``: 1 when the best
    passage is in another language than the question, so that words cannot match; ``e_top_chars``: the length of the best passage;
    ``e_flagged``: the share of the passages in which ingest found instructions to the model."""
    features = {f"e_{name}": float(value) for name, value in evidence.signals.items() if math.isfinite(value)}
    # In whole days: the order in which documents of one ingest came in says nothing.
    features |= {name: float(math.floor(value)) for name, value in features.items() if name.endswith("_days")}
    passages = evidence.passages
    features["e_foreign"] = float(bool(passages) and passages[0].document.lang != lang)
    features["e_top_chars"] = float(len(passages[0].chunk.text)) if passages else 0.0
    features["e_flagged"] = sum(bool(passage.chunk.flags) for passage in passages) / len(passages) if passages else 0.0
    return features


def adapter_features(adapter: AdapterFacts | None) -> dict[str, float]:
    """``a_present`` (0 or 1) and, with an adapter, ``a_pairs``, ``a_stale_share``, ``a_unlinked``, ``a_stale_here`` (documents),
    ``a_nearest`` and ``a_near`` (cosines), ``a_sure`` (a probability; these only where known)."""
    if adapter is None:
        return {"a_present": 0.0}
    features = {
        "a_present": 1.0,
        "a_pairs": float(adapter.pairs),
        "a_stale_share": adapter.stale_share,
        "a_unlinked": float(adapter.unlinked),
        "a_stale_here": float(len(adapter.stale_here)),
    }
    if adapter.nearest_question is not None:
        features["a_nearest"] = adapter.nearest_question
    if adapter.near_questions is not None:
        features["a_near"] = adapter.near_questions
    if adapter.sure_there is not None:
        features["a_sure"] = adapter.sure_there
    return features


def features(situation: Situation) -> dict[str, float]:
    """Everything about a situation as one flat mapping."""
    found = question_features(situation.question, situation.lang) | evidence_features(situation.evidence, situation.lang)
    found |= adapter_features(situation.adapter)
    if situation.prior is not None:
        found[f"p_{situation.prior}"] = 1.0
    if situation.verified is not None:
        found["verified"] = situation.verified
    return found
