"""How a running appliance answers under load: answers a second, first token, latency and errors per arm at rising concurrency."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError

if TYPE_CHECKING:
    import httpx

# Seconds after which an answer counts as failed.
_PATIENCE = 120.0
# Of all that is asked, the share that may fail within the limit: percentiles are of answers, so failures would make them look better.
_FAILING = 0.01
# Next to none, and yet a sampled answer without a seed is never kept (`appliance.answers.cache`).
_FRESH = 0.01


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer: milliseconds to its first text and to its end, the arm that gave it, or what went wrong.

    It is `cached` if it was generated for an earlier one.
    """

    first_ms: float = 0.0
    total_ms: float = 0.0
    error: str = ""
    cached: bool = False
    arm: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What one arm did at one concurrency; latencies in ms, `errors` by their code or kind."""

    arm: str
    concurrency: int
    answers: int
    qps: float
    first_p50: float
    first_p95: float
    p50: float
    p95: float
    p99: float
    cached: int
    errors: dict[str, int]

    def within(self, limit_ms: float) -> bool:
        """Whether 95 % of the answers came within `limit_ms`, and at most 1 % of what was asked failed."""
        failed = sum(self.errors.values())
        return self.answers > 0 and failed <= _FAILING * (self.answers + failed) and self.p95 <= limit_ms


async def measure(
    url: str,
    key: str | None,
    domain: str | None,
    arms: Sequence[str],
    questions: Sequence[str],
    concurrency: Sequence[int],
    seconds: float,
    max_tokens: int,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Load]:
    """Ask for `seconds` at each concurrency, arm by arm, with streamed chat completions; the questions go round.

    `arms` may hold ``auto``; without `domain` only that. One answer an arm is asked before and not counted. An answer by another arm than
    the one asked is an error. With `fresh` no answer comes from the gateway's cache. Raises ApplianceError where the address does not
    answer, refuses the key, or answers something else than an appliance does.
    """
    import httpx

    from appliance.engines.plain_http import mounts

    url = url.rstrip("/")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    loads: list[Load] = []
    async with httpx.AsyncClient(headers=headers, timeout=_PATIENCE, mounts=mounts(url, max(concurrency))) as client:
        await _check(client, url)
        for arm in arms:
            body = {
                "model": "auto" if domain is None else domain if arm == "auto" else f"{domain}/{arm}",
                "stream": True,
                "max_tokens": max_tokens,
                **({"temperature": _FRESH} if fresh else {}),
            }

            async def once(question: str, arm: str = arm, body: dict[str, Any] = body) -> Asked:
                asked = await ask(client, url, {**body, "messages": [{"role": "user", "content": question}]})
                # A quote that finds nothing to quote is a refusal, which is quicker.
                return asked if asked.error or arm in ("auto", asked.arm) else Asked(error=f"answered_by_{asked.arm}")

            await once(questions[0])
            for streams in concurrency:
                progress(f"{arm}: {streams} at once")
                started = time.perf_counter()
                found = await _loaded(once, itertools.cycle(questions), streams, started + seconds)
                loads.append(summary(arm, streams, found, time.perf_counter() - started))
    return loads


async def _check(client: httpx.AsyncClient, url: str) -> None:
    import httpx

    try:
        answer = await client.get(f"{url}/v1/models")
    except httpx.HTTPError as error:
        raise ApplianceError(f"{url} cannot be reached ({error}); start it with: appliance serve") from error
    if answer.status_code == 401:
        raise ApplianceError(f"{url} wants an API key: put one into the environment variable that --key-env names")
    if answer.status_code == 403:
        raise ApplianceError(f"{url} refuses this key ({_code(answer.content, 403)}): asking needs one with the scope chat")
    if answer.status_code != 200:
        raise ApplianceError(f"{url}/v1/models answers {answer.status_code}; is this an appliance?")


async def _loaded(once: Callable[[str], Any], questions: Iterator[str], streams: int, until: float) -> list[Asked]:
    async def stream() -> list[Asked]:
        found = []
        while time.perf_counter() < until:
            found.append(await once(next(questions)))
            if found[-1].error:
                # Who is turned away does not come back at once.
                await asyncio.sleep(0.05)
        return found

    return [asked for found in await asyncio.gather(*(stream() for _ in range(streams))) for asked in found]


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Asked:
    """Ask for one streamed chat completion and read it to its end."""
    import httpx

    started = time.perf_counter()
    first, cached, done, rest, arm = 0.0, False, False, b"", ""
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return Asked(error=_code(await answer.aread(), answer.status_code))
            async for piece in answer.aiter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    done = done or line == b"data: [DONE]"
                    if first and not line.startswith(b'data: {"error"') and b'"appliance":' not in line:
                        continue
                    chunk = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                    if "error" in chunk:
                        return Asked(error=_code(line[6:], 200))
                    if not first and any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                        first = time.perf_counter() - started
                    if told := chunk.get("appliance"):
                        cached, arm = bool(told["cached"]), str(told["arm"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Asked(error="broken off" if first else type(error).__name__)
    total = time.perf_counter() - started
    return Asked((first or total) * 1000, total * 1000, "" if done else "broken off", cached, arm)


def _code(body: bytes, status: int) -> str:
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or status)
    except (ValueError, KeyError, TypeError, AttributeError):
        return str(status)


def summary(arm: str, concurrency: int, found: Sequence[Asked], seconds: float) -> Load:
    """The figures of one load; percentiles are of answers that came to their end (nearest rank; 0 where none did)."""
    well = [asked for asked in found if not asked.error]
    first, total = sorted(asked.first_ms for asked in well), sorted(asked.total_ms for asked in well)
    return Load(
        arm=arm,
        concurrency=concurrency,
        answers=len(well),
        qps=len(well) / seconds,
        first_p50=_rank(first, 0.5),
        first_p95=_rank(first, 0.95),
        p50=_rank(total, 0.5),
        p95=_rank(total, 0.95),
        p99=_rank(total, 0.99),
        cached=sum(asked.cached for asked in well),
        errors=dict(Counter(asked.error for asked in found if asked.error)),
    )


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else 0.0


def plot(loads: Sequence[Load], limit_ms: float) -> bytes:
    """A PNG: answers a second and the 95th percentile of latency by concurrency, a line an arm; the limit is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for arm in dict.fromkeys(load.arm for load in loads):
        own = [load for load in loads if load.arm == arm]
        at = [load.concurrency for load in own]
        speed.plot(at, [load.qps for load in own], marker="o", label=arm)
        latency.plot(at, [load.p95 for load in own], marker="o", label=arm)
    latency.axhline(limit_ms, color="#333333", linewidth=0.8, linestyle="--")
    for axes, label in ((speed, "answers a second"), (latency, "p95 of latency, ms")):
        axes.set_xlabel("concurrent")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()
