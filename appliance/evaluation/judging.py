"""`appliance eval judge`: an engine as judge of a run's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import sqlalchemy as sa

from appliance.engines.base import Message, Sampling
from appliance.errors import UsageError
from appliance.experts.tasks import ExpertTasks
from appliance.service import Service
from eval.judge import judge, summary
from eval.run import load

# Enough for the JSON asked for, and some talk before it.
_SAMPLING = Sampling(max_tokens=200)


async def judged(
    service: Service,
    run: sa.Row[Any],
    engine: str,
    *,
    arms: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Have `engine` judge the answers of a finished run; returns the JSON of `eval judge --json`. What it has judged before is kept.

    Raises UsageError (unknown engine, unfinished run), EvalError (unknown arm), EngineError, Locked while somebody else judges the run.
    """
    config = service.workspace.config
    if engine not in config.engines:
        raise UsageError(f"unknown engine {engine!r}; known: {', '.join(sorted(config.engines))}, or add [engines.{engine}]")
    if run.summary is None:
        raise UsageError(f"run {run.id} is not finished; go on with: appliance eval run --resume {run.id}")
    settings = config.engines[engine]
    model = await service.answering.engines.named(engine)

    async def chat(messages: Sequence[tuple[str, str]]) -> str:
        asked = [Message(role=role, content=content) for role, content in messages]  # type: ignore[typeddict-item]
        async with aclosing(model.chat(asked, None, _SAMPLING)) as deltas:
            return "".join([delta.text async for delta in deltas])

    identity = f"{settings.kind} {settings.url} {settings.model} {settings.base} {model.base_hash}"
    with service.workspace.db.lock(f"judge:{run.id}") as lock:

        def beat(done: int, total: int) -> None:
            lock.beat()
            if progress is not None:
                progress(done, total)

        found = await judge(
            load(service.workspace.root / run.path),
            chat,
            engine,
            identity,
            arms=arms,
            pairs=pairs,
            limit=limit,
            concurrency=settings.max_batch,
            progress=beat,
        )
    experts = [each for each, _ in ExpertTasks(service.workspace.db).judged(run.id)]
    return {"run_id": run.id, "judge": engine, "experts": len({each.expert for each in experts}), **summary(found, experts)}
