"""Traces and metrics as a collector gets them: real OTLP over HTTP, read as protobuf."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.config import Secret
from gateway.sections import TelemetrySettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator, Out, Request

pytestmark = pytest.mark.asyncio(loop_scope="module")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Collector(Emulator):
    """OTLP over HTTP. Source: OTLP 1.7, "OTLP/HTTP", read 2026-11."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.metrics: dict[str, Any] = {}
        self.raw = b""

    async def handle(self, request: Request, out: Out) -> None:
        assert request.headers["authorization"] == "Bearer collector"
        assert request.headers["content-type"] == "application/x-protobuf"
        body = request.body
        if request.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.raw += body
        if request.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    self.spans += scope.spans
        else:
            assert request.path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope.metrics})
        await out.whole(200, b"", {"content-type": "application/x-protobuf"})

    async def until(self, found: Callable[[], Any]) -> Any:
        async with asyncio.timeout(60):
            while not (got := found()):
                await asyncio.sleep(0.02)
        return got

    def of(self, trace: str, kind: int) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace and span.kind == kind]


def said(span: Span) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in span.attributes:
        which = each.value.WhichOneof("value")
        value = getattr(each.value, which)
        values[each.key] = [item.string_value for item in value.values] if which == "array_value" else value
    return values


@dataclass
class Place:
    gateway: House
    collector: Collector
    upstream: OpenAIEmulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Place]:
    data = tmp_path_factory.mktemp("traces")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as upstream, Collector() as collector:
        providers = {"openai": provider("openai", f"{upstream.url}/v1")}
        models = (model("gpt", "openai/echo-1"), model("falls", "openai/fault-503", "openai/echo-1"))
        telemetry = TelemetrySettings(
            otlp_endpoint=collector.url, headers={"authorization": Secret("Bearer collector", {})}, every_s=0.05
        )
        settings = settings_for(data, f"sqlite:///{database}", _valkey, providers, models, telemetry=telemetry)
        async with house(settings) as built:
            yield Place(built, collector, upstream)


async def ask(place: Place, body: dict[str, Any], parent: str = PARENT) -> httpx.Response:
    headers = {"authorization": f"Bearer {place.gateway.key}", "traceparent": parent}
    async with httpx.AsyncClient(timeout=60) as http:
        return await http.post(f"{place.gateway.v1}/chat/completions", json=body, headers=headers)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_request_is_a_span_below_its_clients_and_each_call_one_below_it(place: Place, stream: bool) -> None:
    trace = f"{'a' if stream else 'b'}" * 32
    body = {"model": "gpt", "messages": [{"role": "user", "content": "a secret word"}], "stream": stream}
    answer = await ask(place, body, f"00-{trace}-b7ad6b7169203331-01")
    assert answer.status_code == 200
    sent = place.upstream.last.headers["traceparent"]
    (request,) = await place.collector.until(lambda: place.collector.of(trace, Span.SPAN_KIND_SERVER))
    (call,) = await place.collector.until(lambda: place.collector.of(trace, Span.SPAN_KIND_CLIENT))
    assert (request.name, request.parent_span_id.hex()) == ("chat gpt", "b7ad6b7169203331")
    assert (call.name, call.parent_span_id) == ("chat echo-1", request.span_id)
    assert sent == f"00-{trace}-{call.span_id.hex()}-01"
    facts = said(request)
    assert facts["gen_ai.operation.name"] == "chat"
    assert facts["gen_ai.provider.name"] == "openai"
    assert (facts["gen_ai.request.model"], facts["gen_ai.response.model"]) == ("gpt", "echo-1")
    assert facts["gen_ai.response.finish_reasons"] == ["stop"]
    assert facts["gen_ai.usage.input_tokens"] > 0
    assert facts["gen_ai.usage.output_tokens"] > 0
    assert facts["farebox.request_id"] == answer.headers["x-request-id"]
    assert ("gen_ai.response.time_to_first_chunk" in facts) is stream
    assert request.start_time_unix_nano <= call.start_time_unix_nano <= call.end_time_unix_nano
    assert b"secret word" not in place.collector.raw


async def test_a_second_call_says_which_one_it_stands_for(place: Place) -> None:
    answer = await ask(place, {"model": "falls", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.headers["x-farebox-attempts"] == "2"
    trace = PARENT.split("-")[1]
    calls = await place.collector.until(
        lambda: len(found := place.collector.of(trace, Span.SPAN_KIND_CLIENT)) == 2 and found
    )
    first, second = sorted(calls, key=lambda span: int(span.start_time_unix_nano))
    assert said(first)["error.type"] == "Overloaded"
    assert [link.span_id for link in second.links] == [first.span_id]
    assert said(second)["farebox.attempt"] == 2


async def test_a_refused_request_tells_its_code_and_a_client_that_keeps_no_trace_is_heard(place: Place) -> None:
    trace = "c" * 32
    answer = await ask(
        place, {"model": "none", "messages": [{"role": "user", "content": "hi"}]}, f"00-{trace}-b7ad6b7169203331-01"
    )
    assert answer.status_code == 404
    (request,) = await place.collector.until(lambda: place.collector.of(trace, Span.SPAN_KIND_SERVER))
    assert (said(request)["error.type"], said(request)["http.response.status_code"]) == ("model_not_found", 404)
    answer = await ask(place, {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}, UNSAMPLED)
    assert answer.status_code == 200
    assert place.upstream.last.headers["traceparent"].endswith("-00")
    later = "d" * 32
    await ask(
        place, {"model": "none", "messages": [{"role": "user", "content": "hi"}]}, f"00-{later}-b7ad6b7169203331-01"
    )
    await place.collector.until(lambda: place.collector.of(later, Span.SPAN_KIND_SERVER))
    assert not place.collector.of(UNSAMPLED.split("-")[1], Span.SPAN_KIND_SERVER)


async def test_tokens_and_durations_are_metrics(place: Place) -> None:
    await ask(place, {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]})
    metrics = place.collector.metrics
    names = {"gen_ai.client.token.usage", "gen_ai.client.operation.duration"}
    await place.collector.until(lambda: names <= set(metrics))
    tokens = metrics["gen_ai.client.token.usage"]
    kinds = {each.value.string_value for point in tokens.histogram.data_points for each in point.attributes
             if each.key == "gen_ai.token.type"}  # fmt: skip
    assert (kinds, tokens.unit) == ({"input", "output"}, "{token}")
    assert tokens.histogram.data_points[0].explicit_bounds[:3] == [1, 4, 16]
    assert metrics["gen_ai.client.operation.duration"].unit == "s"


async def test_log_lines_name_the_trace(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    from gateway.config import LogSettings
    from gateway.observe import logs

    logs.configure(LogSettings(format="json"))
    trace = "e" * 32
    said = "x-script: fault=cut-mid-frame long=50"
    body = {"model": "gpt", "messages": [{"role": "user", "content": said}], "stream": True}
    answer = await ask(place, body, f"00-{trace}-b7ad6b7169203331-01")
    assert answer.status_code == 200
    logging.getLogger().handlers[0].flush()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
    assert told
    assert told[0]["trace_id"] == trace
