"""The router's reasons as plain sentences, in the language of the question (Chinese or else English)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# key: (English, Chinese); the fields in braces are filled with numbers and names.
_SENTENCES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "verified": (
            "An expert has approved an answer to this very question (similarity {similarity:.2f}).",
            "专家已经审定过这个问题的答案（相似度 {similarity:.2f}）。",
        ),
        "nothing_found": (
            "Nothing was found in the documents for this question.",
            "在文档中没有找到与该问题有关的内容。",
        ),
        "no_support": (
            "What was found hardly supports the question: similarity {dense:.2f}, {coverage:.0%} of its terms in the best passage "
            "(support {support:.2f}, needed at least {weak:.2f}).",
            "检索到的内容几乎不能支持该问题：相似度 {dense:.2f}，最佳段落只包含问题 {coverage:.0%} 的关键词"
            "（支持度 {support:.2f}，至少需要 {weak:.2f}）。",
        ),
        "refuse": (
            "An unsupported answer would be a guess, so none is given.",
            "没有依据的回答只是猜测，因此不作回答。",
        ),
        "close_training": (
            "The adapter was trained on a very similar question (similarity {nearest:.2f}).",
            "适配器训练时见过非常相近的问题（相似度 {nearest:.2f}）。",
        ),
        "related_training": (
            "The adapter was trained on related questions (similarity {nearest:.2f}).",
            "适配器训练时见过相关的问题（相似度 {nearest:.2f}）。",
        ),
        "strong": (
            "The passages support the question well: similarity {dense:.2f}, {coverage:.0%} of its terms in the best passage "
            "(support {support:.2f}, strong from {strong:.2f}).",
            "检索到的段落充分支持该问题：相似度 {dense:.2f}，最佳段落包含问题 {coverage:.0%} 的关键词"
            "（支持度 {support:.2f}，{strong:.2f} 起为充分）。",
        ),
        "partial": (
            "The passages are related but do not settle the question: similarity {dense:.2f}, {coverage:.0%} of its terms "
            "in the best passage (support {support:.2f}, strong from {strong:.2f}).",
            "检索到的段落与问题有关，但不足以完全回答：相似度 {dense:.2f}，最佳段落包含问题 {coverage:.0%} 的关键词"
            "（支持度 {support:.2f}，{strong:.2f} 起为充分）。",
        ),
        "precise": (
            "The question asks for a precise fact, which is safest in the document's own words.",
            "问题要求准确的事实，直接引用原文最稳妥。",
        ),
        "recent": (
            "The question asks for the present state, so the documents are trusted rather than what was learned.",
            "问题询问的是当前情况，因此以文档为准，而不依赖训练所得。",
        ),
        "reasoning": (
            "The question asks for reasons, advice or a comparison, which the adapter was trained to give.",
            "问题要求解释、建议或比较，适配器为此训练过。",
        ),
        "own_words": (
            "The documents' own words are expected to answer better than this model would.",
            "预计文档原文比该模型的回答更可靠。",
        ),
        "adapter_helps": (
            "A fresh adapter {version} is there, so the passages are put into its words.",
            "有可用的最新适配器 {version}，由它根据段落作答。",
        ),
        "stale_here": (
            "The adapter {version} is not trusted here: {documents} changed or went after it was trained.",
            "此处不采用适配器 {version}：{documents} 在其训练之后已经更改或删除。",
        ),
        "stale_share": (
            "The adapter {version} is not trusted alone: {share:.0%} of its training evidence has changed.",
            "不单独采用适配器 {version}：其训练依据已有 {share:.0%} 发生更改。",
        ),
        "prior": (
            "The scenario advice for this domain ({prior}) tipped the balance.",
            "该领域的场景建议（{prior}）起了决定作用。",
        ),
        "no_generation": (
            "No generating arm can be used here ({reason}), so the documents are quoted.",
            "此处不能生成回答（{reason}），因此直接引用文档。",
        ),
        "nothing_left": (
            "No way of answering is left under the conditions of this request.",
            "在本次请求的条件下没有可用的回答方式。",
        ),
        "learned": (
            "Learnt from {questions} evaluated questions: {arm} is expected to be worth {utility:.2f} here, {other} {less:.2f} "
            "(1 is a perfect answer, below 0 a harmful one).",
            "根据 {questions} 个已评测的问题：{arm} 的预期价值为 {utility:.2f}，{other} 为 {less:.2f}（1 为完美，低于 0 为有害）。",
        ),
        "learned_alone": (
            "Learnt from {questions} evaluated questions: {arm} is the only arm left, expected to be worth {utility:.2f} here.",
            "根据 {questions} 个已评测的问题：只剩 {arm} 可用，预期价值为 {utility:.2f}。",
        ),
        "spoke_for": ("What spoke for it most: {features}.", "主要依据：{features}。"),
        "high": ("{feature} (high)", "{feature}（偏高）"),
        "low": ("{feature} (low)", "{feature}（偏低）"),
        "not_sure_enough": (
            "{arm} promises only {lead:.2f} more than refusing; the risk that was allowed asks for {threshold:.2f}, so no answer is given.",
            "{arm} 的预期价值只比不回答高 {lead:.2f}；所设的风险上限要求至少高 {threshold:.2f}，因此不作回答。",
        ),
        "never_sure": (
            "None of the {questions} evaluated questions shows how sure an answer must be for the risk that was allowed, so none is given.",
            "{questions} 个已评测的问题都没有显示回答要多有把握才符合所设的风险上限，因此不作回答。",
        ),
        "not_measured": (
            "The trained router {version} has seen no question in this language, so the rules decided.",
            "训练所得的路由器 {version} 没有见过这种语言的问题，因此按规则决定。",
        ),
        "never_measured": (
            "this arm was not part of the evaluation that the router learnt from",
            "路由器所依据的评测没有包含该方式",
        ),
        "not_chosen_stale": (
            "{documents} changed or went after the adapter was trained",
            "{documents} 在适配器训练之后已经更改或删除",
        ),
        "must_cite": (
            "citations are required and this arm cannot give any",
            "要求给出引用，而该方式无法引用",
        ),
        "too_slow": (
            "it is expected to take {latency:.0f} ms, more than the allowed {limit:.0f} ms",
            "预计需要 {latency:.0f} 毫秒，超过允许的 {limit:.0f} 毫秒",
        ),
        "if_unchanged": (
            "{documents} were as when the adapter was trained",
            "{documents} 与适配器训练时相同",
        ),
        "if_fresh": (
            "all that the adapter learnt from were as it was",
            "适配器的全部训练依据均未更改",
        ),
        "if_unlimited": (
            "more than {limit:.0f} ms were allowed",
            "允许超过 {limit:.0f} 毫秒",
        ),
        "if_uncited": (
            "citations were not required",
            "不要求给出引用",
        ),
        "if_any_risk": (
            "any risk were allowed",
            "允许任何风险",
        ),
        "if_unapproved": (
            "there were no approved answer",
            "没有经审定的答案",
        ),
        "no_passages": (
            "no passages were found",
            "没有检索到段落",
        ),
        "no_adapter": (
            "there is no adapter for this domain",
            "该领域没有适配器",
        ),
        "no_verified": (
            "there is no verified answer to this question",
            "该问题没有经审定的答案",
        ),
    }
)


def say(key: str, lang: str, **values: float | str) -> str:
    """One sentence; `lang` "zh" gives Chinese, anything else English."""
    return _SENTENCES[key][lang == "zh"].format(**values)


def name_some(documents: tuple[str, ...], lang: str, most: int = 3) -> str:
    """At most `most` document names, and how many more there are."""
    comma = "、" if lang == "zh" else ", "
    named = comma.join(documents[:most])
    more = len(documents) - most
    if more <= 0:
        return named
    return f"{named} 等 {len(documents)} 份文档" if lang == "zh" else f"{named} and {more} more"
