"""`appliance adapter canary` and `adapter retrain`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.session import Progress, Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import DONE, GATE_MISSED, UsageError

if TYPE_CHECKING:
    from appliance.adapters.trial import Trial


class Share(click.ParamType[float]):
    """``10%`` or ``0.1``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r}: expected a share of the questions, more than 0 % and at most 100 %, like 10% or 0.1", param, ctx)
        return share


@click.group()
def canary() -> None:
    """Try a version on a share of the questions before it goes live."""


@canary.command()
@click.argument("version")
@click.option("--share", type=Share(), help="Of the questions, e.g. 10% (default: [domains.NAME.canary] share).")
@click.option("--force", is_flag=True, help="Try it although it missed the gate, or without measuring; --why is recorded.")
@click.option("--why", help="The reason for --force.")
@json_option
@pass_session
def start(session: Session, version: str, share: float | None, force: bool, why: str | None, as_json: bool) -> int:
    """Let VERSION answer a share of its domain's questions, if it passes the gate (exit code 4 if not).

    The same question of the same key always gets the same version. It is rolled back by itself if more of its answers fail or are rated
    down, and promoted only if [domains.NAME.canary] says so.
    """
    from appliance.adapters.trial import begin
    from appliance.cli.adapters import show_gate
    from appliance.service import open_service

    if force != bool((why or "").strip()):
        raise UsageError("--force needs a reason, which is recorded: --force --why TEXT")
    service = open_service(session.workspace)

    async def go(progress: Progress) -> Trial:
        try:
            return await begin(service, version, share, force=why if force else None, progress=progress)
        finally:
            await service.answering.close()

    with Progress() as progress:
        done = asyncio.run(go(progress))
    gate = None if done.gate is None else done.gate.to_json()
    data = {"version": version, "canary": None if done.canary is None else done.canary.to_json(), "gate": gate}

    def human() -> None:
        if done.gate is not None:
            show_gate(done.gate)
        if done.canary is not None:
            click.echo(f"{version} answers {done.canary.share:.0%} of the questions in {done.canary.domain}")

    emit(data, as_json, human)
    if done.canary is None:
        say(f"{version} missed the gate; to try it all the same: appliance adapter canary start {version} --force --why TEXT")
    return DONE if done.canary is not None else GATE_MISSED


@canary.command()
@domain_option
@json_option
@pass_session
def stop(session: Session, domain: str | None, as_json: bool) -> None:
    """End the trial in a domain: the live version answers everything again."""
    from appliance.adapters.canary import stop as end

    ended = end(session.workspace.db, session.workspace.only_domain(domain))
    emit(ended.to_json(), as_json, lambda: click.echo(f"{ended.candidate} is not on trial any more"))


@canary.command()
@domain_option
@click.option("--all", "every", is_flag=True, help="Also those that have ended.")
@json_option
@pass_session
def status(session: Session, domain: str | None, every: bool, as_json: bool) -> None:
    """The versions on trial and how their answers compare with those of the live ones."""
    from appliance.adapters.canary import figures, history

    database = session.workspace.db
    if domain:
        session.workspace.check_domain(domain)
    found = [one for one in history(database, domain) if every or one.state == "running"]
    rows = [{**one.to_json(), "figures": figures(database, one)} for one in found]

    def human() -> None:
        columns = ("domain", "candidate", "live", "share", "state", "why", "side", "answered", "failed", "up", "down")
        lines = [{**row, "side": side, **row["figures"][side]} for row in rows for side in ("candidate", "live")]
        table(columns, [[line[column] for column in columns] for line in lines])

    emit(rows, as_json, human)


@click.command()
@domain_option
@json_option
@pass_session
def retrain(session: Session, domain: str | None, as_json: bool) -> int:
    """Train from the newest data, measure the gate, and try or promote what came of it: what [domains.NAME] retrain does on schedule.

    Nothing is trained if nothing has changed since the last time. Exits 4 if the gate was missed.
    """
    from appliance.adapters.retraining import retrain as again

    with Progress() as progress:
        row = again(session.workspace, session.workspace.only_domain(domain), progress)
    emit(row, as_json, lambda: click.echo(f"{row['domain']}: {row['outcome']} {row['version']} {row.get('why', '')}".rstrip()))
    return GATE_MISSED if row["outcome"] == "missed" else DONE
