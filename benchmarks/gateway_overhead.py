"""What the gateway adds to the engine behind it: the same prompts to the engine and, through the gateway, to the arm `base`.

    python benchmarks/gateway_overhead.py [--quick] [--streams 50] --json benchmarks/results/gateway_overhead.json

The engine is a stand-in that sends its tokens at fixed times (first token after 50 ms, then one each 20 ms), so that every millisecond
beyond them was added on the way. Both ways are measured in turns, in one run, with the same client. A token's lag is its arrival after
the time it was due; what the gateway added is the difference of the two ways' percentiles. The gateway is `appliance serve` in its own
process, with keys, metrics, audit log and feedback as they come. Then the engine sends as fast as it can: that throughput is reported,
and no goal. At the end both ways lead to vLLM itself with the small model, 8 answers at once (`--no-vllm` leaves it out): reported, and no
goal either, since that server's own times vary by more than the gateway adds.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import engines
import harness
import numpy as np
import psutil
from multi_lora import vllm

from appliance import prompts
from appliance.admin.keys import Keys
from appliance.engines.base import Engine, Message
from appliance.engines.openai import OpenAIEngine
from appliance.models.store import ModelStore
from appliance.workspace import Workspace

FIRST_MS, TOKEN_MS, TOKENS = 50.0, 20.0, 50
# At once, and the longest, of the answers that vLLM gives.
ENGINE_STREAMS, ENGINE_TOKENS = 8, 32
DOMAIN = "bench"
QUESTIONS = ("What does a visit to a specialist cost?", "When may visitors come to the ward?", "How long is a prescription valid?")


@dataclass(frozen=True, slots=True)
class Way:
    """One of the two ways to ask: where, with which model name and headers."""

    name: str
    url: str
    model: str
    headers: str = ""

    def request(self, question: str) -> bytes:
        host, port = self.url.removeprefix("http://").split(":")
        messages = [{"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "stream": True, "max_tokens": TOKENS}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n{self.headers}"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def ask(way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: str) -> list[float]:
    """Seconds from the request to each token. Raises RuntimeError unless every token came."""
    started = time.perf_counter()
    writer.write(way.request(question))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        body = await reader.read(1000)
        raise RuntimeError(f"{way.name} answers {head.splitlines()[0].decode()}: {body.decode(errors='replace')}")
    arrivals: list[float] = []
    done = False
    while (size := int(await reader.readline(), 16)) > 0:
        data = await reader.readexactly(size + 2)
        arrived = time.perf_counter() - started
        # One event may hold several: who sends them late may well send them together.
        arrivals += [arrived] * b"".join(re.findall(rb'"content": ?"([^"]*)"', data)).count(b"token")
        done = done or b"[DONE]" in data
    await reader.readline()
    if not done or len(arrivals) != TOKENS:
        raise RuntimeError(f"{way.name} sent {len(arrivals)} of {TOKENS} tokens" + ("" if done else " and no [DONE]"))
    return arrivals


async def measure(way: Way, streams: int, answers: int, spread: float) -> tuple[list[list[float]], float]:
    """Arrival times of every answer, and the seconds it took; the streams begin spread over `spread` seconds."""

    async def stream(number: int) -> list[list[float]]:
        host, port = way.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await asyncio.sleep(spread * number / streams)
        found = [await ask(way, reader, writer, QUESTIONS[(number + turn) % len(QUESTIONS)]) for turn in range(answers)]
        writer.close()
        return found

    started = time.perf_counter()
    found = await asyncio.gather(*(stream(number) for number in range(streams)))
    return [arrivals for stream_found in found for arrivals in stream_found], time.perf_counter() - started


@contextmanager
def engine(first: float, between: float) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("paced_engine.py")), str(first), str(between), str(TOKENS)]
    with _process(command, subprocess.PIPE, None) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def workspace_for(folder: Path, flags: Mapping[str, str]) -> Iterator[tuple[Workspace, str]]:
    """A workspace with one domain, and a key for it."""
    Workspace.create(folder / "workspace").close()
    with Workspace(folder / "workspace", flags) as workspace:
        workspace.create_domain(DOMAIN)
        yield workspace, Keys(workspace.db).create("benchmark")[1]


@contextmanager
def gateway(workspace: Workspace, flags: Mapping[str, str]) -> Iterator[str]:
    """Address of a gateway, once it has loaded its models and rests."""
    # Every answer is to come from the engine.
    flags = {"server.require_keys": "true", "answering.cache_mb": "0", **flags}
    settings = [part for name, value in flags.items() for part in ("--set", f"{name}={value}")]
    program = [sys.executable, "-c", "from appliance.cli.main import main; main()", *settings, "--workspace", str(workspace.root), "serve"]
    log = workspace.root.parent / "log"
    with log.open("wb") as errors, _process([*program, "--port", "0"], None, errors) as process:
        address = None
        while address is None:
            if process.poll() is not None:
                raise RuntimeError(log.read_text("utf-8"))
            address = re.search(r"http://127\.0\.0\.1:\d+", log.read_text("utf-8"))
            time.sleep(0.2)
        _settled(process)
        yield address[0]


def on_stand_in(
    first: float, between: float, streams: int, turns: int, answers: int, spread: float
) -> dict[str, tuple[list[list[float]], float]]:
    """Both ways to an engine that sends at fixed times."""
    with tempfile.TemporaryDirectory(prefix="gateway-overhead-") as folder, engine(first, between) as url:
        flags = {
            "engines.default.kind": "openai",
            "engines.default.url": f"{url}/v1",
            "engines.default.model": "paced",
            "gateway.max_running": str(streams),
        }
        with workspace_for(Path(folder), flags) as (workspace, key), gateway(workspace, flags) as address:
            ways = [Way("engine", url, "paced"), Way("gateway", address, f"{DOMAIN}/base", f"Authorization: Bearer {key}\r\n")]
            return asyncio.run(compare(ways, streams, turns, answers, spread))


async def on_vllm(turns: int) -> list[dict[str, Any]]:
    """Both ways to vLLM, with the engine's own client; a row each. Raises RuntimeError where the two were not asked the same."""
    flags = {"engines.default.kind": "vllm", "engines.default.kv_cache_gib": "1"}
    with tempfile.TemporaryDirectory(prefix="gateway-overhead-") as folder, workspace_for(Path(folder), flags) as (workspace, key):
        # The gateway of the same workspace finds this server and uses it.
        async with vllm(workspace, ModelStore.default(), bare=False) as direct:
            with gateway(workspace, flags) as address:
                through = OpenAIEngine("gateway", f"{address}/v1", f"{DOMAIN}/base", key, ["en"])
                # It composes the prompt itself.
                ways = {
                    "vllm": (direct, partial(prompts.direct, DOMAIN, "en")),
                    "vllm through the gateway": (through, lambda question: [Message(role="user", content=question)]),
                }
                found = await in_turns(ways, turns)
                await through.close()
    if len({row["prompt_tokens"] for row in found}) > 1:
        raise RuntimeError(f"the two ways were not asked the same: {found}")
    return found


async def in_turns(ways: Mapping[str, tuple[Engine, Callable[[str], list[Message]]]], turns: int) -> list[dict[str, Any]]:
    """Each way, an engine and its prompt for a question, with `ENGINE_STREAMS` answers at once; the first round is not counted."""
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        asked = [f"{QUESTIONS[number % len(QUESTIONS)]} Case {turn * ENGINE_STREAMS + number}." for number in range(ENGINE_STREAMS)]
        for name in ways if turn % 2 else reversed(ways):
            way, compose = ways[name]
            made = await engines.measure(way, None, [compose(question) for question in asked], ENGINE_STREAMS, ENGINE_TOKENS)
            kept[name] += [made] if turn else []
    return [
        {
            "way": name,
            "answers": ENGINE_STREAMS * turns,
            "tokens_a_s": round(median(made["tokens_a_s"] for made in rounds), 1),
            "first_p50_ms": round(median(made["first_token_ms"] for made in rounds), 1),
            "prompt_tokens": sum(made["read"] for made in rounds),
        }
        for name, rounds in kept.items()
    ]


def _settled(process: subprocess.Popen[str]) -> None:
    """Wait until the process has loaded its models and rests."""
    watched = psutil.Process(process.pid)
    quiet = 0
    while quiet < 3:
        quiet = quiet + 1 if watched.cpu_percent(interval=0.5) < 10 else 0


@contextmanager
def _process(command: Sequence[str], stdout: Any, stderr: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def lags(answers: Sequence[Sequence[float]]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Milliseconds by which the first token, each token and the last one came after they were due."""
    due = np.array([FIRST_MS + number * TOKEN_MS for number in range(TOKENS)])
    late = np.array(answers) * 1000 - due
    return {"first": late[:, 0], "token": late.ravel(), "last": late[:, -1]}


def row(name: str, answers: Sequence[Sequence[float]], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"way": name, "answers": len(answers), "tokens_a_s": round(len(answers) * TOKENS / seconds, 1)}
    for what, late in lags(answers).items():
        found |= {f"{what}_p50_ms": round(float(np.percentile(late, 50)), 2), f"{what}_p99_ms": round(float(np.percentile(late, 99)), 2)}
    return found


async def compare(ways: Sequence[Way], streams: int, turns: int, answers: int, spread: float) -> dict[str, tuple[list[list[float]], float]]:
    """Both ways in turns, after one answer a stream that is not counted."""
    kept: dict[str, tuple[list[list[float]], float]] = {way.name: ([], 0.0) for way in ways}
    for way in ways:
        await measure(way, streams, 1, spread)
    for turn in range(turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            found, seconds = await measure(way, streams, answers, spread)
            kept[way.name] = (kept[way.name][0] + found, kept[way.name][1] + seconds)
    return kept


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--no-vllm", action="store_true", help="the stand-in alone")
    options = parser.parse_args()
    turns, answers = (2, 2) if options.quick else (6, 5)
    period = (FIRST_MS + TOKEN_MS * (TOKENS - 1)) / 1000
    rows = [row(name, *found) for name, found in on_stand_in(FIRST_MS, TOKEN_MS, options.streams, turns, answers, period).items()]
    unpaced = on_stand_in(0, 0, options.streams, 1, answers, 0)
    harness.print_table("paced: lag in ms behind the engine's schedule", rows)
    fast = [{"way": f"{name}, unpaced", "answers": len(f), "tokens_a_s": round(len(f) * TOKENS / s, 1)} for name, (f, s) in unpaced.items()]
    harness.print_table("unpaced", fast)
    behind = [] if options.no_vllm else asyncio.run(on_vllm(2 if options.quick else 6))
    harness.print_table("vLLM itself", behind)
    direct, through = rows
    added = {p: max(through[f"{what}_{p}_ms"] - direct[f"{what}_{p}_ms"] for what in ("first", "token", "last")) for p in ("p50", "p99")}
    claims = [
        harness.at_most("gateway_added_p50_ms", added["p50"], 5, "ms"),
        harness.at_most("gateway_added_p99_ms", added["p99"], 25, "ms"),
        harness.at_least("gateway_throughput_ratio", through["tokens_a_s"] / direct["tokens_a_s"], 0.97, "ratio"),
    ]
    settings = {
        "quick": options.quick,
        "streams": options.streams,
        "answers_a_stream": turns * answers,
        "first_ms": FIRST_MS,
        "token_ms": TOKEN_MS,
        "tokens": TOKENS,
        "added": "the largest of first token, each token and last token",
    }
    harness.finish(options.json, settings, [*rows, *fast, *behind], claims)


if __name__ == "__main__":
    main()
