"""`appliance doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, UsageError


@click.command()
@json_option
@pass_session
def doctor(session: Session, as_json: bool) -> int:
    """Check Python, memory, disk, CPU, GPU, models, index, database and engines, each with a remedy."""
    from appliance.doctor import machine, workspace
    from appliance.service import open_service

    findings = list(machine())
    try:
        findings += workspace(open_service(session.workspace))
    except UsageError as error:
        say(f"no workspace checked: {error}")
    emit(
        [asdict(finding) for finding in findings],
        as_json,
        lambda: table(("check", "state", "detail", "remedy"), [list(asdict(finding).values()) for finding in findings]),
    )
    return FAILURE if any(finding.state == "failed" for finding in findings) else DONE
