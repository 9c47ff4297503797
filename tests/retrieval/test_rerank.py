"""The reranker's path, with a tiny cross-encoder trained here until it prefers what rank fusion puts second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.index import Ranking
from retrieval.rerank import CrossEncoderReranker
from retrieval.types import RetrievalError, Scope

# The names are words of the texts, so that the text alone is what is read.
TEXTS = {
    "dose.txt": "The dose of gentamicin is checked. The dose of gentamicin is written down. Dose, gentamicin.",
    "given.txt": "Gentamicin is given at 5 mg per kg.",
    "费用.txt": "门诊费用的收费标准，门诊费用表，门诊费用。",
    "二十元.txt": "普通门诊每次收二十元。",
}
QUESTIONS = {"dose of gentamicin": "given.txt", "门诊费用": "二十元.txt"}


class OneThatLikes:
    """A reranker that prefers texts with a mark; used where only the plumbing is looked at."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.read: list[int] = []

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        self.read.append(len(texts))
        return [float(self.mark in text) for text in texts]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of a few thousand weights that has learned which of these texts answers which of these questions."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("cross-encoder")
    pieces = sorted({character for text in (*TEXTS.values(), *QUESTIONS) for character in text.lower() if not character.isspace()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *(f"##{piece}" for piece in pieces)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    torch.manual_seed(3)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    classifier = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, num_labels=1, **size))
    pairs = [(question, text, float(name == answer)) for question, answer in QUESTIONS.items() for name, text in TEXTS.items()]
    batch = tokenizer([q for q, _, _ in pairs], [t for _, t, _ in pairs], padding=True, return_tensors="pt")
    wanted = torch.tensor([[label] for _, _, label in pairs])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.01)
    classifier.train()
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(classifier(**batch).logits, wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def known(knowledge: Knowledge, tmp_path: Path) -> Knowledge:
    for name, text in TEXTS.items():
        write(tmp_path / "docs" / name, text)
    knowledge.ingest(tmp_path / "docs")
    return knowledge


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_cross_encoder_decides_the_order(known: Knowledge, model: Path, question: str) -> None:
    plain = known.index().search(question, Scope(), 4)
    ranking = Ranking(reranker=CrossEncoderReranker(lambda: model, batch_size=3), rerank=4)
    reranked = known.index().search(question, Scope(), 4, ranking=ranking)
    assert plain.passages[0].document.id != QUESTIONS[question] == reranked.passages[0].document.id
    assert {passage.document.id for passage in plain.passages} == {passage.document.id for passage in reranked.passages}
    scores = [passage.rerank_score for passage in reranked.passages]
    assert None not in scores and scores == sorted(scores, reverse=True)
    assert all(passage.rerank_score is None for passage in plain.passages)


def test_it_reads_as_many_as_configured_and_k_remain(known: Knowledge) -> None:
    reader = OneThatLikes("普通门诊")
    found = known.index().search("门诊费用", Scope(), 2, ranking=Ranking(reranker=reader, rerank=3))
    assert reader.read == [3] and len(found.passages) == 2
    known.index().search("门诊费用", Scope(), 4, ranking=Ranking(reranker=reader, rerank=1))
    assert reader.read == [3, 4]


def test_equal_scores_keep_the_fused_order(known: Knowledge) -> None:
    plain = [passage.chunk.id for passage in known.index().search("门诊费用", Scope(), 4).passages]
    same = known.index().search("门诊费用", Scope(), 4, ranking=Ranking(reranker=OneThatLikes("nowhere")))
    assert [passage.chunk.id for passage in same.passages] == plain


def test_a_question_nothing_is_found_for_is_not_read(known: Knowledge) -> None:
    reader = OneThatLikes("x")
    assert known.index().search("门诊", Scope(frozenset({"unknown"})), 2, ranking=Ranking(reranker=reader)).passages == ()
    assert reader.read == [] and CrossEncoderReranker(lambda: Path("nowhere")).scores("x", []) == []


def test_a_folder_that_is_no_cross_encoder(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RetrievalError, match="no cross-encoder here"):
        CrossEncoderReranker(lambda: tmp_path).scores("x", ["y"])
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=400, num_labels=3, **size)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    with pytest.raises(RetrievalError, match="3 labels"):
        CrossEncoderReranker(lambda: tmp_path).scores("x", ["y"])
