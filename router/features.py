"""The features of a trained router: named, in a fixed order, with the words that explain them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Group = Literal["question", "evidence", "adapter", "freshness", "scenario"]
Row = tuple[float, ...]

# Raised when the features below change: a router trained with others is not used.
VERSION: Final = 4


@dataclass(frozen=True, slots=True)
class Feature:
    """One number about a situation, under its name in `router.signals.features`, and what it says in English and Chinese.

    With `log` the row holds ln(1 + value), because the value grows without bound.
    """

    name: str
    group: Group
    en: str
    zh: str
    log: bool = False

    def value(self, found: Mapping[str, float]) -> float:
        """What the row holds; 0 where the situation does not have the feature."""
        value = found.get(self.name, 0.0)
        return math.log1p(max(0.0, value)) if self.log else value


FEATURES: Final[tuple[Feature, ...]] = (
    Feature("q_words", "question", "length of the question", "问题长度", log=True),
    Feature("q_zh", "question", "the question is in Chinese", "问题为中文"),
    Feature("q_numbers", "question", "numbers in the question", "问题中的数字", log=True),
    Feature("q_dates", "question", "dates in the question", "问题中的日期", log=True),
    Feature("q_clauses", "question", "clauses named in the question", "问题中的条款引用", log=True),
    Feature("q_recent", "question", "words about the present state", "询问当前情况的词", log=True),
    Feature("q_compare", "question", "words of comparison", "比较类词语", log=True),
    Feature("q_reason", "question", "words asking for reasons or advice", "询问原因或建议的词", log=True),
    Feature("q_exact", "question", "words asking for a precise fact", "询问准确事实的词", log=True),
    Feature("e_rarity", "question", "how rare the question's words are", "问题用词的罕见程度"),
    Feature("e_rarest", "question", "how rare its rarest word is", "最罕见词的罕见程度"),
    Feature("e_passages", "evidence", "number of passages", "段落数量"),
    Feature("e_documents", "evidence", "number of documents", "文档数量"),
    Feature("e_dense_top", "evidence", "similarity of the best passage", "最佳段落的相似度"),
    Feature("e_dense_gap", "evidence", "its lead over the next", "最佳段落的领先幅度"),
    Feature("e_dense_entropy", "evidence", "how alike the similarities are", "各段落相似度的接近程度"),
    Feature("e_lexical_top", "evidence", "word score of the best passage", "最佳段落的词汇得分", log=True),
    Feature("e_lexical_gap", "evidence", "its lead in words", "词汇得分的领先幅度", log=True),
    Feature("e_lexical_share", "evidence", "share of the reachable word score", "词汇得分占上限的比例"),
    Feature("e_lexical_entropy", "evidence", "how alike the word scores are", "各词汇得分的接近程度"),
    Feature("e_agreement", "evidence", "agreement of meaning and words", "语义检索与词汇检索的一致程度"),
    Feature("e_overlap", "evidence", "passages found both ways", "两种检索共同找到的比例"),
    Feature("e_term_coverage", "evidence", "the question's words in the best passage", "最佳段落对问题关键词的覆盖"),
    Feature("e_coverage_all", "evidence", "the question's words in all passages", "全部段落对问题关键词的覆盖"),
    Feature("e_title_coverage", "evidence", "the question's words in the title", "标题对问题关键词的覆盖"),
    Feature("e_title_asked", "evidence", "the title's words in the question", "问题对标题用词的覆盖"),
    Feature("e_rarest_found", "evidence", "the rarest word was found", "是否找到最罕见的词"),
    Feature("e_top_chars", "evidence", "length of the best passage", "最佳段落的长度", log=True),
    Feature("e_foreign", "evidence", "the best passage is in another language", "最佳段落为另一种语言"),
    Feature("e_flagged", "evidence", "passages with instructions to the model", "含有模型指令的段落比例"),
    Feature("e_top_days", "evidence", "age of the best passage", "最佳段落的新旧", log=True),
    Feature("e_newest_days", "evidence", "age of the newest passage", "最新段落的新旧", log=True),
    Feature("e_oldest_days", "evidence", "age of the oldest passage", "最旧段落的新旧", log=True),
    Feature("a_present", "adapter", "there is an adapter", "有适配器"),
    Feature("a_pairs", "adapter", "pairs the adapter was trained on", "适配器的训练样本数", log=True),
    Feature("a_unlinked", "adapter", "training pairs without evidence", "没有依据的训练样本数", log=True),
    Feature("a_nearest", "adapter", "similarity to the nearest training question", "与最近训练问题的相似度"),
    Feature("a_near", "adapter", "similarity to the five nearest training questions", "与五个最近训练问题的平均相似度"),
    Feature("a_sure", "adapter", "how surely the adapter gives the answers it learnt to these", "适配器给出这些训练答案的把握"),
    Feature("a_stale_share", "freshness", "changed share of the adapter's evidence", "适配器依据中已更改的比例"),
    Feature("a_stale_here", "freshness", "documents learnt from that are changed or gone", "训练后更改或删除的依据文档数量", log=True),
    Feature("p_rag", "scenario", "the scenario advice is retrieval", "场景建议为检索"),
    Feature("p_finetuning", "scenario", "the scenario advice is fine-tuning", "场景建议为微调"),
    Feature("p_hybrid", "scenario", "the scenario advice is hybrid", "场景建议为混合"),
)
NAMES: Final[tuple[str, ...]] = tuple(feature.name for feature in FEATURES)


def row_of(found: Mapping[str, float]) -> Row:
    """The numbers of `FEATURES` in their order, from what `router.signals.features` found."""
    return tuple(feature.value(found) for feature in FEATURES)


def say_feature(name: str, lang: str) -> str:
    """What a feature says, in Chinese for `lang` "zh", else in English."""
    feature = FEATURES[NAMES.index(name)]
    return feature.zh if lang == "zh" else feature.en
