"""Prometheus metrics of one process. Names and labels are an interface: dashboards and alerts are built on them.

Labels are few and bounded: a client can ask for any model name, and each new label value is memory for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from billing.usage import UsageRecord, output_tokens_total
from gateway.observe.tally import Spread, Tally

CONTENT_TYPE = CONTENT_TYPE_LATEST
MODELS_MAX = 200
OTHER = "other"

# Seconds. From a cache hit on the next desk to a long reasoning answer.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Built once a process as `METRICS`; tests make their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._models: set[str] = set()
        self._guardrails: set[str] = set()
        self._watched: dict[str, Any] = {}
        self._serving = 0
        by_model = ("provider", "model")
        self._requests = Tally(
            "farebox_requests",
            "Requests that reached a provider, by how they ended.",
            ("dialect", *by_model, "status", "outcome"),
        )
        self._refused = Tally(
            "farebox_refused",
            "Requests that were refused before any provider was asked, by stable error code.",
            ("dialect", "code"),
        )
        self._duration = Spread(
            "farebox_request_duration_seconds",
            "From the request's arrival to its last byte.",
            by_model,
            DURATION_BUCKETS,
        )
        self._first_token = Spread(
            "farebox_first_token_seconds",
            "From the request's arrival to the first part of the answer.",
            by_model,
            FIRST_TOKEN_BUCKETS,
        )
        self._quantities = Tally("farebox_metered", "Quantities by billing meter.", ("meter", *by_model))
        self._charged = Tally(
            "farebox_charged_usd",
            "What clients were charged, in US dollars, as a float: the ledger has the exact amounts.",
            by_model,
        )
        self._hedged = Tally(
            "farebox_hedged_requests", "Streams asked of two deployments at once, by which answered.", ("won",)
        )
        self._hedge_lost = Tally(
            "farebox_hedge_lost_usd",
            "About what prompts cost at deployments whose answer came second and was cancelled, in US dollars.",
            ("provider",),
        )
        self._continued = Tally("farebox_continued_streams", "Streams that broke and were carried on elsewhere.")
        self._shadowed = Tally(
            "farebox_shadow_requests", "Requests asked again for comparison, by error code or ok.", ("model", "result")
        )
        self._probes = Tally(
            "farebox_probes", "Probes of providers that this process made, by error kind or ok.", ("provider", "result")
        )
        self._attempts = Tally(
            "farebox_upstream_attempts", "Calls to providers, by error kind or ok.", ("provider", "result")
        )
        self._journal_errors = Tally("farebox_journal_errors", "Usage journal writes that failed.")
        self._failed_open = Tally(
            "farebox_failed_open",
            "Checks that were skipped because what they ask was away; each kind is a written decision.",
            ("decision",),
        )
        self._orphans = Tally(
            "farebox_orphans",
            "Reservations whose gateway died: settled at their cost, or voided where no journal knows of them.",
            ("how",),
        )
        self._budgets_passed = Tally(
            "farebox_budgets_passed",
            "Requests that a soft or throttled budget did not cover and let through.",
            ("kind", "scope"),
        )
        self._local_share = Tally(
            "farebox_local_share",
            "Requests asked for while the store of limits was away, that a gateway's own share covered or did not.",
            ("result",),
        )
        self._guarded = Tally(
            "farebox_guardrail_checks",
            "What guardrails made of requests, by guardrail, stage and outcome.",
            ("guardrail", "stage", "outcome"),
        )
        self._guardrail_asked = Spread(
            "farebox_guardrail_seconds",
            "How long guardrails that ask somebody else took to answer.",
            ("kind",),
            FIRST_TOKEN_BUCKETS,
        )
        self._notes_lost = Tally(
            "farebox_notes_lost",
            "Guardrail reports and logged bodies that were not written down: they are never waited for.",
            ("kind",),
        )
        self._per_token = Spread(
            "farebox_output_token_seconds",
            "From one token of an answer that streams to the next, its average of each request.",
            by_model,
            TOKEN_BUCKETS,
        )
        self._overrun = Tally(
            "farebox_overrun_usd", "What requests cost above what was held for them, in US dollars.", by_model
        )
        self._cached = Tally(
            "farebox_cache_saved_usd", "What was not charged because a provider's cache held it.", by_model
        )
        self._kept = Tally(
            "farebox_kept_answers", "Questions that an alias keeps answers for, by what came of them.", ("result",)
        )
        self._malformed = Tally(
            "farebox_malformed_requests", "Requests that are no HTTP, or no request of their dialect.", ("what",)
        )
        for family in (
            self._per_token,
            self._overrun,
            self._cached,
            self._kept,
            self._malformed,
            self._requests,
            self._refused,
            self._duration,
            self._first_token,
            self._quantities,
            self._charged,
            self._attempts,
            self._hedged,
            self._hedge_lost,
            self._continued,
            self._shadowed,
            self._probes,
            self._journal_errors,
            self._failed_open,
            self._orphans,
            self._budgets_passed,
            self._local_share,
            self._guarded,
            self._guardrail_asked,
            self._notes_lost,
        ):
            self._registry.register(family)
        in_flight = Gauge("farebox_in_flight", "Requests being served now.", registry=self._registry)
        in_flight.set_function(lambda: self._serving)
        self._up = Gauge("farebox_up", "1 while it answers this process.", ("what",), registry=self._registry)
        self._catalogue = Gauge(
            "farebox_catalogue_version", "Version of the database's catalogue in force here.", registry=self._registry
        )
        self._catalogue_refused = Gauge(
            "farebox_catalogue_refused", "1 while a newer catalogue or file has faults and the old one stands.",
            registry=self._registry,
        )  # fmt: skip
        self._limits_away = Gauge(
            "farebox_limits_away", "1 while the store of limits (Redis) does not answer.", registry=self._registry
        )
        self._open_intents = Gauge(
            "farebox_open_intents", "Requests admitted and not yet settled in the journal.", registry=self._registry
        )

    def settled(self, record: UsageRecord, amount_pusd: int) -> None:
        """One request has ended and has been charged."""
        model, provider = self._bounded(record.alias), record.provider
        place = (provider, model)
        status = "none" if record.status is None else str(record.status)
        self._requests.add((record.dialect, provider, model, status, record.outcome))
        if record.duration_ms is not None:
            self._duration.observe(place, max(record.duration_ms, 0) / 1000)
        if record.first_token_ms is not None:
            self._first_token.observe(place, max(record.first_token_ms, 0) / 1000)
            if record.duration_ms is not None and (written := output_tokens_total(record.quantities)) > 1:
                spread_ms = max(record.duration_ms - record.first_token_ms, 0)
                self._per_token.observe(place, spread_ms / 1000 / (written - 1))
        if amount_pusd > record.hold_pusd:
            self._overrun.add(place, (amount_pusd - record.hold_pusd) / 10**12)
        for meter, quantity in record.quantities.items():
            if quantity:
                self._quantities.add((meter, provider, model), quantity)
        if amount_pusd > 0:
            self._charged.add(place, amount_pusd / 10**12)

    def catalogue(self, version: int, *, refused: bool) -> None:
        self._catalogue.set(version)
        self._catalogue_refused.set(int(refused))

    def saved(self, record: UsageRecord, saved_pusd: int) -> None:
        """saved_pusd: what its cached tokens would have cost beside what they did."""
        self._cached.add((record.provider, self._bounded(record.alias)), saved_pusd / 10**12)

    def kept_answer(self, result: str) -> None:
        """result: hit, similar, miss, unlike (none was close enough) or not_embedded."""
        self._kept.add((result,))

    def malformed(self, what: str) -> None:
        """what: `http` or `body`."""
        self._malformed.add((what,))

    def up(self, what: str, is_up: bool) -> None:
        """what: `redis` or `database`."""
        self._up.labels(what).set(int(is_up))

    def watch(self, family: Any) -> None:
        """A family of gauges that is read at each scrape (`observe.vitals.Standing`); one of a name, the newest."""
        if (before := self._watched.pop(family.name, None)) is not None:
            self._registry.unregister(before)
        self._watched[family.name] = family
        self._registry.register(family)

    def refused(self, dialect: str, code: str) -> None:
        """code: a GatewayError's own, never a text."""
        self._refused.add((dialect, code))

    def attempted(self, provider: str, result: str) -> None:
        """result: `ok` or the name of a ProviderError kind."""
        self._attempts.add((provider, result))

    def hedged(self, won: str) -> None:
        """won: "first" or "second": which of two deployments asked at once answered."""
        self._hedged.add((won,))

    def hedge_lost(self, provider: str, pusd: int) -> None:
        """provider: an operator's name."""
        self._hedge_lost.add((provider,), pusd / 10**12)

    def continued(self) -> None:
        self._continued.add()

    def shadowed(self, model: str, result: str) -> None:
        """model: an operator's alias. result: `ok`, `dropped` or a GatewayError's code."""
        self._shadowed.add((model, result))

    def probed(self, provider: str, result: str) -> None:
        """provider: an operator's name. result: `ok` or an error's kind and status."""
        self._probes.add((provider, result))

    def journal_failed(self) -> None:
        self._journal_errors.add()

    def failed_open(self, decision: str) -> None:
        self._failed_open.add((decision,))

    def orphans(self, how: str, count: int) -> None:
        if count:
            self._orphans.add((how,), count)

    def budget_passed(self, kind: str, scope: str) -> None:
        self._budgets_passed.add((kind, scope))

    def local_share(self, result: str) -> None:
        self._local_share.add((result,))

    def limits_away(self, away: bool) -> None:
        self._limits_away.set(int(away))

    def guarded(self, guardrail: str, stage: str, outcome: str) -> None:
        """guardrail: its name. Those of one process are bounded as models are."""
        if guardrail not in self._guardrails and len(self._guardrails) >= MODELS_MAX:
            guardrail = OTHER
        self._guardrails.add(guardrail)
        self._guarded.add((guardrail, stage, outcome))

    def guardrail_asked(self, kind: str, seconds: float) -> None:
        self._guardrail_asked.observe((kind,), seconds)

    def note_lost(self, kind: str) -> None:
        self._notes_lost.add((kind,))

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

    def _bounded(self, model: str) -> str:
        if model in self._models:
            return model
        if len(self._models) >= MODELS_MAX:
            return OTHER
        self._models.add(model)
        return model


METRICS = Metrics()
"""The process's own. One global, because a metric that has to be handed around is a metric that is left out."""
