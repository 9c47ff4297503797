"""`appliance eval judge`: an engine as judge of a run's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import sqlalchemy as sa

from appliance.engines.base import EngineDown, EngineError, Message, Sampling
from appliance.errors import UsageError
from appliance.evaluation.patience import while_busy
from appliance.evaluation.runs import check_finished
from appliance.experts.tasks import ExpertTasks
from appliance.service import Service
from appliance.workspace import Workspace
from eval.judge import NoReply, judge, judgements_of, summary
from eval.run import RunResult, load

# Enough for the JSON asked for, and some talk before it; a model that reasons first needs more.
MAX_TOKENS = 200


async def judged(
    service: Service,
    run: sa.Row[Any],
    engine: str,
    *,
    arms: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    limit: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Have `engine` judge the answers of a finished run; returns the JSON of `eval judge --json`. What it has judged before is kept.

    An answer that the engine cannot judge (too long, filtered, still busy after some waiting) has failed, and the others go on. Raises
    UsageError (unknown engine, unfinished run), EvalError (unknown arm), EngineDown where the engine itself fails, Locked while somebody
    else judges the run.
    """
    config = service.workspace.config
    if engine not in config.engines:
        raise UsageError(f"unknown engine {engine!r}; known: {', '.join(sorted(config.engines))}, or add [engines.{engine}]")
    check_finished(run)
    settings = config.engines[engine]
    model = await service.answering.engines.named(engine)

    async def chat(messages: Sequence[tuple[str, str]]) -> str:
        asked = [Message(role=role, content=content) for role, content in messages]  # type: ignore[typeddict-item]

        async def reply() -> str:
            async with aclosing(model.chat(asked, None, Sampling(max_tokens=max_tokens))) as deltas:
                return "".join([delta.text async for delta in deltas])

        try:
            return await while_busy(reply)
        except EngineDown:
            raise
        except EngineError as error:
            raise NoReply(str(error)) from error

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


def judges_of(workspace: Workspace, run_id: str, result: RunResult) -> list[dict[str, Any]]:
    """What each judge has said of a run so far, as `judged` returns it."""
    experts = [each for each, _ in ExpertTasks(workspace.db).judged(run_id)]
    shared = {"run_id": run_id, "experts": len({each.expert for each in experts})}
    return [{**shared, "judge": name, **summary(found, experts)} for name, found in judgements_of(result).items()]
