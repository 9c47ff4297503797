"""`appliance serve`: the gateway over the workspace's real parts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from appliance.adapters.canary import Canaries
from appliance.adapters.life import AdapterLife
from appliance.admin.acts import Administration
from appliance.admin.audit import AnswerLog, answer_facts
from appliance.admin.keys import Keys
from appliance.answers.cache import AnswerCache
from appliance.answers.feedback import Feedback
from appliance.engines.base import Sampling
from appliance.engines.build import check
from appliance.errors import UsageError
from appliance.gateway.app import Limits, create_app
from appliance.gateway.server import serve, settle
from appliance.gateway.trace import Trace
from appliance.jobs.counts import JobCounts
from appliance.jobs.worker import beside
from appliance.routing.log import RouteLog
from appliance.service import open_service
from appliance.workspace import Workspace


def run_gateway(workspace: Workspace, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve `workspace` until SIGTERM, with a worker beside it.

    Raises UsageError where keys are turned off on an address others can reach, for settings of an engine that do not go together, and
    for one port that is to be public and the administration's.
    """
    settings, serving = workspace.config.server, workspace.config.gateway
    # The port of the administration answers questions too.
    addresses = [host] if settings.admin_port is None else [host, settings.admin_host]
    outside = next((address for address in addresses if not is_loopback(address)), None)
    loopback = outside is None
    required = not loopback if settings.require_keys is None else settings.require_keys
    if not required and not loopback:
        raise UsageError(f"[server] require_keys = false is only allowed on a loopback address, and {outside} is none")
    if settings.admin_port is not None and settings.admin_port == port != 0:
        raise UsageError(f"[server] admin_port = {port} is the public port too; give administration another one, or leave admin_port out")
    for name, engine in workspace.config.engines.items():
        check(name, engine)
    keys = Keys(workspace.db)
    if required and not any(key.state == "active" for key in keys.list()):
        say("no API key can be used yet; make one with: appliance key create NAME")
    service = open_service(workspace, patient=False)
    log, canaries, routes = AnswerLog(workspace.db), Canaries(service.registry), RouteLog(workspace.db)
    service.answering.canaries = canaries
    jobs = JobCounts(workspace.db, [name for name, domain in workspace.config.domains.items() if domain.refresh is not None])
    cache = AnswerCache(workspace.db, workspace.config.answering.cache_mb << 20)
    service.answering.cache = cache if workspace.config.answering.cache_mb else None

    def audit(trace: Trace, status: int) -> None:
        log.note(_actor(trace), _facts(trace), "done" if status == 200 else f"failed with {status}")
        if trace.answer is not None:
            routes.note(trace.answer)

    app = create_app(
        service.answering,
        keys,
        passage=service.knowledge.passage,
        embedding=lambda: service.knowledge.embedder,
        feedback=Feedback(workspace.db, workspace.config.feedback),
        auth_required=required,
        version=version("appliance"),
        limits=Limits(
            settings.max_body_bytes,
            serving.max_running,
            serving.max_queued,
            serving.max_embedding_inputs,
            Sampling(max_tokens=workspace.config.answering.max_tokens),
            settings.max_upload_bytes,
            serving.queue_seconds,
        ),
        beside=[AdapterLife(service.registry, service.engines).run, canaries.run, routes.run, cache.run, jobs.run],
        administration=Administration(service),
        shares=canaries.shares,
        jobs=jobs.found,
        refreshes=jobs.refreshes,
        audit=audit,
        settled=settle,
    )
    with log, beside(workspace):
        serve(
            app,
            host,
            port,
            grace_seconds=serving.grace_seconds,
            drain_seconds=serving.drain_seconds,
            announce=lambda address: say(f"serving {workspace.root} at {address}"),
            admin=None if settings.admin_port is None else (settings.admin_host, settings.admin_port),
            announce_admin=lambda address: say(f"administration at {address}"),
        )


def _actor(trace: Trace) -> str:
    caller = trace.caller
    return "nobody" if caller is None else caller.name if caller.name == "local" else f"key:{caller.name}"


def _facts(trace: Trace) -> dict[str, Any]:
    """What the audit log keeps of a request; of one without an answer how far it came."""
    known = {"id": trace.answer_id, "arm": trace.arm, "domain": trace.domain} if trace.answer is None else answer_facts(trace.answer)
    return {**known, "request": trace.request_id}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
