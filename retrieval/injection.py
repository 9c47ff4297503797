"""Text in a document that talks to the model instead of the reader, found by pattern in English and Chinese.

A flag is a hint, not a verdict: paraphrases pass (``appliance eval injection`` counts how many), so nothing relies on flags alone. The
patterns ask for a whole phrase, because documents of medicine and law say "you must" and "ignore" all the time.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_EARLIER_EN = r"(?:previous|prior|above|earlier|preceding|foregoing|existing|original|system|former|other|safety|your)"
_RULES_EN = (
    r"(?:instructions?|prompts?|directions?|directives?|guidelines|guardrails|system\s+messages?|"
    r"(?:rules|context|messages|commands)\s+(?:above|before|you\s+were\s+given|given\s+to\s+you))"
)
_MODEL_EN = r"(?:an?\s+|the\s+)?(?:\w+\s+)?(?:ai|llm|chat\s*bot|chatgpt|gpt|language\s+model|(?:virtual\s+|ai\s+)assistant)\b"
_EARLIER_ZH = r"(?:以上|上述|上面|上文|前面|之前|先前|此前|原有|原来|原先|既有|系统|其他|所有|一切|任何|你的|你收到的|给你的|提供的)"
_RULES_ZH = r"(?:指令|指示|提示词?|系统提示|系统消息|命令|设定|限制|规则|要求|约束)"
_MODEL_ZH = r"(?:(?:AI|人工智能|智能|聊天|问答)?(?:大?语言模型|大?模型|机器人|助手)|AI|人工智能)"

_PATTERNS: Final[dict[str, tuple[str, ...]]] = {
    "override": (
        rf"\b(?:ignore|disregard|forget|override|bypass|skip)\s+(?:(?:all|any|everything|the|of|these|those|every|and|or|my|your)\s+){{0,4}}"
        rf"(?:{_EARLIER_EN}\s+){{1,3}}(?:and\s+\w+\s+)?{_RULES_EN}",
        r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|the|of|your)\s+){0,3}(?:instructions?|rules|prompts?|guidelines)\s+"
        r"(?:(?:that\s+)?you\s+(?:were|have\s+been|got)\b|above\b|before\s+this\b)",
        r"\b(?:ignore|disregard|forget)\s+(?:everything|anything|all(?:\s+that)?)\s+(?:you\s+(?:were|have\s+been|know|read)|(?:that\s+(?:was|is|were)\s+)?"
        r"(?:said|written|stated)?\s*(?:above|before\s+this|so\s+far))",
        r"\b(?:new|updated|revised|real|actual)\s+(?:instructions?|directives?|task)\s+(?:for\s+(?:the\s+)?(?:ai|assistant|model|llm|chatbot)|"
        r"(?:supersede|replace|override)s?\b)",
        r"\bdo\s+not\s+(?:follow|obey)\s+(?:the\s+|your\s+|any\s+)?(?:system|previous|earlier|original|prior)\s+\w*\s*(?:prompt|instructions?|message)",
        r"\b(?:instructions?|note|message|attention|important)\s+(?:for|to)\s+(?:the\s+|all\s+|any\s+)?(?:ai|llm|language\s+model|chat\s*bot|ai\s+assistant|"
        r"assistant|model)s?\b",
        rf"(?:忽略|无视|忘记|忘掉|抛弃|不要理会|不必理会|不用理会|不要遵守|不再遵守|跳过|推翻|覆盖)(?:掉|了)?(?:你)?{_EARLIER_ZH}{{1,3}}"
        rf"(?:的|过的|所有|全部|一切|任何|这些){{0,3}}{_RULES_ZH}",
        rf"(?:以上|上述|之前|先前|前面|原有|系统)的?(?:所有|全部|一切)?{_RULES_ZH}(?:全部|一律|都|已经?|均|现)?(?:作废|失效|无效|取消|不再有效|不算数)",
        rf"(?:致|给|告|对)(?:阅读|读到|处理|看到)?(?:本文|此文|这段话|本文档|本段)?的?{_MODEL_ZH}的?(?:指令|指示|提示|命令|附注|留言|通知)",
        rf"(?:如果你是|若你是|你作为){_MODEL_ZH}",
    ),
    "role": (
        rf"\b(?:you\s+are\s+now|from\s+now\s+on\s*,?\s*you\s+(?:are|act|will\s+act)|pretend\s+(?:to\s+be|that\s+you\s+are|you\s+are)|"
        rf"act\s+as\s+if\s+you\s+(?:are|were)|assume\s+the\s+role\s+of|role-?play\s+as)\s+(?:as\s+)?(?:{_MODEL_EN}|(?:an?\s+)?(?:unrestricted|unfiltered|"
        r"uncensored|jailbroken)|dan\b|in\s+(?:developer|debug|maintenance|admin|god|dan)\s+mode)",
        r"\byou\s+are\s+(?:an?\s+)?(?:unrestricted|unfiltered|uncensored|jailbroken)\b",
        r"\b(?:enter|switch\s+to|enable|activate)\s+(?:developer|debug|admin|god|dan|jailbreak|unrestricted)\s+mode\b",
        r"(?m:^\s*(?:#{1,4}\s*)?\[?(?:system|assistant|developer)(?:\s+(?:prompt|message|instruction|override))?\]?\s*[:：]\s*"
        r"(?=[^\n]{0,120}\b(?:you|your|answer|respond|reply|ignore|say|obey|follow|output|instructions?)\b))",
        r"(?:你现在(?:是|扮演|将扮演|要扮演|进入)|从现在(?:开始|起)[，,]?\s*你(?:是|就是|将|要|扮演|必须|只能|不再)|请你?扮演|假装你是|假设你是一[个名位]不受)"
        r"(?!患者|病人|甲方|乙方)",
        r"(?:进入|切换到|开启|启用)(?:开发者|调试|管理员|越狱|无限制|上帝)模式",
        r"(?m:^\s*[\[【]?(?:系统|系统提示|系统消息|系统指令|助手|开发者)[\]】]?\s*[:：]\s*(?=.{0,40}(?:你|回答|输出|忽略|用户)))",
    ),
    "exfiltrate": (
        r"\b(?:reveal|print|output|repeat|show|disclose|display|leak|send|share|tell\s+\w+|quote|recite|copy|list|return|give\s+\w+)\s+(?:me\s+|us\s+|back\s+)?"
        r"(?:out\s+)?(?:verbatim\s+)?(?:(?:all|the|of|your|full|entire|complete|whole|exact|hidden|secret|any|every|original|initial)\s+){0,4}"
        r"(?:system\s+(?:prompt|message|instructions?)|initial\s+(?:prompt|instructions?)|hidden\s+(?:prompt|instructions?)|prompt\s+(?:above|text)|"
        r"api[\s_-]?keys?|secret\s+keys?|access\s+tokens?|environment\s+variables|workspace\s+secret|chat\s+(?:history|log)|"
        r"(?:previous|earlier)\s+(?:conversation|messages)|user'?s?\s+(?:question|messages?|conversation))",
        r"\b(?:your|the)\s+(?:system\s+prompt|initial\s+instructions|hidden\s+instructions)\b.{0,40}\b(?:word\s+for\s+word|verbatim|in\s+full)\b",
        r"(?:输出|打印|泄露|透露|公开|显示|复述|重复|发送|展示|告诉\w{0,3}|列出|给出|贴出|附上|说出|写出|返回)(?:一遍|一下|出|出来|给\w{0,4})?"
        r"(?:你|您)?(?:的|所有|全部|完整|原始|初始|收到|隐藏|内部|当前){0,4}的?(?:系统提示词?|系统消息|系统指令|提示词|初始指令|内部指令|隐藏指令|密钥|"
        r"API\s*密?钥?(?:key)?|访问令牌|环境变量|对话记录|聊天记录|历史对话|用户的(?:问题|提问|对话))",
        r"(?:把|将)(?:你|您)?(?:的|所有|全部|完整|原始|初始|收到|隐藏|内部|当前|以上|用户){0,4}的?(?:系统提示词?|系统消息|系统指令|提示词|初始指令|内部指令|密钥|访问令牌|"
        r"环境变量|对话记录|聊天记录|历史对话|对话内容).{0,12}(?:输出|打印|发送|发给|发到|公开|显示|复述|写|泄露|附|贴|告诉)",
    ),
    "tool": (
        r"\b(?:call|invoke|use|run|execute|trigger)\s+(?:the\s+|your\s+|a\s+)?(?:`?\w+`?\s+)?(?:tool|function|plugin|shell|terminal|code\s+interpreter|command)\b"
        r".{0,40}(?:\brm\b|\bcurl\b|\bwget\b|https?:|\bsudo\b|`)",
        r"\b(?:run|execute)\s*:?\s*`?(?:curl|wget|rm\s+-|sudo|bash|sh\s+-c|python3?\s+-c|powershell|nc\s+-)",
        r"!\[[^\]]{0,80}\]\(\s*https?://[^)]{0,200}(?:\?|=)[^)]{0,200}(?:\{|\[|<|%7b|prompt|secret|answer|question|history|data=)",
        r"\b(?:visit|open|fetch|load|request|browse\s+to|go\s+to|download|click)\s+(?:the\s+|this\s+)?(?:url\s+|link\s+|page\s+)?https?://\S+"
        r".{0,60}\b(?:and|then)\s+(?:follow|obey|execute|run|do\s+what|append|include|send|post)\b",
        r"\b(?:send|post|forward|submit|append|upload)\b.{0,60}\b(?:question|conversation|prompt|answer|context|passages?|history)\b.{0,40}\bhttps?://",
        r"(?:调用|使用|运行|执行).{0,12}(?:工具|函数|插件|命令|终端|脚本|代码).{0,20}(?:rm\s|curl|wget|https?:|sudo|`)",
        r"(?:运行|执行)\s*[:：]?\s*`?(?:curl|wget|rm\s+-|sudo|bash|sh\s+-c|python3?\s+-c|powershell)",
        r"(?:访问|打开|下载|请求|抓取|点击)\s*(?:网址|链接|页面|地址)?\s*[:：]?\s*https?://\S+.{0,30}(?:并|然后|再).{0,6}(?:执行|遵照|按照|运行|发送|附上|提交|照)",
        r"(?:把|将).{0,30}(?:问题|对话|提示|回答|内容|资料|记录).{0,20}(?:发送|发|提交|上传|转发|追加|拼接|附加)(?:到|至|给|在)\s*https?://",
    ),
    "delimiter": (
        r"<\|?/?(?:im_start|im_end|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|system|user|assistant|endofprompt)\|?>",
        r"<\|[a-z_]{2,24}\|>",
        r"\[/?INST\]|<</?SYS>>|</?s>\s*\[|<(?:start|end)_of_turn>",
        r"</?(?:passages?|documents?|context|instructions?|prompt|sources?|evidence|retrieved|data)(?:-[0-9a-z]{4,32})?>",
        r"(?m:^\s*#{2,4}\s*(?:system|instruction|response|human|assistant)\s*:?\s*$)",
        r"(?:-{3,}|={3,}|#{3,})\s*(?:end\s+of\s+(?:the\s+)?(?:passages?|context|documents?|data|sources?)|begin\s+(?:system|instructions?)|资料(?:到此)?结束|以上(?:是|为)资料)",
        r"(?m:^\s*(?:\[?(?:资料|文档|上下文|参考内容)(?:到此)?(?:结束|完毕)\]?[。.]?\s*(?:$|以下|下面|新|现在|接下来)))",
    ),
    "answer": (
        r"\b(?:you\s+must|always|only|simply|just|please|instead\s*,?)\s+(?:answer|respond|reply|say|output|write)\s+(?:only\s+|exactly\s+|just\s+|with\s+|"
        r"the\s+(?:exact\s+)?(?:word|words|phrase|text|sentence|string)s?\s*|verbatim\s*|back\s+with\s+){1,3}\s*[:：]?\s*[\"'“‘`*A-Z0-9]",
        r"\byou\s+must\s+(?:answer|respond|reply|say|output)\s*[:：]?\s*[\"“‘`]",
        r"\b(?:answer|respond|reply|say|output)\s+(?:exactly|only|verbatim|nothing\s+but|with\s+nothing\s+but|the\s+exact\s+(?:words?|phrase))\s*[:：]?\s*[\"'“‘`*]",
        r"\b(?:begin|start|end|finish|prefix|preface|conclude)\s+(?:every|each|all|your|the)\s+(?:answer|response|reply|output|message)s?\s+(?:with|by)\b",
        r"\b(?:when|if|whenever)\s+(?:you\s+are\s+|someone\s+|anyone\s+|a\s+user\s+|the\s+user\s+|users?\s+)?asks?(?:ed)?\b.{0,80}\b(?:you\s+(?:must|should|have\s+to)\s+|always\s+)"
        r"(?:answer|respond|reply|say|output|recommend|tell\s+them)\b",
        r"\b(?:your|the\s+assistant'?s?|the\s+model'?s?)\s+(?:answer|response|reply|output)\s+(?:must|should|has\s+to|shall)\s+(?:be|contain|include|begin|start|end|consist)\b",
        r"\bdo\s+not\s+(?:mention|cite|reveal|quote)\s+(?:these|this|the)\s+(?:instructions?|passages?|sources?|note)\b",
        r"(?:必须|只能|只需|只要|只|请|务必|一律|统一|直接|请你|你应该|你要)(?:原样|逐字|准确|直接|统一|一字不差地)?(?:回答|回复|输出|答复|作答|说)[:：]?\s*[“”\"'「『《`【]",
        r"(?:无论|不管|不论).{0,20}(?:问|提问|问题|用户).{0,20}(?:都|均|一律|只).{0,6}(?:回答|回复|输出|答复|说|答)",
        r"(?:在|于)(?:每个|每次|所有|你的|任何)?(?:回答|回复|答复|输出|答案)(?:的)?(?:开头|结尾|末尾|最后|之前|之后|前面|后面)(?:都|必须|一律|请|要|应)?.{0,4}(?:加上|附上|写上|添加|加入|注明|输出|写)",
        r"(?:你的|助手的|模型的)(?:回答|回复|答案|输出)(?:必须|应当|只能|务必|应该|要)(?:是|为|包含|包括|以)",
        r"(?:当|如果|若)(?:有人|用户|任何人).{0,20}(?:问|询问|提问).{0,20}(?:请|必须|务必|一律|要|应当?)(?:回答|回复|告诉|推荐|答复|说)",
    ),
}
_COMPILED: Final = {
    kind: tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in patterns) for kind, patterns in _PATTERNS.items()
}

# Zero-width characters, soft hyphens and byte order marks are common in honest text; direction overrides and tag characters are not.
_INVISIBLE: Final = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_SMUGGLED: Final = re.compile("[\u202d\u202e\u2066-\u2068\U000e0020-\U000e007e]|[\u200b\u200c\u200d\u2060]{8,}")
_COMMENT: Final = re.compile(r"<!--(.{0,2000}?)-->", re.DOTALL)
_UNSEEN: Final = re.compile(
    r"(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?:px|pt|em)?\s*[;\"']|opacity\s*:\s*0\s*[;\"'])"
    r"[^<>]{0,200}>\s*[^\s<]",
    re.IGNORECASE,
)
_WORD_OR_HAN: Final = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]{2}")
# Comments of tools ("prettier-ignore-start") are shorter than a sentence.
_COMMENT_WORDS = 4

KINDS: Final[tuple[str, ...]] = (*_PATTERNS, "hidden")


def flags(text: str) -> tuple[str, ...]:
    """The kinds of instruction-like content in `text`, in the order of `KINDS`; () for nearly all honest text.

    "override" (ignore the instructions above), "role" (you are now …, "system:"), "exfiltrate" (print the prompt, the key), "tool" (run,
    fetch a URL), "delimiter" (imitated tags and chat-template tokens), "answer" (say exactly …), "hidden" (text a reader does not see:
    direction overrides, tag characters, HTML comments of a sentence, a phrase of the other kinds spelled with invisible characters).
    """
    folded = unicodedata.normalize("NFKC", text)
    plain = _INVISIBLE.sub("", folded)
    found = [kind for kind in _PATTERNS if _matches(kind, plain)]
    if _is_hidden(text) or (plain != folded and any(not _matches(kind, folded) for kind in found)):
        found.append("hidden")
    return tuple(found)


def shown(stored: Sequence[str], title: str, heading: Sequence[str]) -> tuple[str, ...]:
    """The kinds in a passage as prompts show it: those `stored` for its text, and those in its document's title and the headings above."""
    found = {*stored, *flags("\n".join((title, *heading)))}
    return tuple(kind for kind in KINDS if kind in found)


def _matches(kind: str, text: str) -> bool:
    return any(pattern.search(text) for pattern in _COMPILED[kind])


def _is_hidden(text: str) -> bool:
    comments = _COMMENT.findall(text)
    return bool(
        _SMUGGLED.search(text) or _UNSEEN.search(text) or any(len(_WORD_OR_HAN.findall(comment)) >= _COMMENT_WORDS for comment in comments)
    )
