"""`appliance serve`: the gateway over the workspace's real parts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from importlib.metadata import version

from appliance.engines.base import Sampling
from appliance.errors import UsageError
from appliance.gateway.app import Limits, create_app
from appliance.gateway.server import serve
from appliance.keys import Keys
from appliance.service import open_service
from appliance.worker import beside
from appliance.workspace import Workspace


def run_gateway(workspace: Workspace, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve `workspace` until SIGTERM, with a worker beside it where a domain has a schedule.

    Raises UsageError where keys are turned off on an address others can reach.
    """
    settings = workspace.config.server
    loopback = is_loopback(host)
    required = not loopback if settings.require_keys is None else settings.require_keys
    if not required and not loopback:
        raise UsageError(f"[server] require_keys = false is only allowed on a loopback address, and {host} is none")
    keys = Keys(workspace.db)
    if required and not any(key.state == "active" for key in keys.list()):
        say("no API key can be used yet; make one with: appliance key create NAME")
    service = open_service(workspace)
    app = create_app(
        service.answering,
        keys,
        passage=service.knowledge.passage,
        auth_required=required,
        version=version("appliance"),
        limits=Limits(settings.max_body_bytes, Sampling(max_tokens=workspace.config.answering.max_tokens)),
    )
    with beside(workspace):
        serve(app, host, port, announce=lambda address: say(f"serving {workspace.root} at {address}"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
