"""The HTTP application: routes, middleware and their order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from appliance.admin.acts import Administration
from appliance.admin.keys import Keys
from appliance.admin.quotas import Quotas
from appliance.answers.feedback import Feedback
from appliance.engines.base import EngineError, Sampling
from appliance.errors import ApplianceError
from appliance.experts.review import ReviewQueue
from appliance.experts.tasks import ExpertTasks
from appliance.gateway.admin_api import admin_router
from appliance.gateway.admission import Queues
from appliance.gateway.answer_api import Passage, answer_router
from appliance.gateway.auth import BEARER
from appliance.gateway.desk import Desk
from appliance.gateway.embeddings_api import Embedding, embeddings_router
from appliance.gateway.errors import ErrorBody, install_errors
from appliance.gateway.events import Answers
from appliance.gateway.expert_api import expert_router
from appliance.gateway.feedback_api import feedback_router
from appliance.gateway.health import Lifecycle, health_router
from appliance.gateway.metrics import Metrics
from appliance.gateway.middleware import AdminDoor, Authenticate, BodyCap, LoopbackHosts, Recorder
from appliance.gateway.openai_api import openai_router
from appliance.gateway.review_api import review_router
from appliance.gateway.trace import Trace
from appliance.gateway.web import web_router
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
    429: {"model": ErrorBody, "description": "The key's quota is used up; Retry-After says for how long"},
    500: {"model": ErrorBody, "description": "The server failed"},
    503: {"model": ErrorBody, "description": "Gateway or engine busy or down, index unreadable, disk full; see Retry-After"},
    "default": {"model": ErrorBody, "description": "Any other failure"},
}


# Seconds until work beside the answers that a defect has ended begins again.
_AGAIN = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes` caps a request's body; `upload_bytes` a file that is sent in; `sampling` fills in the sampling fields that a
    request sets only some of.

    `running` of each kind of work run at once and `queued` wait, `queue_seconds` at most (see `appliance.gateway.admission.Queues`); one
    call embeds at most `embedding_inputs` texts.
    """

    body_bytes: int = 1 << 20
    running: int = 64
    queued: int = 128
    embedding_inputs: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    upload_bytes: int = 1 << 28
    queue_seconds: float = 30.0


def create_app(
    answering: Answers,
    keys: Keys,
    *,
    passage: Passage,
    embedding: Callable[[], Embedding],
    feedback: Feedback,
    auth_required: bool,
    version: str,
    limits: Limits = Limits(),
    anonymous: Caller | None = None,
    audit: Callable[[Trace, int], None] = lambda trace, status: None,
    settled: Callable[[], None] = lambda: None,
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    administration: Administration | None = None,
    shares: Callable[[], Sequence[tuple[str, str, float]]] = tuple,
    jobs: Callable[[], Mapping[tuple[str, str], int]] = dict,
    refreshes: Callable[[], Mapping[str, str]] = dict,
) -> FastAPI:
    """The gateway over `answering`; it warms it up in the background when the server starts and closes it when the server ends.

    `embedding` gives the embedding model, `feedback` takes what is said about answers.
    `passage` returns ``{"domain", "doc_id", "title", "uri", "start", "end", "before", "quote", "after", …}`` or None.
    `audit` gets the trace and status of every request that was routed to an answer. What is `beside` runs as long as the server.
    `settled` is called when the warm-up is over.
    `administration` is what ``/v1/admin`` does; without one there is none, nor ``/v1/review`` and ``/v1/expert``. `shares` are those of
    the versions on trial, `jobs` the number of jobs by kind and state, `refreshes` what came of each domain's last scheduled refresh.
    Without `auth_required`, requests without a key are `anonymous` (by default one who holds no labels), and only requests
    addressed to a loopback name are served. ``app.state.lifecycle`` is the `Lifecycle` that ``/readyz`` reports.
    """
    queues, lifecycle = Queues.of(limits.running, limits.queued, limits.queue_seconds), Lifecycle()
    metrics = Metrics(answering, queues, shares, jobs, refreshes)
    desk = Desk(answering, queues, feedback)

    async def warm() -> None:
        try:
            await answering.warm()
        except (ApplianceError, EngineError, RetrievalError) as error:
            # Requests and /readyz will report what is wrong; what still works is served.
            logger.error("warming up failed: %s", error)
        settled()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_kept_up(work)) for work in (warm, desk.write, *beside)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await answering.close()

    middleware = [
        Middleware(Recorder, metrics=metrics, audit=audit),
        *([] if auth_required else [Middleware(LoopbackHosts)]),
        Middleware(AdminDoor, lifecycle=lifecycle),
        Middleware(BodyCap, limit=limits.body_bytes, uploads=limits.upload_bytes),
        Middleware(
            Authenticate,
            authenticate=keys.identify,
            required=auth_required,
            anonymous=anonymous or Caller(),
            quotas=Quotas(),
            metrics=metrics,
        ),
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
    app.include_router(openai_router(desk, limits.sampling, _ERRORS), dependencies=needs_key)
    app.include_router(embeddings_router(embedding, queues.embedding, limits.embedding_inputs, _ERRORS), dependencies=needs_key)
    app.include_router(answer_router(desk, passage, _ERRORS), dependencies=needs_key)
    app.include_router(feedback_router(feedback, _ERRORS), dependencies=needs_key)
    if administration is not None:
        app.include_router(admin_router(administration, lifecycle, _ERRORS), dependencies=needs_key)
        database = administration.workspace.db
        queue = ReviewQueue(database, feedback)
        app.include_router(review_router(queue, database, administration.answers, _ERRORS), dependencies=needs_key)
        app.include_router(expert_router(ExpertTasks(database), _ERRORS), dependencies=needs_key)
    app.include_router(health_router(answering, lifecycle, metrics))
    app.include_router(web_router(app.openapi))
    return app


async def _kept_up(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` to its end; where an error that nobody foresaw ends it before, that is logged and it begins again."""
    while True:
        try:
            await work()
            return
        except Exception:
            logger.exception("work beside the answers has ended; it begins again in %g s", _AGAIN)
        await asyncio.sleep(_AGAIN)
