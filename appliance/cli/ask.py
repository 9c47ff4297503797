"""`appliance ask`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.session import Session, as_option, domain_option, emit, held, json_option, pass_session
from appliance.engines.team import stay_awake
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.engines.base import Message


@click.command()
@click.argument("question")
@domain_option
@click.option("--arm", default="auto", show_default=True, help="auto, or one of base quote rag finetuned hybrid verified refuse.")
@click.option("--history", type=click.Path(path_type=Path), help="JSON file with the earlier turns: [{role, content}, …].")
@click.option("--must-cite", is_flag=True, help="Only answers whose citations were checked.")
@click.option("--max-latency-ms", type=click.FloatRange(min=0, min_open=True), help="Only arms expected to answer within this time.")
@click.option("--max-tokens", type=click.IntRange(1), help="At most this many generated tokens.")
@as_option
@json_option
@pass_session
def ask(
    session: Session,
    question: str,
    domain: str | None,
    arm: str,
    history: Path | None,
    must_cite: bool,
    max_latency_ms: float | None,
    max_tokens: int | None,
    labels: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask a question; the router chooses the arm, or --arm does."""
    stay_awake()
    from appliance.admin.audit import answer_facts
    from appliance.engines.base import Sampling
    from appliance.service import open_service
    from appliance.types import Caller, Request, answer_json
    from retrieval.types import Scope
    from router.types import Constraints

    service = open_service(session.workspace)
    request = Request(
        question=question,
        history=read_history(history),
        domain=domain,
        arm=arm,  # type: ignore[arg-type]
        constraints=Constraints(must_cite, max_latency_ms),
        sampling=Sampling(max_tokens=max_tokens) if max_tokens else None,
    )

    async def go() -> dict[str, object]:
        try:
            scope = Scope(None, held(labels, service.knowledge.documents.labels()))
            answer = await service.answering.ask(request, Caller(scope))
            with session.workspace.db.write() as connection:
                session.workspace.db.audit(connection, "answer", answer_facts(answer))
            return answer_json(answer)
        finally:
            await service.answering.close()

    data = asyncio.run(go())
    emit(data, as_json, lambda: show_answer(data))


def read_history(file: Path | None) -> tuple[Message, ...]:
    """The turns of a history file. Raises UsageError naming the turn that is wrong."""
    if file is None:
        return ()
    try:
        turns = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {error}; expected a JSON list of {{role, content}}") from error
    for number, turn in enumerate(turns if isinstance(turns, list) else [turns], 1):
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant") or not isinstance(turn.get("content"), str):
            raise UsageError(f'{file}: turn {number}: expected {{"role": "user" or "assistant", "content": text}}')
    return tuple(turns)


def show_answer(data: dict[str, object]) -> None:
    """An answer for people: text, citations, and why this route."""
    decision, citations, timings = data["decision"], data["citations"], data["timings_ms"]
    assert isinstance(decision, dict) and isinstance(citations, list) and isinstance(timings, dict)
    click.echo(str(data["answer"]))
    for number, citation in enumerate(citations, 1):
        page = f", p. {citation['page']}" if citation["page"] else ""
        place = f"{citation['doc_id']}{page}, {citation['start']}–{citation['end']}"
        marked = f" [flagged: {', '.join(citation['flags'])}]" if citation["flags"] else ""
        click.echo(f"  [{number}] {citation['title']} ({place}){marked}: {citation['quote'].strip()}")
    unsupported = data["unsupported"]
    if isinstance(unsupported, list) and unsupported:
        click.echo("  no passage supports: " + " | ".join(map(str, unsupported)))
    for warning in data["warnings"] if isinstance(data["warnings"], list) else ():
        click.echo(f"  warning: {warning}")
    click.echo(f"\n  arm {data['arm']} in {data['domain']} ({timings['total']:.0f} ms, rule {decision['rule']})")
    for reason in decision["reasons"]:
        click.echo(f"  - {reason}")
    for arm, why in decision["unavailable"].items():
        click.echo(f"  · not {arm}: {why}")
