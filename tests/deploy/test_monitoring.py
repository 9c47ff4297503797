"""Prometheus' configuration and the alert rules, with Prometheus' own tools; the dashboard is tested on a real gateway."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "monitoring"


CONFIGURATIONS = ("prometheus.yml", "kubernetes.yml")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_prometheus_accepts_its_configuration(tool: Any, name: str) -> None:
    assert "FAILED" not in tool("promtool", "check", "config", FOLDER / name)


def test_both_configurations_name_the_jobs_of_the_alerts() -> None:
    used = set(re.findall(r'job="(\w+)"', (FOLDER / "alerts.yml").read_text("utf-8")))
    for name in CONFIGURATIONS:
        content = yaml.safe_load((FOLDER / name).read_text("utf-8"))
        assert used <= {job["job_name"] for job in content["scrape_configs"]} and content["rule_files"] == ["alerts.yml"]
        assert content["alerting"]["alertmanagers"], "nobody is told"


def test_the_alerts_pass_their_unit_tests(tool: Any) -> None:
    assert "SUCCESS" in tool("promtool", "test", "rules", FOLDER / "alerts_test.yml")


@pytest.mark.slow
def test_the_unit_tests_would_notice(tool: Any, tmp_path: Path) -> None:
    """An alert that never fires fails its test."""
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    text = (FOLDER / "alerts.yml").read_text("utf-8")
    for alert in re.findall(r"expr: >-\n.+\n.+|expr: [^>].+", text):
        (tmp_path / "alerts.yml").write_text(text.replace(alert, "expr: vector(1) == 2"), "utf-8")
        try:
            tool("promtool", "test", "rules", tmp_path / "alerts_test.yml")
        except AssertionError as error:
            assert "FAILED" in str(error)
        else:
            raise AssertionError(f"no test noticed that this never fires: {alert}")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    [group] = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text("utf-8"))["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for rule in group["rules"]} == tested
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical") and {"summary", "action"} <= rule["annotations"].keys()
