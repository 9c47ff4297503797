"""The log of a running gateway: every line is one JSON object, and tells which request it is about."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from gateway_fake import FakeAnswering
from gateway_server import Served

from appliance.engines.base import EngineError
from appliance.logs import JsonLines

Log = Callable[[int], list[dict[str, Any]]]


@pytest.fixture
def log() -> Iterator[Log]:
    """The lines of requests whose id begins with `r`, once there are so many: an access line is written after the response's last byte."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("appliance", "uvicorn.error")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def lines(count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _ in range(200):
            found = [line for line in map(json.loads, out.getvalue().split("\n")[:-1]) if line.get("request", "").startswith("r")]
            if len(found) >= count:
                break
            time.sleep(0.05)
        return found

    yield lines
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def ask(served: Served, id: str, question: str = "a") -> httpx.Response:
    with served.http() as http:
        return http.post("/v1/answer", json={"question": question}, headers={"X-Request-ID": id})


def test_the_log_tells_what_happened_without_any_text(served: Served, log: Log) -> None:
    ask(served, "r1", "机密问题")
    with served.http() as http:
        http.get("/nothing%0a{forged}%C2%9B%E2%80%A8", headers={"X-Request-ID": "r2"})
    first, second = log(2)
    assert {"at", "level", "logger", "ms"} <= first.keys() and first["message"] == "request" and first["logger"] == "appliance.access"
    assert (first["request"], first["arm"], first["status"], first["level"]) == ("r1", "rag", 200, "INFO") and len(first["caller"]) == 16
    assert second["path"] == "/nothing\n{forged}\x9b\u2028"
    assert "机密问题" not in repr([first, second]) and served.key not in repr([first, second])


def test_what_fails_is_logged_with_the_request_it_failed_in(start: Callable[..., Served], log: Log) -> None:
    ask(start(FakeAnswering(fault=EngineError("no model"))), "r1")
    failed, access = log(2)
    assert failed["level"] == "ERROR" and "no model" in failed["message"] and "Traceback" in failed["traceback"]
    assert failed["request"] == access["request"] == "r1" and access["status"] == 503


def test_so_is_a_crash(start: Callable[..., Served], log: Log) -> None:
    assert ask(start(FakeAnswering(fault=ZeroDivisionError("boom"), fault_after=-1)), "r1").status_code == 500
    lines = log(2)
    crash = next(line for line in lines if line["logger"] == "uvicorn.error")
    assert "boom" in crash["traceback"] and [line["status"] for line in lines if line["logger"] == "appliance.access"] == [500]


def test_lines_hold_nothing_that_a_terminal_obeys() -> None:
    record = logging.LogRecord("appliance.x", logging.WARNING, "x.py", 1, "挂号 %s", ("\x1b[31m\x9b\u2028\n",), None)
    line = JsonLines().format(record)
    assert "挂号" in line and line.isprintable() and json.loads(line)["message"] == "挂号 \x1b[31m\x9b\u2028\n"


def test_libraries_and_warnings_are_in_it() -> None:
    code = (
        "import logging, warnings; from appliance.logs import log_as_json; log_as_json();"
        "logging.getLogger('some.library').error('broken'); logging.getLogger('appliance.engines').info('ours'); warnings.warn('old')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.splitlines()
    assert [(line["logger"], line["level"]) for line in map(json.loads, said)] == [
        ("some.library", "ERROR"),
        ("appliance.engines", "INFO"),
        ("py.warnings", "WARNING"),
    ]
