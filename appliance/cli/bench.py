"""`appliance bench`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import FAILURE, GateMissed, UsageError
from appliance.workspace import Workspace

_LIMIT_MS = 500.0


@click.command()
@click.argument("url", required=False)
@click.option("--arms", default="quote,verified", show_default=True, help="auto and arms, separated by commas.")
@click.option("--domain", help="The domain to ask; not needed where there is one.")
@click.option(
    "--questions", type=click.Path(path_type=Path), help="A file with one question a line; by default those with an approved answer."
)
@click.option("--dataset", "-n", help="Ask the questions of a registered data set instead.")
@click.option("--concurrency", default="1,2,4,8", show_default=True, help="How many ask at once, in turn.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="How long at each concurrency.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Length of generated answers.")
@click.option("--key-env", default="APPLIANCE_KEY", show_default=True, help="The environment variable with the API key.")
@click.option("--fresh", is_flag=True, help="Sample a little, so that no answer comes from the answer cache.")
@click.option(
    "--limit-ms",
    type=click.FloatRange(1),
    help=f"What the p95 of latency is compared with (default: {_LIMIT_MS:g}); where given, missing it is exit code 4.",
)
@click.option("--png", type=click.Path(path_type=Path), help="Draw the figures into this file.")
@json_option
@pass_session
def bench(
    session: Session,
    url: str | None,
    arms: str,
    domain: str | None,
    questions: Path | None,
    dataset: str | None,
    concurrency: str,
    seconds: float,
    max_tokens: int,
    key_env: str,
    fresh: bool,
    limit_ms: float | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Load a running appliance and print answers a second, first token, latency and errors per arm.

    URL is by default where this workspace's `appliance serve` listens. Errors are given by their code, an answer by another arm than the
    one asked among them; an answer that comes from the answer cache is counted in its own column. The limit is missed where the p95
    is above it, more than 1 % fail, or nothing is answered. `verified` answers only questions that an expert answered: ask it those.
    """
    import os

    from appliance.bench import measure, plot
    from appliance.files import write_bytes
    from router.types import ARMS

    named = [part.strip() for part in arms.split(",") if part.strip()]
    unknown = [arm for arm in named if arm not in ("auto", *ARMS)]
    if unknown or not named:
        raise UsageError(f"--arms {arms}: unknown {', '.join(unknown) or 'nothing'}; known: auto, {', '.join(ARMS)}")
    try:
        steps = [int(part) for part in concurrency.split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1 or max(steps) > 10_000:
        raise UsageError(f"--concurrency {concurrency}: expected numbers from 1 to 10000 separated by commas, for example 1,4,16")
    if png is not None and not png.absolute().parent.is_dir():
        raise UsageError(f"--png {png}: {png.absolute().parent} is no folder")
    if url is None:
        server = session.workspace.config.server
        url = f"http://{_reachable(server.host)}:{server.port}"
    if domain is None and (named != ["auto"] or questions is None):
        domain = session.workspace.only_domain(None)
    asked = _from_file(questions) if questions is not None else _from_workspace(session.workspace, domain, dataset)
    loads = asyncio.run(measure(url, os.environ.get(key_env), domain, named, asked, steps, seconds, max_tokens, fresh, say))
    limit = limit_ms or _LIMIT_MS
    rows = [{**asdict(load), "within_limit": load.within(limit)} for load in loads]

    def human() -> None:
        heads = ("arm", "at once", "answers", "QPS", "first p50", "first p95", "p50", "p95", "p99", "cached", "errors")
        cells = [
            (
                load.arm,
                load.concurrency,
                load.answers,
                f"{load.qps:.1f}",
                *(f"{value:.0f}" for value in (load.first_p50, load.first_p95, load.p50)),
                f"{load.p95:.0f}{'' if load.within(limit) else ' !'}" if load.answers else "– !",
                f"{load.p99:.0f}",
                load.cached,
                ", ".join(f"{count} {code}" for code, count in load.errors.items()),
            )
            for load in loads
        ]
        table(heads, cells)
        say(f"milliseconds; ! marks a p95 above {limit:g}, more than 1 % of failures, or no answer")

    emit({"url": url, "questions": len(asked), "limit_ms": limit, "loads": rows}, as_json, human)
    if png is not None:
        # After the figures, which a full disk then does not cost.
        write_bytes(png, plot(loads, limit))
    if not any(load.answers for load in loads):
        raise SystemExit(FAILURE)
    missed = [f"{load.arm} at {load.concurrency}" for load in loads if not load.within(limit)]
    if limit_ms is not None and missed:
        raise GateMissed(f"the limit of {limit:g} ms is missed by {', '.join(missed)}")


def _reachable(host: str) -> str:
    """The address of a server on this machine that listens at `host`, as a URL has it: one that listens everywhere is at the loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _from_file(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--questions {path}: {error}") from error
    if not any(lines):
        raise UsageError(f"--questions {path}: no question in it; expected one a line")
    return [line for line in lines if line]


def _from_workspace(workspace: Workspace, domain: str | None, dataset: str | None) -> list[str]:
    from appliance.datasets.registry import Datasets
    from appliance.service import open_service

    if dataset is not None:
        sets = Datasets(workspace)
        return [pair.question for pair in sets.pairs(sets.get(dataset))]
    approved = [one.question for one in open_service(workspace).verified.all(domain) if not one.suspended]
    if not approved:
        raise UsageError("no question to ask: give --questions FILE or --dataset NAME, or approve answers with `appliance verified add`")
    return approved
