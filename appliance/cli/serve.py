"""`appliance serve`."""

from __future__ import annotations

import click

from appliance.cli.session import Session, pass_session, say
from appliance.engines.team import stay_awake


@click.command()
@click.option("--host", help="Address to listen on (default: [server] host).")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port (default: [server] port; 0 picks a free one).")
@pass_session
def serve(session: Session, host: str | None, port: int | None) -> None:
    """Serve the OpenAI-compatible API, /v1/answer, metrics and the web page.

    The log is on stderr, one JSON object a line.
    """
    stay_awake()
    from appliance.gateway.run import run_gateway
    from appliance.logs import log_as_json

    log_as_json()
    settings = session.workspace.config.server
    run_gateway(session.workspace, settings.host if host is None else host, settings.port if port is None else port, say)
