"""Every documented operation with bodies and parameters of every wrong kind: no crash, and no status that is not documented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from gateway_real import make_knowledge, real_answering
from gateway_server import LIMITS, Served, running
from lying_engine import lying

from appliance.admin.keys import Keys

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    0.5,
    "",
    " ",
    "a",
    "药" * 3_000,
    "\0",
    "a\0药",
    "‮\u2028😀\ufeff",
    "medical/quote",
    "../../etc/passwd",
    [],
    [[]],
    [None],
    ["\0"],
    ["药", "b"],
    {},
    {"a": 1},
]
RAW = [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 5_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"{}" * 3, "药".encode("gbk")]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with lying() as engine:
        knowledge = make_knowledge(tmp_path_factory.mktemp("fuzz"), engine.url)
        with running(Keys(knowledge.workspace.db), real_answering(knowledge), passage=knowledge.passage) as served:
            yield served
        knowledge.workspace.close()


def example(schema: dict[str, Any], components: dict[str, Any], depth: int = 0) -> Any:
    """A value of the schema that the route would take, as far as a schema tells."""
    if "$ref" in schema:
        return example(components[schema["$ref"].rpartition("/")[2]], components, depth)
    if "default" in schema and depth:
        return schema["default"]
    for name in ("anyOf", "allOf", "oneOf"):
        if name in schema:
            return example(schema[name][0], components, depth)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    match schema.get("type"):
        case "object":
            return {name: example(field, components, depth + 1) for name, field in schema.get("properties", {}).items()}
        case "array":
            return [example(schema["items"], components, depth + 1)] * max(1, schema.get("minItems", 0))
        case "integer" | "number":
            return 1
        case "boolean":
            return False
        case "null":
            return None
    return "auto"


def bodies(schema: dict[str, Any], components: dict[str, Any]) -> Iterator[bytes]:
    yield from RAW
    good = example(schema, components)
    known = {"domain": "medical", "arm": "quote", "labels": None}
    good |= {name: value for name, value in known.items() if name in good}
    if "messages" in good:
        # What no schema says: the last message must be the user's, and these fields are known only to be refused.
        refused = ("tools", "functions", "logprobs", "audio", "response_format")
        good = {"appliance": {}, **{name: value for name, value in good.items() if name not in refused}}
        good |= {"messages": [{"role": "user", "content": "挂号费是多少？"}], "appliance": {"domain": "medical", "arm": "quote"}}
    yield json.dumps(good).encode()
    yield json.dumps({**good, "stream": True}).encode()
    for name in good:
        for odd in ODD:
            yield json.dumps({**good, name: odd}).encode()
            for inner in good[name] if isinstance(good[name], dict) else ():
                yield json.dumps({**good, name: {**good[name], inner: odd}}).encode()
        yield json.dumps({key: value for key, value in good.items() if key != name}).encode()
    yield json.dumps({**good, "padding": "药" * LIMITS.body_bytes}).encode()


def requests(document: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any], set[str]]]:
    """(method, template, path, keyword arguments, documented statuses)"""
    components = document.get("components", {}).get("schemas", {})
    for template, operations in document["paths"].items():
        for method, operation in operations.items():
            documented = set(operation["responses"]) - {"default"}
            parameters = operation.get("parameters", [])
            places = [p["name"] for p in parameters if p["in"] == "path"]
            asked = {p["name"]: 1 for p in parameters if p["in"] == "query"}
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            path = template
            for name in places:
                path = path.replace("{" + name + "}", "medical")
            if content is None:
                yield method, template, path, {"params": asked}, documented
            else:
                for body in bodies(content["schema"], components):
                    yield method, template, path, {"content": body, "headers": {"Content-Type": "application/json"}}, documented
            texts = [odd for odd in ODD if isinstance(odd, str) and odd] + [2**70, -5, "NaN"]
            for odd in texts:
                for name in asked:
                    yield method, template, path, {"params": {**asked, name: odd}}, documented
                for name in places:
                    bent = template.replace("{" + name + "}", quote(str(odd)[:500], safe=""))
                    for other in places:
                        bent = bent.replace("{" + other + "}", "medical")
                    yield method, template, bent, {"params": asked}, documented


@pytest.mark.slow
def test_nothing_crashes_and_every_status_is_documented(real: Served) -> None:
    document = real.http("").get("/openapi.json").json()
    seen: dict[str, set[int]] = {}
    with real.http() as http:
        for method, template, path, arguments, documented in requests(document):
            response = http.request(method, path, **arguments)
            told = f"{method} {path} {str(arguments)[:300]}: {response.status_code} {response.text[:300]}"
            assert response.status_code != 500, told
            # A bent path may be no path of this operation at all.
            assert str(response.status_code) in documented | ({"404"} if path != template else set()), told
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}, told
            seen.setdefault(template, set()).add(response.status_code)
    assert {"/v1/chat/completions", "/v1/answer", "/v1/embeddings", "/v1/feedback"} <= set(seen)
    for template in ("/v1/chat/completions", "/v1/answer", "/v1/embeddings", "/v1/feedback"):
        assert {400, 413} <= seen[template]
    for template in ("/v1/chat/completions", "/v1/answer", "/v1/models", "/readyz", "/metrics"):
        assert 200 in seen[template], template
    # It is as well as before.
    assert http.is_closed and real.http("").get("/readyz").json()["status"] == "ready"
