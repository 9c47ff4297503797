"""What the first questions of a process ask for at once: the engine's model, the embedding model, the tokenizer, an adapter's lint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_engines_local import base, make_adapter

from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_EMBEDDING

__all__ = ["base"]

# Each begins with its own imports of transformers, whose classes are imported when they are first named.
_TOGETHER = """
import asyncio
import sys
from pathlib import Path
from appliance.engines.build import lint
from appliance.engines.local import LocalEngine
from appliance.models.store import ModelStore
from appliance.workspace import Workspace
from retrieval.embed import SentenceTransformerEmbedder

root, base, adapter, embedding = map(Path, sys.argv[1:])

async def main():
    workspace = Workspace.create(root)
    settings = workspace.config.engines["default"].model_copy(update={"base": f"path:{base}"})
    engine = LocalEngine("local", base, "x", ["en"])
    embedder = SentenceTransformerEmbedder(embedding, "x")
    await asyncio.gather(
        engine.start(),
        asyncio.to_thread(embedder.encode_queries, ["When may visitors come?"]),
        *(asyncio.to_thread(lint, settings, ModelStore.default(), workspace, adapter) for _ in range(3)),
    )
    await engine.close()
    workspace.close()

asyncio.run(main())
"""


@pytest.mark.slow
def test_the_first_questions_of_a_process_load_everything_at_once(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "a", "a@1", 1).path
    embedding = ModelStore.default().path(DEFAULT_EMBEDDING)
    for number in range(3):
        command = [sys.executable, "-c", _TOGETHER, *map(str, (tmp_path / f"w{number}", base, adapter, embedding))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
