"""`appliance doctor`: what this machine and this workspace can do, each finding with a remedy."""

from __future__ import annotations

import asyncio
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from appliance.errors import ApplianceError
from appliance.service import Service

State = Literal["ok", "warning", "failed"]
_MEMORY = 4 * 1024**3
_DISK = 5 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `remedy` says what to do when it is not ok."""

    check: str
    state: State
    detail: str
    remedy: str = ""


def machine() -> Iterator[Finding]:
    """Python, memory, disk, CPU and GPU."""
    import psutil

    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "failed", version, "install Python 3.11 or newer")
    memory = psutil.virtual_memory()
    yield _enough("memory", memory.available, _MEMORY, "close other programs, or use a smaller model")
    yield _enough(
        "disk", shutil.disk_usage(Path.home()).free, _DISK, "free space in the home folder, or set APPLIANCE_MODELS to another disk"
    )
    yield _cpu()
    yield _gpu()


def workspace(service: Service) -> Iterator[Finding]:
    """Models, database, index and engines of one workspace."""
    config = service.workspace.config
    references = [config.models.embedding, *dict.fromkeys(e.base for e in config.engines.values() if e.has_base)]
    for reference in references:
        yield _try(f"model {reference}", partial(_model, service, reference), f"appliance model pull {reference}")
    yield _try("database", lambda: f"{len(service.workspace.domains())} domains", "restore appliance.db from a backup")
    yield _try("index", lambda: _index(service), "appliance index rebuild")
    for name in config.engines:
        yield _try(f"engine {name}", partial(_engine, service, name), f"check [engines.{name}] in appliance.toml")


def _enough(check: str, have: int, want: int, remedy: str) -> Finding:
    gib = 1024**3
    return Finding(
        check, "ok" if have >= want else "warning", f"{have / gib:.1f} GiB free, {want / gib:.0f} wanted", "" if have >= want else remedy
    )


def _cpu() -> Finding:
    import torch

    from appliance.engines.layers import multiplies_bfloat16
    from retrieval.threads import cores

    capability = torch.backends.cpu.get_cpu_capability()
    good = capability not in ("DEFAULT", "default")
    return Finding(
        "cpu",
        "ok" if good else "warning",
        f"{capability}{', multiplies bfloat16' if multiplies_bfloat16() else ''}, {cores()} threads",
        "" if good else "a CPU with AVX2 is several times faster",
    )


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "ok", "none: everything runs on the CPU", "")
    return Finding("gpu", "ok", torch.cuda.get_device_name(0))


def _try(check: str, look: Callable[[], str], remedy: str) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from retrieval.types import RetrievalError

    try:
        return Finding(check, "ok", look())
    except (ApplianceError, RetrievalError, SQLAlchemyError, OSError) as error:
        return Finding(check, "failed", str(error), remedy)


def _model(service: Service, reference: str) -> str:
    problems = service.models.verify(service.workspace.model(reference))
    if problems:
        raise ApplianceError("; ".join(problems))
    return str(service.models.path(service.workspace.model(reference)))


def _index(service: Service) -> str:
    problems = service.knowledge.verify()
    if problems:
        raise ApplianceError("; ".join(problems))
    state = service.knowledge.documents.status()
    return ", ".join(f"{value} {key}" for key, value in state.items() if key in ("documents", "chunks")) or "empty"


def _engine(service: Service, name: str) -> str:
    settings = service.workspace.config.engines[name]
    if settings.kind == "vllm" and not settings.addresses:
        from appliance.engines.vllm_started import launch

        # Starting it takes a minute; whether there is something to start does not.
        return f"vllm, started by {launch(service.workspace, service.models, name, settings).command[0]}"

    async def look() -> str:
        engine = await service.engines.named(name)
        state = await engine.health()
        await service.engines.close()
        if not state.ok:
            raise ApplianceError(state.detail)
        return f"{settings.kind}, answers in {', '.join(sorted(engine.languages))}"

    return asyncio.run(look())
