"""Prometheus metrics, named as vLLM names its own (`vllm:time_to_first_token_seconds` and the like)."""

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from isthmus.serve.messages import HandoffReport
from isthmus.state.plan import Outcome
from isthmus.transport.table import TRANSPORTS

__all__ = ["Metrics"]

OUTCOMES = frozenset(outcome.value for outcome in Outcome)
STAGES = ("reserve", "prefill", "plan", "transfer", "verify", "commit")
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One gateway's metrics, in a registry of their own: two gateways can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("isthmus:requests", "Requests by how they ended", ["outcome"], registry=self.registry)
        self.requests_running = Gauge("isthmus:num_requests_running", "Requests under way", registry=self.registry)
        self.attempts_failed = Counter(
            "isthmus:attempts_failed", "Attempts that failed, by error", ["code"], registry=self.registry
        )
        self.retries = Counter(
            "isthmus:retries", "Retries asked of the budget, by answer", ["answer"], registry=self.registry
        )
        self.retry_tokens = Gauge("isthmus:retry_tokens", "Retries that would be granted now", registry=self.registry)
        self.prompt_tokens = Counter("isthmus:prompt_tokens", "Prompt tokens", registry=self.registry)
        self.generation_tokens = Counter("isthmus:generation_tokens", "Tokens sent", registry=self.registry)
        self.ttft = self._histogram("isthmus:time_to_first_token_seconds", "TTFT")
        self.tpot = self._histogram("isthmus:time_per_output_token_seconds", "TPOT")
        self.handoffs = Counter(
            "isthmus:handoffs", "Hand-offs installed", ["outcome", "transport"], registry=self.registry
        )
        self.handoff_bytes = Counter("isthmus:handoff_bytes", "KV bytes on the wire", registry=self.registry)
        self.prefix_queries = Counter(
            "isthmus:prefix_cache_queries", "Prompt tokens handed off, by side", ["side"], registry=self.registry
        )
        self.prefix_hits = Counter(
            "isthmus:prefix_cache_hits", "Prompt tokens whose KV was kept, by side", ["side"], registry=self.registry
        )
        self.prefix_bytes = Counter(
            "isthmus:prefix_cache_bytes_not_moved", "KV bytes that the consumer had kept", registry=self.registry
        )
        self.handoff_stage = Histogram(
            "isthmus:handoff_stage_seconds",
            "Time in each stage of a hand-off",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.blocks = Gauge("isthmus:blocks", "Blocks by accounting state", ["worker", "state"], registry=self.registry)
        self.workers = Gauge("isthmus:workers", "Members by role", ["role"], registry=self.registry)
        self.unhealthy = Gauge(
            "isthmus:workers_unhealthy", "Members that take nothing new, by role", ["role"], registry=self.registry
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SECONDS, registry=self.registry)

    def on_handoff(self, report: HandoffReport) -> None:
        """Labels are of known sets: what a worker says must not make a series of its own each time."""
        self.handoffs.labels(_one_of(report.outcome, OUTCOMES), _one_of(report.transport, TRANSPORTS)).inc()
        self.handoff_bytes.inc(max(0, report.wire_bytes))
        for side, kept in (("producer", report.reused_tokens), ("consumer", report.have_tokens)):
            self.prefix_queries.labels(side).inc(max(0, report.tokens))
            self.prefix_hits.labels(side).inc(max(0, kept))
        self.prefix_bytes.inc(max(0, report.have_bytes))
        for stage in STAGES:
            if stage in report.stage_ms:
                self.handoff_stage.labels(stage).observe(report.stage_ms[stage] / 1000)

    def on_retry(self, *, granted: bool, tokens_left: float) -> None:
        """Somebody has asked the budget for a retry."""
        self.retries.labels("granted" if granted else "refused").inc()
        self.retry_tokens.set(tokens_left)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


def _one_of(value: str, known: Collection[str]) -> str:
    return value if value in known else "other"
