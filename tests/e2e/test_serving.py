"""The real server: its own process, the real index and embedding model, the official client."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server(appliance, handbook: Path, start: Start) -> Iterator[tuple[str, subprocess.Popen[str]]]:  # type: ignore[no-untyped-def]
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    process = start("serve", "--port", 0)
    assert process.stderr is not None
    address = ""
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            address = found[0]
            break
    assert address
    try:
        yield address, process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_official_client_and_the_page(appliance, server: tuple[str, subprocess.Popen[str]], handbook: Path) -> None:  # type: ignore[no-untyped-def]
    address, process = server
    with httpx.Client(base_url=address, timeout=300) as http:
        for _ in range(600):
            if http.get("/readyz").status_code == 200:
                break
            time.sleep(0.5)
        ready = http.get("/readyz").json()
        assert http.get("/livez").status_code == 200, ready

        client = OpenAI(base_url=f"{address}/v1", api_key="unused", timeout=300)
        assert {"auto", "medical", "medical/quote"} <= {model.id for model in client.models.list()}
        reply = client.chat.completions.create(model="medical/quote", messages=[{"role": "user", "content": "探视时间是几点到几点？"}])
        assert "15:00至19:00" in (reply.choices[0].message.content or "")
        extra = reply.model_extra["appliance"]  # type: ignore[index]
        citation = extra["citations"][0]
        assert (handbook / citation["doc_id"]).read_text("utf-8")[citation["start"] : citation["end"]] == citation["quote"]

        stream = client.chat.completions.create(
            model="medical/rag", messages=[{"role": "user", "content": "When may visitors come?"}], max_tokens=12, stream=True
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip()
        assert chunks[-1].model_extra["appliance"]["decision"]["arm"] == "rag"  # type: ignore[index]

        answer = http.post("/v1/answer", json={"question": "When may visitors come?", "domain": "medical", "arm": "quote"}).json()
        assert "14:00 to 20:00" in answer["answer"] and answer["citations"]
        place = answer["citations"][0]
        shown = http.get(f"/v1/documents/medical/{place['doc_id']}", params={"start": place["start"], "end": place["end"]}).json()
        assert shown["quote"] == place["quote"]
        assert http.post("/v1/answer", json={"question": "x", "domain": "law"}).status_code == 404
        assert "appliance" in http.get("/").text.lower()
        assert "arm=" in http.get("/metrics").text

        # A new generation is noticed without a restart.
        (handbook / "visiting.md").write_text("# Visiting rules\n\nVisitors may come from 09:00 to 11:00.\n", "utf-8")
        assert appliance("ingest", handbook, "--domain", "medical").code == 0
        answer = http.post("/v1/answer", json={"question": "When may visitors come?", "domain": "medical", "arm": "quote"}).json()
        assert "09:00 to 11:00" in answer["answer"]

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
