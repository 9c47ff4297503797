"""What of a request reaches the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from gateway_fake import FakeAnswering
from gateway_server import Served

from appliance.engines.base import EngineError
from appliance.gateway.run import _actor, _facts
from appliance.gateway.trace import Trace


def test_answers_are_noted_with_key_and_outcome_and_no_text(start: Callable[..., Served]) -> None:
    noted: list[tuple[Trace, int]] = []
    fake = FakeAnswering()
    served = start(fake, audit=lambda trace, status: noted.append((trace, status)))
    question = {"question": "成人每天最多几克？", "domain": "medical"}
    with served.http() as http:
        assert http.post("/v1/answer", json=question, headers={"X-Request-ID": "r-1"}).status_code == 200
        assert http.post("/v1/answer", json=question, headers={"Authorization": "Bearer apl_wrong"}).status_code == 401
        assert http.get("/v1/models").status_code == 200
        fake.fault, fake.fault_after = EngineError("gone"), 1
        body = {"model": "medical", "messages": [{"role": "user", "content": "几克？"}], "stream": True}
        assert "error" in http.post("/v1/chat/completions", json=body).text
    # The note follows the last byte.
    for _ in range(1000):
        if len(noted) == 2:
            break
        time.sleep(0.01)
    key = served.keys.list()[0].id
    assert [(_actor(trace), status) for trace, status in noted] == [(f"key:{key}", 200), (f"key:{key}", noted[1][1])]
    assert noted[1][1] >= 500
    facts = [_facts(trace) for trace, _ in noted]
    assert facts[0] == {
        "id": "a1b2",
        "arm": "rag",
        "domain": "medical",
        "generation": 7,
        "adapter": None,
        "documents": ["medical/药品/paracetamol.md"],
        "request": "r-1",
    }
    assert facts[1] == {"id": "a1b2", "arm": "rag", "domain": "medical", "request": noted[1][0].request_id}


def test_who_is_not_known_is_nobody(served: Served) -> None:
    assert _actor(Trace()) == "nobody"
    with httpx.Client(base_url=served.url) as http:
        assert http.get("/metrics").status_code == 200
