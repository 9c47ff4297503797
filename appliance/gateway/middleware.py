"""Plain ASGI middleware: request ids, log, metrics, security headers, trusted hosts, body cap, keys.

Nothing here buffers a body, and a client's disconnect always reaches the handler.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.admin.keys import PREFIX, Key
from appliance.admin.quotas import Exceeded, Quotas
from appliance.errors import ApplianceError
from appliance.gateway.errors import ApiError, report, shutting_down
from appliance.gateway.health import Lifecycle
from appliance.gateway.metrics import Metrics
from appliance.gateway.trace import RESPONSE_HEADERS, Trace, trace_of
from appliance.logs import REQUEST
from appliance.types import Caller

access_log = logging.getLogger("appliance.access")

# Paths of the administration, and that of a file that is sent in.
ADMIN, UPLOADS = "/v1/admin/", "/v1/admin/uploads"
REVIEW, EXPERT = "/v1/review", "/v1/expert/"
# One of these scopes is needed where a path begins so; elsewhere that of asking.
_ASKING = frozenset({"chat"})
_DOORS = ((ADMIN, frozenset({"ingest", "admin"})), (REVIEW, frozenset({"admin"})), (EXPERT, frozenset({"expert", "admin"})))
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOOPBACK = re.compile(r"(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?", re.IGNORECASE)


class Recorder:
    """Gives every request an id and every response the id and the security headers, then logs and counts it. Answers what has no answer
    yet when the server ends.

    `audit` gets the trace and status of every request that was routed to an answer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, audit: Callable[[Trace, int], None]) -> None:
        self.app, self.metrics, self.audit = app, metrics, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trace = trace_of(scope)
        wished = Headers(scope=scope).get("x-request-id", "")
        if _SANE_ID.fullmatch(wished):
            trace.request_id = wished
        # Never reset: the server logs a crash after this has returned, and every request is a task of its own.
        REQUEST.set(trace.request_id)
        # A crash is answered outside of this middleware, with 500.
        status, begun = 500, False
        started = time.perf_counter()

        async def send_marked(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                headers = MutableHeaders(scope=message)
                headers.update(RESPONSE_HEADERS)
                headers["X-Request-ID"] = trace.request_id
                if scope["path"].startswith("/v1/"):
                    headers["Cache-Control"] = "no-store"
            await send(message)

        self.metrics.in_progress.inc()
        try:
            await self.app(scope, receive, send_marked)
        except asyncio.CancelledError:
            # At its deadline for open requests the server cancels them, and would answer in its own words.
            if begun:
                raise
            await shutting_down().response()(scope, receive, send_marked)
        finally:
            self.metrics.in_progress.dec()
            route = getattr(scope.get("route"), "path", "other")
            outcome = trace.late_status or status
            seconds = time.perf_counter() - started
            self.metrics.count(route, trace, outcome, seconds)
            if trace.answer_id:
                self.audit(trace, outcome)
            _log(scope, trace, route, outcome, seconds * 1000)


def _log(scope: Scope, trace: Trace, route: str, status: int, milliseconds: float) -> None:
    line = {
        "method": scope["method"],
        "path": scope["path"][:200],
        "route": route,
        "status": status,
        "ms": round(milliseconds, 1),
        "caller": trace.caller.name if trace.caller else None,
        "answer": trace.answer_id or None,
        "arm": trace.arm or None,
        "domain": trace.domain or None,
    }
    access_log.info("request", extra={"facts": {name: value for name, value in line.items() if value is not None}})


class LoopbackHosts:
    """Without keys, only requests addressed to this machine by a loopback name are served.

    Otherwise any web page could reach a keyless appliance through the visitor's browser by rebinding its own name to 127.0.0.1.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _LOOPBACK.fullmatch(Headers(scope=scope).get("host", "")):
            message = "this appliance runs without keys and answers to localhost only; start it with keys required to use another name"
            await ApiError(403, message, code="host_not_allowed").response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class AdminDoor:
    """Where administration has a port of its own (`lifecycle.admin_port`), it is there only; so are reviewing, judging and the metrics."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app, self.lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        port = self.lifecycle.admin_port
        if (
            port is not None
            and scope["type"] == "http"
            and scope["path"].startswith(("/metrics", *(door for door, _ in _DOORS)))
            and (scope.get("server") or (0, 0))[1] != port
        ):
            await ApiError(404, "Not Found").response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class BodyCap:
    """Refuses a body over `limit` bytes with 413: by its declared length at once, else while it is being read.

    A file that is sent in may have `uploads` bytes.
    """

    def __init__(self, app: ASGIApp, limit: int, uploads: int) -> None:
        self.app, self.limit, self.uploads = app, limit, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.uploads if scope["path"] == UPLOADS else self.limit
        too_large = ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await too_large.response()(scope, receive, send)
            return
        seen = 0

        async def receive_capped() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise too_large
            return message

        await self.app(scope, receive_capped, send)


class Authenticate:
    """Finds the caller of every ``/v1/`` request from ``Authorization: Bearer``, before any of its body is read.

    A key asks only with the scope `chat` and administers only with `ingest` or `admin`, which always needs a key.
    Where keys are not required, a token that is not one of ours (clients often insist on sending something) counts as none. A key whose
    quota is used up gets 429; `metrics` count that.
    """

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Callable[[str], Awaitable[Key | None]],
        required: bool,
        anonymous: Caller,
        quotas: Quotas,
        metrics: Metrics,
    ) -> None:
        self.app, self.authenticate, self.required, self.anonymous = app, authenticate, required, anonymous
        self.quotas, self.metrics = quotas, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            token = _bearer(Headers(scope=scope).getlist("authorization"))
            trace = trace_of(scope)
            needed = next((scopes for door, scopes in _DOORS if scope["path"].startswith(door)), _ASKING)
            if token.startswith(PREFIX) or self.required or needed != _ASKING:
                try:
                    key = await self.authenticate(token) if token else None
                except ApplianceError as error:
                    # Beyond this middleware nobody would answer before the request is counted.
                    await report(error, trace.request_id).response()(scope, receive, send)
                    return
                if key is None:
                    message = (
                        "the API key is wrong, expired or revoked"
                        if token
                        else "an API key is needed: send it as `Authorization: Bearer apl_…`"
                    )
                    refusal = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                    await refusal.response()(scope, receive, send)
                    return
                trace.caller = Caller(key.scope, key.id, key.scopes)
                if not key.scopes & needed:
                    refusal = ApiError(403, f"this key has not the scope {' or '.join(sorted(needed))}", code="scope_missing")
                    await refusal.response()(scope, receive, send)
                    return
                if exceeded := self.quotas.admit(key.id, key.requests_per_minute, key.tokens_per_minute):
                    self.metrics.over_quota.labels(exceeded.kind).inc()
                    await _over(exceeded).response()(scope, receive, send)
                    return
                try:
                    await self.app(scope, receive, send)
                finally:
                    if key.tokens_per_minute is not None:
                        self.quotas.spend(key.id, trace.spent)
                return
            trace.caller = self.anonymous
        await self.app(scope, receive, send)


def _over(exceeded: Exceeded) -> ApiError:
    wait = max(1, math.ceil(exceeded.wait))
    message = f"this key's quota of {exceeded.limit} {exceeded.kind} a minute is used up; try again in {wait} s"
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait)})


def _bearer(values: Sequence[str]) -> str:
    scheme, _, token = (values[0] if len(values) == 1 else "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
