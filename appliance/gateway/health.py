"""``/livez``, ``/readyz`` and ``/metrics``: for machines, without a key."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from appliance.gateway.events import Answers
from appliance.gateway.metrics import Metrics

logger = logging.getLogger("appliance.gateway")


@dataclass(slots=True)
class Lifecycle:
    """Whether the server is on its way out, the last problem that the log was told of, and the port of administration if it has its own."""

    draining: bool = False
    problem: str = ""
    admin_port: int | None = None


def health_router(answering: Answers, lifecycle: Lifecycle, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.get("/livez", summary="The process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @router.get("/readyz", summary="The appliance can answer questions", responses={503: {"description": "Not ready"}})
    async def readyz() -> Response:
        """503 while draining and when index or database cannot be read.

        `degraded` lists `engine` while one is down (what needs no engine is still answered), and `index` while something stands in for a
        damaged generation. What is wrong is in the operator's log.
        """
        health = await answering.health()
        unreadable = [part for part in ("index", "database") if not health[part]["ok"]]
        status = "draining" if lifecycle.draining else "unavailable" if unreadable else "ready"
        degraded = [] if all(engine["ok"] for engine in health["engines"].values()) else ["engine"]
        if health["index"].get("problem"):
            degraded.append("index")
        details = (health[part].get("detail") or health[part].get("problem") for part in ("index", "database"))
        problem = "; ".join(detail for detail in details if detail)
        if problem and problem != lifecycle.problem:
            logger.error("%s", problem)
        lifecycle.problem = problem
        body: dict[str, Any] = {
            "status": status,
            "degraded": degraded,
            "index": {"ok": health["index"]["ok"], "generation": health["index"].get("generation")},
            "database": {"ok": health["database"]["ok"]},
            "engines": {name: {"ok": engine["ok"]} for name, engine in health["engines"].items()},
        }
        return JSONResponse(body, 200 if status == "ready" else 503)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
