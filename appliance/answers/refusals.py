"""Whether a generated answer, as a whole, declines to answer: "I don't know", "The passages do not mention it", 资料未提及.

Every clause must either decline, or add nothing (an apology, whom to ask, what the documents are about instead), and one must decline.
An answer that also says something is an answer: 挂号费50元；资料中没有说明退费。 A denial that is the answer ("There is no cure") names no
documents and nobody who does not know. What it reaches on labelled sentences (tests/appliance/refusals.jsonl) is in docs/evaluation.md.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from retrieval.text import iter_sentences

# What was shown to the model; a contract or a law that does not say something is itself an answer.
_DOC: Final = (
    r"(?:(?:the|these|those|this|any|all|our|your|my|either|neither) (?:of (?:the|these) )?)?"
    r"(?:(?:provided|given|available|supplied|above|following|retrieved|relevant|attached|reference|source) )*"
    r"(?:documents?|documentation|passages?|texts?|context|excerpts?|sources?|materials?|information|content|knowledge base|references?)"
    r"(?: (?:that (?:was|were) )?(?:provided|given|available|supplied|above|here|at hand))?"
)
_NOT: Final = r"(?:(?:do|does|did|could|can|is|are|was|were|would|has|have)(?: not|n't)|cannot|never|fails? to)(?: \w+ly| actually| even)*"
_SAY: Final = (
    "(?:say|mention|state|specif|contain|provide|include|indicate|give|discuss|address|cover|answer|describe|list|explain|support|have|offer"
    "|reveal|disclose|tell|refer|name|clarif|show|allow|define|identif|help)"
)
_TOLD: Final = (
    "(?:said|mentioned|stated|specified|contained|provided|included|indicated|given|discussed|covered|answered|described|found|available"
    "|present|addressed|listed|disclosed|determined|known|clear|there|answerable|part of)"
)
_NEWS: Final = r"(?:information|details?|mention|data|answers?|references?|indication|evidence|context)"
_OF: Final = (
    r"(?= (?:about|on|regarding|concerning|as to|available|provided|given|here|is|was|are|were|can|could"
    r"|(?:in the \w+ )?to (?:answer|say|tell|determine|know|judge|conclude))\b"
    rf"| .*\b(?:in|from|by) {_DOC}\b|$)"
)
_KNOW: Final = r"(?:know|answer|determine|find|tell|say|see|locate|confirm|verify|identify|help|provide|give|access|recall|have)"
_EN: Final = (
    rf"{_DOC},? {_NOT} {_SAY}",
    rf"{_DOC} (?!that|which)(?:\w+ )?(?:nothing|no|(?:is |are )?not (?:enough|sufficient)|insufficient|silent|unclear|too little|lacks?)\b",
    rf"(?:none of|neither(?: of)?|no|nothing in) {_DOC} {_SAY}",
    rf"there(?: is|'s| are| was)(?: not|n't)? (?:\w+ )?(?:no|enough|any|insufficient)? ?(?:\w+ )?{_NEWS}{_OF}",
    rf"(?:there(?: is|'s) )?nothing .*\b(?:in|from|by) {_DOC}$",
    rf"no (?:\w+ )?{_NEWS}{_OF}.*\b(?:{_TOLD}|made)\b",
    rf"(?:not enough|insufficient|no) {_NEWS}$",
    rf"i {_NOT} {_KNOW}\b",
    rf"we {_NOT} (?:know|find|have (?:\w+ )?{_NEWS})\b",
    rf"(?:i|we)(?: am|'m| are|'re| was| were)(?: unable| not able|n't able) to {_KNOW}\b",
    r"i(?: am|'m) (?:not|un)(?: entirely| really| quite)? ?(?:sure|certain|aware|familiar)\b",
    r"i have no (?:\w+ )?(?:information|idea|knowledge|data|details?|answer|access)\b",
    rf"it(?: is|'s) (?:not possible|impossible) to {_KNOW}(?= (?:who|what|when|where|whether|if|how|which|why|this|that|the answer)\b|$)",
    rf"(?:.{{1,80}} )?(?:{_NOT}|not|unclear|unknown|missing|absent|impossible)(?: be)?(?: {_TOLD})?(?: \w+)?,?"
    rf" (?:in|from|by|within|with|on) {_DOC}\b",
    rf"(?:it|this|that|(?:this|that|the|your) (?:\w+ )?(?:question|information|answer|detail|figure|topic)s?) {_NOT}(?: be)? {_TOLD}$",
    rf"(?:it|this|that|(?:this|that|the|your) \w+)(?: is|'s| are| goes| lies| falls) (?:beyond|outside)\b.*\b{_DOC}\b",
    rf"(?:not (?:{_TOLD})(?: (?:in|by) {_DOC})?|unknown|unanswerable|no answer|n/a)$",
)
_EN_NOTHING: Final = (
    r"(?:(?:very |so )?sorry|apologies|i apologi[sz]e|unfortunately)\b[^,]*$",
    r"not [a-z]+$|as an? (?:\w+ )?(?:ai|assistant|language model)\b",
    r"(?:please|you (?:may|can|could|should|might)|i (?:would |'d )?(?:recommend|suggest)|consider|let me know|feel free"
    r"|for (?:more|further)|if you)\b"
    r".*\b(?:contact|ask|consult|check|refer|provide|reach|speak|clarify|rephrase|share|know|details|information|questions?)\b",
    rf"{_DOC} (?:(?:only|mainly|just|mostly) \w+|discuss|describe|cover|focus|deal with|(?:is|are) (?:only )?about)(?!.*\b(?:that|as)\b)",
    r"(?:it|they) (?:(?:only|mainly|just|mostly) \w+|(?:is|are) (?:only |mainly )?about)(?!.*\b(?:that|as)\b)",
)
# Of the documents that a clause before it names.
_EN_THEY: Final = rf"(?:it|they|which|nor do they|nor does it) (?:{_NOT} )?{_SAY}\b(?!.*\b(?:that|as)\b)"
_EN_LEAD: Final = re.compile(
    r"^(?:(?:and|but|however|although|though|while|so|yet|therefore|unfortunately|sorry"
    rf"|i(?: am|'m) (?:so |very )?(?:sorry|afraid)|i apologi[sz]e)"
    rf"\b,?(?: that)? ?|(?:based on|according to|from|in|given|within) {_DOC}(?: alone)?,? ?)+"
)
# The rest of a list.
_EN_LISTED: Final = re.compile(
    r"(?:(?:or|and|nor) )?(?:the|an?|any|its|their)(?: (?!(?:is|are|was|were|has|have|may|can|must|will)\b)[a-z'-]+){1,4}$"
    r"|not (?:about|on|of|the)\b"
)

_ZH_DOC: Final = (
    r"(?:上文|前文|(?:所|已|您|现有|以上|上述|给定|给出|提供|检索到|相关|参考|当前|这些|这份|该|本|此|的)*"
    r"(?:资料库?|文档|文件|材料|原文|文中|文本|上下文|知识库|内容|段落|片段))(?:里|中|内)?"
)
_ZH_NOT: Final = "(?:没有?|未能?|暂无|并无|无法|无从|不能|难以|看不出|找不到|查不到|不足以|不够|无|不)"
_ZH_SAY: Final = (
    "(?:说明|提及|提到|包含|包括|涉及|给出|提供|写|指出|介绍|记载|列|找到|查到|支持|回答|描述|披露|收录|注明|载明|规定|交代|明确|看出|得出|确定|判断|得知"
    "|讨论|解释|说起|作出|做出|提|说|讲)"
)
_ZH_NEWS: Final = "(?:信息|资料|内容|规定|说明|答案|数据|记录|依据|描述|介绍)"
_ZH_KNOW: Final = "(?:回答|作答|答复|确定|得知|得出|判断|给出|得到|确认|知道|推断|获知|获取|访问|查看|提供|告诉|查到|找到)"
_ZH: Final = (
    rf".{{0,12}}?{_ZH_DOC}.{{0,8}}?(?:{_ZH_NOT}.{{0,6}}?(?:{_ZH_SAY}|{_ZH_NEWS}|相关|关于|有关)|看不出|找不到|查不到|中?没有$)",
    rf".{{0,12}}?{_ZH_DOC}.{{0,6}}?{_ZH_NOT}(?:关于|有关)?.{{1,20}}?的?{_ZH_NEWS}$",
    rf"(?:目前|暂时?|也|并)*{_ZH_NOT}(?:找到|查到|检索到|有)?(?:任何|足够|充分)?的?(?:与.{{1,20}}|关于.{{1,20}}|有关.{{0,20}}|相关|这方面|对应|足够)的?"
    rf"{_ZH_NEWS}(?:来?回答.*)?$",
    rf"(?:这个?|.{{0,8}}问题)?我们?(?:也|并|还|目前|暂时|现在|实在)*"
    rf"(?:不太?(?:知道|清楚|了解|确定)|没有.{{0,20}}{_ZH_NEWS}$|(?:无法|不能|难以|没法|没能?|没有|未能?).{{0,8}}?{_ZH_KNOW}|(?:找|查)不到)",
    rf"(?:没能?|没有|未能?)在{_ZH_DOC}.{{0,4}}(?:找|查|看|发现)",
    rf"(?:现有|目前|已有|提供的)?{_ZH_NEWS}(?:不足|不够|不充分)(?:以.*)?$",
    rf"{_ZH_NOT}(?:找到|查到|检索到|查询到|搜索到)(?:任何)?(?:相关|有关)?的?(?:结果|{_ZH_NEWS})$",
    r"(?:我|也|并|目前|暂时)*(?:不知道|不清楚|不了解|不确定|无法作答|不得而知)$",
    rf"(?:也|并|目前|暂时|因此|所以|故|还)*(?:无法|无从|不能|难以)(?:(?:从|根据|依据|由|通过){_ZH_DOC})?(?:来|去|可靠地|准确地?|明确|直接)*{_ZH_KNOW}"
    r"(?!.*(?:应当?|须|不予|时|者)|.*的(?!问题|答案|信息|具体|时间|日期|原因))",
    rf".{{1,20}}(?:未|没有|不)(?:包含|包括|出现)?在{_ZH_DOC}.{{0,4}}$",
    rf".{{0,15}}{_ZH_NEWS}(?:并|均|都|也)?未(?:被)?{_ZH_SAY}$",
    rf".{{0,15}}超出了?{_ZH_DOC}.{{0,6}}范围",
)
_ZH_NOTHING: Final = (
    r"(?:很|非常|十分)?(?:抱歉|对不起|遗憾|不好意思)$|[您你]好$|作为.{0,12}$|(?:是否|至于|关于|对于|有关).{1,20}$|对此$",
    rf"(?:根据|依据|从|基于|按照|就|在){_ZH_DOC}(?:来看|而言)?$",
    r"(?:请|建议|[您你]可以?|如需|如有|如果[您你]|欢迎|以便).*(?:咨询|联系|查阅|查询|参考|询问|核实|查看|告知|补充|更多|其他问题|疑问)(?!.*[前后再])",
    rf"(?:{_ZH_DOC})?(?:仅|只|主要)(?:是)?(?:介绍|说明|提到|提及|描述|涉及|讨论|包含|列出)",
)
_ZH_THEY: Final = rf"(?:也|并|均|都)*(?:没有?|未)(?:(?:明确|具体)?{_ZH_SAY}|.{{1,15}}的?{_ZH_NEWS}$)"
_ZH_LEAD: Final = re.compile(r"^(?:但是?|不过|然而|而|只是|可是|其中|虽然|尽管|因此|所以|很?抱歉|对不起)+")


def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_HAN: Final = re.compile(r"[一-鿿]")
_LEAD: Final = {"en": _EN_LEAD, "zh": _ZH_LEAD}
_DECLINES: Final = {"en": _any(_EN), "zh": _any(_ZH)}
_NOTHING: Final = {"en": _any(_EN_NOTHING), "zh": _any(_ZH_NOTHING)}
_THEY: Final = {"en": re.compile(_EN_THEY), "zh": re.compile(_ZH_THEY)}
_CLAUSES: Final = {"en": re.compile(r"[;:,]\s|\s[-—–]\s|\s(?=(?:but|although|though|however)\s)"), "zh": re.compile(r"[;,:]")}
_AROUND: Final = " .,:;!?*\"'`()[]…。"
_MARKS: Final = re.compile(r"\*+|\[\d+\]")


def declines(answer: str) -> bool:
    """Whether the answer says, in English or Chinese, nothing but that it cannot be given."""
    text = _MARKS.sub("", unicodedata.normalize("NFKC", answer)).replace("’", "'")
    declined = named = False
    for start, end in iter_sentences(text, 0, len(text)):
        lang = "zh" if _HAN.search(text, start, end) else "en"
        for part in _CLAUSES[lang].split(text[start:end].casefold().replace("can't", "cannot")):
            whole = " ".join(part.strip(_AROUND).split())
            clause = _LEAD[lang].sub("", whole)
            if not clause or (lang == "en" and declined and _EN_LISTED.match(clause)):
                continue
            if _DECLINES[lang].match(clause) or (named and _THEY[lang].match(clause)):
                declined = named = True
            elif _NOTHING[lang].match(clause) and not any(character.isdigit() for character in clause):
                named = True
            else:
                return False
    return declined
