"""Prometheus metrics in a registry of the app's own. No label ever names a caller or comes from free text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from appliance.gateway.trace import Trace

STAGES = ("retrieval", "decision", "first_token", "total")
# Seconds: from a cached lookup to a long answer on a small machine.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The gateway's metrics: requests, answers by stage, and the process itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "appliance_requests",
            "Requests by route template, and arm and domain where an answer was routed.",
            ["route", "arm", "domain", "status"],
            registry=self.registry,
        )
        self.stage = Histogram(
            "appliance_stage_seconds",
            "Time to finish each stage of an answer.",
            ["stage", "arm", "domain"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter("appliance_tokens", "Tokens read and generated.", ["kind", "domain"], registry=self.registry)
        self.in_progress = Gauge("appliance_requests_in_progress", "Requests being served now.", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def count(self, route: str, trace: Trace, status: int) -> None:
        """Record one finished request."""
        self.requests.labels(route, trace.arm, trace.domain, str(status)).inc()
        answer = trace.answer
        if answer is None:
            return
        for stage in STAGES:
            if stage in answer.timings:
                self.stage.labels(stage, answer.arm, answer.domain).observe(answer.timings[stage] / 1000)
        self.tokens.labels("prompt", answer.domain).inc(answer.usage.prompt_tokens)
        self.tokens.labels("completion", answer.domain).inc(answer.usage.completion_tokens)
