from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import httpx
import pytest
from gateway_fake import QUOTE, SOURCE, FakeAnswering
from gateway_server import LIMITS, Served

from appliance.admin.keys import Keys
from appliance.engines.base import EngineError
from appliance.errors import ApplianceError, DatabaseFailed
from appliance.gateway.server import bind
from retrieval.types import RetrievalError

ROUTES = ["/v1/chat/completions", "/v1/answer"]


# --- /v1/answer and /v1/documents


def test_an_answer_in_the_appliances_own_form(served: Served) -> None:
    body = {
        "question": "儿童剂量是多少？",
        "history": [{"role": "user", "content": "扑热息痛"}],
        "domain": "medical",
        "arm": "quote",
        "constraints": {"must_cite": True},
    }
    answer = served.http().post("/v1/answer", json=body).json()
    assert answer["arm"] == "quote" and answer["answer"].startswith("成人每日") and answer["citations"][0]["quote"] == QUOTE
    assert {"id", "domain", "unsupported", "decision", "engine", "adapter", "generation", "timings_ms"} <= set(answer)
    request, _ = served.answering.asked[0]
    assert request.history[0]["content"] == "扑热息痛" and request.constraints.must_cite


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"question": "   "}, 400),
        ({"question": 3}, 400),
        ({"question": "a", "arm": "magic"}, 400),
        ({"question": "a", "surprise": 1}, 400),
        ({"question": "a", "history": [{"role": "system", "content": "x"}]}, 400),
        ({"question": "a", "domain": "烹饪"}, 404),
        (["question"], 400),
        ("question", 400),
        (None, 400),
    ],
)
def test_bad_questions(served: Served, body: Any, status: int) -> None:
    response = served.http().post("/v1/answer", json=body)
    assert response.status_code == status and response.json()["error"]["message"]


def test_a_citations_passage_in_context(served: Served) -> None:
    start = SOURCE.index(QUOTE)
    path = f"/v1/documents/medical/药品/paracetamol.md?start={start}&end={start + len(QUOTE)}"
    found = served.http().get(path).json()
    assert found["quote"] == QUOTE and found["before"] + found["quote"] + found["after"] == SOURCE
    _, outsider = served.keys.create("no labels")
    assert served.http(outsider).get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("medical/none.md?start=0&end=1", 404),
        ("medical/药品/paracetamol.md?start=0&end=99999", 404),
        ("medical/..%2f..%2fetc%2fpasswd?start=0&end=1", 404),
        ("medical/a%00b?start=0&end=1", 404),
        ("medical/%ff%fe?start=0&end=1", 404),
        ("烹饪/x?start=0&end=1", 404),
        ("medical/x?start=5&end=1", 400),
        ("medical/x?start=-1&end=1", 400),
        ("medical/x?start=0&end=99999999999999999999", 400),
        ("medical/x?start=a&end=1", 400),
        ("medical/x", 400),
    ],
)
def test_bad_passages(served: Served, path: str, status: int) -> None:
    response = served.http().get(f"/v1/documents/{path}")
    assert response.status_code == status and response.json()["error"]["message"]


# --- keys


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/answer", "/v1/documents/medical/x", "/v1/nothing"])
@pytest.mark.parametrize("key", ["", "apl_wrong", "sk-123"])
def test_without_a_good_key_nothing_below_v1_answers(served: Served, path: str, key: str) -> None:
    response = served.http(key).request("GET", path)
    error = response.json()["error"]
    assert response.status_code == 401 and error["code"] == "invalid_api_key" and response.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_at_once(served: Served) -> None:
    _, secret = served.keys.create("leaver")
    assert served.http(secret).get("/v1/models").status_code == 200
    served.keys.revoke("leaver")
    assert served.http(secret).get("/v1/models").status_code == 401


@pytest.mark.parametrize("domain", ["medical", "nowhere"])
def test_a_domain_outside_the_keys_scope_is_forbidden_whether_it_exists_or_not(served: Served, domain: str) -> None:
    _, secret = served.keys.create("law", domains=["legal"])
    http = served.http(secret)
    calls = [
        http.post("/v1/answer", json={"question": "a", "domain": domain}),
        http.post("/v1/chat/completions", json={"model": domain, "messages": [{"role": "user", "content": "a"}]}),
        http.post("/v1/chat/completions", json={"model": f"{domain}/rag", "messages": [{"role": "user", "content": "a"}]}),
        http.get(f"/v1/documents/{domain}/x?start=0&end=1"),
    ]
    assert [(call.status_code, call.json()["error"]["code"]) for call in calls] == [(403, "domain_not_allowed")] * 4
    assert http.post("/v1/answer", json={"question": "a"}).status_code == 200
    assert served.answering.asked[0][1].scope.domains == {"legal"}


def test_on_loopback_no_key_is_needed_but_a_wrong_one_is_still_wrong(start: Callable[..., Served]) -> None:
    served = start(auth_required=False)
    assert served.http("").get("/v1/models").status_code == 200
    assert served.http("EMPTY").get("/v1/models").status_code == 200
    assert served.http("apl_wrong").get("/v1/models").status_code == 401
    _, secret = served.keys.create("law", domains=["legal"])
    assert served.http(secret).post("/v1/answer", json={"question": "a", "domain": "medical"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403)],
)
def test_without_keys_only_loopback_names_are_served(start: Callable[..., Served], host: str, status: int) -> None:
    assert httpx.get(f"{start(auth_required=False).url}/readyz", headers={"Host": host}).status_code == status


# --- bodies


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 9000,
        b'{"question": ' + b"9" * 5000 + b"}",
        b'{"question": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}], "model": "\\ud800"}',
        b'{"question": "a", "history": [{"role": "user", "content": "\\ud83d"}], '
        b'"model": "auto", "messages": [{"role": "user", "content": "a \\ud83d"}]}',
        b'{"question": "a", "constraints": {"max_latency_ms": NaN}, "temperature": NaN}',
        b'{"question": "a", "constraints": {"max_latency_ms": 1e999}}',
    ],
)
def test_broken_bodies(served: Served, path: str, body: bytes) -> None:
    response = served.http().post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_sent_as_json(served: Served) -> None:
    response = served.http().post("/v1/answer", content=b'{"question": "a"}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 400 and "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [*ROUTES, "/v1/models", "/v1/nothing", "/"])
def test_a_body_declared_too_large_is_refused(served: Served, path: str) -> None:
    response = served.http().post(path, content=b"x" * (LIMITS.body_bytes + 1))
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_grows_too_large_is_refused_while_it_is_read(served: Served, path: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"question": "'
        for _ in range(LIMITS.body_bytes // 1000 + 2):
            yield "药".encode() * 400

    response = served.http().post(path, content=endless(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/nothing", 404), ("DELETE", "/v1/answer", 405)]
)
def test_unknown_routes_answer_in_the_same_shape(served: Served, method: str, path: str, status: int) -> None:
    response = served.http().request(method, path)
    assert response.status_code == status and response.json()["error"]["message"]


def test_odd_fields_never_crash(served: Served) -> None:
    odd = [
        None,
        True,
        -1,
        0,
        2**63,
        1e308,
        "",
        "a",
        "\0",
        "药" * 50,
        [],
        [[]],
        [None],
        {},
        {"a": 1},
        {"type": "text"},
        "medical/rag",
        "/",
        "//",
    ]
    good: dict[str, dict[str, Any]] = {
        ROUTES[0]: {
            "model": "auto",
            "messages": [{"role": "user", "content": "a"}],
            "appliance": {"domain": "medical", "arm": "rag", "must_cite": False, "max_latency_ms": 5},
            **dict.fromkeys(
                ["stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "tools", "response_format"]
            ),
        },
        ROUTES[1]: {
            "question": "a",
            "history": [{"role": "user", "content": "a"}],
            "domain": "medical",
            "arm": "auto",
            "constraints": {"must_cite": True},
        },
    }
    chance = random.Random(7)
    with served.http() as http:
        for path, body in good.items():
            for name in body:
                for value in odd:
                    response = http.post(path, json={**body, name: value})
                    assert response.status_code < 500, (path, name, value, response.text)
                    for inner in body[name] if isinstance(body[name], dict) else ():
                        nested = {**body, name: {**body[name], inner: value}}
                        assert http.post(path, json=nested).status_code < 500, (path, name, inner, value)
            for _ in range(40):
                mixed = {name: chance.choice(odd) if chance.random() < 0.3 else value for name, value in body.items()}
                assert http.post(path, json=mixed).status_code < 500, mixed


# --- operation


def test_liveness_and_readiness(served: Served) -> None:
    http = served.http("")
    assert http.get("/livez").json() == {"status": "alive"}
    ready = http.get("/readyz")
    assert ready.status_code == 200 and ready.json()["status"] == "ready" and ready.json()["degraded"] == []
    state = served.answering.health_state
    state["engines"]["local"]["ok"] = False
    degraded = http.get("/readyz")
    assert degraded.status_code == 200 and degraded.json()["degraded"] == ["engine"]
    assert degraded.json()["engines"] == {"local": {"ok": False}}
    state["index"]["ok"] = False
    assert (http.get("/readyz").status_code, http.get("/readyz").json()["status"]) == (503, "unavailable")
    state["index"]["ok"] = True
    served.app.state.lifecycle.draining = True
    assert (http.get("/readyz").status_code, http.get("/readyz").json()["status"]) == (503, "draining")
    served.app.state.lifecycle.draining = False
    assert served.answering.warmed


@pytest.mark.parametrize("kind", [ApplianceError, EngineError, RetrievalError])
def test_a_failed_warm_up_is_logged_and_the_rest_is_served(
    start: Callable[..., Served], caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    class Cold(FakeAnswering):
        async def warm(self) -> None:
            raise kind("the model is missing; run `appliance model pull`")

    served = start(Cold())
    assert served.http().get("/readyz").status_code == 200 and "the model is missing" in caplog.text


def test_the_time_of_what_failed_is_counted_apart(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(fault=EngineError("no model")))
    served.http().post("/v1/answer", json={"question": "a", "domain": "medical"})
    served.http().post("/v1/answer", json={"question": ""})
    text = served.http("").get("/metrics").text
    assert 'appliance_failed_seconds_count{arm="rag",domain="medical",route="/v1/answer",status="503"} 1.0' in text
    assert "appliance_stage_seconds_count" not in text and text.count("appliance_failed_seconds_count") == 1


def test_a_database_that_fails_before_the_key_is_known(start: Callable[..., Served], keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(token: str) -> None:
        raise DatabaseFailed("the database is locked")

    monkeypatch.setattr(keys, "identify", fail)
    served = start()
    refused = served.http().post("/v1/answer", json={"question": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable") and refused.headers["x-request-id"]
    assert 'appliance_requests_total{arm="",domain="",route="other",status="503"} 1.0' in served.http("").get("/metrics").text


def test_metrics_count_answers_and_name_nobody(start: Callable[..., Served]) -> None:
    served = start()
    served.http().post("/v1/answer", json={"question": "剂量", "domain": "medical"})
    text = served.http("").get("/metrics").text
    assert 'appliance_requests_total{arm="rag",domain="medical",route="/v1/answer",status="200"} 1.0' in text
    for stage in ("queue", "retrieval", "decision", "first_token", "total"):
        assert f'appliance_stage_seconds_count{{adapter="",arm="rag",domain="medical",stage="{stage}"}} 1.0' in text
    assert 'le="0.25",stage="total"} 1.0' in text and 'le="0.1",stage="total"} 0.0' in text
    assert 'appliance_tokens_total{domain="medical",kind="prompt"} 21.0' in text and "process_resident_memory_bytes" in text
    assert "剂量" not in text and "everything" not in text


def test_each_app_has_metrics_of_its_own(start: Callable[..., Served]) -> None:
    first, second = start(), start()
    first.http().post("/v1/answer", json={"question": "a"})
    assert "/v1/answer" not in second.http().get("/metrics").text


def test_unknown_paths_do_not_become_metric_labels(served: Served) -> None:
    served.http().get("/v1/some-private-words")
    served.http().get("/v1/documents/medical/some-private-words?start=0&end=1")
    text = served.http().get("/metrics").text
    assert "some-private-words" not in text and 'route="other",status="404"' in text


@pytest.mark.parametrize(("sent", "kept"), [("abc-1.2:3_X", True), ("x" * 129, False), ("a b", False), ("", False), ('"><script>', False)])
def test_request_ids_are_honoured_when_sane(served: Served, sent: str, kept: bool) -> None:
    echoed = served.http().get("/livez", headers={"X-Request-ID": sent}).headers["x-request-id"]
    assert (echoed == sent) is kept and re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", echoed)


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/livez", "/v1/models", "/nothing"])
def test_every_response_has_the_security_headers(served: Served, path: str) -> None:
    headers = served.http().get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


# --- the page


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.ids: set[str] = set()
        self.texts: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.addresses += [given[name] for name in ("src", "href", "action") if name in given]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag in ("style",) or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.ids |= {given["id"]} if "id" in given else set()
        self.texts |= {given["data-text"]} if "data-text" in given else set()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_only_what_is_served_here(served: Served, path: str) -> None:
    http = served.http("")
    response = http.get(path)
    page = Page()
    page.feed(response.text)
    assert response.status_code == 200 and page.inline == []
    assert page.addresses and all(address.startswith("/") and not address.startswith("//") for address in page.addresses)
    assert all(http.get(address).status_code == 200 for address in page.addresses)


def test_the_pages_files_name_no_other_server_and_make_no_markup() -> None:
    for file in (files("appliance.gateway") / "web").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name


def test_the_page_and_its_script_agree_and_both_languages_are_complete() -> None:
    web = files("appliance.gateway") / "web"
    page = Page()
    page.feed((web / "index.html").read_text(encoding="utf-8"))
    script = (web / "app.js").read_text(encoding="utf-8")
    words = (web / "words.js").read_text(encoding="utf-8")
    assert set(re.findall(r'\$\("([a-z-]+)"\)', script)) <= page.ids
    tables = [set(re.findall(r"^\s+(\w+): [\"{]", part, re.MULTILINE)) for part in words.split("const chinese")]
    assert tables[0] == tables[1]
    used = page.texts | set(re.findall(r"\bt\(\)\.(\w+)", script))
    assert used <= tables[0], used - tables[0]


def test_the_description_names_every_route_and_its_errors(served: Served) -> None:
    schema = served.http("").get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/answer", "/v1/models", "/v1/documents/{domain}/{id}", "/livez", "/readyz", "/metrics"} <= set(
        schema["paths"]
    )
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert {"400", "401", "403", "404", "413", "500", "503"} <= set(chat["responses"]) and "422" not in chat["responses"]
    assert chat["security"] == [{"HTTPBearer": []}]
    docs = served.http("").get("/docs").text
    assert all(path in docs for path in schema["paths"])


# --- the server


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ApplianceError, match="the port is in use"):
        bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_cannot_be_bound_is_a_clear_error(host: str, port: int) -> None:
    with pytest.raises(ApplianceError, match=re.escape(f"cannot listen on {host}:{port}: ")):
        bind(host, port)


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from gateway_fake import FakeAnswering, FakeEmbedding, passage
from appliance.settings import FeedbackConfig
from appliance.answers.feedback import Feedback
from appliance.gateway.app import create_app
from appliance.gateway.server import serve
from appliance.admin.keys import Keys
from appliance.logs import log_as_json
from appliance.store.database import Database

log_as_json()

class Slow(FakeAnswering):
    async def close(self):
        print("closed", flush=True)

database = Database("sqlite://")
answering = Slow(pieces=["药"] * 200, pause=0.005)
database.migrate()
parts = {"passage": passage, "embedding": FakeEmbedding, "feedback": Feedback(database, FeedbackConfig())}
app = create_app(answering, Keys(database), **parts, auth_required=False, version="0")
serve(app, "127.0.0.1", 0, grace_seconds=20, drain_seconds=float(sys.argv[2]), announce=lambda url: print(url, flush=True))
"""


def test_sigterm_finishes_open_streams_and_exits_with_0(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-c", SERVER, str(request.path.parent), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", url), process.stderr.read()
        body = {"model": "auto", "messages": [{"role": "user", "content": "慢"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as response:
            parts = response.iter_text()
            text = next(parts)
            process.terminate()
            text += "".join(parts)
        assert text.count("药") >= 200 and text.endswith("data: [DONE]\n\n")
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert output == "closed\n"
    assert [line["route"] for line in map(json.loads, errors.splitlines()) if "route" in line] == ["/v1/chat/completions"]


@pytest.mark.slow
def test_while_it_drains_it_is_not_ready_but_still_serves(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-c", SERVER, str(request.path.parent), "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        process.terminate()
        for _ in range(200):
            if (ready := httpx.get(f"{url}/readyz")).status_code == 503:
                break
            time.sleep(0.05)
        assert ready.json()["status"] == "draining"
        assert httpx.post(f"{url}/v1/answer", json={"question": "还在吗？"}, timeout=20).status_code == 200
        # A second signal does not wait for the end of the draining.
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
