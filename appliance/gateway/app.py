"""The HTTP application: routes, middleware and their order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from appliance.engines.base import EngineError, Sampling
from appliance.errors import ApplianceError
from appliance.gateway.answer_api import Passage, answer_router
from appliance.gateway.auth import BEARER
from appliance.gateway.errors import ErrorBody, install_errors
from appliance.gateway.events import Answers
from appliance.gateway.health import Lifecycle, health_router
from appliance.gateway.metrics import Metrics
from appliance.gateway.middleware import Authenticate, BodyCap, LoopbackHosts, Recorder
from appliance.gateway.openai_api import openai_router
from appliance.gateway.web import web_router
from appliance.keys import Keys
from appliance.types import Caller
from retrieval.types import RetrievalError

logger = logging.getLogger("appliance.gateway")

_DESCRIPTION = (
    "Answers a domain team's questions from its documents and its fine-tuned adapters. "
    "Send a key as Authorization: Bearer; every failure has the body {error: {message, type, param, code}}."
)
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Bad JSON or a bad field"},
    401: {"model": ErrorBody, "description": "Missing or wrong key"},
    403: {"model": ErrorBody, "description": "Outside the key's scope"},
    404: {"model": ErrorBody, "description": "Unknown model, domain or document"},
    413: {"model": ErrorBody, "description": "Body too large"},
    500: {"model": ErrorBody, "description": "The server failed"},
    503: {"model": ErrorBody, "description": "Engine busy or down, or index unreadable; Retry-After says when to try again"},
    "default": {"model": ErrorBody, "description": "Any other failure"},
}


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes` caps a request's body; `sampling` fills in the sampling fields that a request sets only some of."""

    body_bytes: int = 1 << 20
    sampling: Sampling = field(default_factory=Sampling)


def create_app(
    answering: Answers,
    keys: Keys,
    *,
    passage: Passage,
    auth_required: bool,
    version: str,
    limits: Limits = Limits(),
    anonymous: Caller | None = None,
) -> FastAPI:
    """The gateway over `answering`; it warms it up in the background when the server starts and closes it when the server ends.

    `passage` returns ``{"domain", "doc_id", "title", "uri", "start", "end", "before", "quote", "after", …}`` or None.
    Without `auth_required`, requests without a key are `anonymous` (by default one who holds no labels), and only requests
    addressed to a loopback name are served. ``app.state.lifecycle`` is the `Lifecycle` that ``/readyz`` reports.
    """
    metrics, lifecycle = Metrics(), Lifecycle()

    async def warm() -> None:
        try:
            await answering.warm()
        except (ApplianceError, EngineError, RetrievalError) as error:
            # Requests and /readyz will report what is wrong; what still works is served.
            logger.error("warming up failed: %s", error)
        finally:
            lifecycle.starting = False

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(warm())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)
            await answering.close()

    middleware = [
        Middleware(Recorder, metrics=metrics),
        *([] if auth_required else [Middleware(LoopbackHosts)]),
        Middleware(BodyCap, limit=limits.body_bytes),
        Middleware(Authenticate, authenticate=keys.authenticate, required=auth_required, anonymous=anonymous or Caller()),
    ]
    app = FastAPI(
        title="Appliance",
        version=version,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=middleware,
    )
    app.state.lifecycle = lifecycle
    install_errors(app)
    needs_key = [Depends(BEARER)]
    app.include_router(openai_router(answering, limits.sampling, _ERRORS), dependencies=needs_key)
    app.include_router(answer_router(answering, passage, _ERRORS), dependencies=needs_key)
    app.include_router(health_router(answering, lifecycle, metrics))
    app.include_router(web_router(app.openapi))
    return app
