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
    r"^\s*(?:and\b|but\b|or\b|what about\b|how about\b|same for\b|why\b\W*$|why not\b|how so\b"
    r"|那(?![曲霸英个些种样类项次款位家天年里边儿]|不勒斯)|还有(?![\d一二两三四五六七八九十])|以及|换成|改成|至于|再问|为什么\W*$|为何\W*$)",
    re.IGNORECASE,
)
# So does a short one that opens like this; a long one may stand alone: "What if a patient falls out of bed during the night shift?"
_OPENS_SHORT = re.compile(r"^\s*(?:so\b|also\b|then\b|what if\b|如果是|同样|另外)", re.IGNORECASE)
_ENDS = re.compile(r"\b(?:too|instead|as well)[\s?？。.!！]*$", re.IGNORECASE)
# 呢 asks what was asked before ("儿童呢？"), unless the question has a question word of its own ("吃什么药好呢？").
_ENDS_ZH = re.compile(r"呢[\s?？。.!！]*$")
_ASKS_ZH = re.compile(r"吗|什么|怎|如何|谁|哪|几|多少|多[久长大高远]|是否|[能可]否|何时|为何|还是|(.)[不没]\1")
# A short question that opens like this leaves out what it is about: "要停多久？", "过期了还能买吗？".
_LEAVES_OUT_ZH = re.compile(
    r"^\s*(?:需?要|得|应该|能|可以|会|还|有没有|之后|最[多少高低长短早晚迟快慢大小]|多久|多少钱|什么时候|何时|[由向找给]谁"
    r"|[\u4e00-\u9fff]?(?:丢|坏|错|破|断|满|晚|迟|漏|忘|退|签|批|过期|到期|逾期|超期|超时|遗失|泄露|结束|取消)了)"
)
# And one that is nothing but this: "By what time?", "Which form?", "After how many days?", "Are there exceptions?".
_LEAVES_OUT = re.compile(
    r"^\s*(?:(?:(?:by|to|from|for|at|in|on|with|until|under|after|before)\s+)?"
    r"(?:what|which|whose|whom|who|when|where|how(?:\s+(?:many|much|often|long|soon|far|high|late|early))?)(?:\s+(?:are there|\w+))?"
    r"|(?:is|are|was|were)\s+there\s+(?:an?\s+|any\s+)?\w+)\W*$",
    re.IGNORECASE,
)

# Words that point back at something said before: what somebody or something has, is, or is shown to be.
_OWN = r"\b(?:its|their|his|her|theirs|hers)\b|(?:它们?|(?<![其吉维利排])[他她]们?)的"
_PRONOUN = (
    # "it" of "is it safe to …" points nowhere, unless the verb lacks its object: "is it safe to take with milk". "IT" is a department.
    r"\b(?:(?-i:[Ii]t)(?!\s+(?:be |is |was |still )?(?:possible|necessary|allowed|permitted|legal|illegal|safe|advisable|appropriate"
    r"|mandatory|compulsory|required|useful|important|better|best|time|enough|ok|okay|normal|common|dangerous|harmful|acceptable|recommended|feasible"
    r"|true|likely|take|cost|mean)\s+(?:for\s+(?:\w+\s+){1,4}to\b|that\b"
    r"|to\s+\w+\s+(?!with|after|before|at|in|on|by|for|from|now|again|online)\w))"
    r"|they|them|he|she|him)\b"
    r"|它们?|(?<![其吉维利排])[他她]们?(?![们汀人项]|克莫司|莫昔芬|达拉)"
    # What was counted: "a new one", "which ones are cheaper", but not "one year" and "no one".
    r"|(?<!\bno )\bones?\b(?=\s*(?:[?？.!,;]|$)|\s+(?:to|for|in|on|at|with|without|from|if|when|instead|is|are|was|does|do|can|costs?)\b)"
    # The place, not "how many beds are there?".
    r"|(?<!\bare )(?<!\bis )(?<!\bwere )(?<!\bwas )\bthere[\s?？.!]*$|\b(?:from|over|up|in) there\b|那[里边儿]"
)
# "that" only where it cannot open a clause ("the drugs that …", "believes that …"), 该 and 此 only where they mean "this".
_SHOWN = (
    r"\bthis\b(?!\s+(?:year|quarter|month|week|morning|afternoon|evening|spring|summer|autumn|winter|hospital|ward|company|bank|firm|office)\b)"
    r"|\bthese\b(?!\s+days\b)|\bthose\b(?!\s+(?:who|whose|that|which|with|without|of|in|on|from|under|over|\w+ing)\b)"
    r"|\bthat\b(?=\s*(?:[?？.!,;]|$)|\s+[\w-]+\W*$|\s+(?:one|case|same)\b)"
    r"|\b(?:is|was|does|did|do|can|could|will|would|should|must|may|has|had|of|in|for|from|at|by|with|about|after|before|below|above|under|on"
    r"|like|without|during|until|since) that\b(?!\s+of\b)"
    r"|\bthe same(?=\s+(?:for|true|thing|go|goes|hold|holds|\w*\s*(?:apply|applies|count|counts))\b)"
    r"|\bthe other(?:s?[\s?？.!]*$|\s+(?:one|ones|two|three|way|copy|case|form|option|type|kind|half)\b)|\bthe latter\b"
    r"|(?<![”》」』])这[个些种样类项次款位家件笔段条]|那[个些种样类项次款位家天年]|上述|上面|前述|前者|后者|其中"
    r"|(?<![应不也就活本理都还总又更最自我你您们人者谁])该(?![怎不去做付找向吃用注选给买交准带办报走挂看多由我你您谁为]|如何|哪)"
    r"|(?<![因彼如从特故])此(?![外起])"
)
_POINTS_BACK = re.compile(f"(?P<own>{_OWN})|(?P<pronoun>{_PRONOUN})|(?P<shown>{_SHOWN})", re.IGNORECASE)
# What opens or ends a clause: a word after it may mean something before it.
_CLAUSE = re.compile(
    r"[,.;:?!，。；：？！—–\n]|--"
    r"|\b(?:and|or|but|if|when|while|before|after|until|because|once|unless|without|whether|that|which)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\s*(?:if|when|in case|如果|要是|假如|万一|若)", re.IGNORECASE)
_NOUN = re.compile(r"\b(?:an?|the|my|our)\b", re.IGNORECASE)

_SHORT = 4
_SHORT_ZH = 7
# Characters; a longer question says what it is about.
_LONG = 300


def is_follow_up(question: str) -> bool:
    """Whether the question leans on the conversation: opens or ends like one, or is short and points back or leaves its subject out."""
    content = content_words(question)
    if not content or _OPENS.search(question):
        return True
    if len(content) > 2 * _SHORT or len(question) > _LONG:
        return False
    if _ENDS.search(question) or _LEAVES_OUT.search(question) or (_OPENS_SHORT.search(question) and len(content) <= _SHORT):
        return True
    if _ENDS_ZH.search(question) and (_is_short_zh(question) or not _ASKS_ZH.search(question)):
        return True
    return (_is_short_zh(question) and _LEAVES_OUT_ZH.search(question) is not None) or _points_back(question)


def _is_short_zh(question: str) -> bool:
    return detect_lang(question) == "zh" and sum(character.isalnum() for character in question) <= _SHORT_ZH


def _points_back(question: str) -> bool:
    """Whether a word points at something that the question itself does not name before it."""
    for match in _POINTS_BACK.finditer(question):
        # 那个 is often typed for 哪个, which asks: it is when nothing else in the question does.
        if match[0].startswith("那") and not _ASKS_ZH.search(question) and "呢" not in question:
            continue
        before = question[: match.start()]
        if match.lastgroup == "own":
            named = len(content_words(before)) > 1
        else:
            earlier = before[: max((clause.start() for clause in _CLAUSE.finditer(before)), default=0)]
            named = len(content_words(earlier)) > 1 or _NOUN.search(earlier) is not None
            # "If the patient is pregnant, can this be given?" names the patient, not what is given.
            named = named and not (match.lastgroup == "shown" and _CONDITION.match(question))
        if not named:
            return True
    return False


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
