"""`appliance serve` over a stand-in for vLLM's server: what goes on while it starts, the alias that moves, the end of both."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from appliance.workspace import Workspace
from tests.appliance.fake_vllm import write_python

sys.path.append(str(Path(__file__).parents[1] / "appliance"))
from gate_support import Bench, right

from tests.waiting import until

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]
QUESTION = "探视时间是几点到几点？"


@pytest.fixture
def served(appliance, handbook: Path, tmp_path: Path, start: Start) -> Iterator[tuple[Bench, str, subprocess.Popen[str]]]:  # type: ignore[no-untyped-def]
    from appliance.knowledge.knowledge import Knowledge
    from appliance.models.store import ModelStore

    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    with Workspace(tmp_path / "workspace") as workspace:
        bench = Bench(Knowledge(workspace, ModelStore.default()), tmp_path)
        (tmp_path / "base" / "broken").touch()
        workspace.save_setting("engines.default.kind", "vllm")
        workspace.save_setting("engines.default.python", str(write_python(tmp_path / "python")))
        process = start("serve", "--port", 0)
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield bench, address, process
        finally:
            process.kill()
            process.wait()


def test_it_serves_while_the_server_starts_follows_the_alias_and_leaves_nothing_behind(
    served: tuple[Bench, str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    bench, address, process = served
    info = bench.dataset("pairs", [{"id": "q1", "question": "Who keeps the key?", "answer": "The nurse.", "split": "train"}])
    one, two = (bench.adapter(info, right, number) for number in (1, 2))
    with httpx.Client(base_url=address, timeout=60) as http:

        def ask(arm: str) -> dict[str, Any]:
            return dict(http.post("/v1/answer", json={"question": QUESTION, "domain": "medical", "arm": arm}).json())

        # vLLM does not come up: what needs no engine answers, what needs it says so.
        assert "15:00至19:00" in ask("quote")["answer"]
        ready = http.get("/readyz")
        assert ready.status_code == 200 and ready.json()["degraded"] == ["engine"]
        assert http.post("/v1/answer", json={"question": QUESTION, "domain": "medical", "arm": "base"}).status_code == 503
        (tmp_path / "base" / "broken").unlink()
        until(lambda: "answer" in ask("base"))
        assert QUESTION in ask("base")["answer"]

        bench.registry.promote(one.name)
        until(lambda: ask("finetuned").get("answer", "").startswith(f"{one.name}: "))
        bench.registry.promote(two.name)
        assert until(lambda: ask("finetuned"))["answer"].startswith(f"{two.name}: ")

        # Killed, it is back by itself, with the adapter.
        program = [
            other for other in psutil.Process(process.pid).children(recursive=True) if "vllm.entrypoints" in " ".join(other.cmdline())
        ]
        program[-1].kill()
        assert until(lambda: ask("finetuned").get("answer", "")).startswith(f"{two.name}: ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    base = str(tmp_path / "base")
    until(lambda: not [other for other in psutil.process_iter(["cmdline"]) if base in json.dumps(other.info["cmdline"] or [])])
