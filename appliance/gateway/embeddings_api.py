"""``/v1/embeddings`` in OpenAI's form, from the model that searches the knowledge base."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from appliance.gateway.admission import Admission
from appliance.gateway.errors import ApiError
from appliance.gateway.events import unless_gone
from appliance.gateway.target import EMBEDDING
from appliance.gateway.trace import trace_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Texts embedded between two looks at whether the client is still there.
_BATCH = 8
_TEXT = Annotated[str, StringConstraints(min_length=1, max_length=200_000)]
_INPUT = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}]}


class Embedding(Protocol):
    """What the routes need of the embedding model: vectors are float32 [n, dim], of length 1."""

    @property
    def dim(self) -> int: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class EmbeddingRequest(BaseModel):
    """`input_type` is not OpenAI's: many models put other words before a question than before a text that answers one."""

    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    input: Annotated[
        list[_TEXT],
        Field(min_length=1),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        WithJsonSchema(_INPUT),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    input_type: Literal["query", "passage"] = "passage"


def embeddings_router(
    model: Callable[[], Embedding], admission: Admission, most: int, responses: dict[int | str, dict[str, Any]]
) -> APIRouter:
    """The route; `model` gives the embedding model, `most` is how many texts one request may have."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=responses)

    @router.post("/embeddings", summary="Vectors of texts")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """The model is `embedding`, the one that searches the knowledge base. Text beyond its window is cut; token lists are not taken."""
        if body.model != EMBEDDING:
            message = f"the model {body.model!r} does not exist; texts are embedded by {EMBEDDING!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if len(body.input) > most:
            raise ApiError(400, f"input: {len(body.input)} texts, at most {most} are taken at once", param="input", code="too_many_inputs")
        data, tokens = await unless_gone(request.receive, _embed(model, admission, body))
        trace_of(request.scope).spent = tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": EMBEDDING, "usage": usage})

    return router


async def _embed(model: Callable[[], Embedding], admission: Admission, body: EmbeddingRequest) -> tuple[list[dict[str, Any]], int]:
    async with admission.turn():
        embedder = await run_in_threadpool(model)
        dim = await run_in_threadpool(lambda: embedder.dim)
        if body.dimensions not in (None, dim):
            raise ApiError(400, f"dimensions: this model has {dim}, and they cannot be changed", param="dimensions", code="invalid_field")
        encode = embedder.encode_queries if body.input_type == "query" else embedder.encode_passages
        data: list[dict[str, Any]] = []
        tokens = 0
        for start in range(0, len(body.input), _BATCH):
            texts = body.input[start : start + _BATCH]
            tokens += sum(await run_in_threadpool(embedder.count_tokens, texts))
            for vector in await run_in_threadpool(encode, texts):
                value = base64.b64encode(vector.astype("<f4").tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
                data.append({"object": "embedding", "index": len(data), "embedding": value})
    return data, tokens
