"""OpenTelemetry: one span for a request, one for each call to a provider, by the conventions of generative AI.

Loaded only where `telemetry.otlp_endpoint` is set, with the extra `farebox[otel]`. No prompt and no answer is ever in a
span. Source: OpenTelemetry semantic conventions for generative AI, spans and client metrics (of development status),
W3C Trace Context; opentelemetry-sdk 1.45; read 2026-11."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from billing.usage import Meter, Outcome, UsageRecord, input_tokens_total, output_tokens_total
from gateway.sections import TelemetrySettings
from providers.transport.base import TRACE_HEADERS

if TYPE_CHECKING:
    from gateway.ingress.endpoints import Route
    from gateway.routing.policy import Leg

# The conventions' words for who is asked; another one goes by the name of its section.
_PROVIDERS: Final = {
    "openai": "openai",
    "anthropic": "anthropic",
    "bedrock": "aws.bedrock",
    "bedrock_openai": "aws.bedrock",
    "azure_ai": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "groq": "groq",
    "cohere": "cohere",
}
_OPERATIONS: Final = {
    "chat": "chat",
    "conversation": "chat",
    "interaction": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_TOKEN_BOUNDS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_SECOND_BOUNDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_W3C: Final = TraceContextTextMapPropagator()


class Traces:
    """One a process. Close with `shutdown`, in a thread: it sends what is left."""

    def __init__(self, settings: TelemetrySettings) -> None:
        assert settings.otlp_endpoint is not None
        base = settings.otlp_endpoint.rstrip("/")
        headers = {name: secret.reveal() for name, secret in settings.headers.items()}
        resource = Resource.create({"service.name": settings.service_name})
        self._spans = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample)), shutdown_on_exit=False
        )
        self._spans.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=f"{base}/v1/traces", headers=headers),
                schedule_delay_millis=int(settings.every_s * 1000),
            )
        )
        self._tracer = self._spans.get_tracer("farebox")
        self._meters: MeterProvider | None = None
        self.tokens: Histogram | None = None
        self.duration: Histogram | None = None
        if settings.metrics:
            reader = PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=f"{base}/v1/metrics", headers=headers),
                export_interval_millis=settings.every_s * 1000,
            )
            bounds = {"gen_ai.client.token.usage": _TOKEN_BOUNDS, "gen_ai.client.operation.duration": _SECOND_BOUNDS}
            views = [
                View(instrument_name=name, aggregation=ExplicitBucketHistogramAggregation(each))
                for name, each in bounds.items()
            ]
            self._meters = MeterProvider([reader], resource=resource, views=views, shutdown_on_exit=False)
            meter = self._meters.get_meter("farebox")
            self.tokens = meter.create_histogram("gen_ai.client.token.usage", unit="{token}")
            self.duration = meter.create_histogram("gen_ai.client.operation.duration", unit="s")

    def begin(self, route: Route, headers: Mapping[str, str], request_id: str, now_ns: int) -> RequestTrail:
        """headers: the client's, lower case, where its own trace may stand."""
        context = _W3C.extract(headers)
        operation = _OPERATIONS.get(route.operation, route.operation)
        attributes = {
            "gen_ai.operation.name": operation,
            "farebox.request_id": request_id,
            "farebox.dialect": route.dialect,
        }
        span = self._tracer.start_span(
            operation, context, kind=SpanKind.SERVER, attributes=attributes, start_time=now_ns
        )
        structlog.contextvars.bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        return RequestTrail(self, span, operation)

    def begin_attempt(self, trail: RequestTrail, leg: Leg, links: list[Link]) -> Span:
        deployment = leg.deployment
        return self._tracer.start_span(
            f"{trail.operation} {deployment.model}",
            set_span_in_context(trail.span),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": trail.operation,
                "gen_ai.provider.name": _PROVIDERS.get(deployment.provider, deployment.provider),
                "gen_ai.request.model": deployment.model,
                "farebox.deployment": deployment.id,
            },
            links=links,
        )

    def shutdown(self) -> None:
        self._spans.shutdown()
        if self._meters is not None:
            self._meters.shutdown()


class RequestTrail:
    """See `gateway.observe.trail.Trail`."""

    def __init__(self, traces: Traces, span: Span, operation: str) -> None:
        self._traces = traces
        self._first: Span | None = None
        self._ended = False
        self.span = span
        self.operation = operation

    def attempt(self, leg: Leg, number: int) -> AttemptTrail:
        """A second call may run beside the first (hedging) or after it: either way it says which one it stands for."""
        links = [Link(self._first.get_span_context())] if number > 1 and self._first is not None else []
        span = self._traces.begin_attempt(self, leg, links)
        if self._first is None:
            self._first = span
        if number > 1:
            span.set_attribute("farebox.attempt", number)
        carried: dict[str, str] = {}
        _W3C.inject(carried, set_span_in_context(span))
        TRACE_HEADERS.set(tuple(carried.items()))
        return AttemptTrail(span)

    def settled(self, record: UsageRecord) -> None:
        read, written = input_tokens_total(record.quantities), output_tokens_total(record.quantities)
        provider = _PROVIDERS.get(record.provider, record.provider)
        failed = record.outcome is not Outcome.COMPLETED
        common: dict[str, Any] = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": record.alias,
            "gen_ai.response.model": record.model,
        }
        if self._traces.tokens is not None and self._traces.duration is not None:
            # Billable tokens, whoever counted them.
            self._traces.tokens.record(read, common | {"gen_ai.token.type": "input"})
            self._traces.tokens.record(written, common | {"gen_ai.token.type": "output"})
            error = {"error.type": record.outcome.value} if failed else {}
            self._traces.duration.record((record.duration_ms or 0) / 1000, common | error)
        if self.span.is_recording():
            self.span.update_name(f"{self.operation} {record.alias}")
            self.span.set_attributes(common)
            self.span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": read,
                    "gen_ai.usage.output_tokens": written,
                    "gen_ai.usage.cache_read.input_tokens": record.quantities.get(Meter.CACHE_READ_TOKENS, 0),
                    "farebox.outcome": record.outcome.value,
                    "farebox.attempts": record.attempts,
                    "farebox.estimated": record.estimated,
                }
            )
            if record.finish_reason is not None:
                self.span.set_attribute("gen_ai.response.finish_reasons", [record.finish_reason])
            if record.first_token_ms is not None:
                self.span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_token_ms / 1000)
            if failed:
                self._failed(record.outcome.value)
        self.end()

    def refused(self, code: str, status: int) -> None:
        self.span.set_attribute("http.response.status_code", status)
        self._failed(code)
        self.end()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.span.end()

    def _failed(self, kind: str) -> None:
        self.span.set_attribute("error.type", kind)
        self.span.set_status(Status(StatusCode.ERROR))


class AttemptTrail:
    """See `gateway.observe.trail.Attempt`."""

    def __init__(self, span: Span) -> None:
        self._span: Span | None = span

    def end(self, error: BaseException | None = None) -> None:
        if self._span is None:
            return
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
        self._span = None
