"""A running appliance administered over HTTP: documents and data in, a version trained, tried, and rolled back on bad feedback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from appliance.adapters.registry import Registry
from appliance.workspace import Workspace
from finetune.lint import CONFIG
from finetune.version import FACTS, version_hash
from tests.waiting import until

sys.path.append(str(Path(__file__).parents[1] / "finetune"))
from finetune_model import TOPICS, build_model

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]
TINY = {"epochs": 1, "rank": 2, "batch_size": 8}


@pytest.fixture
def admin(appliance, tmp_path: Path, start: Start) -> Iterator[httpx.Client]:  # type: ignore[no-untyped-def]
    """A server over a tiny random model with administration on a port of its own; the client has a key for everything."""
    config = tmp_path / "workspace" / "appliance.toml"
    base = build_model(tmp_path / "base", hidden=32)
    lines = f'[engines.default]\nbase = "path:{base}"\nlanguages = ["en", "zh"]\n'
    text = config.read_text("utf-8").replace("[engines.default]\n", lines).replace("[server]\n", "[server]\nadmin_port = 0\n")
    # A random model rarely ends its answers by itself.
    text = text.replace("[answering]\n", "[answering]\nmax_tokens = 4\n")
    config.write_text(text + "\n[domains.bank.canary]\nmin_feedback = 5\n", "utf-8")
    key = appliance("key", "create", "all", "--scope", "admin", "--scope", "chat", "--json").json["key"]
    process = start("serve", "--port", 0, "--host", "127.0.0.1")
    assert process.stderr is not None
    found: list[str] = []
    for line in process.stderr:
        found += re.findall(r"(?:serving .* at|administration at) (http://127\.0\.0\.1:\d+)", line)
        if len(found) == 2:
            break
    assert len(found) == 2, "the server did not start"
    # Its log fills the pipe otherwise, and a server whose log nobody reads stands still.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with httpx.Client(base_url=found[1], headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        assert httpx.get(f"{found[0]}/v1/admin/jobs", headers=client.headers).status_code == 404
        try:
            yield client
        finally:
            process.terminate()
            process.wait(90)
            process.communicate()


def ended(admin: httpx.Client, queued: httpx.Response) -> dict[str, Any]:
    """The job once it has ended, as its events tell."""
    assert queued.status_code == 202, queued.text
    event = ""
    with admin.stream("GET", f"/v1/admin/jobs/{queued.json()['id']}/events", timeout=600) as stream:
        for line in stream.iter_lines():
            event = line.removeprefix("event: ") if line.startswith("event: ") else event
            if line.startswith("data: ") and event == "end":
                job: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return job
    raise AssertionError("the events ended before the job did")


def sent(admin: httpx.Client, name: str, content: str, purpose: str) -> str:
    made = admin.post("/v1/admin/uploads", params={"name": name, "purpose": purpose}, content=content.encode())
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def ask(admin: httpx.Client, question: str, arm: str) -> dict[str, Any]:
    answer = admin.post("/v1/answer", json={"question": question, "domain": "bank", "arm": arm})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def kill_worker(admin: httpx.Client, job: str) -> None:
    """Kill the worker while it is at a job."""
    until(lambda: admin.get(f"/v1/admin/jobs/{job}").json()["state"] == "running")
    [worker] = [one for one in psutil.Process().children(recursive=True) if "worker" in one.cmdline() and "--parent" in one.cmdline()]
    worker.kill()


def live_beside_another(root: Path, name: str) -> str:
    """Make the version live, and return a second one, made of it by other scaling: training it would take longer than all the rest."""
    with Workspace(root) as workspace:
        registry = Registry(workspace)
        version = registry.get(name)
        folder = shutil.copytree(version.path, version.path.with_name("copy"))
        config, facts = (json.loads((folder / file).read_text("utf-8")) for file in (CONFIG, FACTS))
        (folder / CONFIG).write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] + 1}), "utf-8")
        digest = version_hash(folder)
        made = replace(version, name=f"bank@{digest[:8]}", sha256=digest, path=folder.with_name(f"bank@{digest[:8]}"))
        (folder / FACTS).write_text(json.dumps({**facts, "name": made.name, "sha256": digest}), "utf-8")
        folder.rename(made.path)
        registry.register(made, [])
        registry.promote(name)
    return made.name


def test_from_an_upload_over_a_killed_worker_to_a_rolled_back_trial(admin: httpx.Client, tmp_path: Path) -> None:
    document = sent(admin, "手册/探视.md", "# 探视规定\n\n探视时间为每日15:00至19:00。\n", "documents")
    queued = admin.post("/v1/admin/ingest", json={"uploads": [document], "domain": "bank"})
    kill_worker(admin, queued.json()["id"])
    job = ended(admin, queued)
    # Another worker took it up, and the file was still there.
    assert (job["state"], job["attempt"], job["result"]["added"]) == ("done", 2, 1), job
    assert "the worker ended while it ran" in job["log"] and admin.get("/v1/admin/uploads").json() == []
    quoted = ask(admin, "探视时间是几点到几点？", "quote")
    assert "15:00至19:00" in quoted["answer"] and quoted["citations"][0]["doc_id"] == "手册/探视.md"

    rows = [dict(zip(("question", "answer"), (text.format(n=n) for text in TOPICS[n % 2]), strict=True)) for n in range(16)]
    data = sent(admin, "fees.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "dataset")
    assert ended(admin, admin.post("/v1/admin/datasets", json={"upload": data, "domain": "bank"}))["state"] == "done"
    job = ended(admin, admin.post("/v1/admin/tune", json={"domain": "bank", "dataset": "fees", "settings": TINY}))
    assert job["state"] == "done", job
    live = job["result"]["version"]
    # Where its files are on the server is nobody's business.
    assert "path" not in job["result"]
    other = live_beside_another(tmp_path / "workspace", live)
    tried = ended(admin, admin.post("/v1/admin/canaries", json={"version": other, "share": 0.5, "why": "试一试"}))
    assert tried["state"] == "done", tried

    questions = [TOPICS[n % 2][0].format(n=n) for n in range(40)]
    given = {}
    # The gateway looks once a second which versions are on trial.
    others = [TOPICS[n % 2][0].format(n=n) for n in range(40, 60)]
    until(lambda: other in {ask(admin, question, "finetuned")["adapter"] for question in others})
    for question in questions:
        answer = ask(admin, question, "finetuned")
        given[question] = answer["adapter"]
        rating = "down" if answer["adapter"] == other else "up"
        assert admin.post("/v1/feedback", json={"id": answer["id"], "rating": rating}).status_code == 200
    assert set(given.values()) == {live, other}
    [canary] = until(lambda: [one for one in admin.get("/v1/admin/canaries").json() if one["state"] != "running"])
    assert canary["state"] == "rolled_back" and canary["why"].startswith("ratings down"), canary
    until(lambda: {ask(admin, question, "finetuned")["adapter"] for question in questions[:20]} == {live})
