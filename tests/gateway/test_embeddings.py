"""``/v1/embeddings``: the official client, both encodings, limits."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import openai
import pytest
from gateway_server import LIMITS, Served


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


def test_the_official_client_gets_vectors_in_order(served: Served) -> None:
    # It asks for base64 and decodes it.
    found = client(served).embeddings.create(model="embedding", input=["药", "剂量是多少"])
    assert [item.embedding for item in found.data] == [[1.0, 0.0], [5.0, 0.0]] and [item.index for item in found.data] == [0, 1]
    assert found.usage.prompt_tokens == found.usage.total_tokens == 6
    assert "embedding" in [model.id for model in client(served).models.list()]


def test_floats_base64_and_questions(served: Served) -> None:
    def ask(**more: Any) -> Any:
        return served.http().post("/v1/embeddings", json={"model": "embedding", "input": "abc", **more}).json()["data"][0]["embedding"]

    assert ask() == [3.0, 0.0] and ask(encoding_format="float", dimensions=2) == [3.0, 0.0]
    assert struct.unpack("<2f", base64.b64decode(ask(encoding_format="base64"))) == (3.0, 0.0)
    assert ask(input_type="query") == [3.0, 1.0]
    many = served.http().post("/v1/embeddings", json={"model": "embedding", "input": [str(n) * (n % 3 + 1) for n in range(20)]}).json()
    assert [len(item["embedding"]) for item in many["data"]] == [2] * 20 and many["data"][19]["index"] == 19


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * (LIMITS.embedding_inputs + 1)}, "input"),
        ({"input": "a", "dimensions": 7}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "model": ""}, "model"),
    ],
)
def test_bad_requests_name_the_field(served: Served, body: dict[str, Any], param: str) -> None:
    response = served.http().post("/v1/embeddings", json={"model": "embedding", **body})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param)


def test_another_model_is_not_found(served: Served) -> None:
    response = served.http().post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "a"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model") and "'embedding'" in error["message"]


def test_embedded_tokens_are_counted(start: Callable[..., Served]) -> None:
    http = start().http()
    used = http.post("/v1/embeddings", json={"model": "embedding", "input": ["abc", "剂量"]}).json()["usage"]["total_tokens"]
    assert f'appliance_tokens_total{{domain="",kind="embedded"}} {float(used)}' in http.get("/metrics").text
