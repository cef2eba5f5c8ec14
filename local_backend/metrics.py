"""Counters and histograms of the engine, in vLLM's names, so that boards and autoscalers made for it work.

Times are taken in the front alone: monotonic clocks of two processes do not compare.
Source: vLLM docs/design/metrics.md, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from local_backend.messages import Stats

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)


class Metrics:
    """All metrics of one engine."""

    def __init__(self, model: str, stats: Callable[[], tuple[Stats | None, int]]) -> None:
        """stats: the core's last figures, and how often the core was restarted; asked when scraped."""
        self.registry = CollectorRegistry()
        self.registry.register(CoreCollector(model, stats))

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, ["model_name", *labels], registry=self.registry)

        def histogram(name: str, about: str) -> Histogram:
            seconds = Histogram(name, about, ["model_name"], registry=self.registry, buckets=SECONDS)
            return seconds.labels(model)

        self._model = model
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens taken in.").labels(model)
        self._generation_tokens = counter("vllm:generation_tokens", "Tokens generated.").labels(model)
        self._finished = counter("vllm:request_success", "Sequences finished, by reason.", "finished_reason")
        self._first = histogram("vllm:time_to_first_token_seconds", "From submission to the first token.")
        self._between = histogram("vllm:inter_token_latency_seconds", "Between tokens of one sequence.")
        self._whole = histogram("vllm:e2e_request_latency_seconds", "From submission to the last token.")

    def request_started(self, prompt_tokens: int, now: float) -> RequestClock:
        """A request was handed to the core at monotonic time `now`, in seconds."""
        self._prompt_tokens.inc(prompt_tokens)
        return RequestClock(self, now)

    def text(self) -> bytes:
        """Prometheus text exposition."""
        return generate_latest(self.registry)


class RequestClock:
    """Times of one request; `now` is always monotonic seconds."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        self._started = now
        self._last: dict[int, float] = {}

    def tokens(self, sequence: int, count: int, now: float) -> None:
        """`count` new tokens of one sequence came at once."""
        m = self._metrics
        m._generation_tokens.inc(count)
        last = self._last.get(sequence)
        if last is None:
            m._first.observe(now - self._started)
            last, count = now, count - 1
        for _ in range(count):
            m._between.observe((now - last) / count)
        self._last[sequence] = now

    def finished(self, reason: str, now: float) -> None:
        """One sequence ended: stop, length or abort."""
        self._metrics._finished.labels(self._metrics._model, reason).inc()
        self._metrics._whole.observe(now - self._started)


class CoreCollector(Collector):
    """What the core counts itself; read from its last step when somebody scrapes."""

    def __init__(self, model: str, stats: Callable[[], tuple[Stats | None, int]]) -> None:
        self._model = model
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats, restarts = self._stats()
        yield self._counter("farebox:engine_core_restarts", "Times the core was started again.", restarts)
        if stats is None:
            return
        used = 1.0 - stats.free_blocks / stats.total_blocks
        yield self._gauge("vllm:num_requests_running", "Sequences in the running batch.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting.", stats.waiting)
        yield self._gauge("farebox:queued_tokens", "Prompt tokens still to be computed.", stats.queued_tokens)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use; 1 is all.", used)
        # As vLLM tells it: a gauge that is always 1, the figure in a label.
        blocks = GaugeMetricFamily("vllm:cache_config_info", "KV blocks there are.", labels=["num_gpu_blocks"])
        blocks.add_metric([str(stats.total_blocks)], 1.0)
        yield blocks
        yield self._counter("vllm:num_preemptions", "Sequences preempted.", stats.preemptions)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_query_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prefix_hit_tokens)
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed.", stats.guessed)
        yield self._counter("vllm:spec_decode_num_accepted_tokens", "Guesses that held.", stats.guessed_right)
        yield self._counter("farebox:engine_steps", "Forward passes.", stats.steps)

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(name, about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
