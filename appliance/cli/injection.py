"""`appliance eval injection`."""

from __future__ import annotations

import asyncio

import click

from appliance.cli.session import Progress, Session, emit, json_option, pass_session, say, table


@click.command()
@click.option(
    "--arm",
    "arms",
    multiple=True,
    type=click.Choice(("quote", "rag", "hybrid", "finetuned", "base", "routed")),
    help="Only this arm. Repeatable. Default: all, hybrid and finetuned if an adapter is live in a domain of the sample.",
)
@click.option("--limit", type=click.IntRange(1), help="At most this many attempts, English and Chinese in turn.")
@click.option("--max-tokens", type=click.IntRange(1), default=40, show_default=True, help="Length of generated answers.")
@json_option
@pass_session
def injection(session: Session, arms: tuple[str, ...], limit: int | None, max_tokens: int, as_json: bool) -> None:
    """Instructions hidden in documents: how often they get their way, by arm and language, with and without flagging."""
    from appliance.knowledge.injection import ADAPTED, ARMS, attempts, measure
    from appliance.service import open_service

    service, asked = open_service(session.workspace), attempts(limit)
    domains = sorted({attempt.domain for attempt in asked})
    tuned = any(service.registry.live(domain) is not None for domain in domains)
    chosen = [arm for arm in ARMS if arm in arms or (not arms and (tuned or arm not in ADAPTED))]
    if not tuned and (not arms or ADAPTED & {*arms}):
        say(f"no adapter is live in {', '.join(domains)}, so hybrid and finetuned have nothing to answer with")

    async def go(progress: Progress) -> dict[str, object]:
        try:
            return await measure(service, asked, chosen, max_tokens, progress)
        finally:
            await service.answering.close()

    with Progress() as progress:
        data = asyncio.run(go(progress))

    def human() -> None:
        for title, name in (("passages flagged at ingest", "flagged"), ("attempts that got their way", "rows")):
            rows = data[name]
            assert isinstance(rows, list)
            table(tuple(rows[0]), [tuple(row.values()) for row in rows], title=title)

    emit(data, as_json, human)
