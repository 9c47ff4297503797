"""Prometheus metrics in a registry of the app's own. No label ever names a caller or comes from free text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from appliance.engines.breaker import Faults
from appliance.gateway.admission import Queues
from appliance.gateway.errors import CLIENT_GONE
from appliance.gateway.events import Answers
from appliance.gateway.trace import Trace
from appliance.jobs.schedule import OUTCOMES

# Since the question was taken up; `queue` is all it waited for its turns, of which the one for the model is part of the later stages.
STAGES = ("retrieval", "decision", "first_token", "total")
_FAULTS = tuple(field.name for field in fields(Faults))
_STATES = ("closed", "half-open", "open")
# Seconds: from a cached lookup to a long answer on a small machine.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The gateway's metrics: requests, answers by stage, the queues, the engines, and the process itself."""

    def __init__(
        self,
        answering: Answers,
        queues: Queues,
        shares: Callable[[], Sequence[tuple[str, str, float]]] = tuple,
        jobs: Callable[[], Mapping[tuple[str, str], int]] = dict,
        refreshes: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`shares` are (domain, version, share of the questions) of the versions on trial, `jobs` the number of jobs by (kind, state),
        `refreshes` what came of the last scheduled refresh by domain."""
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
            ["stage", "arm", "domain", "adapter"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.failed = Histogram(
            "appliance_failed_seconds",
            "Time until requests failed (5xx) or were given up by their clients (499), which no stage of an answer tells.",
            ["route", "arm", "domain", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter("appliance_tokens", "Tokens read, generated and embedded.", ["kind", "domain"], registry=self.registry)
        self.cache = Counter(
            "appliance_answer_cache", "Looks for an answer in the cache, by what came of it.", ["outcome", "domain"], registry=self.registry
        )
        self.over_quota = Counter("appliance_quota_exceeded", "Requests refused with 429, by the quota.", ["quota"], registry=self.registry)
        self.in_progress = Gauge("appliance_requests_in_progress", "Requests being served now.", registry=self.registry)
        self.registry.register(_State(answering, queues, shares, jobs, refreshes))
        ProcessCollector(registry=self.registry)

    def count(self, route: str, trace: Trace, status: int, seconds: float) -> None:
        """Record one finished request, which took so long."""
        self.requests.labels(route, trace.arm, trace.domain, str(status)).inc()
        if status >= CLIENT_GONE:
            self.failed.labels(route, trace.arm, trace.domain, str(status)).observe(seconds)
        answer = trace.answer
        if answer is None:
            if not trace.answer_id and trace.spent:
                # Embeddings are of no domain.
                self.tokens.labels("embedded", "").inc(trace.spent)
            return
        about = (answer.arm, answer.domain, answer.adapter or "")
        for stage in STAGES:
            if stage in answer.timings:
                self.stage.labels(stage, *about).observe(answer.timings[stage] / 1000)
        if trace.queued is not None:
            self.stage.labels("queue", *about).observe(trace.queued / 1000)
        if answer.cached is not None:
            self.cache.labels("hit" if answer.cached else "miss", answer.domain).inc()
        self.tokens.labels("prompt", answer.domain).inc(answer.usage.prompt_tokens)
        self.tokens.labels("completion", answer.domain).inc(answer.usage.completion_tokens)


class _State(Collector):
    """What is read at the moment of a scrape: the queues, the engines, the versions on trial, the jobs and the scheduled refreshes."""

    def __init__(
        self,
        answering: Answers,
        queues: Queues,
        shares: Callable[[], Sequence[tuple[str, str, float]]],
        jobs: Callable[[], Mapping[tuple[str, str], int]],
        refreshes: Callable[[], Mapping[str, str]],
    ) -> None:
        self.answering, self.queues, self.shares, self.jobs, self.refreshes = answering, queues, shares, jobs, refreshes

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("appliance_answers_running", "Answers and embeddings that have their turn.", labels=["queue"])
        queued = GaugeMetricFamily("appliance_answers_queued", "Answers and embeddings that wait for their turn.", labels=["queue"])
        refused = CounterMetricFamily(
            "appliance_queue_full", "Requests refused with 503: the queue was full, or the wait too long.", labels=["queue"]
        )
        for name, queue in self.queues.named().items():
            running.add_metric([name], queue.running)
            queued.add_metric([name], queue.queued)
            refused.add_metric([name], queue.refused)
        yield running
        yield queued
        yield refused
        state = GaugeMetricFamily(
            "appliance_engine_state", "1 for the state that an engine's circuit breaker is in.", labels=["engine", "state"]
        )
        faults = CounterMetricFamily(
            "appliance_engine_faults",
            "Failures, timeouts and retries of an engine, and requests refused because it keeps failing.",
            labels=["engine", "fault"],
        )
        for name, guard in self.answering.guards().items():
            for known in _STATES:
                state.add_metric([name, known], float(guard.state == known))
            for kind in _FAULTS:
                faults.add_metric([name, kind], getattr(guard.faults, kind))
        yield state
        yield faults
        trials = GaugeMetricFamily("appliance_canary_share", "Share of the questions of a version on trial.", labels=["domain", "adapter"])
        for domain, version, share in self.shares():
            trials.add_metric([domain, version], share)
        yield trials
        counts = GaugeMetricFamily("appliance_jobs", "Jobs that are kept, by their state.", labels=["kind", "state"])
        for (kind, state_of_job), count in self.jobs().items():
            counts.add_metric([kind, state_of_job], count)
        yield counts
        last = GaugeMetricFamily(
            "appliance_refresh_state", "1 for what came of a domain's last scheduled refresh.", labels=["domain", "outcome"]
        )
        for domain, outcome in self.refreshes().items():
            for known in OUTCOMES:
                last.add_metric([domain, known], float(outcome == known))
        yield last
