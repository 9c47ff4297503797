"""`appliance dataset from-feedback|from-expert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, domain_option, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE

if TYPE_CHECKING:
    from appliance.datasets.from_feedback import Collected

_out = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")


@click.command(name="from-feedback")
@domain_option
@_out
@click.option("--rejected", is_flag=True, help="Write corrections with the answers they correct, as preferences (for DPO).")
@json_option
@pass_session
def from_feedback(session: Session, domain: str | None, out: Path | None, rejected: bool, as_json: bool) -> int:
    """Write question/answer pairs out of approved answers, corrections and answers rated up, for review.

    Each says where it comes from and which documents it rests on; what rests on a deleted one is left out. What was left out is counted
    by reason. The default file is DOMAIN-feedback.jsonl. Then: appliance dataset review FILE, and appliance dataset add FILE.
    """
    from appliance.datasets.from_feedback import from_feedback as collect
    from appliance.service import open_service

    name = session.workspace.only_domain(domain)
    service = open_service(session.workspace)
    return _told(collect(service, name, out or Path(f"{name}-feedback.jsonl"), with_rejected=rejected), as_json)


@click.command(name="from-expert")
@click.argument("run_id", metavar="RUN")
@domain_option
@_out
@json_option
@pass_session
def from_expert(session: Session, run_id: str, domain: str | None, out: Path | None, as_json: bool) -> int:
    """Write what the experts of RUN prefer and correct as preferences (for DPO), for review.

    RUN is a prefix of the run's id, or 'last'. The default file is DOMAIN-preferences.jsonl.
    """
    from appliance.datasets.from_feedback import from_expert as collect
    from appliance.evaluation.runs import find
    from appliance.service import open_service

    name = session.workspace.only_domain(domain)
    service = open_service(session.workspace)
    run = find(service, run_id)
    code = _told(collect(service, run.id, name, out or Path(f"{name}-preferences.jsonl")), as_json)
    say(f"they ask what {run.dataset} asks: what is trained on them must not be measured on it (appliance dataset check NAME --against)")
    return code


def _told(done: Collected, as_json: bool) -> int:
    def human() -> None:
        click.echo(f"{done.file or 'nothing to write'}: {done.pairs} pairs")
        table(("from", "pairs"), done.by_method.items())
        table(("left out because", "number"), done.left_out.items())

    emit(done.to_json(), as_json, human)
    if done.file is not None:
        say(f"review them: appliance dataset review {done.file}")
    return DONE if done.pairs else FAILURE
