"""``/livez``, ``/readyz`` and ``/metrics``: for machines, without a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from appliance.gateway.events import Answers
from appliance.gateway.metrics import Metrics


@dataclass(slots=True)
class Lifecycle:
    """Whether the server is still warming up, or already on its way out."""

    starting: bool = True
    draining: bool = False


def health_router(answering: Answers, lifecycle: Lifecycle, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.get("/livez", summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", summary="The appliance can answer questions", responses={503: {"description": "Not ready"}})
    async def readyz() -> Response:
        """503 while starting or draining and when index or database cannot be read.

        `degraded` lists the engines that are down, and `index` while an older generation stands in for a damaged one.
        """
        health = await answering.health()
        unreadable = [part for part in ("index", "database") if not health[part]["ok"]]
        if lifecycle.draining:
            status = "draining"
        elif lifecycle.starting:
            status = "starting"
        else:
            status = "unavailable" if unreadable else "ready"
        degraded = [name for name, engine in health["engines"].items() if not engine["ok"]]
        if health["index"].get("problem"):
            degraded.append("index")
        body: dict[str, Any] = {"status": status, "degraded": degraded, **health}
        return JSONResponse(body, 200 if status == "ready" else 503)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
