"""Follow-up questions: made self-contained before anything is searched.

The rewrite is extractive: what the follow-up leaves open is taken from the last self-contained question of the
conversation. It needs no model, works in both languages, and adds no words nobody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from appliance.engines.base import Message
from retrieval.text import content_words, detect_lang

# A question that opens like this continues the one before it.
_OPENS = re.compile(
    r"^\s*(and\b|but\b|or\b|so\b|also\b|then\b|what about\b|how about\b|what if\b|same for\b|why\b\W*$|why not\b|how so\b"
    r"|那|还有|以及|如果是|换成|改成|至于|同样|另外|再问)",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(呢|too|instead|as well)\s*[?？。.!！]*\s*$", re.IGNORECASE)
# Words that point back at something said before.
_POINTS_BACK = re.compile(
    r"\b(it|its|that|this|those|these|they|them|their|he|she|his|her|one|ones|there|the same|the other)\b"
    r"|它|他们|她们|它们|这个|那个|这些|那些|该|其中|上述|前者|后者|这种|那种|这样|此",
    re.IGNORECASE,
)
# A short question that opens like this leaves out what it is about: "By what time?", "要停多久？", "过期了还能买吗？".
_LEAVES_OUT = re.compile(
    r"^\s*(?:by|to|from|for|at|in|on|with|until|under|after|before)\s+(?:what|which|whom|how)\b"
    r"|^\s*(?:需?要|得|应该|最[多少高低长短早晚迟快慢大小]|多久|多少钱|什么时候|何时|[由向找给]谁|[\u4e00-\u9fff]{1,2}了)",
    re.IGNORECASE,
)
_SHORT = 4
_SHORT_ZH = 7


def is_follow_up(question: str) -> bool:
    """Whether the question leans on the conversation: opens or ends like one, or is short and points back or leaves its subject out."""
    if _OPENS.search(question) or _ENDS.search(question):
        return True
    content = content_words(question)
    if _LEAVES_OUT.search(question) and _is_short(question, content):
        return True
    return len(content) == 0 or (bool(_POINTS_BACK.search(question)) and len(content) <= 2 * _SHORT)


def _is_short(question: str, content: Sequence[str]) -> bool:
    if detect_lang(question) == "zh":
        return sum(character.isalnum() for character in question) <= _SHORT_ZH
    return len(content) <= _SHORT // 2


def self_contained(question: str, history: Sequence[Message]) -> str:
    """The question with the earlier question it leans on put before it; unchanged if it stands alone or there is no history."""
    if not history or not is_follow_up(question):
        return question
    chain = [question]
    for message in reversed(history):
        if message["role"] != "user":
            continue
        chain.append(message["content"].strip())
        if not is_follow_up(message["content"]):
            break
    return " ".join(reversed(chain))
