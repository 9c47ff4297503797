"""The dashboard and the alert rules on the metrics of a real gateway: each expression parses, and each metric is there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateway_fake import FakeAnswering
from gateway_server import Served
from prometheus_client.parser import text_string_to_metric_families

from appliance.engines.base import EngineDown
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.openai import OpenAIEngine
from tests.needs import program

MONITORING = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
# Grafana fills these in.
_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$domain": ".*"}


def _dashboard() -> dict[str, str]:
    """Panel and query to expression."""
    content = json.loads((MONITORING / "grafana" / "dashboards" / "appliance.json").read_text("utf-8"))
    return {f"{panel['title']} {target['refId']}": target["expr"] for panel in content["panels"] for target in panel["targets"]}


def _alerts() -> dict[str, str]:
    [group] = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def _filled(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _scraped(served: Served) -> dict[str, set[str]]:
    """Every sample name the gateway shows once it has answered and failed, with the names of its labels."""
    with served.http() as http:
        assert http.post("/v1/answer", json={"question": "几点可以探视？", "domain": "medical"}).status_code == 200
        served.answering.fault = EngineDown("it broke")
        assert http.post("/v1/answer", json={"question": "几点可以探视？", "domain": "medical"}).status_code == 503
        served.answering.fault = None
        text = http.get("/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


class OneGuard(FakeAnswering):
    """With an engine as the pool makes it."""

    def guards(self) -> dict[str, Any]:
        return {"default": Guarded(OpenAIEngine("default", "http://127.0.0.1:9/v1", "m", None, ["zh"]), TimeLimits(), Breaker(5, 30.0))}


@pytest.fixture
def served(start: Callable[..., Served]) -> Served:
    return start(
        OneGuard(),
        shares=lambda: [("medical", "medical@1a2b3c4d", 0.1)],
        jobs=lambda: {("tune", "running"): 1, ("tune", "failed"): 2},
        refreshes=lambda: {"medical": "failed"},
    )


def test_every_metric_and_label_is_in_a_scrape(served: Served) -> None:
    scraped = _scraped(served)
    for name, expression in (_dashboard() | _alerts()).items():
        _check(name, expression, scraped)


def test_every_metric_has_a_panel(served: Served) -> None:
    shown = " ".join(_dashboard().values())
    for metric in _scraped(served):
        name = re.sub("_(bucket|sum|count|created)$", "", metric)
        assert name in shown or not name.startswith("appliance_"), f"{metric} is in no panel"


def _check(name: str, expression: str, scraped: dict[str, set[str]]) -> None:
    metrics = set(re.findall(r"\b[a-z_]+(?=\{|\[)", expression)) - {"by"}
    metrics |= set(re.findall(r"\b(?:appliance|process)_[a-z_]+", expression))
    assert metrics, name
    # Those that the scrape itself adds.
    labels = {"instance", "job"}
    for metric in metrics - {"up"}:
        assert metric in scraped, metric
        labels |= scraped[metric]
    used = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    # A histogram's label appears with its first sample; a counter's that never counted has none yet.
    known = labels | ({"quota"} if "quota_exceeded" in expression else set())
    assert used <= known, f"{name}: no label {used - known}"


def test_every_expression_parses(tmp_path: Path) -> None:
    promtool = program("promtool")
    rules = [{"record": f"panel:{number}", "expr": _filled(expression)} for number, expression in enumerate(_dashboard().values())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"SUCCESS: {len(rules)} rules found" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_prometheus_answers_every_panel(served: Served, tmp_path: Path) -> None:
    """A real Prometheus scrapes a real gateway; each panel's query succeeds there, and those that must have data have some."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "alerts.yml")]
    config["scrape_configs"] = config["scrape_configs"][:1]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [served.url.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as http:
            found: dict[str, Any] = {}
            for _ in range(40):
                _scraped(served)
                time.sleep(0.5)
                try:
                    found = {name: http.get("/query", params={"query": _filled(expr)}).json() for name, expr in _dashboard().items()}
                except httpx.TransportError:
                    continue
                assert all(answer["status"] == "success" for answer in found.values()), found
                if all(found[name]["data"]["result"] for name in found if not name.startswith(("Turned away B", "Answers by adapter"))):
                    break
            else:
                raise AssertionError({name: answer for name, answer in found.items() if not answer["data"]["result"]})
            rules = http.get("/rules").json()["data"]["groups"][0]["rules"]
            assert {rule["name"] for rule in rules} == set(_alerts()) and all(rule["health"] == "ok" for rule in rules)
    finally:
        process.terminate()
        process.wait(20)
