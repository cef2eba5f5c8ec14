"""Prometheus metrics of one process. Names and labels are an interface: dashboards and alerts are built on them.

Labels are few and bounded: a client can ask for any model name, and each new label value is memory for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from billing.usage import UsageRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST
MODELS_MAX = 200
OTHER = "other"

# Seconds. From a cache hit on the next desk to a long reasoning answer.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class _Series(Struct, frozen=True):
    """What one kind of ending adds to, looked up once: finding a metric by its labels costs more than counting."""

    requests: Counter
    duration: Histogram
    first_token: Histogram
    charged: Counter


class Metrics:
    """Built once a process as `METRICS`; tests make their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._series: dict[tuple[str, str, str, int | None, str], _Series] = {}
        self._meters: dict[tuple[str, str, str], Counter] = {}
        self._results: dict[tuple[str, str], Counter] = {}
        self._serving = 0
        self._requests = Counter(
            "farebox_requests",
            "Requests that reached a provider, by how they ended.",
            ("dialect", "provider", "model", "status", "outcome"),
            registry=self._registry,
        )
        self._refused = Counter(
            "farebox_refused",
            "Requests that were refused before any provider was asked, by stable error code.",
            ("dialect", "code"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "farebox_request_duration_seconds",
            "From the request's arrival to its last byte.",
            ("provider", "model"),
            buckets=DURATION_BUCKETS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "farebox_first_token_seconds",
            "From the request's arrival to the first part of the answer.",
            ("provider", "model"),
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self._registry,
        )
        self._quantities = Counter(
            "farebox_metered", "Quantities by billing meter.", ("meter", "provider", "model"), registry=self._registry
        )
        self._charged = Counter(
            "farebox_charged_usd",
            "What clients were charged, in US dollars, as a float: the ledger has the exact amounts.",
            ("provider", "model"),
            registry=self._registry,
        )
        self._attempts = Counter(
            "farebox_upstream_attempts",
            "Calls to providers, by error kind or ok.",
            ("provider", "result"),
            registry=self._registry,
        )
        self._journal_errors = Counter(
            "farebox_journal_errors", "Usage journal writes that failed.", registry=self._registry
        )
        self._failed_open = Counter(
            "farebox_failed_open",
            "Checks that were skipped because what they ask was away; each kind is a written decision.",
            ("decision",),
            registry=self._registry,
        )
        self._orphans = Counter(
            "farebox_orphans",
            "Reservations whose gateway died: settled at their cost, or voided where no journal knows of them.",
            ("how",),
            registry=self._registry,
        )
        in_flight = Gauge("farebox_in_flight", "Requests being served now.", registry=self._registry)
        in_flight.set_function(lambda: self._serving)
        self._open_intents = Gauge(
            "farebox_open_intents", "Requests admitted and not yet settled in the journal.", registry=self._registry
        )

    def settled(self, record: UsageRecord, amount_pusd: int) -> None:
        """One request has ended and has been charged."""
        model, provider = self._bounded(record.alias), record.provider
        ending = (record.dialect, provider, model, record.status, record.outcome.value)
        series = self._series.get(ending) or self._new_series(*ending)
        series.requests.inc()
        if record.duration_ms is not None:
            series.duration.observe(max(record.duration_ms, 0) / 1000)
        if record.first_token_ms is not None:
            series.first_token.observe(max(record.first_token_ms, 0) / 1000)
        for meter, quantity in record.quantities.items():
            if quantity:
                counter = self._meters.get((meter, provider, model))
                if counter is None:
                    counter = self._meters[meter, provider, model] = self._quantities.labels(
                        meter.value, provider, model
                    )
                counter.inc(quantity)
        if amount_pusd > 0:
            series.charged.inc(amount_pusd / 10**12)

    def refused(self, dialect: str, code: str) -> None:
        """code: a GatewayError's own, never a text."""
        self._refused.labels(dialect, code).inc()

    def attempted(self, provider: str, result: str) -> None:
        """result: `ok` or the name of a ProviderError kind."""
        if (counter := self._results.get((provider, result))) is None:
            counter = self._results[provider, result] = self._attempts.labels(provider, result)
        counter.inc()

    def journal_failed(self) -> None:
        self._journal_errors.inc()

    def failed_open(self, decision: str) -> None:
        self._failed_open.labels(decision).inc()

    def orphans(self, how: str, count: int) -> None:
        if count:
            self._orphans.labels(how).inc(count)

    def arrived(self) -> None:
        self._serving += 1

    def left(self) -> None:
        self._serving -= 1

    def watch_open_intents(self, count: Callable[[], int]) -> None:
        """count: asked at each scrape."""
        self._open_intents.set_function(count)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes, of content type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _new_series(self, dialect: str, provider: str, model: str, status: int | None, outcome: str) -> _Series:
        made = self._series[dialect, provider, model, status, outcome] = _Series(
            self._requests.labels(dialect, provider, model, "none" if status is None else str(status), outcome),
            self._duration.labels(provider, model),
            self._first_token.labels(provider, model),
            self._charged.labels(provider, model),
        )
        return made

    def _bounded(self, model: str) -> str:
        if model in self._models:
            return model
        if len(self._models) >= MODELS_MAX:
            return OTHER
        self._models.add(model)
        return model


METRICS = Metrics()
"""The process's own. One global, because a metric that has to be handed around is a metric that is left out."""
